"""Each low-rank method is the one that it is named after, block by block on a CPU and in plain torch elsewhere."""

import numpy as np
import pytest
import scipy.linalg
import torch
from oracles import Matrix, eckart_young_rank, factor_pair, relative_errors
from torch import nn

import lrbench
from lrbench import Origin
from lrbench.compressors.randqb import RandomizedQB
from lrbench.contract.adversarial import (
    FAMILIES,
    decaying_blocks,
    family,
    low_rank_plus_noise,
    photo_crops,
    with_singular_values,
)
from lrbench.contract.comparing import SLACK, TOLERANCES
from lrbench.kernels.kernel_blocks import KernelBlocks

METHODS = ["aca-full", "aca-svd", "cpqr", "gram", "id", "qr-svd", "randqb"]


@pytest.fixture(params=["block by block", "in step"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both implementations: the CPU's, and the other devices', which runs on a CPU as well."""
    if request.param == "in step":
        monkeypatch.setattr(KernelBlocks, "of", lambda blocks: None)
    return request.param


both_ways = pytest.mark.usefixtures("way")


def smooth_blocks() -> torch.Tensor:
    """Wide blocks of photographs, (6, 27, 256) float64."""
    return torch.nn.functional.unfold(photo_crops(6, 16), 3, padding=1)


@pytest.mark.parametrize("name", [*METHODS, "svd-rank", "svd-same-rank", "svd-same-error"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_plain_torch_keeps_the_promise_too(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KernelBlocks, "of", lambda blocks: None)
    for eps in (0.3, 0.03, 1e-6):
        blocks = family(kind, torch.float32, eps)
        compressor = lrbench.get_compressor(name, eps=eps)
        factors = compressor.compress(blocks)
        assert factors.dense().isfinite().all()
        if compressor.guarantee == "block":
            assert (relative_errors(blocks, factors) <= eps * (1 + SLACK)).all(), eps


@both_ways
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("tall", [False, True], ids=["wide", "tall"])
def test_the_tolerance_is_met_by_the_methods_own_means(name: str, tall: bool) -> None:
    blocks = smooth_blocks().mT.contiguous() if tall else smooth_blocks()
    for eps in (0.3, 0.1):
        factors = lrbench.get_compressor(name, eps=eps).compress(blocks.float())
        assert (factors.origin == int(Origin.OWN)).all(), eps
        assert (relative_errors(blocks.float(), factors) <= eps * (1 + SLACK)).all()


@both_ways
@pytest.mark.parametrize(("name", "more"), [("gram", 0), ("qr-svd", 0), ("aca-svd", 1), ("randqb", 1)])
def test_what_ends_in_an_svd_is_near_the_least_rank(name: str, more: int) -> None:
    blocks = smooth_blocks()
    for eps in (0.3, 0.1, 0.03):
        ranks = lrbench.get_compressor(name, eps=eps).compress(blocks).ranks.tolist()
        for D, rank in zip(blocks.numpy(), ranks, strict=True):
            assert eckart_young_rank(D, eps) <= rank <= eckart_young_rank(D, eps * (1 - 1e-3)) + more


def full_pivoting(D: Matrix, eps: float) -> tuple[int, list[tuple[int, int]]]:
    """The textbook's rank and pivots."""
    R, pivots = D.copy(), []
    while np.linalg.norm(R) > (1 - 1e-4) * eps * np.linalg.norm(D):
        i, j = np.unravel_index(np.abs(R).argmax(), R.shape)
        R -= np.outer(R[:, j], R[i] / R[i, j])
        pivots.append((int(i), int(j)))
    return len(pivots), pivots


@both_ways
@pytest.mark.parametrize(
    "kind", ["zero_first_row", "single_spike", "disjoint_diagonal_blocks", "noisy_low_rank", "photographs"]
)
def test_full_pivoting_takes_the_textbooks_crosses(kind: str) -> None:
    for eps in (0.3, 0.1, 0.01):
        blocks = family(kind, torch.float64, eps)
        factors = lrbench.get_compressor("aca-full", eps=eps).compress(blocks)
        for k, D in enumerate(blocks.numpy()):
            rank, pivots = full_pivoting(D, eps)
            if factors.origin[k] == Origin.OWN:
                assert int(factors.ranks[k]) == rank
                _, V = factor_pair(factors, k)
                assert [int(np.abs(row).argmax()) for row in V] == [j for _, j in pivots]
            else:
                assert rank * sum(D.shape) > D.size


@both_ways
def test_pivoted_qr_is_scipys() -> None:
    blocks = smooth_blocks()
    for eps in (0.3, 0.1, 1e-3):
        factors = lrbench.get_compressor("cpqr", eps=eps).compress(blocks)
        for k, D in enumerate(blocks.numpy()):
            R = scipy.linalg.qr(D, mode="r", pivoting=True)[0][: min(D.shape)]
            tails = np.sqrt(np.cumsum((R**2).sum(1)[::-1]))[::-1]  # what is lost at ranks 0, 1, …
            rank = int((tails > (1 - 1e-4) * eps * np.linalg.norm(D)).sum())
            if factors.origin[k] == Origin.STORED:
                assert rank * sum(D.shape) > D.size
                continue
            assert factors.origin[k] == Origin.OWN
            assert int(factors.ranks[k]) == rank
            U, _ = factor_pair(factors, k)
            angles = U.T @ U
            assert np.log2(angles[0, 0]) == pytest.approx(round(np.log2(angles[0, 0])))  # a power of the block's scale
            np.testing.assert_allclose(angles / angles[0, 0], np.eye(len(angles)), atol=1e-9)


@both_ways
@pytest.mark.parametrize("scale", [0, 5, -9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_interpolative_decomposition_keeps_rows_as_they_are(dtype: torch.dtype, scale: int) -> None:
    for tall in (False, True):
        blocks = torch.ldexp(smooth_blocks(), torch.tensor(scale)).to(dtype)
        blocks = blocks.mT.contiguous() if tall else blocks
        factors = lrbench.get_compressor("id", eps=0.05).compress(blocks)
        for k, D in enumerate(blocks.double().numpy()):
            U, V = factor_pair(factors, k)
            rows = [int(np.flatnonzero((D == row).all(1))[0]) for row in V]
            assert len(set(rows)) == len(rows) == int(factors.ranks[k])
            np.testing.assert_array_equal(U[rows], np.eye(len(rows)))
            best = np.linalg.lstsq(V.T, D.T, rcond=None)[0].T
            lost, least = np.linalg.norm(D - U @ V), np.linalg.norm(D - best @ V)
            assert lost <= least * (1 + 1e-4)


@both_ways
def test_the_first_row_that_is_kept_is_the_largest() -> None:
    blocks = decaying_blocks()[:3]
    factors = lrbench.get_compressor("id", eps=0.5).compress(blocks)
    for k, D in enumerate(blocks.numpy()):
        np.testing.assert_array_equal(factor_pair(factors, k)[1][0], D[np.linalg.norm(D, axis=1).argmax()])


@both_ways
@pytest.mark.parametrize("tall", [False, True], ids=["wide", "tall"])
def test_an_svd_of_a_given_rank_loses_the_least_that_it_allows(tall: bool) -> None:
    blocks = smooth_blocks().mT.contiguous() if tall else smooth_blocks()
    S = np.linalg.svd(blocks.numpy(), compute_uv=False)
    for rank in (1, 6, 27, 100):
        factors = lrbench.get_compressor("svd-rank", rank=rank).compress(blocks)
        assert (factors.ranks == min(rank, 27)).all()
        for values, error in zip(S, relative_errors(blocks, factors), strict=True):
            least = np.linalg.norm(values[rank:]) / np.linalg.norm(values)
            assert error == pytest.approx(least, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("rank", [0, -1, 2.0, True, "6", None])
def test_a_rank_that_is_none_is_refused(rank: object) -> None:
    with pytest.raises(ValueError, match=r"rank is .*: use a whole number of at least 1"):
        lrbench.get_compressor("svd-rank", rank=rank)


@both_ways
def test_an_svd_of_acas_rank_loses_less() -> None:
    blocks = smooth_blocks()
    for eps in (0.3, 0.1, 0.01, 1e-6):
        known = lrbench.get_compressor("aca-estimate", eps=eps).compress(blocks)
        factors = lrbench.get_compressor("svd-same-rank", eps=eps).compress(blocks)
        assert torch.equal(factors.ranks, known.ranks)
        S = np.linalg.svd(blocks.numpy(), compute_uv=False)
        for values, rank, error in zip(S, known.ranks.tolist(), relative_errors(blocks, factors), strict=True):
            least = np.linalg.norm(values[rank:]) / np.linalg.norm(values)
            assert error == pytest.approx(least, rel=1e-4, abs=1e-8)
        assert (relative_errors(blocks, factors) <= relative_errors(blocks, known) * (1 + 1e-6) + 1e-8).all()


@both_ways
def test_an_svd_of_acas_error_takes_the_least_rank() -> None:
    blocks = smooth_blocks()
    for eps in (0.3, 0.1, 0.01, 1e-6):
        errors = relative_errors(blocks, lrbench.get_compressor("aca-estimate", eps=eps).compress(blocks))
        factors = lrbench.get_compressor("svd-same-error", eps=eps).compress(blocks)
        assert (relative_errors(blocks, factors) <= errors * (1 + 1e-6) + 1e-12).all()
        for D, rank, error in zip(blocks.numpy(), factors.ranks.tolist(), errors, strict=True):
            assert eckart_young_rank(D, error * (1 + 1e-6)) <= rank <= eckart_young_rank(D, error * (1 - 1e-6))


def test_a_triangle_tells_what_a_gram_matrix_does_not() -> None:
    D = with_singular_values([1.0, 1e-3, 1e-6, 3e-9, 1e-11], 30, 40)
    for eps, rank in ((1e-4, 2), (1e-7, 3), (1e-9, 4), (1e-10, 4)):
        factors = lrbench.get_compressor("qr-svd", eps=eps).compress(D)
        assert factors.ranks.tolist() == [rank]
        assert factors.origin.tolist() == [Origin.OWN]


@both_ways
@pytest.mark.parametrize("rank", [1, 7, 12, 33, 50])
def test_a_growing_basis_finds_any_rank(rank: int) -> None:
    for D in (low_rank_plus_noise(2, 96, 128, rank, 1e-6, rank), low_rank_plus_noise(2, 128, 96, rank, 1e-6, rank)):
        for width in (1, 4, 200):
            factors = RandomizedQB(eps=1e-3, width=width).compress(D)
            assert factors.ranks.tolist() == [rank, rank]
            assert factors.origin.tolist() == [Origin.OWN, Origin.OWN]


@pytest.mark.parametrize("options", [{"width": 0}, {"power": -1}, {"seed": -1}, {"width": 1.5}], ids=str)
def test_settings_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"(width|power|seed) is .*: use a whole number of at least"):
        lrbench.get_compressor("randqb", **options)


@pytest.mark.parametrize("factors", ["float32", "half", 16, torch.float16], ids=str)
def test_factors_of_another_precision_are_refused(factors: object) -> None:
    with pytest.raises(ValueError, match=r"factors is .*: use None, 'bfloat16' or 'float16'"):
        lrbench.get_compressor("svd", factors=factors)


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize("scale", [-200, -30, 30, 120])
def test_half_factors_out_of_range_end_in_stored_blocks(half: str, scale: int) -> None:
    blocks = torch.ldexp(low_rank_plus_noise(3, noise=1e-2), torch.tensor(scale))
    for name in ("svd", "aca", "id", "shared"):
        for eps in TOLERANCES[:4]:
            factors = lrbench.get_compressor(name, eps=eps, factors=half).compress(blocks)
            assert (relative_errors(blocks, factors) <= eps * (1 + SLACK)).all(), (name, eps)
    unpromised = lrbench.get_compressor("aca-estimate", eps=0.1, factors=half).compress(blocks * 2.0**40)
    assert unpromised.dense().isfinite().all()


def test_a_constant_block_keeps_a_tolerance_near_that_of_half_precision() -> None:
    """All numbers of a singular vector are rounded alike: its length is no longer one."""
    blocks = torch.full((1, 27, 100), 0.7) + 1e-4 * torch.randn(1, 27, 100, generator=torch.Generator().manual_seed(0))
    factors = lrbench.get_compressor("svd", eps=0.006, factors="bfloat16").compress(blocks)
    assert factors.origin.tolist() == [Origin.OWN]
    assert factors.ranks.tolist() == [1]


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize("path", ["both", "backward", "forward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_convolution_trains_on_half_factors(half: str, path: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(3, 5, 3, padding=1, dtype=dtype), photo_crops(4, 12).to(dtype)
    compressor = lrbench.get_compressor("svd", eps=0.1, factors=half)
    factors = compressor.compress(lrbench.Im2col(x, 3, padding=1))
    grad = torch.randn(4, 5, 144, dtype=dtype)
    lrbench.wrap(conv, "1", compressor, path=path)
    kept = lrbench.KeptInput(conv, x, batch_size=3)
    for given in (False, True):
        conv.zero_grad()
        if given:
            with kept.batch(torch.arange(4)):
                out = conv(x)
        else:
            out = conv(x)
        out.backward(grad.view_as(out))
        assert out.dtype == conv.weight.grad.dtype == dtype
        D = factors.dense()
        exact = lrbench.Im2col(x, 3, padding=1).dense()
        forward, backward = exact if path == "backward" else D, exact if path == "forward" else D
        expected = conv.weight.detach().flatten(1) @ forward + conv.bias.detach()[:, None]
        torch.testing.assert_close(out.flatten(2), expected, rtol=1e-4, atol=1e-4)
        weight_grad = (grad @ backward.mT).sum(0).view_as(conv.weight)
        torch.testing.assert_close(conv.weight.grad, weight_grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("value", [1e30, float("inf"), float("nan")])
@pytest.mark.parametrize("name", [*METHODS, "svd", "aca", "rsvd", "svd-rank", "svd-same-rank", "svd-same-error"])
def test_pixels_that_no_window_reaches_change_nothing(name: str, value: float) -> None:
    x = photo_crops(3, 40)[:, :, :3].contiguous()
    results = []
    for between in (0.5, value):
        x[:, :, 1, 5] = between  # lines 0 and 2 are all that a kernel of two lines with dilation 2 sees
        blocks = lrbench.Im2col(x, (2, 3), dilation=(2, 1))
        results.append(lrbench.get_compressor(name, eps=0.1).compress(blocks))
    assert torch.equal(results[0].ranks, results[1].ranks)
    assert torch.equal(results[0].origin, results[1].origin)
    torch.testing.assert_close(results[1].dense(), results[0].dense())


def test_a_zero_block_has_rank_0_whatever_rank_is_given() -> None:
    blocks = smooth_blocks()
    blocks[1] = 0
    factors = lrbench.get_compressor("svd-rank", rank=5).compress(blocks)
    assert factors.ranks.tolist() == [5, 0, 5, 5, 5, 5]
    assert repr(lrbench.get_compressor("svd-rank", rank=5)) == "FixedRankSVD(rank=5)"
