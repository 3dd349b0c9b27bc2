"""What a compressor proposes is checked, block by block, as it will be stored."""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from oracles import Allocations, eckart_young_rank, relative_errors, unit_scaled
from torch import Tensor

import lrbench
import lrbench.blocks
import lrbench.compressors
import lrbench.compressors.base
from lrbench import LowRank, Origin
from lrbench.blocks import Blocks
from lrbench.compressors.certificate import residual_norms, stored, unscaled
from lrbench.compressors.spectral import truncated_svd
from lrbench.contract.adversarial import decaying_blocks, family, low_rank_plus_noise, with_singular_values
from lrbench.contract.comparing import SLACK, TOLERANCES, each_dtype
from lrbench.kernels.kernel_blocks import KernelBlocks


def svd_factors(blocks: Blocks, eps: float) -> LowRank:
    """Both sides of the truncated SVD, of blocks of moderate scale."""
    return stored(blocks, truncated_svd(blocks, eps), torch.zeros(len(blocks), dtype=torch.int64))


class Proposal(lrbench.Compressor):
    """Spoils the truncated SVD in one way or another."""

    spoil: Callable[[LowRank], LowRank]

    def factorize(self, blocks: Blocks) -> LowRank:
        return type(self).spoil(svd_factors(blocks, self.eps))


SPOILS: dict[str, Callable[[LowRank], LowRank]] = {
    "zero": lambda f: LowRank(f.U * 0, f.V, f.ranks),
    "nothing": lambda f: LowRank(f.U[:0], f.V[:0], f.ranks * 0),
    "noise": lambda f: LowRank(f.U, torch.ones_like(f.V), f.ranks),
    "nan": lambda f: LowRank(f.U * float("nan"), f.V, f.ranks),
    "infinite": lambda f: LowRank(f.U, f.V / 0.0, f.ranks),
    "overflow": lambda f: LowRank(f.U * 1e200, f.V * 1e-200, f.ranks),
    "sign": lambda f: LowRank(f.U, -f.V, f.ranks),
    "little": lambda f: LowRank(f.U * 1.3, f.V, f.ranks),
}


