"""Of eight matrices at a time: for each what LAPACK's decomposition tells, and nothing of what is beside it."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lrbench.kernels.several import ANY, LANES, _all_vectors, leading_of_several, several_scratch

Matrix = NDArray[np.float64]
Generator = np.random.Generator


def rotated(values: NDArray[np.floating[Any]], g: Generator) -> Matrix:
    """A matrix of these eigenvalues."""
    Q = np.linalg.qr(g.standard_normal((len(values), len(values))))[0]
    G = (Q * values) @ Q.T
    return (G + G.T) / 2


def natural(n: int, g: Generator) -> Matrix:
    return rotated(np.arange(1, n + 1) ** -g.uniform(0.5, 3), g)


def deficient(n: int, g: Generator) -> Matrix:
    D = g.standard_normal((n, int(g.integers(1, n + 1))))
    return D @ D.T


def diagonal(n: int, g: Generator) -> Matrix:
    return np.diag(10.0 ** -g.uniform(0, g.choice([3, 300]), n) * g.choice([0, 1, 1], n))


def graded(n: int, g: Generator) -> Matrix:
    D = g.standard_normal((n, n)) * 10.0 ** -g.uniform(0, g.choice([3, 20, 150]), (n, int(g.choice([1, n]))))
    return D @ D.T


def graded_tridiagonal(n: int, g: Generator) -> Matrix:
    d = 10.0 ** -g.uniform(0, g.choice([20, 300]), n)
    e = np.sqrt(d[1:] * d[:-1]) * g.random(n - 1) / 2
    return np.diag(d) + np.diag(e, 1) + np.diag(e, -1)


def multiple(n: int, g: Generator) -> Matrix:
    """Of equal eigenvalues."""
    return rotated(np.repeat(10.0 ** -g.uniform(0, 3, n), g.integers(1, 5, n))[:n], g)


def clustered(n: int, g: Generator) -> Matrix:
    near, far = n // 2, n - n // 2
    widths = 10.0 ** -g.integers(5, 16, 2)
    low = 10.0 ** -g.uniform(0, 5)
    return rotated(np.concatenate([1 + widths[0] * g.random(near), low * (1 + widths[1] * g.random(far))]), g)


def decoupled(n: int, g: Generator) -> Matrix:
    G, k = np.zeros((n, n)), n // 2
    G[:k, :k], G[k:, k:] = natural(k, g), natural(n - k, g) * 10.0 ** -g.uniform(0, 6)
    return G


def constant(n: int, g: Generator) -> Matrix:
    return g.choice([0, 1, 1]) * np.ones((n, n))


def identity(n: int, g: Generator) -> Matrix:
    return np.eye(n)


KINDS = [
    natural,
    deficient,
    diagonal,
    graded,
    graded_tridiagonal,
    multiple,
    clustered,
    decoupled,
    constant,
    identity,
]


def drawn(n: int, g: Generator) -> Matrix:
    """Of any kind; its largest element is 1, as in a block that was scaled, or 0."""
    G = KINDS[int(g.integers(len(KINDS)))](n, g)
    return G / (np.abs(G).max() or 1)


def leading(G: Matrix, eps: Matrix, ranks: NDArray[np.int64]) -> tuple[list[Matrix], Matrix]:
    """Bases and margins; what stands above the diagonal, and what was in the scratch, is not a number."""
    work, ranks, margins, scratch = G.copy(), ranks.copy(), np.full(len(G), np.nan), several_scratch(G.shape[1])
    work[:, *np.triu_indices(G.shape[1], 1)] = np.nan
    for part in scratch:
        part[:] = np.nan
    leading_of_several(work, eps, ranks, margins, scratch)
    assert (ranks >= 0).all()
    return [work[b, :rank] for b, rank in enumerate(ranks)], margins


def check(G: Matrix, eps: float, given: int, basis: Matrix, margin: float) -> None:
    """Parts of the trace are what rounding of it allows."""
    trace, rank = np.trace(G), len(basis)
    if trace == 0:
        assert (rank, margin) == (0, 1)
        return
    values = np.linalg.eigvalsh(G)[::-1] / trace
    lost = 1 - np.concatenate([[0], np.cumsum(values)])
    if given == ANY:
        before = lost[rank - 1] if rank > 0 else np.inf
        assert lost[rank] - 1e-13 <= eps**2 <= before + 1e-13
        assert margin == pytest.approx(min(eps**2 - lost[rank], before - eps**2), abs=1e-13)
    else:
        assert (rank, margin) == (given, 1)
    ritz = np.diag(basis @ G @ basis.T) / trace
    np.testing.assert_allclose(basis @ basis.T, np.eye(rank), atol=1e-13)
    np.testing.assert_allclose(ritz, values[:rank], rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_the_rank_is_the_least_and_the_subspace_the_best(kind) -> None:  # type: ignore[no-untyped-def]
    g = np.random.default_rng(KINDS.index(kind))
    for n in (1, 2, 3, 4, 9, 16, 27, 28):
        for _ in range(6):
            G = np.array([kind(n, g) for _ in range(LANES)])
            G /= np.abs(G).max((1, 2), keepdims=True) + (G == 0).all((1, 2), keepdims=True)
            eps, ranks = g.choice([1, 0.9, 0.3, 0.1, 0.03, 1e-3, 1e-5], LANES), np.full(LANES, ANY)
            for b, (basis, margin) in enumerate(zip(*leading(G, eps, ranks), strict=True)):
                check(G[b], eps[b], ANY, basis, margin)
            ranks = g.integers(0, n + 1, LANES)
            for b, (basis, margin) in enumerate(zip(*leading(G, eps, ranks), strict=True)):
                check(G[b], eps[b], int(ranks[b]), basis, margin)


@pytest.mark.parametrize("n", [1, 2, 3, 9, 27])
def test_what_becomes_of_a_matrix_does_not_depend_on_the_others(n: int) -> None:
    """Nor on its place, nor on how many there are: bit by bit, also where companions take longer or give in at once."""
    g = np.random.default_rng(n)
    for own in KINDS:
        for trial in range(4):
            G = own(n, g)
            G /= np.abs(G).max() or 1
            eps, rank = float(g.choice([0.3, 0.1, 1e-3])), ANY if trial % 2 else int(g.integers(n + 1))
            (alone,), (margin,) = leading(G[None], np.array([eps]), np.array([rank]))
            for companions in (natural, graded, graded_tridiagonal, np.zeros, None):
                count = int(g.integers(1, LANES + 1))
                if companions is None:
                    several = np.array([drawn(n, g) for _ in range(count)])
                elif companions is np.zeros:
                    several = np.zeros((count, n, n))
                else:
                    several = np.array([companions(n, g) for _ in range(count)])
                place = int(g.integers(count))
                several[place] = G
                tolerances, ranks = g.choice([1, 0.3, 1e-2, 1e-5], count), g.integers(-1, n + 1, count)
                tolerances[place], ranks[place] = eps, rank
                bases, margins = leading(several, tolerances, ranks)
                assert np.array_equal(bases[place], alone)
                assert margins[place] == margin


def test_scratch_that_was_used_before_changes_nothing() -> None:
    g = np.random.default_rng(0)
    scratch = several_scratch(12)
    for _ in range(50):
        G = np.array([drawn(12, g) for _ in range(3)])
        bases, margins = leading(G, np.full(3, 0.1), np.full(3, ANY))
        ranks, again = np.full(3, ANY), np.empty(3)
        leading_of_several(G, np.full(3, 0.1), ranks, again, scratch)
        assert np.array_equal(again, margins)
        for b, basis in enumerate(bases):
            assert np.array_equal(G[b, : ranks[b]], basis)


@pytest.mark.parametrize("seed", range(4))
def test_no_graded_matrix_leads_to_numbers_that_are_none(seed: int) -> None:
    """Quotients of numbers that are nearly zero are neither infinite nor none."""
    g = np.random.default_rng(seed)
    for _ in range(150):
        n = int(g.integers(2, 10))
        G = np.array([(graded, graded_tridiagonal, diagonal)[b % 3](n, g) for b in range(LANES)])
        G /= np.abs(G).max((1, 2), keepdims=True) + (G == 0).all((1, 2), keepdims=True)
        eps = 10.0 ** -g.uniform(0, 7, LANES)
        for b, (basis, margin) in enumerate(zip(*leading(G, eps, np.full(LANES, ANY)), strict=True)):
            check(G[b], eps[b], ANY, basis, margin)


def test_equal_eigenvalues_that_rounding_couples_get_different_vectors() -> None:
    """Reflections leave elements of the size of rounding beside the diagonal, where exact ones would leave none."""
    for seed in range(40):
        g = np.random.default_rng(seed)
        G = np.array([rotated(np.repeat([1.0, 1e-4], 9), g) for _ in range(LANES)])
        for b, (basis, margin) in enumerate(zip(*leading(G, np.full(LANES, 0.1), np.full(LANES, ANY)), strict=True)):
            assert len(basis) == 9
            check(G[b], 0.1, ANY, basis, margin)


@pytest.mark.parametrize("kind", KINDS)
def test_where_eigenvalues_are_too_near_all_vectors_are_found(kind) -> None:  # type: ignore[no-untyped-def]
    """Whatever the matrix: the parts of one may be far apart, or have nothing to do with each other."""
    g = np.random.default_rng(KINDS.index(kind))
    for n in (1, 2, 3, 12):
        for _ in range(20):
            G = kind(n, g)
            G /= np.abs(G).max() or 1
            d, e = np.diag(G).copy(), np.append(np.diag(G, 1), np.nan)
            T = np.diag(d) + np.diag(e[:-1], 1) + np.diag(e[:-1], -1)
            Z = np.full((n, n), np.nan)
            assert _all_vectors(d, e, Z)
            np.testing.assert_allclose(Z @ Z.T, np.eye(n), atol=1e-13)
            np.testing.assert_allclose(Z @ T @ Z.T, np.diag(d), atol=1e-13 * n)
