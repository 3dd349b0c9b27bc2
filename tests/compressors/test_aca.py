"""Both variants of ACA take the pivots of the textbook's algorithm; they differ in when they stop."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from oracles import Matrix, cross_approximation, factor_pair, relative_errors, unit_scaled
from torch import Tensor

import lrbench
from lrbench import Factors, Origin
from lrbench.contract.adversarial import FAMILIES, decaying_blocks, family, low_rank_plus_noise, photo_crops
from lrbench.contract.comparing import SLACK, TOLERANCES, assert_same_tensors
from lrbench.kernels import crosses as kernels
from lrbench.kernels.kernel_blocks import KernelBlocks

EXACT = (
    "zero",
    "rank_one",
    "noisy_low_rank",
    "zero_first_row",
    "single_spike",
    "constant",
    "orthogonal",
    "kahan_matrix",
    "wide",
    "tall",
    "photographs",
    "random_matrix",
    "non_contiguous",
    "mixed_scales",
    "tiny",
    "huge",
)
"""Families on which no pivot hangs on the last digit."""


@pytest.fixture(params=["block by block", "by pivots", "in step"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All implementations: the CPU's two, and the other devices', which runs on a CPU as well."""
    if request.param == "in step":
        monkeypatch.setattr(KernelBlocks, "of", lambda blocks: None)
    monkeypatch.setattr(KernelBlocks, "_of_few_channels", lambda self: request.param == "by pivots")
    return request.param


every_way = pytest.mark.usefixtures("way")


def textbook(D: Matrix, eps: float, stop: str) -> tuple[Matrix, Matrix, NDArray[np.bool_]]:
    """Textbook factors of a block, brought near one as compressors see it, and which crosses are more than rounding."""
    scaled, exponent = unit_scaled(D)
    U, V, _ = cross_approximation(scaled, eps, stop)
    real = np.linalg.norm(U, axis=0) * np.linalg.norm(V, axis=1) > 1e-12 * np.linalg.norm(scaled)
    return np.ldexp(U, exponent // 2), np.ldexp(V, exponent - exponent // 2), real


def assert_factors_are_the_textbooks(factors: Factors, blocks: Tensor, eps: float, stop: str) -> None:
    m, n = blocks.shape[1:]
    for i, D in enumerate(blocks.numpy()):
        U, V, real = textbook(D, eps, stop)
        rank = len(V)
        if stop == "residual" and rank * (m + n) > m * n:
            assert factors.origin[i] == Origin.STORED, (eps, i, rank)
            continue
        assert factors.origin[i] == Origin.OWN, (eps, i, rank)
        assert int(factors.ranks[i]) == rank, (eps, i)
        # A last cross may be made of nothing but rounding: it is counted, but not compared.
        ours = factor_pair(factors, i)
        for mine, theirs in ((ours[0][:, real], U[:, real]), (ours[1][real], V[real])):
            largest = np.abs(theirs).max(initial=0)
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-7 * largest, err_msg=f"block {i} at {eps}")


@every_way
@pytest.mark.parametrize("name", EXACT)
def test_the_papers_variant_is_the_textbooks(name: str) -> None:
    for eps in TOLERANCES:
        blocks = family(name, torch.float64, eps)
        factors = lrbench.get_compressor("aca-estimate", eps=eps).compress(blocks)
        assert_factors_are_the_textbooks(factors, blocks, eps, "estimate")


@every_way
@pytest.mark.parametrize("name", EXACT)
def test_the_certified_variant_takes_the_same_pivots_until_the_residual_is_small(name: str) -> None:
    for eps in TOLERANCES:
        blocks = family(name, torch.float64, eps)
        factors = lrbench.get_compressor("aca", eps=eps).compress(blocks)
        assert_factors_are_the_textbooks(factors, blocks, eps, "residual")


@every_way
@pytest.mark.parametrize("seed", range(5))
def test_blocks_of_a_batch_do_as_each_alone(seed: int) -> None:
    """A batch whose blocks stop at different crosses, in both variants."""
    g = np.random.default_rng(seed)
    blocks = torch.cat(
        [
            low_rank_plus_noise(1, 16, 22, rank, noise=10.0**-power, seed=seed + rank)
            for rank, power in zip(g.integers(1, 8, 9).tolist(), g.integers(1, 6, 9).tolist(), strict=True)
        ]
    )
    for eps in (0.3, 0.05, 1e-3):
        for name, stop in (("aca", "residual"), ("aca-estimate", "estimate")):
            factors = lrbench.get_compressor(name, eps=eps).compress(blocks)
            assert_factors_are_the_textbooks(factors, blocks, eps, stop)


def test_the_estimate_does_not_keep_the_tolerance_and_the_residual_does() -> None:
    """What goes wrong in the paper, on natural images of its own first layer's kind."""
    blocks = lrbench.Im2col(photo_crops(24, 32), 3, padding=1)
    errors = {}
    for name in ("aca", "aca-estimate"):
        factors = lrbench.get_compressor(name, eps=0.1).compress(blocks)
        errors[name] = relative_errors(blocks.dense(), factors)
    assert errors["aca"].max() <= 0.1 * (1 + SLACK)
    assert np.median(errors["aca-estimate"]) > 0.1