def spoilt(name: str, promise: str | None) -> type[lrbench.Compressor]:
    return type("Spoilt", (Proposal,), {"spoil": staticmethod(SPOILS[name]), "guarantee": promise})


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the registry, thrown away after the test."""
    lrbench.list_compressors()
    monkeypatch.setattr(lrbench.compressors, "_classes", dict(lrbench.compressors._classes))


@pytest.mark.usefixtures("registry")
@each_dtype
@pytest.mark.parametrize("name", SPOILS)
def test_a_broken_promise_is_escalated_to_the_svd(name: str, dtype: torch.dtype) -> None:
    lrbench.register("spoilt")(spoilt(name, "block"))
    blocks = family("photographs", dtype, 0)
    factors = lrbench.get_compressor("spoilt", eps=0.1).compress(blocks)
    svd = lrbench.get_compressor("svd", eps=0.1).compress(blocks)
    assert factors.origin.tolist() == [Origin.ESCALATED] * 3 or (name, dtype) == ("overflow", torch.float64)
    assert factors.ranks.tolist() == svd.ranks.tolist()
    assert (relative_errors(blocks, factors) <= 0.1 * (1 + SLACK)).all()


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("name", SPOILS)
def test_what_promises_nothing_is_left_as_proposed(name: str) -> None:
    lrbench.register("spoilt")(spoilt(name, None))
    blocks = family("photographs", torch.float64, 0)
    factors = lrbench.get_compressor("spoilt", eps=0.1).compress(blocks)
    assert factors.origin.tolist() == [Origin.OWN] * 3
    assert factors.kept is None
    errors = relative_errors(blocks, factors)
    assert not (errors <= 0.1).any() or name == "overflow"


def test_only_the_blocks_that_fail_are_escalated() -> None:
    class Second(Proposal):
        guarantee = "block"

        @staticmethod
        def spoil(f: LowRank) -> LowRank:
            U = f.U.clone()
            U[f.offsets[1] : f.offsets[2]] *= 2
            return LowRank(U, f.V, f.ranks)

    blocks = decaying_blocks()
    factors = Second(eps=0.1).compress(blocks)
    assert factors.origin.tolist() == [0, int(Origin.ESCALATED), 0, 0, 0, 0]
    good = lrbench.get_compressor("svd", eps=0.1).compress(blocks)
    torch.testing.assert_close(factors.dense(), good.dense())


def test_a_proposal_larger_than_the_block_is_stored_without_ado() -> None:
    class Whole(lrbench.Compressor):
        guarantee = "block"

        def factorize(self, blocks: Blocks) -> LowRank:
            return svd_factors(blocks, 1e-12)

    D = torch.cat([family("random_matrix", torch.float64, 0), torch.zeros(1, 15, 22, dtype=torch.float64)])
    factors = Whole(eps=0.9).compress(D)
    assert factors.origin.tolist() == [Origin.STORED, Origin.STORED, Origin.OWN]
    assert torch.equal(factors.dense(), D)


@pytest.mark.parametrize("overshoot", [1e-6, 1e-4, 1e-2])
def test_the_least_overshoot_is_seen(overshoot: float) -> None:
    """A block with one value at exactly the tolerance, left out by a proposal that is that much too bold."""
    for eps in (0.5, 0.1, 1e-3, 1e-6):
        tail = eps * (1 + overshoot)
        D = with_singular_values([float(np.sqrt(1 - tail**2)), tail], 24, 32)

        class Bold(lrbench.Compressor):
            guarantee = "block"

            def factorize(self, blocks: Blocks) -> LowRank:
                U, S, V = torch.linalg.svd(blocks.dense(), full_matrices=False)
                return LowRank.from_padded(U[:, :, :1] * S[:, None, :1], V[:, :1], torch.tensor([1]))

        assert Bold(eps=eps).compress(D).ranks.tolist() == [2]
        assert Bold(eps=eps * (1 + 2 * overshoot)).compress(D).ranks.tolist() == [1]


@each_dtype
def test_residuals_are_those_of_the_stored_factors(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Down to 1e-12 of the block, whatever the scale, and wherever the strips are cut."""
    blocks = decaying_blocks(dtype)
    low_rank = svd_factors(lrbench.DenseBlocks(blocks), 0.2)
    exponent = torch.tensor([0, 40, -40, 101, 3, -80])
    kept = unscaled(low_rank, exponent)
    scales = torch.ldexp(torch.ones(6, dtype=torch.float64), exponent).numpy()
    for limit in (1, 4000, 1 << 20):
        monkeypatch.setattr(lrbench.blocks, "STRIP_BYTES", {"cpu": limit})
        norms = residual_norms(lrbench.DenseBlocks(blocks), kept, exponent).numpy()
        for i, D in enumerate(blocks.double().numpy()):
            rows = slice(int(kept.offsets[i]), int(kept.offsets[i + 1]))
            approximation = kept.U[rows].T.double().numpy() @ kept.V[rows].double().numpy() / scales[i]
            expected = np.linalg.norm(D - approximation)
            assert norms[i] == pytest.approx(expected, rel=1e-9, abs=1e-12 * np.linalg.norm(D))


def test_factors_that_only_rounding_to_their_dtype_spoils_are_not_let_pass() -> None:
    """A method may compute in float64: what is stored of it for float32 blocks is another thing."""
    g = np.random.default_rng(0)
    D = torch.from_numpy(g.integers(-9, 9, (1, 24, 3)) @ g.integers(-9, 9, (1, 3, 32))).float()  # of rank 3, exactly

    class Precise(lrbench.Compressor):
        guarantee = "block"

        def factorize(self, blocks: Blocks) -> LowRank:
            U, S, V = torch.linalg.svd(blocks.dense().double(), full_matrices=False)
            return LowRank.from_padded(U * S[:, None], V, torch.tensor([3]))

    for eps in (1e-9, 1e-10):
        factors = Precise(eps=eps).compress(D)
        assert factors.origin.tolist() == [Origin.STORED]
        assert relative_errors(D, factors) <= eps
    assert Precise(eps=1e-6).compress(D).origin.tolist() == [Origin.OWN]


