"""The truncated SVD finds the least rank, and stores exactly what that rank does not make smaller."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import eckart_young_rank, relative_errors

import lrbench
from lrbench import LowRank, Origin
from lrbench.compressors.spectral import per_matrix, truncated_svd, truncation_ranks
from lrbench.contract.adversarial import FAMILIES, decaying_blocks, family, with_singular_values
from lrbench.contract.comparing import SLACK, TOLERANCES, each_dtype

ROUNDS_AT = {torch.float32: 1e-5, torch.float64: 1e-13}
"""Tolerances below which factors of a dtype may fail by rounding alone."""


@each_dtype
@pytest.mark.parametrize("name", FAMILIES)
def test_the_rank_is_the_least_there_is(name: str, dtype: torch.dtype) -> None:
    for eps in TOLERANCES:
        blocks = family(name, dtype, eps)
        m, n = blocks.shape[1:]
        factors = lrbench.get_compressor("svd", eps=eps).compress(blocks)
        results = zip(blocks.double().numpy(), factors.ranks.tolist(), factors.origin.tolist(), strict=True)
        for D, rank, origin in results:
            least = eckart_young_rank(D, eps * (1 + SLACK))
            most = eckart_young_rank(D, eps * (1 - 1e-3))
            if origin == Origin.STORED:
                assert most * (m + n) > m * n or eps < ROUNDS_AT[dtype], (eps, most)
            elif eps < ROUNDS_AT[dtype]:
                assert least <= rank <= eckart_young_rank(D, eps / 10), eps
            else:
                assert origin == Origin.OWN, eps
                assert least <= rank <= most, eps


@each_dtype
def test_ranks_grow_as_the_tolerance_shrinks(dtype: torch.dtype) -> None:
    for blocks in (decaying_blocks(dtype), family("photographs", dtype, 0)):
        ranks = [lrbench.get_compressor("svd", eps=eps).compress(blocks).ranks for eps in np.geomspace(0.9, 1e-6, 25)]
        assert (torch.stack(ranks).diff(dim=0) >= 0).all()


def test_the_error_is_that_of_eckart_and_young() -> None:
    values = [0.5**k for k in range(12)]
    D = with_singular_values(values, 24, 32)
    for eps in (0.3, 0.1, 1e-2, 1e-3):
        factors = lrbench.get_compressor("svd", eps=eps).compress(D)
        rank = int(factors.ranks[0])
        assert rank == eckart_young_rank(D[0].numpy(), eps)
        expected = np.linalg.norm(values[rank:]) / np.linalg.norm(values)
        assert relative_errors(D, factors)[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40)], ids=["wide", "tall"])
def test_the_shorter_sides_factor_is_orthonormal(shape: tuple[int, int]) -> None:
    """So that errors add in squares."""
    blocks = lrbench.DenseBlocks(with_singular_values([0.7**k for k in range(20)], *shape))
    for eps in (1e-2, 1e-7):  # by the Gram matrix, and by the SVD of the block
        found = truncated_svd(blocks, eps)
        if isinstance(found, LowRank):
            basis = found.U
        else:
            assert found.side == ("rows" if shape[0] <= shape[1] else "columns")
            basis = found.vectors[0, : int(found.ranks[0])]
        torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis), dtype=torch.float64))


def test_tolerances_below_the_gram_matrixs_reach_are_kept() -> None:
    """Squared singular values lose what lies below 1e-8 of the largest."""
    D = with_singular_values([1.0, 1e-3, 1e-6, 3e-9, 1e-11], 30, 40)
    for eps, rank in ((1e-4, 2), (1e-7, 3), (1e-8, 3), (1e-9, 4), (1e-10, 4)):
        factors = lrbench.get_compressor("svd", eps=eps).compress(D)
        assert factors.ranks.tolist() == [rank]
        assert relative_errors(D, factors)[0] <= eps * (1 + SLACK)


def test_float32_blocks_are_decomposed_in_float64() -> None:
    """In a float32 Gram matrix the small singular values of this block are noise, and its rank 20."""
    D = with_singular_values([1.0, 1e-4, 1e-4], 60, 80).float()
    assert lrbench.get_compressor("svd", eps=1e-5).compress(D).ranks.tolist() == [3]


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    values=st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=8),
    eps=st.floats(1e-3, 0.99),
    extra=st.tuples(st.integers(8, 20), st.integers(8, 20)),
)
def test_any_spectrum_is_cut_where_the_tolerance_allows(
    values: list[float], eps: float, extra: tuple[int, int]
) -> None:
    D = with_singular_values(values, *extra)
    factors = lrbench.get_compressor("svd", eps=eps).compress(D)
    assert relative_errors(D, factors)[0] <= eps * (1 + SLACK)
    if factors.origin[0] != Origin.STORED:
        assert eckart_young_rank(D[0].numpy(), eps * (1 + SLACK)) <= int(factors.ranks[0])
        assert int(factors.ranks[0]) <= eckart_young_rank(D[0].numpy(), eps * (1 - 1e-3))


def test_truncation_counts_energy_that_is_lost_already() -> None:
    energies = torch.tensor([[0.1, 0.2, 0.7]], dtype=torch.float64)
    total = torch.ones(1, dtype=torch.float64)
    assert truncation_ranks(energies, total, 0.5).tolist() == [2]  # may lose 0.25
    assert truncation_ranks(energies, total, 0.6).tolist() == [1]  # may lose 0.36
    assert truncation_ranks(energies, total, 0.6, torch.tensor([0.1])).tolist() == [2]
    assert truncation_ranks(energies, total, 0.6, torch.tensor([0.4])).tolist() == [3]


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_eigenvalues_do_not_depend_on_the_number_of_threads(count: int) -> None:
    G = torch.randn(count, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    G = G @ G.mT
    threads = torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            values, vectors = per_matrix(torch.linalg.eigh, G)
            assert torch.get_num_threads() == number
            torch.testing.assert_close(values, torch.from_numpy(np.linalg.eigvalsh(G.numpy())))
            torch.testing.assert_close(vectors * values[:, None] @ vectors.mT, G)
    finally:
        torch.set_num_threads(threads)


def test_a_block_does_not_depend_on_the_ranks_of_its_neighbours() -> None:
    """Not in its last bit, though float32 or float64 may be the cheaper for the ranks of a batch."""
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(1, 60, 2, generator=generator) @ torch.randn(1, 2, 70, generator=generator)
    high = torch.randn(6, 60, 70, generator=generator)
    compress = lrbench.get_compressor("svd", eps=0.2).compress
    alone, among = compress(low), compress(torch.cat([low, high]))
    assert torch.equal(alone.V, among.V[: len(alone.V)])
    assert torch.equal(alone.U, among.U[: len(alone.U)])
