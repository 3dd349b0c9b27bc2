"""The iteration ends where LAPACK's decomposition would: least rank, best subspace, orthonormal vectors."""

import numpy as np
import pytest
from numpy.typing import NDArray

from lrbench.kernels.lanczos import ANY, _bounded, _eigenvalues, lanczos_scratch, leading_eigenvectors

Matrix = NDArray[np.float64]


def rotated(values: list[float] | Matrix, seed: int = 0) -> Matrix:
    """A matrix of these eigenvalues."""
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))[0]
    G = (Q * np.asarray(values)) @ Q.T
    return (G + G.T) / 2


SPECTRA: dict[str, Matrix] = {
    "geometric": 0.6 ** np.arange(30),
    "slow": 1.0 / np.arange(1, 41),
    "flat": np.ones(12),
    "one": np.array([1.0]),
    "rank one": np.array([2.0, 0, 0, 0, 0]),
    "threefold": np.repeat(0.5 ** np.arange(8), 3),
    "two clusters": np.concatenate([1 + 1e-12 * np.arange(5), 1e-2 * (1 + 1e-9 * np.arange(9))]),
    "a cliff": np.concatenate([np.ones(6), np.full(20, 1e-9)]),
    "wide": 10.0 ** -np.linspace(0, 12, 25),
    "natural": np.arange(1, 121) ** -2.2,
}


def least_rank(values: Matrix, eps: float) -> int:
    tail = np.concatenate([np.cumsum(np.sort(values))[::-1], [0.0]])
    return int(np.argmax(tail <= eps**2 * values.sum()))


@pytest.mark.parametrize("diagonal", [False, True], ids=["rotated", "diagonal"])
@pytest.mark.parametrize("eps", [0.9, 0.5, 0.3, 0.1, 0.03, 1e-2, 1e-3])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_rank_is_the_least_and_the_subspace_the_best(name: str, eps: float, diagonal: bool) -> None:
    """On a diagonal matrix the iteration meets invariant subspaces from the first step on."""
    values = SPECTRA[name]
    G = np.diag(values).astype(np.float64) if diagonal else rotated(values)
    work = G.copy()
    rank = leading_eigenvectors(work, eps, ANY, lanczos_scratch(len(G)))
    assert least_rank(values, eps * (1 + 1e-9)) <= rank <= least_rank(values, eps * (1 - 1e-9))
    basis = work[:rank]
    np.testing.assert_allclose(basis @ basis.T, np.eye(rank), atol=1e-12)
    lost = values.sum() - np.trace(basis @ G @ basis.T)
    least = np.sort(values)[: len(values) - rank].sum()
    assert lost <= eps**2 * values.sum() * (1 + 1e-9)
    assert least - 1e-12 <= lost <= least + 1.01e-6 * eps**2 * values.sum() + 1e-12


@pytest.mark.parametrize("diagonal", [False, True], ids=["rotated", "diagonal"])
@pytest.mark.parametrize("name", SPECTRA)
def test_of_a_rank_that_is_given_the_subspace_is_the_best(name: str, diagonal: bool) -> None:
    values = SPECTRA[name]
    G = np.diag(values).astype(np.float64) if diagonal else rotated(values)
    for rank in range(len(values) + 1):
        work = G.copy()
        assert leading_eigenvectors(work, 1.0, rank, lanczos_scratch(len(G))) == rank
        basis = work[:rank]
        np.testing.assert_allclose(basis @ basis.T, np.eye(rank), atol=1e-12)
        lost = values.sum() - np.trace(basis @ G @ basis.T)
        least = np.sort(values)[: len(values) - rank].sum()
        assert least - 1e-12 <= lost <= least * (1 + 1.01e-6) + 1e-12


@pytest.mark.parametrize("seed", range(30))
def test_equal_eigenvalues_get_different_vectors(seed: int) -> None:
    """Rounding splits them by a unit in the last place or not at all, differently for every rotation."""
    g = np.random.default_rng(seed)
    values = np.repeat(10.0 ** -g.uniform(0, 3, 6), g.integers(1, 5, 6))
    G = rotated(values, seed)
    for eps in (0.3, 0.03, 1e-3):
        work = G.copy()
        rank = leading_eigenvectors(work, eps, ANY, lanczos_scratch(len(G)))
        assert least_rank(values, eps * (1 + 1e-9)) <= rank <= least_rank(values, eps * (1 - 1e-9))
        basis = work[:rank]
        np.testing.assert_allclose(basis @ basis.T, np.eye(rank), atol=1e-12)
        lost = values.sum() - np.trace(basis @ G @ basis.T)
        assert lost <= eps**2 * values.sum() * (1 + 1e-9) + 1e-14


def test_no_rotation_of_equal_eigenvalues_makes_it_give_up() -> None:
    """One in some thousands did, when their shifts were equal, too."""
    for seed in range(60):
        g = np.random.default_rng(seed)
        values = np.repeat(10.0 ** -g.uniform(0, 3, 6), g.integers(1, 5, 6))
        scratch = lanczos_scratch(len(values))
        for rotation in range(40):
            rank = leading_eigenvectors(rotated(values, 1000 * seed + rotation), 1e-3, ANY, scratch)
            assert rank == least_rank(values, 1e-3), rotation