@each_dtype
def test_a_block_is_stored_only_when_no_smaller_factors_keep_the_tolerance(dtype: torch.dtype) -> None:
    """Rounding alone decides only where the tolerance is near the dtype's own."""
    rounding = torch.finfo(dtype).eps
    D = with_singular_values([1.0, 0.5, 0.25, 0.1], 24, 32).to(dtype)
    for eps in (0.1, 1e-2, 1e-4, 3e-6, 1e-6, 1e-7, 3e-8, 1e-9):
        factors = lrbench.get_compressor("svd", eps=eps).compress(D)
        assert (relative_errors(D, factors) <= eps * (1 + SLACK)).all()
        if eps > 3 * rounding:
            assert factors.origin[0] != Origin.STORED, eps
    assert lrbench.get_compressor("svd", eps=rounding / 100).compress(D).origin.tolist() == [Origin.STORED]


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (5, 2)])
def test_compressing_images_never_forms_the_whole_batch(
    kernel_size: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every method but none, whose result it is, rproj, whose result has its own size, and hosvd, which takes all."""
    monkeypatch.setattr(lrbench.compressors.base, "WORKSPACE_BYTES", {"cpu": 1 << 18})
    monkeypatch.setattr(lrbench.blocks, "STRIP_BYTES", {"cpu": 1 << 15})
    ramp = torch.linspace(0, 1, 16)
    x = (ramp[:, None] * ramp + torch.linspace(0, 1, 32)[:, None, None]).unsqueeze(1).expand(32, 3, 16, 16)
    blocks = lrbench.Im2col(x.contiguous(), kernel_size, stride)
    for name in set(lrbench.list_compressors()) - {"none", "rproj", "hosvd"}:
        compressor = lrbench.get_compressor(name, eps=0.1)
        with Allocations() as seen:
            compressor.compress(blocks)
        assert seen.largest < blocks.dense().nbytes / 2, name


@each_dtype
def test_mixed_scales_do_not_see_each_other(dtype: torch.dtype) -> None:
    """Huge and tiny blocks have, as neighbours, the ranks that they have at an ordinary scale."""
    power = 30 if dtype == torch.float32 else 200
    D = low_rank_plus_noise(3, seed=4)
    for eps in TOLERANCES[:5]:
        ordinary: Tensor = D.to(dtype)
        scales = 10.0 ** torch.tensor([power, -power, 0], dtype=torch.float64)
        mixed = (D * scales[:, None, None]).to(dtype)
        for name in lrbench.list_compressors():
            compressor = lrbench.get_compressor(name, eps=eps)
            factors = compressor.compress(mixed)
            assert factors.dense().isfinite().all()
            if compressor.low_rank:
                assert torch.equal(factors.ranks, compressor.compress(ordinary).ranks), (name, eps)


def test_the_oracle_itself() -> None:
    """Least ranks and errors that are known in closed form."""
    D = with_singular_values([4.0, 2.0, 1.0], 6, 8)[0].numpy()
    norm = np.sqrt(21)
    assert eckart_young_rank(D, 0.999 / norm) == 3
    assert eckart_young_rank(D, 1.001 / norm) == 2
    assert eckart_young_rank(D, 0.999 * np.sqrt(5) / norm) == 2
    assert eckart_young_rank(D, 1.001 * np.sqrt(5) / norm) == 1
    assert eckart_young_rank(D, 1.0) == eckart_young_rank(np.zeros((3, 4)), 0.1) == 0
    scaled, exponent = unit_scaled(D * 1e200)
    assert np.array_equal(np.ldexp(scaled, exponent), D * 1e200)
    assert 0.5 <= np.abs(scaled).max() < 1


class InPlace(lrbench.Compressor):
    """Works on the blocks that it is given until nothing is left of them."""

    guarantee = "block"

    def factorize(self, blocks: Blocks) -> LowRank:
        blocks.tensor.mul_(0.5)
        U, V = blocks.tensor.flatten(1)[:, :0], blocks.tensor.flatten(1)[:, :0]
        m, n = blocks.shape[1:]
        ranks = torch.zeros(len(blocks), dtype=torch.int64)
        return LowRank(U.new_empty(0, m), V.new_empty(0, n), ranks)


@pytest.mark.parametrize("images", [False, True])
def test_what_a_method_does_to_its_blocks_is_not_seen_by_the_check(images: bool) -> None:
    x = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    blocks = lrbench.Im2col(x, 3, padding=1) if images else lrbench.Im2col(x, 3, padding=1).dense()
    before = x.clone()
    factors = InPlace(eps=0.1).compress(blocks)
    assert lrbench.relative_error(blocks, factors).max() <= 0.1
    assert torch.equal(factors.ranks, lrbench.get_compressor("svd", eps=0.1).compress(blocks).ranks)
    assert torch.equal(x, before)


class Cancelling(lrbench.Compressor):
    """Of a block of equal rows: 1·(v + B)ᵀ − 1·Bᵀ, exact but for what is lost of v beside a large B."""

    guarantee = "block"
    large, scale = 1.0, 1.0

    def factorize(self, blocks: Blocks) -> LowRank:
        D = blocks.dense()
        v = D[:, :1]
        large, ones = torch.full_like(v, self.large), torch.full((*D.shape[:2], 1), self.scale, dtype=D.dtype)
        V = torch.cat([large + v, large], 1) / self.scale
        return LowRank.from_padded(torch.cat([ones, -ones], 2), V, torch.full((len(D),), 2))


@pytest.mark.parametrize("compiled", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize(
    ("dtype", "large", "scale"),
    [
        (torch.float64, 1e13, 1.0),
        (torch.float64, 3e15, 1.0),
        (torch.float64, 3e15, 2.0**505),
        (torch.float64, 3e15, 2.0**-505),
        (torch.float32, 1e7, 1.0),
        (torch.float32, 1e7, 2.0**110),
        (torch.float32, 1e7, 2.0**-100),
    ],
    ids=str,
)
def test_what_rounding_can_hide_in_factors_that_cancel_is_counted(
    dtype: torch.dtype, large: float, scale: float, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The residual of v + B − B, computed as it was made, is zero whatever became of v."""
    if not compiled:
        monkeypatch.setattr(KernelBlocks, "of", lambda blocks: None)
    D = torch.rand(2, 1, 64, generator=torch.Generator().manual_seed(0), dtype=dtype).expand(2, 16, 64).contiguous()
    method = Cancelling(eps=1e-3)
    method.large, method.scale = large, scale
    factors = method.compress(D)
    assert Origin.OWN not in factors.origin.tolist()
    assert (relative_errors(D, factors) <= 1e-3).all()
    proposed = stored(
        lrbench.DenseBlocks(D), method.factorize(lrbench.DenseBlocks(D)), torch.zeros(2, dtype=torch.int64)
    )
    true = []
    for b in range(2):
        (u, other), (v, w) = proposed.U[2 * b : 2 * b + 2, 0].tolist(), proposed.V[2 * b : 2 * b + 2].tolist()
        asked = [Fraction(x) for x in D[b, 0].tolist()]
        found = [Fraction(u) * Fraction(x) + Fraction(other) * Fraction(y) for x, y in zip(v, w, strict=True)]
        squares = sum((x - y) ** 2 for x, y in zip(asked, found, strict=True)), sum(x**2 for x in asked)
        true.append(float(squares[0] / squares[1]) ** 0.5)
    assert min(true) > 1e-3
    norms = residual_norms(lrbench.DenseBlocks(D), proposed, torch.zeros(2, dtype=torch.int64))
    assert (norms >= torch.tensor(true) * D.double().norm(dim=(1, 2)) * (1 - 1e-9)).all()


@pytest.mark.parametrize("compiled", [True, False], ids=["kernels", "torch"])
def test_factors_that_do_not_cancel_are_measured_without_an_allowance(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(KernelBlocks, "of", lambda blocks: None)
    D = torch.eye(20, dtype=torch.float64)[None] * 3
    exact = LowRank.from_padded(torch.eye(20, dtype=torch.float64)[None], D, torch.tensor([20]))
    assert residual_norms(lrbench.DenseBlocks(D), exact, torch.zeros(1, dtype=torch.int64)).tolist() == [0.0]
