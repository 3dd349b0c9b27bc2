"""Leading eigenvectors of eight Gram matrices at a time, a lane of the vector registers for each.

Most of what one small matrix needs waits: one division for the last, and short loops for their first number. Eight of
them wait together. No operation crosses lanes, and a lane that is done is frozen until the others are: what becomes of
a matrix does not depend on which others are beside it.
"""

from typing import Any

import numpy as np

from lrbench.kernels.eights import (
    LANES,
    any_less,
    choose,
    every,
    highest,
    interleave,
    load,
    lowest,
    magnitude,
    root,
    store,
)
from lrbench.kernels.lanczos import ANY, FAILED
from lrbench.kernels.loops import exact, inlined

__all__ = ["ANY", "FAILED", "LANES", "leading_of_several", "several_scratch"]

_UNSEEN = 1e-40
"""Squares below it, of a part of the trace, are taken for zero: reflections of such numbers lose their length."""

_NEGLIGIBLE = 1e-28
"""Square of an element beside the diagonal, as a part of the trace, without which the eigenvalues are the same."""

_FLOOR = 1e-18
"""Least magnitude of a pivot, as a part of the trace: rounding makes more of it, and products of four are seen."""

_OFF_ZERO = 1e-40
"""Added to pivots: it changes none but a zero, of which would come no vector, and all had to be found another way."""

_RESIDUAL = 1e-27
"""Square of the residual, as a part of the trace, up to which a vector is an eigenvector."""


