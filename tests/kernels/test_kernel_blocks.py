"""The kernels agree with the dense block in float64, for every geometry, dtype and scale that they take."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from oracles import PLAIN, Arguments, geometries, lowered
from torch import Tensor

import lrbench
from lrbench.blocks import Blocks, DenseBlocks, ScaledBlocks
from lrbench.compressors import spectral
from lrbench.kernels.gram import columns_gram, columns_scratch, rows_doubt, rows_gram, rows_scratch
from lrbench.kernels.kernel_blocks import KernelBlocks
from lrbench.kernels.layout import Layout
from lrbench.low_rank import Crosses

C, H, W = 4, 7, 6
EVERY = [g for g in geometries(C, H, W) if g["padding_mode"] in ("zeros", "circular")]


def images(dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.rand(2, C, H, W, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def kernels_view(blocks: Blocks) -> KernelBlocks:
    view = KernelBlocks.of(blocks)
    assert view is not None
    return view


def gram(view: KernelBlocks, side: str, dtype: str = "float64") -> NDArray[np.float64]:
    layout = view.layout
    m, n = layout.channels * layout.R * layout.S, layout.lines * layout.columns
    scratch, kernel, size = (
        (rows_scratch(layout, np.empty(0, dtype)), rows_gram, m)
        if side == "rows"
        else (columns_scratch(layout), columns_gram, n)
    )
    out = np.full((len(view.images), size, size), np.nan)
    for b, image in enumerate(view.images):
        kernel(image, np.ldexp(1.0, view.exponent[b]), 1.0, layout, scratch, out[b])
    # Above the diagonal is whatever was there.
    return np.tril(out) + np.tril(out, -1).transpose(0, 2, 1)


@pytest.mark.parametrize("side", ["rows", "columns"])
def test_gram_matrices_are_those_of_the_blocks_for_every_geometry(side: str) -> None:
    x = images()
    for arguments in EVERY:
        D = lowered(x, arguments)
        expected = D @ D.transpose(0, 2, 1) if side == "rows" else D.transpose(0, 2, 1) @ D
        found = gram(kernels_view(lrbench.Im2col(x, **arguments)), side)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 * np.abs(expected).max(), err_msg=str(arguments))


@pytest.mark.parametrize("channels", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "arguments",
    [
        PLAIN,
        PLAIN | {"kernel_size": (5, 4), "padding": (4, 3)},
        PLAIN | {"kernel_size": (6, 7), "padding": (5, 2)},
        PLAIN | {"kernel_size": (6, 5), "padding": (0, 1)},
        PLAIN | {"kernel_size": (3, 9), "padding": (1, 4), "dilation": (2, 1)},
    ],
    ids=["3x3", "5x4", "6x7", "6x5", "3x9"],
)
def test_gram_matrices_of_any_number_of_channels(channels: int, arguments: Arguments) -> None:
    """Channels are taken in threes, shifts in fives: what is left over counts as well."""
    x = torch.rand(2, channels, 6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    D = lowered(x, arguments)
    view = kernels_view(lrbench.Im2col(x, **arguments))
    np.testing.assert_allclose(gram(view, "rows"), D @ D.transpose(0, 2, 1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gram(view, "columns"), D.transpose(0, 2, 1) @ D, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 7, 6), (4, 32, 32)])
def test_a_gram_matrix_in_float32_is_off_by_no_more_than_is_told(shape: tuple[int, int, int]) -> None:
    """Of numbers whose sums take the worst of rounding: all of one size, far from zero."""
    generator = torch.Generator().manual_seed(0)
    for arguments in EVERY:
        x = 1 - 2.0**-12 * torch.rand(1, *shape, generator=generator)
        view = kernels_view(lrbench.Im2col(x, **arguments))
        layout, work = view.layout, np.empty(0, np.float32)
        m = layout.channels * layout.R * layout.S
        G, exact = np.zeros((2, m, m))
        energy = rows_gram(view.images[0], 1.0, 1.0, layout, rows_scratch(layout, work), G)
        rows_gram(view.images[0], 1.0, 1.0, layout, rows_scratch(layout, exact), exact)
        assert energy == pytest.approx(float(np.square(view.images[0].astype(float)).sum()), rel=1e-5)
        doubt, error = rows_doubt(energy, layout, work), np.tril(G - exact)
        off = np.linalg.norm(error + np.tril(error, -1).T)
        assert off <= doubt, arguments
        assert abs(np.trace(error)) <= doubt, arguments
        assert doubt < 1e-4 * np.trace(exact), arguments


@pytest.mark.parametrize("side", [6, 20])
def test_no_rounding_to_float32_decides_on_a_rank(side: int) -> None:
    """A tolerance that the best factors of some rank just keep, and one that they just break, in every block."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(12, 3, side, side, generator=generator) + torch.linspace(0, 1, side)
    blocks = lrbench.Im2col(x / x.amax(), kernel_size=3, padding=1)
    D = blocks.dense().double().numpy()
    energies = np.square(np.linalg.svd(D, compute_uv=False))
    lost = energies[:, ::-1].cumsum(1)[:, ::-1] / energies.sum(1, keepdims=True)
    view, near = kernels_view(blocks), 0
    for i in range(len(D)):
        for rank in range(1, energies.shape[1]):
            eps = float(np.sqrt(lost[i, rank]))
            if eps < 0.03:
                continue
            for inside, expected in ((1 + 1e-8, rank), (1 - 1e-8, rank + 1)):
                _, ranks = view.bases("rows", inside * eps)
                near += 1
                assert ranks[i] == expected, (i, rank)
    assert near > 24


