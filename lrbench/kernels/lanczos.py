"""Leading eigenvectors of a small Gram matrix, as many as a tolerance asks for, and proof that fewer will not do.

Or as many as are asked for, and proof that no others hold more.
"""

from typing import Any

import numpy as np

from lrbench.kernels.loops import combine, compiled, dot, exact, inner, inner_symmetric, subtract

__all__ = ["ANY", "FAILED", "lanczos_scratch", "leading_eigenvectors", "room"]

FAILED = -1
"""Stands for a rank where the iteration did not come to an end."""

ANY = -1
"""In place of a rank: the least that the tolerance allows."""

_SLACK = 1e-6
"""The lost energy may exceed the least possible by this part of what the tolerance allows, or of itself."""

_UNSEEN = 1e-10
"""Energy, as a part of all, that a Gram matrix does not tell from rounding errors."""

_TINY = float(np.finfo(np.float64).tiny)
"""In place of a pivot of zero."""

_LANES = 8
"""Eigenvectors are computed so many at a time, a lane of a vector register for each."""


@compiled
def lanczos_scratch(n: int) -> tuple[Any, Any, Any, Any]:  # pragma: no cover (compiled)
    """What :func:`leading_eigenvectors` works in."""
    return np.empty((n, n)), np.empty((n, n)), np.empty((6 + 6 * _LANES, n + 1)), np.zeros(1)


@compiled
def room(scratch: Any) -> float:  # pragma: no cover (compiled)
    """How much more, or less, the last matrix's r or r − 1 largest eigenvalues could have held without another rank.

    Nothing where the rank was given.
    """
    return scratch[3][0]