@every_way
def test_no_cross_is_spent_after_the_residual_is_small() -> None:
    """One cross fewer would break the tolerance."""
    D = decaying_blocks()
    for eps in (0.3, 0.1):
        factors = lrbench.get_compressor("aca", eps=eps).compress(D)
        for i in (factors.origin == Origin.OWN).nonzero()[:, 0].tolist():
            U, V = factor_pair(factors, i)
            if U.shape[1]:
                residual = D[i].numpy() - U[:, :-1] @ V[:-1]
                assert np.linalg.norm(residual) > eps * (1 - 1e-3) * np.linalg.norm(D[i].numpy())


@every_way
def test_a_zero_first_row_is_passed_over() -> None:
    D = family("zero_first_row", torch.float64, 0)
    for name in ("aca", "aca-estimate"):
        factors = lrbench.get_compressor(name, eps=1e-6).compress(D)
        assert relative_errors(D, factors).max() < 1e-6
    assert lrbench.get_compressor("aca", eps=1e-6).compress(D).ranks.tolist() == [5, 3]


@every_way
@pytest.mark.parametrize("seed", range(4))
def test_a_row_is_a_pivot_once(seed: int) -> None:
    """When the rows that are not zero are used up, what is left in them is rounding."""
    D = torch.zeros(1, 12, 20, dtype=torch.float64)
    D[0, :3] = torch.randn(3, 20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert lrbench.get_compressor("aca-estimate", eps=1e-3).compress(D).ranks.tolist() == [3]


@every_way
def test_whole_numbers_let_the_pivots_reach_the_second_diagonal_block() -> None:
    """The first block is represented without rounding: its rows run dry."""
    D = torch.zeros(1, 16, 24, dtype=torch.float64)
    D[:, :8, :12] = torch.arange(1, 9)[:, None] * torch.ones(12)
    D[:, 8:, 12:] = torch.ones(8)[:, None] * torch.arange(1, 13)
    factors = lrbench.get_compressor("aca", eps=1e-6).compress(D)
    assert factors.ranks.tolist() == [2]
    assert factors.origin.tolist() == [Origin.OWN]


@every_way
def test_no_crosses_are_spent_on_rounding() -> None:
    """Where the first diagonal block is represented up to rounding, the pivots go on to the second."""
    D = family("disjoint_diagonal_blocks", torch.float64, 0)
    factors = lrbench.get_compressor("aca", eps=1e-3).compress(D)
    assert (factors.origin == Origin.OWN).all()
    assert factors.ranks.tolist() == [4, 4]


def test_the_estimates_factors_are_returned_whatever_their_size() -> None:
    for name in FAMILIES:
        blocks = family(name, torch.float32, 0.1)
        factors = lrbench.get_compressor("aca-estimate", eps=1e-6).compress(blocks)
        assert factors.kept is None
        assert (factors.ranks <= min(blocks.shape[1:])).all()
    incompressible = family("orthogonal", torch.float64, 0)
    assert lrbench.get_compressor("aca-estimate", eps=1e-6).compress(incompressible).ranks.tolist() == [12, 12]


@pytest.mark.parametrize("threads", [2, 4, 9])
def test_the_number_of_threads_does_not_show(threads: int) -> None:
    blocks = low_rank_plus_noise(7, 16, 22)
    before = torch.get_num_threads()
    expected = lrbench.get_compressor("aca", eps=0.01).compress(blocks)
    try:
        torch.set_num_threads(threads)
        factors = lrbench.get_compressor("aca", eps=0.01).compress(blocks)
    finally:
        torch.set_num_threads(before)
    assert factors.origin.tolist() == [Origin.OWN] * 7
    assert_same_tensors(factors, expected)


@pytest.mark.parametrize("length", [1, 5, 64, 65, 200])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_pivot_is_the_largest_magnitude_of_either_sign(dtype: type[np.floating], length: int) -> None:
    g = np.random.default_rng(length)
    for _ in range(20):
        row = g.standard_normal(length).astype(dtype)
        assert kernels.pivot_column(row) == np.abs(row).argmax()
    row[length // 2 :] = -9.0
    assert kernels.pivot_column(row) == length // 2  # the first of equals


@every_way
@pytest.mark.parametrize("stop", ["residual", "estimate"])
def test_float32_crosses_are_the_textbooks(stop: str) -> None:
    """In the dtype that images have; of sums of noise, in which no two numbers are as large but for the last digit."""
    x = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)).cumsum(2).cumsum(3)
    blocks = lrbench.Im2col(x, 3, padding=1)
    compressor = lrbench.get_compressor("aca" if stop == "residual" else "aca-estimate", eps=0.5)
    factors = compressor.compress(blocks)
    for i, D in enumerate(blocks.dense().double().numpy()):
        U, V, real = textbook(D, 0.5, stop)
        rows = slice(int(factors.offsets[i]), int(factors.offsets[i + 1]))
        assert rows.stop - rows.start == real.sum() > 1
        found = factors.U[rows].double().T @ factors.V[rows].double()
        np.testing.assert_allclose(found.numpy(), U @ V, atol=1e-4 * np.abs(D).max())