@pytest.mark.parametrize("name", ["svd", "aca"])
def test_what_becomes_of_an_image_does_not_depend_on_its_neighbours(name: str) -> None:
    """To the last bit, though matrices are decomposed eight at a time, in parts that depend on threads."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(21, 3, 32, 32, generator=generator) * torch.rand(21, 1, 1, 32, generator=generator)
    x[4], x[7] = 0, x[7] * 1e-5
    compressor = lrbench.get_compressor(name, eps=0.2)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            whole = compressor.compress(lrbench.Im2col(x, kernel_size=3, padding=1))
            ends = whole.offsets.tolist()
            for some in ([20], [4, 3], [0, 1, 2, 7, 9, 13, 14, 15, 16, 19]):
                part = compressor.compress(lrbench.Im2col(x[some], kernel_size=3, padding=1))
                rows = torch.cat([torch.arange(ends[i], ends[i + 1]) for i in some])
                assert torch.equal(part.ranks, whole.ranks[some])
                assert torch.equal(part.U, whole.U[rows])
                assert torch.equal(part.V, whole.V[rows])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_there_is_room_for_crosses_of_higher_rank_than_last_time(threads: int) -> None:
    """Memory is asked for by what was met before, which must not be seen in what comes of it."""
    rule, at_ease = Crosses(1e-6, 1e-6, 18), torch.ones(40, 2, 24, 24)
    hard = torch.rand(40, 2, 24, 24, generator=torch.Generator().manual_seed(0))
    exponent = torch.zeros(40, dtype=torch.int64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        low = kernels_view(lrbench.Im2col(at_ease, 3, padding=1)).pivoted(rule, exponent, check=True)
        view = kernels_view(lrbench.Im2col(hard, 3, padding=1))
        tight, roomy = view.pivoted(rule, exponent, check=True), view.pivoted(rule, exponent, check=True)
    finally:
        torch.set_num_threads(before)
    assert int(low[2].max()) < 10 < int(tight[2].min())
    for part, again in zip(tight, roomy, strict=True):
        assert torch.equal(part, again)
    for factor in tight[:2]:
        assert len(factor) == int(tight[2].sum())
        assert factor.untyped_storage().nbytes() == factor.nbytes


@pytest.mark.parametrize("eps", [8e-4, 1e-3, 2e-3])
def test_crosses_of_almost_constant_images_are_stopped_by_their_residual(eps: float) -> None:
    """What rounds alike in every product of a sum is no residual."""
    generator = torch.Generator().manual_seed(0)
    x = 0.7 + 2e-3 * torch.rand(3, 3, 64, 64, generator=generator)
    blocks = lrbench.Im2col(x, kernel_size=3)
    view = kernels_view(blocks)
    _, _, ranks = view.crosses("residual", eps**2, 1e-6, 27)
    zero = torch.zeros(3, dtype=torch.int64)
    assert torch.equal(view.pivoted(Crosses(eps**2, 1e-6, 27), zero, check=False)[2], ranks)


def test_a_plain_block_is_an_image_of_one_line() -> None:
    D = torch.rand(3, 5, 9, dtype=torch.float64).mT  # not contiguous
    view = kernels_view(DenseBlocks(D))
    assert view.layout == Layout(9, 1, 5, 1, 1, 1, 1, 0, 0, 1, 5, pitch=5, plane=5)
    np.testing.assert_allclose(gram(view, "rows"), (D @ D.mT).numpy(), rtol=1e-14)
    np.testing.assert_allclose(gram(view, "columns"), (D.mT @ D).numpy(), rtol=1e-14)


@pytest.mark.parametrize("side", ["rows", "columns"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projection_and_residual_are_those_of_what_was_stored(side: str, dtype: torch.dtype) -> None:
    """Ragged ranks, odd and even and none, at scales of their own; the loss is that of the rounded factors."""
    x = images(dtype)
    for arguments in EVERY[::7]:
        blocks = lrbench.Im2col(x, **arguments)
        N, m, n = blocks.shape
        k = min(4, m, n)
        exponent = torch.tensor([0, 37, -41, 3, 1, 60, -60, 2])[:N]
        generator = torch.Generator().manual_seed(2)
        vectors = torch.randn(N, k, m if side == "rows" else n, generator=generator, dtype=torch.float64)
        vectors = torch.linalg.qr(vectors.mT).Q.mT.contiguous()
        ranks = torch.tensor([k, k - 1, 0, 1, k, k - 1, 0, 1])[:N].clamp(min=0)
        view = kernels_view(ScaledBlocks(blocks, torch.full((N,), -1)))
        U, V, lost, energy = view.project(side, vectors, ranks, exponent)  # type: ignore[arg-type]
        again, energy_again = view.residuals(U, V, ranks, exponent)
        assert U.dtype == V.dtype == dtype
        assert U.shape == (int(ranks.sum()), m)
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), ranks.cumsum(0)])
        for i, D in enumerate(lowered(x, arguments) / 2):
            rows = slice(int(ends[i]), int(ends[i + 1]))
            u, v = U[rows].double().numpy().T, V[rows].double().numpy()
            loss = np.linalg.norm(D - np.ldexp(u @ v, -int(exponent[i]))) ** 2
            whole = np.linalg.norm(D) ** 2
            assert energy[i].item() == pytest.approx(whole, rel=1e-12)
            assert energy_again[i].item() == pytest.approx(whole, rel=1e-12)
            assert again[i].item() == pytest.approx(loss, rel=1e-10, abs=1e-13 * whole)
            assert loss * (1 - 1e-10) - 1e-15 * whole <= lost[i] <= loss + 1e-9 * whole
            basis = vectors[i, : int(ranks[i])].numpy()
            best = D - basis.T @ (basis @ D) if side == "rows" else D - (D @ basis.T) @ basis
            assert loss == pytest.approx(np.linalg.norm(best) ** 2, abs=1e-5 * whole)


@pytest.mark.parametrize("single", [False, True], ids=["float64", "float32"])
@pytest.mark.parametrize(
    "arguments", [PLAIN | {"padding": (1, 1)}, PLAIN | {"kernel_size": (1, 1)}], ids=["3x3", "1x1"]
)
def test_the_residual_of_an_image_of_any_width_is_taken_tile_by_tile(arguments: Arguments, single: bool) -> None:
    """A tile is of four rows and three vectors, of which the last ones hold more than there is."""
    generator = torch.Generator().manual_seed(0)
    for width in range(1, 50):
        x = torch.rand(1, 1, 60, width, generator=generator, dtype=torch.float32 if single else torch.float64)
        (D,) = lowered(x, arguments)
        view = kernels_view(lrbench.Im2col(x, **arguments))
        U, V = (torch.randn(2, size, generator=generator, dtype=x.dtype) for size in D.shape)
        found, _ = view.residuals(U, V, torch.tensor([2]), torch.zeros(1, dtype=torch.int64), single=single)
        exact = np.linalg.norm(D - (U.double().mT @ V.double()).numpy()) ** 2
        assert exact * (1 - 1e-12) <= found.item() <= exact * (1 + (1e-3 if single else 1e-12)), width


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pivots_of_images_of_any_width_are_those_of_the_residual(dtype: torch.dtype) -> None:
    """A row is computed in whole vectors, of which the last of a line holds more than there is."""
    generator = torch.Generator().manual_seed(0)
    for width in range(1, 40):
        x = torch.randn(3, 2, 10, width, generator=generator, dtype=torch.float64).to(dtype)
        x[1] = 0
        view = kernels_view(lrbench.Im2col(x, **(PLAIN | {"padding": (1, 1)})))
        U, V, ranks = view.crosses("residual", 0.1, 1e-6, 18)
        rule, exponent = Crosses(0.1, 1e-6, 18), torch.tensor([0, 3, -41])
        U2, V2, ranks2, squared, energy = view.pivoted(rule, torch.zeros_like(exponent), check=True)
        assert ranks[0] > 0 < ranks[2], width
        assert ranks[1] == 0, width
        torch.testing.assert_close(ranks2, ranks)
        atol = 1e-4 if dtype == torch.float32 else 1e-10
        torch.testing.assert_close(U2, U, rtol=0, atol=atol)
        torch.testing.assert_close(V2, V, rtol=0, atol=atol)
        # A pivot row is met by the crosses up to its own: with the others it would not be exact.
        for D, u in zip(lowered(x, PLAIN | {"padding": (1, 1)}), U2.split(ranks2.tolist()), strict=True):
            row, unused = int(np.abs(D).max(1).astype(bool).argmax()), torch.ones(18, dtype=torch.bool)
            for k in range(len(u)):
                assert u[k, row] != 0, width
                assert not u[k + 1 :, row].any(), width
                unused[row] = False
                row = int(torch.where(unused, u[k].abs(), -1.0).argmax())
        # What is told is of what was stored, at whatever scale.
        exact, whole = view.residuals(U2, V2, ranks2, torch.zeros_like(exponent))
        torch.testing.assert_close(energy, whole)
        assert (squared >= exact * (1 - 1e-12)).all(), width
        assert (squared <= exact + 1e-4 * energy).all(), width
        scaled = view.pivoted(rule, exponent, check=True)
        powers = exponent.repeat_interleave(ranks2)[:, None]
        torch.testing.assert_close(scaled[0], torch.ldexp(U2, powers // 2), rtol=0, atol=0)
        torch.testing.assert_close(scaled[1], torch.ldexp(V2, powers - powers // 2), rtol=0, atol=0)
        assert torch.equal(scaled[2], ranks2), width
        torch.testing.assert_close(scaled[3], squared, rtol=1e-12, atol=0)


@pytest.mark.parametrize("side", ["rows", "columns"])
def test_what_float32_tells_of_a_loss_bounds_it_closely(side: str) -> None:
    x = images(torch.float32)
    for arguments in EVERY[::7]:
        blocks = lrbench.Im2col(x, **arguments)
        N, m, n = blocks.shape
        ranks, exponent = torch.tensor([min(3, m, n), min(2, m, n)] * (N // 2)), torch.zeros(N, dtype=torch.int64)
        size = m if side == "rows" else n
        vectors = torch.randn(N, min(3, m, n), size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        vectors = torch.linalg.qr(vectors.mT).Q.mT.contiguous()
        view = kernels_view(blocks)
        U, V, lost, energy = view.project(side, vectors, ranks, exponent, single=True)  # type: ignore[arg-type]
        exact, _ = view.residuals(U, V, ranks, exponent)
        told, _ = view.residuals(U, V, ranks, exponent, single=True)
        for bound in (lost, told):
            assert (bound >= exact).all(), arguments
            assert (bound <= exact + 1e-4 * energy).all(), arguments


def test_factors_that_cancel_do_not_deceive_the_residual_in_float32() -> None:
    """U V of a size far above D's: rounding in it is no longer small beside D, and is counted."""
    generator = torch.Generator().manual_seed(0)
    D, A, B = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((1, 12, 40), (12, 1), (1, 40)))
    view = kernels_view(DenseBlocks(D.float()))
    for size in (1.0, 1e3, 1e5):
        U, V = torch.cat([size * A.T, -size * A.T]).float(), torch.cat([B, B]).float()
        V[1] *= 1 + 1e-6
        arguments = (U, V, torch.tensor([2]), torch.zeros(1, dtype=torch.int64))
        assert view.residuals(*arguments, single=True)[0] >= view.residuals(*arguments)[0]