@compiled
def leading_eigenvectors(G: Any, eps: float, rank: int, scratch: Any) -> int:  # pragma: no cover (compiled)
    """Replace the first rows of G = D Dᵀ by an orthonormal basis on which D's projection is off by at most eps ‖D‖_F.

    Lanczos iteration with full reorthogonalization (C. Lanczos, 1950; C. C. Paige, 1972), stopped by what it proves.
    After j steps QᵀGQ = T is tridiagonal, with eigenvalues θ, and the rest of G is coupled to it by β in one place.
    Let c bound the rest's eigenvalues; its Frobenius norm is known, because ‖G‖_F is. For any t > 0 the coupling is
    bounded by adding β²/t to T's last diagonal element and t to the rest (the Schur complement): as long as c + t does
    not exceed the k-th largest eigenvalue, the sum of the k largest of that matrix bounds the sum of G's k largest
    eigenvalues from above, while Σ θ_i bounds it from below. The rank is r when the r largest θ leave as little energy
    as the tolerance allows, when the bounds of r are apart by no more than a millionth part of the allowance, and when
    with that the r − 1 largest leave too much, so that no r − 1 directions can do (Eckart and Young). Where a rank is
    given, the second of these is all that is asked, for a millionth part of what is lost.

    Parameters
    ----------
    G : array
        (n, n) float64, positive semidefinite; what stands above the diagonal is not read. Overwritten: the first r rows
        hold the basis, by descending Ritz value.
    eps : float
        In (0, 1); above some 1e-7, for the square of it to be seen beside one.
    rank : int
        ANY, or how many vectors there are to be, 0..n; eps is then not read.
    scratch
        From :func:`lanczos_scratch`.

    Returns
    -------
    int
        The rank r, 0..n, of a zero matrix always 0; FAILED, with G spoilt, if an eigenvalue iteration did not converge.
    """
    Q, Z, vectors, spare = scratch
    spare[0] = 0.0
    n = G.shape[0]
    alpha, beta, c, w = vectors[0], vectors[1], vectors[2], vectors[3, :n]
    theta, squares = vectors[4], vectors[5]
    trace, frobenius = 0.0, 0.0
    for i in range(n):
        trace += G[i, i]
        below = G[i, :i]
        frobenius += 2 * dot(below, below) + G[i, i] * G[i, i]
    given = rank != ANY
    if trace == 0.0 or rank == 0:
        return 0
    allowed = eps * eps * trace
    for i in range(n):
        Q[0, i] = 1.0 + (i * 2654435761 % 1024) / 4096.0
    inner_symmetric(G, Q[0], w)
    size = np.sqrt(dot(w, w))
    if size == 0.0:
        size = 1.0
        w[:] = Q[0]
    scale = 1.0 / np.sqrt(dot(w, w))
    for i in range(n):
        Q[0, i] = w[i] * scale
    # Before so little is left a check is lost labour; how little differs with the tolerance (found by trial).
    patience = min(0.6, max(0.15, 2 * eps)) * allowed
    if given:
        patience = trace
    j, check, often, r = 0, rank + 2 if given else 2, 8, 0
    captured, known, total = 0.0, 0.0, 0.0  # trace(T), ‖T‖_F², the sum of the r largest eigenvalues
    while True:
        inner_symmetric(G, Q[j], w)
        a = dot(Q[j], w)
        for i in range(n):
            w[i] -= a * Q[j, i]
        if j > 0:
            for i in range(n):
                w[i] -= beta[j - 1] * Q[j - 1, i]
        before = dot(w, w)
        inner(Q, j + 1, w, c)
        subtract(Q, j + 1, c, w)
        after = dot(w, w)
        if after < 0.5 * before or before < 1e-6 * a * a:
            inner(Q, j + 1, w, c)
            subtract(Q, j + 1, c, w)
            after = dot(w, w)
        alpha[j] = a
        j += 1
        captured += a
        known += a * a
        b = np.sqrt(after)
        if j == n or b <= 1e-13 * trace / n:
            b = 0.0
        beta[j - 1] = b
        if j == n or (j >= check and trace - captured <= patience):
            for i in range(j):
                theta[i] = alpha[i]
                squares[i] = beta[i] * beta[i]
            if not _eigenvalues(theta, squares, j):
                return FAILED
            total, r = 0.0, 0
            while r < j and (r < rank if given else trace - total > allowed):
                total += theta[r]
                r += 1
            if given:
                allowed = max(trace - total, _UNSEEN * trace)
            if j == n:
                break
            rest = min(np.sqrt(max(0.0, frobenius - known - 2 * b * b)), trace)
            if given:
                # Nothing else delays the end here: what the differences lose to rounding counts, too, and the rest is
                # positive semidefinite, so that its trace bounds it as well.
                unseen = n * np.finfo(np.float64).eps
                rest = np.sqrt(max(0.0, frobenius - known - 2 * b * b) + unseen * frobenius)
                rest = min(rest, max(0.0, trace - captured) + unseen * trace)
            t = theta[r - 1] - rest if r > 0 else 0.0
            if trace - total <= allowed and t > 0:
                slack = _SLACK * allowed
                least = given or trace - (total - theta[r - 1] + slack) > allowed
                if least and _bounded(alpha, beta, j, b * b / t, theta, r, slack, vectors[6:]):
                    break
            check = j + max(1, j // often)
            # A check costs as much as many steps, and what was not near at the first one is further away.
            often = 4
        known += 2 * b * b
        if b == 0.0:
            # An invariant subspace: what it leaves is met from another direction.
            for i in range(n):
                w[i] = ((i * 40503 + j * 30011) % 2048) / 1024.0 - 1.0
            for _ in range(3):
                inner(Q, j, w, c)
                subtract(Q, j, c, w)
            b = np.sqrt(dot(w, w))
        for i in range(n):
            Q[j, i] = w[i] / b
    if not _tridiagonal_vectors(alpha, beta, j, theta[:r], Z, vectors[6:]):
        return FAILED
    combine(Z, r, Q, j, G)
    if r > 0 and not given:
        # Before the end r − 1 eigenvalues are known to a slack.
        unsure = _SLACK * allowed if j < n else 0.0
        spare[0] = min(allowed - (trace - total), trace - total + theta[r - 1] - unsure - allowed)
    return r


@exact
def _eigenvalues(d: Any, e: Any, n: int) -> bool:  # pragma: no cover (compiled)
    """Eigenvalues of a symmetric tridiagonal matrix, into ``d``, descending.

    The square-root free QL iteration of Pal, Walker and Kahan (B. N. Parlett, 1980, section 8.15; LAPACK's dsterf).

    Parameters
    ----------
    d, e : array
        The diagonal, and the squares of what is beside it; both are overwritten.
    n : int
        The size of the matrix.
    """
    unit = np.finfo(np.float64).eps ** 2 / 4
    e[n - 1] = 0.0
    for low in range(n):
        sweeps = 0
        while True:
            m = low
            while m < n - 1 and e[m] > unit * abs(d[m] * d[m + 1]):
                m += 1
            e[m] = 0.0
            if m == low:
                break
            sweeps += 1
            if sweeps > 60:
                return False
            root = np.sqrt(e[low])
            sigma = (d[low + 1] - d[low]) / (2.0 * root)
            r = np.sqrt(sigma * sigma + 1.0)
            sigma = d[low] - root / (sigma + (r if sigma >= 0 else -r))
            c, s = 1.0, 0.0
            gamma = d[m] - sigma
            p = gamma * gamma
            for i in range(m - 1, low - 1, -1):
                square = e[i]
                r = p + square
                if i != m - 1:
                    e[i + 1] = s * r
                c_before, gamma_before = c, gamma
                c = p / r
                s = square / r
                alpha = d[i]
                quick = p > 1e-150 and square > 1e-150  # or products below may vanish, and r / p be infinite
                if quick:  # the same as below, of divisions that do not wait for one another
                    gamma = (p * (alpha - sigma) - square * gamma_before) / r
                    p = gamma * gamma * (r / p)
                else:
                    gamma = c * (alpha - sigma) - s * gamma_before
                    p = gamma * gamma / c if c != 0.0 else c_before * square
                d[i + 1] = gamma_before + (alpha - gamma)
            e[low] = s * p
            d[low] = sigma + gamma
    for i in range(1, n):
        value, k = d[i], i - 1
        while k >= 0 and d[k] < value:
            d[k + 1] = d[k]
            k -= 1
        d[k + 1] = value
    return True


@compiled
def _bounded(
    alpha: Any, beta: Any, n: int, more: float, theta: Any, r: int, slack: float, vectors: Any
) -> bool:  # pragma: no cover (compiled)
    """Whether ``more`` on T's last diagonal element adds at most ``slack`` to the sum of its r largest eigenvalues.

    Each has a share of the slack, and a Sturm sequence tells how many eigenvalues exceed the k-th one with its share
    (W. Barth, R. S. Martin and J. H. Wilkinson, 1967; LAPACK's dstebz): the answer True is a proof, False is none. The
    last ones, which converge last, have the largest shares.
    """
    area = vectors.reshape(-1)
    limit, pivot, above = area[:_LANES], area[_LANES : 2 * _LANES], area[2 * _LANES : 3 * _LANES]
    for first in range(0, r, _LANES):
        for lane in range(_LANES):
            k = min(first + lane, r - 1)
            limit[lane] = theta[k] + slack * (0.5 / r + 0.5 ** (r - k + 1))
            pivot[lane], above[lane] = 1.0, 0.0
        square = 0.0
        for i in range(n):
            diagonal = alpha[i] + more if i == n - 1 else alpha[i]
            for lane in range(_LANES):
                next_pivot = diagonal - limit[lane] - square / pivot[lane]
                next_pivot = next_pivot if abs(next_pivot) > _TINY else -_TINY
                pivot[lane] = next_pivot
                above[lane] += 1.0 if next_pivot > 0.0 else 0.0
            square = beta[i] * beta[i]
        for lane in range(min(_LANES, r - first)):
            if above[lane] > first + lane:
                return False
    return True


@compiled
def _tridiagonal_vectors(
    alpha: Any, beta: Any, n: int, theta: Any, Z: Any, vectors: Any
) -> bool:  # pragma: no cover (compiled)
    """Orthonormal eigenvectors of a tridiagonal matrix by inverse iteration, the k-th in ``Z[k, :n]``.

    T − θ is factored with partial pivoting (LAPACK's dgttrf). Every vector begins with a direction of its own and is
    made orthogonal to those before it in each step, so that equal eigenvalues, whose shifts are set a little apart,
    get different vectors, too (LAPACK's dstein). Among eigenvalues that rounding alone tells apart any orthonormal
    vectors will do: enough must be left of a vector, not all of it. Two steps are the rule, and more than six the end.
    """
    rank = len(theta)
    area = vectors.reshape(-1)
    size = _LANES * n
    D, U = area[:size].reshape(n, _LANES), area[size : 2 * size].reshape(n, _LANES)
    U2, L = area[2 * size : 3 * size].reshape(n, _LANES), area[3 * size : 4 * size].reshape(n, _LANES)
    X, swaps = area[4 * size : 5 * size].reshape(n, _LANES), area[5 * size : 6 * size].reshape(n, _LANES)
    norm = 0.0
    for i in range(n):
        norm = max(norm, abs(alpha[i]) + 2 * abs(beta[i]))
    tiny = np.finfo(np.float64).eps * norm
    shift = np.empty(_LANES)
    last = np.inf
    for first in range(0, rank, _LANES):
        for lane in range(_LANES):
            if first + lane < rank:
                # Shifts of equal eigenvalues are set apart, or one of their vectors would outgrow the others for ever.
                last = min(theta[first + lane], last - 4 * tiny)
            shift[lane] = last
            D[0, lane] = alpha[0] - shift[lane]
            U[0, lane] = beta[0] if n > 1 else 0.0
            X[0, lane] = 1.0 + (first + lane) % 3
        for i in range(n - 1):
            below, beside = beta[i], beta[i + 1] if i < n - 2 else 0.0
            for lane in range(_LANES):
                d, u, next_d = D[i, lane], U[i, lane], alpha[i + 1] - shift[lane]
                swap = abs(d) < abs(below)
                pivot = below if swap else (d if abs(d) > tiny else tiny)
                factor = (d if swap else below) / pivot
                kept = next_d if swap else u
                moved = u if swap else next_d
                D[i, lane] = 1.0 / pivot
                U[i, lane] = kept
                U2[i, lane] = beside if swap else 0.0
                L[i, lane] = factor
                swaps[i, lane] = 1.0 if swap else 0.0
                D[i + 1, lane] = moved - factor * kept
                U[i + 1, lane] = -factor * beside if swap else beside
                X[i + 1, lane] = ((i + 1) * 7919 + (first + lane) * 104729) % 1009 / 504.5 - 0.999
        for lane in range(_LANES):
            d = D[n - 1, lane]
            D[n - 1, lane] = 1.0 / (d if abs(d) > tiny else tiny)
        settled = False
        for step in range(6):
            # The first right side is what elimination would make of some vector.
            if step:
                for i in range(n - 1):
                    for lane in range(_LANES):
                        here, next_x = X[i, lane], X[i + 1, lane]
                        top = next_x if swaps[i, lane] > 0 else here
                        bottom = here if swaps[i, lane] > 0 else next_x
                        X[i, lane] = top
                        X[i + 1, lane] = bottom - L[i, lane] * top
            for lane in range(_LANES):
                X[n - 1, lane] *= D[n - 1, lane]
                if n > 1:
                    X[n - 2, lane] = (X[n - 2, lane] - U[n - 2, lane] * X[n - 1, lane]) * D[n - 2, lane]
            for i in range(n - 3, -1, -1):
                for lane in range(_LANES):
                    x = X[i, lane] - U[i, lane] * X[i + 1, lane] - U2[i, lane] * X[i + 2, lane]
                    X[i, lane] = x * D[i, lane]
            settled = step > 0
            for lane in range(min(_LANES, rank - first)):
                k = first + lane
                z = Z[k, :n]
                for i in range(n):
                    z[i] = X[i, lane]
                _normalize(z)
                _orthogonalize(z, Z, k)
                left = dot(z, z)
                if not left > 1e-4:
                    settled = False  # mostly rounding errors
                _normalize(z)
                if left < 0.5:
                    _orthogonalize(z, Z, k)
                    _normalize(z)
                for i in range(n):
                    X[i, lane] = z[i]
            if settled:
                break
        if not settled:
            return False
    return True


@compiled
def _orthogonalize(z: Any, Z: Any, count: int) -> None:  # pragma: no cover (compiled)
    """Take the components along the first ``count`` vectors from z."""
    for other in range(count):
        before = Z[other, : len(z)]
        product = dot(z, before)
        for i in range(len(z)):
            z[i] -= product * before[i]


@compiled
def _normalize(z: Any) -> None:  # pragma: no cover (compiled)
    scale = 1.0 / np.sqrt(dot(z, z))
    for i in range(len(z)):
        z[i] *= scale