def test_scratch_that_was_used_before_changes_nothing() -> None:
    scratch = lanczos_scratch(30)
    first, second = rotated(SPECTRA["geometric"]), rotated(SPECTRA["geometric"], seed=5)
    alone = first.copy()
    rank = leading_eigenvectors(alone, 0.1, ANY, scratch)
    leading_eigenvectors(second, 1e-3, ANY, scratch)
    again = first.copy()
    assert leading_eigenvectors(again, 0.1, ANY, scratch) == rank
    assert np.array_equal(again[:rank], alone[:rank])
    for part in scratch:
        part[:] = np.nan
    assert leading_eigenvectors(first, 0.1, ANY, scratch) == rank
    assert np.array_equal(first[:rank], alone[:rank])


def test_a_zero_matrix_has_rank_zero() -> None:
    assert leading_eigenvectors(np.zeros((4, 4)), 0.1, ANY, lanczos_scratch(4)) == 0


@pytest.mark.parametrize("seed", range(5))
def test_a_start_that_misses_a_direction_does_not_hide_it(seed: int) -> None:
    """An eigenvector that is orthogonal to every vector of the first Krylov space is found all the same."""
    g = np.random.default_rng(seed)
    blocks = [rotated(g.random(6) + 0.1, seed), rotated(g.random(5) + 0.1, seed + 9)]
    G = np.zeros((11, 11))
    G[:6, :6], G[6:, 6:] = blocks
    values = np.linalg.eigvalsh(G)
    for eps in (0.6, 0.3, 0.05):
        work = G.copy()
        rank = leading_eigenvectors(work, eps, ANY, lanczos_scratch(11))
        assert rank == least_rank(values, eps)


@pytest.mark.parametrize("seed", range(20))
def test_energy_that_the_start_does_not_see_is_not_taken_for_rounding(seed: int) -> None:
    """What is left is a difference of squares, of which 1e-8 of the norm is lost to rounding."""
    start = 1.0 + (np.arange(27) * 2654435761 % 1024) / 4096.0
    seen = np.random.default_rng(seed).standard_normal((27, 5))
    seen[:, 4] -= start * (start @ seen[:, 4]) / (start @ start)  # the fifth is not in the start's Krylov space
    Q = seen[:, 4:] / np.linalg.norm(seen[:, 4])
    rest = np.linalg.qr(np.concatenate([Q, seen[:, :4]], 1))[0][:, 1:]
    vectors, values = np.concatenate([rest, Q], 1), np.array([1.0, 5e-9, 2e-9, 1e-9, 9e-9])
    G = (vectors * values) @ vectors.T
    work = (G + G.T) / 2
    basis = work[: leading_eigenvectors(work, 0.5, 2, lanczos_scratch(27))]
    lost = values.sum() - np.trace(basis @ G @ basis.T)
    assert lost <= (5e-9 + 2e-9 + 1e-9) * (1 + 1e-5) + 2e-16


def test_what_stands_above_the_diagonal_is_not_read() -> None:
    for name, values in SPECTRA.items():
        G = rotated(values)
        half = np.tril(G) + np.triu(np.full_like(G, np.nan), 1)
        rank = leading_eigenvectors(G, 0.1, ANY, lanczos_scratch(len(G)))
        assert leading_eigenvectors(half, 0.1, ANY, lanczos_scratch(len(G))) == rank, name
        assert np.array_equal(half[:rank], G[:rank]), name


@pytest.mark.parametrize("seed", range(20))
def test_a_bound_is_given_where_it_holds_with_room_and_nowhere_that_it_does_not(seed: int) -> None:
    g = np.random.default_rng(seed)
    n = int(g.integers(2, 30))
    # Most couplings of such a matrix are weak, as those of one that Lanczos iteration made: its ends hardly meet.
    alpha, beta = np.sort(g.random(n))[::-1].copy(), 10.0 ** -g.uniform(0, 4, n)
    T = np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1)
    theta = np.linalg.eigvalsh(T)[::-1].copy()
    more = 10.0 ** g.uniform(-3, 1)
    T[-1, -1] += more
    grown = np.linalg.eigvalsh(T)[::-1]
    scratch, answers = lanczos_scratch(n)[2][6:], []
    for r in range(1, n + 1):
        gains = grown[:r] - theta[:r]
        shares = 0.5 / r + 0.5 ** np.arange(r + 1.0, 1.0, -1.0)
        assert shares.sum() <= 1
        needed = (gains / shares).max()
        assert not _bounded(alpha, beta, n, more, theta, r, 0.99 * gains.sum() - 1e-14, scratch)
        assert _bounded(alpha, beta, n, more, theta, r, 1.01 * needed + 1e-12, scratch)
        answers.append(needed > 1.01 * gains.sum() + 1e-12)
    assert any(answers) or n < 4  # or the shares would not matter


def test_eigenvalues_of_graded_matrices_are_right_beside_their_norm() -> None:
    """Quotients of numbers that are nearly zero are neither infinite nor none."""
    for seed in range(7000):
        g = np.random.default_rng(seed)
        n, top = int(g.integers(2, 9)), g.choice([20, 160, 300])
        d = 10.0 ** -g.uniform(0, top, n) * g.choice([0, 1, 1, 1], n)
        b = 10.0 ** -g.uniform(0, min(top, 160), n)
        norm = max(d.max(), b[:-1].max())
        d, b = d / norm, b / norm
        expected = np.linalg.eigvalsh(np.diag(d) + np.diag(b[:-1], 1) + np.diag(b[:-1], -1))[::-1]
        assert _eigenvalues(d, b * b, n), seed
        np.testing.assert_allclose(d, expected, rtol=0, atol=1e-12, err_msg=str(seed))