@exact
def several_scratch(n: int) -> tuple[Any, Any, Any, Any, Any]:  # pragma: no cover (compiled)
    """What :func:`leading_of_several` works in."""
    return (
        _aligned(n * (n + 1) // 2),
        _aligned(n * n),
        _aligned(8 * n + 8),
        np.empty((n, n)),
        np.empty((2, n)),
    )


@exact
def _aligned(rows: int) -> Any:  # pragma: no cover (compiled)
    """(rows, LANES) float64, each row in one line of the cache."""
    memory = np.empty((rows + 1) * LANES)
    start = -(memory.ctypes.data // memory.itemsize) % LANES
    return memory[start : start + rows * LANES].reshape(rows, LANES)


@exact
def leading_of_several(G: Any, eps: Any, ranks: Any, margins: Any, scratch: Any) -> None:  # pragma: no cover (compiled)
    """Replace the first rows of each G = D Dᵀ by a basis on which D's projection is off by at most eps ‖D‖_F.

    Householder's reduction to tridiagonal form (R. S. Martin, C. Reinsch and J. H. Wilkinson, 1968), all eigenvalues of
    that, and of as many as the tolerance asks for the eigenvectors.

    Parameters
    ----------
    G : array
        (count, n, n) float64, count 1..LANES, positive semidefinite; traces are zero or within 1e-100..1e100; what
        stands above the diagonal is not used. Overwritten: the first r rows of each hold an orthonormal basis, by
        descending Ritz value.
    eps : array
        (count,) float64, in (0, 1].
    ranks : array
        (count,) int64, ANY or how many vectors there are to be, 0..n; eps is then not read. Overwritten: how many there
        are, of a zero matrix always none; FAILED, with that part of G spoilt, if an iteration did not converge.
    margins : array
        (count,) float64, written: how near to another rank the decision was, as a part of the trace; 1 where there was
        none.
    scratch
        From :func:`several_scratch`.
    """
    A, Z, area, Y, alone = scratch
    count, n = G.shape[0], G.shape[1]
    d, e, theta, squares = area[:n], area[n : 2 * n], area[2 * n : 3 * n], area[3 * n : 4 * n]
    h, w, q, pivots = area[4 * n : 5 * n], area[5 * n : 6 * n], area[6 * n : 7 * n], area[7 * n : 8 * n]
    state = area[8 * n :]
    for lane in range(LANES):
        b = min(lane, count - 1)
        state[0, lane], state[1, lane] = ranks[b], eps[b] * eps[b]
    for i in range(n):
        for j in range(0, i + 1, LANES):
            if n < LANES:
                for k in range(i + 1):
                    for lane in range(LANES):
                        A[i * (i + 1) // 2 + k, lane] = G[min(lane, count - 1), i, k]
            else:
                # What is written beyond the diagonal belongs to the next rows, which come after this one.
                start = min(j, n - LANES)
                interleave(A, i * (i + 1) // 2 + start, G, i, start)
    zero, one = every(0.0), every(1.0)
    _tridiagonalize(A, n, d, e, h, w, q)
    trace = zero
    for i in range(n):
        trace = trace + load(d, i)
    given = load(state, 0)
    store(state, 0, choose(zero, trace, given, zero))
    store(state, 2, choose(given, zero, load(state, 1) * every(1.0 / n), zero))
    scale = one / choose(zero, trace, trace, one)
    for i in range(n):
        x, y = load(d, i) * scale, load(e, i) * scale
        store(d, i, x)
        store(theta, i, x)
        store(e, i, y)
        store(squares, i, y * y)
    _eigenvalues(theta, squares, n, state)
    most = _decide(theta, n, state)
    _vectors(d, e, n, theta, most, state, Z, squares, w, q, pivots)
    for b in range(count):
        rank = int(state[3, b])
        margins[b] = state[4, b]
        if state[2, b] > 0:
            rank = FAILED
        elif state[5, b] > 0:
            for i in range(n):
                alone[0, i], alone[1, i] = d[i, b], e[i, b]
            if not _all_vectors(alone[0], alone[1], Y):
                rank = FAILED
            for k in range(rank):
                largest = np.argmax(alone[0])
                alone[0, largest] = -np.inf
                squares[k, b] = 1.0
                for i in range(n):
                    Z[k * n + i, b] = Y[largest, i]
        ranks[b] = rank
    _transform(A, h, n, Z, most)
    for b in range(count):
        for k in range(ranks[b]):
            length = np.sqrt(squares[k, b])
            for i in range(n):
                G[b, k, i] = Z[k * n + i, b] * length


@exact
def _tridiagonalize(A: Any, n: int, d: Any, e: Any, h: Any, w: Any, q: Any) -> None:  # pragma: no cover (compiled)
    """T = H_1 ⋯ H_{n-1} A H_{n-1} ⋯ H_1 by reflections H_i = 1 − h_i v_i v_iᵀ, each of the first i coordinates.

    What a reflection makes of the rows before its own waits for the product of these rows with the next one: they are
    read once for both.

    Parameters
    ----------
    A : array
        (n (n + 1) / 2, LANES), the rows up to the diagonal one after another. Overwritten: v_i stands in row i.
    d, e, h : array
        (n, LANES), written: T's diagonal, what is beside it, and the reflections' factors, of which the first is 0.
    w, q : array
        (n, LANES), to work in.
    """
    zero, one, half = every(0.0), every(1.0), every(0.5)
    trace = zero
    for i in range(n):
        trace = trace + load(A, i * (i + 3) // 2)
        store(w, i, zero)
        store(h, i, zero)
        store(e, i, zero)
    unseen = every(_UNSEEN) * trace * trace
    v = n * (n - 1) // 2
    for i in range(n - 1, 0, -1):
        x = i * (i + 1) // 2
        vi, wi = load(A, v + i), load(w, i)
        square, other, last = zero, zero, zero
        for c in range(i):
            last = load(A, x + c) - vi * load(w, c) - wi * load(A, v + c)
            store(A, x + c, last)
            square, other = other + last * last, square  # neither sum waits for the other
        square = square + other
        store(d, i, load(A, x + i) - vi * wi - wi * vi)
        length = root(square)
        length = choose(last, zero, length, zero - length)
        factor = choose(unseen, square, one / choose(unseen, square, square - last * length, one), zero)
        store(e, i - 1, choose(unseen, square, length, zero))
        store(h, i, factor)
        store(A, x + i - 1, last - length)
        along, r = zero, i % 2
        if r == 1:
            a = load(A, 0) - load(A, v) * load(w, 0) - load(w, 0) * load(A, v)
            store(A, 0, a)
            store(q, 0, a * load(A, x))
            along = half * a * load(A, x) * load(A, x)
        for r0 in range(r, i, 2):
            r1 = r0 + 1
            row0 = r0 * r1 // 2
            row1 = row0 + r1
            v0, v1, w0, w1 = load(A, v + r0), load(A, v + r1), load(w, r0), load(w, r1)
            x0, x1 = load(A, x + r0), load(A, x + r1)
            q0, q1 = zero, zero
            for c in range(r0):
                vc, wc, xc = load(A, v + c), load(w, c), load(A, x + c)
                a0 = load(A, row0 + c) - v0 * wc - w0 * vc
                a1 = load(A, row1 + c) - v1 * wc - w1 * vc
                store(A, row0 + c, a0)
                store(A, row1 + c, a1)
                q0, q1 = q0 + a0 * xc, q1 + a1 * xc
                store(q, c, load(q, c) + a0 * x0 + a1 * x1)
            a = load(A, row0 + r0) - v0 * w0 - w0 * v0
            b = load(A, row1 + r0) - v1 * w0 - w1 * v0
            c1 = load(A, row1 + r1) - v1 * w1 - w1 * v1
            store(A, row0 + r0, a)
            store(A, row1 + r0, b)
            store(A, row1 + r1, c1)
            store(q, r0, q0 + a * x0 + b * x1)
            store(q, r1, q1 + b * x0 + c1 * x1)
            along = along + x0 * (q0 + half * a * x0) + x1 * (q1 + b * x0 + half * c1 * x1)
        along = along * factor
        for c in range(i):
            store(w, c, (load(q, c) - along * load(A, x + c)) * factor)
        v = x
    store(d, 0, load(A, 0) - load(A, v) * load(w, 0) - load(w, 0) * load(A, v))


@inlined
def _rotate(gamma: Any, p: Any, alpha: Any, square: Any, sigma: Any) -> Any:  # pragma: no cover (compiled)
    """One rotation of the square-root free QL iteration, with one division, and γ kept from being zero.

    Returns
    -------
    tuple
        The next γ, p and s, then p + e² and what becomes of the diagonal.
    """
    r = p + square
    inverse = every(1.0) / (r * p)
    top, least = p * (alpha - sigma) - square * gamma, every(_FLOOR) * r
    top = choose(magnitude(top), least, least, top)
    part = top * inverse
    turned = part * p
    return turned, top * part, square * (p * inverse), r, gamma + (alpha - turned)


@exact
def _eigenvalues(d: Any, e: Any, n: int, state: Any) -> None:  # pragma: no cover (compiled)
    """Eigenvalues of symmetric tridiagonal matrices, to a part in 1e14 of their trace.

    The square-root free QL iteration of Pal, Walker and Kahan (B. N. Parlett, 1980, section 8.15; LAPACK's dsterf),
    with Wilkinson's shifts. Every lane is at an eigenvalue of its own, in row ``low``: the sweep goes on to the last
    one, and leaves alone what is above ``low`` in the others. The eigenvalues found first are mostly small ones. Those
    that are wanted are at least τ. They are eigenvalues, too, of what remains when one μ < τ/2 is split off over an
    element e, with e²/(λ − μ) < 2e²/τ more in a corner, and for this to be seen e need not be as small as otherwise.

    Parameters
    ----------
    d, e : array
        (n, LANES): the diagonal, and the squares of what is beside it; both are overwritten, d by the eigenvalues.
    n : int
        The size of the matrices.
    state : array
        (3, LANES), of which the last row holds the least eigenvalue that is wanted, or 0, and is overwritten: 1 where
        the iteration did not converge.
    """
    zero, one, half = every(0.0), every(1.0), every(0.5)
    middle, strict, floor = half * load(state, 2), every(_NEGLIGIBLE), every(_FLOOR)
    loose = every(1e-15) * middle
    loose = choose(loose, strict, strict, loose)
    store(e, n - 1, zero)
    low, end, bottom = zero, every(n - 1.0), 0
    # The element of d in row low, the next one, and the square beside them.
    first, second, square = load(d, 0), load(d, min(1, n - 1)), load(e, 0)
    for _ in range(10 * n):
        bottom = int(lowest(low))
        if bottom >= n - 1:
            break
        top = min(int(highest(low)), n - 1)
        gap = half * (second - first)
        reach = root(gap * gap + square)
        sigma = first + gap - choose(gap, zero, zero - reach, reach)
        gamma = load(d, n - 1) - sigma
        gamma = choose(magnitude(gamma), floor, floor, gamma)
        p, s = gamma * gamma, zero
        next_first, next_second, next_square = zero, zero, zero
        for i in range(n - 2, top, -1):
            turned, p, s_next, r, moved = _rotate(gamma, p, load(d, i), load(e, i), sigma)
            next_second = next_first
            next_first, next_square = moved, s * r
            store(d, i + 1, next_first)
            store(e, i + 1, next_square)
            gamma, s = turned, s_next
        here = every(min(top, n - 2) + 2.0)
        for i in range(min(top, n - 2), bottom - 1, -1):
            turned, p, s_next, r, moved = _rotate(gamma, p, load(d, i), load(e, i), sigma)
            beside, above = s * r, here
            here = here - one
            # Row i + 1 is inside of what is swept, its end, or beyond.
            store(d, i + 1, choose(low, here, moved, choose(low, above, first, load(d, i + 1))))
            store(e, i + 1, choose(low, here, beside, choose(low, above, square, load(e, i + 1))))
            next_second = choose(low, here, next_first, next_second)
            next_first = choose(low, here, moved, next_first)
            next_square = choose(low, here, beside, next_square)
            gamma, s = turned, s_next
            first = choose(low, here, sigma + gamma, first)
            square = choose(low, here, s * p, square)
        store(d, bottom, choose(low, here, first, load(d, bottom)))
        store(e, bottom, choose(low, here, square, load(e, bottom)))
        limit = choose(first, middle, loose, strict)
        low = choose(limit, square, low, low + one)
        second = choose(limit, square, next_first, next_second)
        first = choose(limit, square, first, next_first)
        square = choose(limit, square, square, next_square)
    store(state, 2, choose(low, end, one, zero))


@exact
def _decide(values: Any, n: int, state: Any) -> int:  # pragma: no cover (compiled)
    """How many vectors each matrix is to have.

    Parameters
    ----------
    values : array
        (n, LANES), eigenvalues of matrices whose trace is 1; the largest are brought to the front, by size.
    n : int
        How many there are.
    state : array
        (5, LANES): the rank that is given or ANY, the part of the trace that may be lost, and whether there are no
        eigenvalues; written are the ranks and the margins.

    Returns
    -------
    int
        The largest rank.
    """
    zero, one = every(0.0), every(1.0)
    given = choose(zero, load(state, 2), zero, load(state, 0))
    allowed = choose(given, zero, load(state, 1), zero)
    lost, before, rank, k = one, every(np.inf), zero, 0
    while k < n:
        excess = choose(given, zero, lost, given - every(float(k)))
        if not any_less(allowed, excess):
            break
        top = load(values, n - 1)
        for i in range(n - 2, k - 1, -1):
            other = load(values, i)
            store(values, i + 1, choose(other, top, other, top))
            top = choose(top, other, other, top)
        store(values, k, top)
        before = choose(allowed, excess, lost, before)
        lost = choose(allowed, excess, lost - top, lost)
        rank = choose(allowed, excess, rank + one, rank)
        k += 1
    kept, left = allowed - lost, before - allowed
    store(state, 3, rank)
    store(state, 4, choose(given, zero, choose(kept, left, kept, left), one))
    return k


@exact
def _vectors(
    d: Any, e: Any, n: int, values: Any, count: int, state: Any, Z: Any, squares: Any, lower: Any, upper: Any, q: Any
) -> None:  # pragma: no cover (compiled)
    """Eigenvectors of tridiagonal matrices, the k-th from row k n of ``Z`` on, orthogonal to those before.

    T − λ is eliminated from both ends, to meet where least is left in the diagonal; the vector solves all equations but
    that one exactly (K. V. Fernando, 1997; LAPACK's dlar1v). Pivots need not be large for this. The residual is known,
    and of almost equal eigenvalues such vectors may be almost the same: where either is too bad it is told.

    Parameters
    ----------
    d, e : array
        (n, LANES): the diagonals, and what is beside them.
    values : array
        (count, LANES), the eigenvalues.
    state : array
        (6, LANES), of which the fourth row holds how many vectors are needed, and the last one is written: not 0 where
        one of them is no good.
    Z, squares : array
        (count n, LANES) and (count, LANES), written: the vectors, and the inverse squares of their lengths.
    lower, upper, q : array
        (n, LANES), to work in.
    """
    zero, one, half, off_zero = every(0.0), every(1.0), every(0.5), every(_OFF_ZERO)
    needed, bad = load(state, 3), zero
    for k in range(count):
        value = load(values, k)
        down, up = load(d, 0) - value + off_zero, load(d, n - 1) - value + off_zero
        for i in range(n - 1):
            j = n - 2 - i
            store(q, i, down)
            beside, above = load(e, i), load(e, j)
            factor, other = (zero - beside) / down, (zero - above) / up
            store(lower, i, factor)
            store(upper, j, other)
            down = load(d, i + 1) - value + off_zero + beside * factor
            up = load(d, j) - value + off_zero + above * other
        least, twist = magnitude(down), every(n - 1.0)
        for i in range(n - 2, -1, -1):
            left = magnitude(load(q, i) + load(e, i) * load(upper, i))
            twist = choose(left, least, every(float(i)), twist)
            least = choose(left, least, left, least)
        own = k * n
        z = choose(twist, every(n - 1.0), zero, one)
        store(Z, own + n - 1, z)
        for i in range(n - 2, -1, -1):
            here = every(float(i))
            z = choose(here, twist, load(lower, i) * z, choose(twist, here, zero, one))
            store(Z, own + i, z)
        square = z * z
        for i in range(1, n):
            z = choose(twist, every(float(i)), load(upper, i - 1) * z, load(Z, own + i))
            store(Z, own + i, z)
            square = square + z * z
        left = square
        for first in range(0, k, 4):
            k1, k2, k3 = min(first + 1, k - 1), min(first + 2, k - 1), min(first + 3, k - 1)
            b0, b1, b2, b3 = first * n, k1 * n, k2 * n, k3 * n
            c0, c1, c2, c3 = zero, zero, zero, zero
            for i in range(n):
                z = load(Z, own + i)
                c0, c1 = c0 + z * load(Z, b0 + i), c1 + z * load(Z, b1 + i)
                c2, c3 = c2 + z * load(Z, b2 + i), c3 + z * load(Z, b3 + i)
            c0 = c0 * load(squares, first)
            # The last one is in its place as often as there are none left.
            c1 = c1 * load(squares, k1) if k1 > first else zero
            c2 = c2 * load(squares, k2) if k2 > k1 else zero
            c3 = c3 * load(squares, k3) if k3 > k2 else zero
            left = zero
            for i in range(n):
                z = load(Z, own + i) - c0 * load(Z, b0 + i) - c1 * load(Z, b1 + i)
                z = z - c2 * load(Z, b2 + i) - c3 * load(Z, b3 + i)
                store(Z, own + i, z)
                left = left + z * z
        store(squares, k, one / left)
        wrong = choose(least * least, every(_RESIDUAL) * square, zero, one)
        wrong = choose(half * square, left, wrong, one)
        bad = choose(every(float(k)), needed, bad + wrong, bad)
    store(state, 5, bad)


@exact
def _all_vectors(d: Any, e: Any, Z: Any) -> bool:  # pragma: no cover (compiled)
    """Eigenvalues of one symmetric tridiagonal matrix, and all its eigenvectors, however near these are to each other.

    The implicit QL iteration (A. Dubrulle, R. S. Martin and J. H. Wilkinson, 1968; EISPACK's imtql2).

    Parameters
    ----------
    d, e : array
        (n,): the diagonal, and what is beside it; both are overwritten, d by the eigenvalues, in no order.
    Z : array
        (n, n), written: in each row the vector of the eigenvalue in its place.

    Returns
    -------
    bool
        False if the iteration did not converge.
    """
    n = len(d)
    for i in range(n):
        Z[i] = 0.0
        Z[i, i] = 1.0
    e[n - 1] = 0.0
    for low in range(n):
        sweeps = 0
        while True:
            m = low
            while m < n - 1 and e[m] * e[m] > _NEGLIGIBLE:
                m += 1
            if m == low:
                break
            sweeps += 1
            if sweeps > 60:
                return False
            gap = (d[low + 1] - d[low]) / 2
            reach = np.sqrt(gap * gap + e[low] * e[low])
            g = d[m] - (d[low] + gap - (reach if gap > 0 else -reach))
            s, c, p = 1.0, 1.0, 0.0
            for i in range(m - 1, low - 1, -1):
                f, b = s * e[i], c * e[i]
                r = np.sqrt(f * f + g * g)
                e[i + 1] = r
                s, c = (f / r, g / r) if r > 0 else (0.0, 1.0)
                g = d[i + 1] - p
                r = (d[i] - g) * s + 2 * c * b
                p = s * r
                d[i + 1] = g + p
                g = c * r - b
                for t in range(n):
                    x, y = Z[i, t], Z[i + 1, t]
                    Z[i, t], Z[i + 1, t] = c * x - s * y, s * x + c * y
            d[low] -= p
            e[low] = g
            e[m] = 0.0
    return True


@exact
def _transform(A: Any, h: Any, n: int, Z: Any, count: int) -> None:  # pragma: no cover (compiled)
    """What the reflections make of vectors, the k-th from row k n of ``Z`` on: four of these, and two of those at once.

    Where fewer than four vectors are left the last one is written more than once, with the same numbers.
    """
    zero = every(0.0)
    for k in range(0, count, 4):
        b0, b1, b2, b3 = k * n, min(k + 1, count - 1) * n, min(k + 2, count - 1) * n, min(k + 3, count - 1) * n
        for i in range(n % 2, n - 1, 2):  # the first of two may be none
            row, next_row = i * (i + 1) // 2, (i + 1) * (i + 2) // 2
            s0, s1, s2, s3 = zero, zero, zero, zero
            y = load(A, next_row + i)
            t0, t1, t2, t3 = y * load(Z, b0 + i), y * load(Z, b1 + i), y * load(Z, b2 + i), y * load(Z, b3 + i)
            both = zero
            for c in range(i):
                x, y = load(A, row + c), load(A, next_row + c)
                z0, z1, z2, z3 = load(Z, b0 + c), load(Z, b1 + c), load(Z, b2 + c), load(Z, b3 + c)
                s0, s1, s2, s3 = s0 + x * z0, s1 + x * z1, s2 + x * z2, s3 + x * z3
                t0, t1, t2, t3 = t0 + y * z0, t1 + y * z1, t2 + y * z2, t3 + y * z3
                both = both + x * y
            factor = load(h, i)
            s0, s1, s2, s3 = s0 * factor, s1 * factor, s2 * factor, s3 * factor
            factor = load(h, i + 1)
            t0, t1 = (t0 - both * s0) * factor, (t1 - both * s1) * factor
            t2, t3 = (t2 - both * s2) * factor, (t3 - both * s3) * factor
            for c in range(i):
                x, y = load(A, row + c), load(A, next_row + c)
                z0, z1 = load(Z, b0 + c) - s0 * x - t0 * y, load(Z, b1 + c) - s1 * x - t1 * y
                z2, z3 = load(Z, b2 + c) - s2 * x - t2 * y, load(Z, b3 + c) - s3 * x - t3 * y
                store(Z, b0 + c, z0)
                store(Z, b1 + c, z1)
                store(Z, b2 + c, z2)
                store(Z, b3 + c, z3)
            y = load(A, next_row + i)
            z0, z1 = load(Z, b0 + i) - t0 * y, load(Z, b1 + i) - t1 * y
            z2, z3 = load(Z, b2 + i) - t2 * y, load(Z, b3 + i) - t3 * y
            store(Z, b0 + i, z0)
            store(Z, b1 + i, z1)
            store(Z, b2 + i, z2)
            store(Z, b3 + i, z3)