@pytest.mark.parametrize("eps", [0.5, 0.1, 1e-2, 1e-4])
@pytest.mark.parametrize("shape", [(3, 16, 16), (40, 4, 4)], ids=["rows", "columns"])
def test_the_svd_finds_the_same_ranks_without_the_kernels(
    eps: float, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on other devices: plain torch, the Gram matrix decomposed whole."""
    g = torch.Generator().manual_seed(3)
    x = torch.rand(6, *shape, generator=g).cumsum(2).cumsum(3) / 40
    blocks = lrbench.Im2col(x, 3, padding=1)
    svd = lrbench.get_compressor("svd", eps=eps)
    kernels = svd.compress(blocks)
    monkeypatch.setattr(KernelBlocks, "of", lambda blocks: None)
    plain = svd.compress(blocks)
    assert torch.equal(kernels.ranks, plain.ranks)
    assert torch.equal(kernels.origin, plain.origin)
    error, expected = lrbench.relative_error(blocks, kernels), lrbench.relative_error(blocks, plain)
    torch.testing.assert_close(error, expected, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(kernels.dense(), plain.dense(), rtol=0, atol=2 * eps * float(x.max()))


@pytest.mark.parametrize("name", ["svd", "svd-same-rank", "svd-same-error"])
def test_what_an_iteration_fails_on_is_decomposed_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = lrbench.Im2col(images(torch.float32), 3, padding=1)
    svd = lrbench.get_compressor(name, eps=0.1)
    expected = svd.compress(blocks)
    bases = KernelBlocks.bases

    def failing(self: KernelBlocks, *arguments: Any) -> tuple[Tensor, Tensor]:
        vectors, ranks = bases(self, *arguments)
        vectors[1], ranks[1] = float("nan"), -1
        return vectors, ranks

    monkeypatch.setattr(KernelBlocks, "bases", failing)
    assert (spectral.truncated_svd(blocks, 0.1).ranks > 0).all()
    factors = svd.compress(blocks)
    assert torch.equal(factors.ranks, expected.ranks)
    assert torch.equal(factors.origin, expected.origin)
    torch.testing.assert_close(lrbench.relative_error(blocks, factors), lrbench.relative_error(blocks, expected))


def test_largest_magnitudes_tell_what_is_not_finite() -> None:
    x = torch.tensor([[1.0, -3.0], [0.0, -0.0], [float("inf"), 1.0], [-float("inf"), 0.0], [float("nan"), 9.0]])
    for dtype in (torch.float32, torch.float64):
        found = DenseBlocks(x.to(dtype).unsqueeze(1)).abs_max()
        assert found.dtype == dtype
        assert found[:2].tolist() == [3.0, 0.0]
        assert not found[2:].isfinite().any()
