"""Cross approximation of one block after the other, whose residual stays in the cache, or is never formed."""

from typing import Any

import numpy as np

from lrbench.kernels.lanes import larger, load, peak, reaches, width, zeros
from lrbench.kernels.layout import pad, read
from lrbench.kernels.loops import compiled

__all__ = ["by_estimate", "by_residual", "enlarged", "pivot_column", "place_of"]


@compiled
def by_residual(
    images: Any,
    power: Any,
    layout: Any,
    at: Any,
    tolerance: float,
    floor: float,
    limit: int,
    U: Any,
    V: Any,
    row: Any,
    ranks: Any,
) -> tuple[Any, Any]:  # pragma: no cover (compiled)
    """Crosses until the residual's energy is at most ``tolerance`` times the block's, or there are ``limit``.

    Parameters
    ----------
    images : array
        (N, C, H, W).
    power : array
        (N, .) float64: the images are scaled by the product of the first two.
    layout, at
        A :class:`Layout` and its row offsets.
    tolerance : float
        Of squared norms.
    floor : float
        What is smaller than that part of the block's norm is a rounding error, and no pivot.
    limit : int
        Largest rank.
    U, V : array
        (capacity, m) and (capacity, n), in the dtype of the arithmetic: room for the first crosses.
    row : array
        (n,), scratch in that dtype.
    ranks : array
        (N,) int64, written.

    Returns
    -------
    tuple
        U and V, or larger arrays in their place: the leading Σ r_i rows are the crosses, block by block.
    """
    m, n = U.shape[1], V.shape[1]
    pitch, columns = layout.pitch, layout.columns
    P = np.zeros(layout.channels * layout.plane, U.dtype)
    D = np.empty((m, n), U.dtype)
    lines = np.empty(layout.plane // pitch * columns, U.dtype)
    energies = np.empty(4)
    unused = np.empty(m, np.bool_)
    used = 0
    for b in range(len(images)):
        pad(images[b], power[b, 0], power[b, 1], pitch, layout.plane, layout.top, layout.left, P)
        _lower(P, layout, lines, D)
        total = 0.0
        for i in range(m):
            total += _energy(D[i])
            unused[i] = True
        negligible = floor * np.sqrt(total)
        row_index, first, done, rank, going = 0, used, 0, -1, True
        while going:
            # A few crosses from single rows and columns of the residual, then one pass over it for all of them.
            while used - first - done < 4 and used - first < limit and going:
                row[:] = D[row_index]
                for k in range(first + done, used):
                    _update(row, U[k, row_index], V[k])
                column = pivot_column(row)
                if abs(row[column]) <= negligible:
                    # Passed over for the first unused row that is not zero; without one the residual is zero.
                    going = False
                    for i in range(m):
                        if unused[i]:
                            row[:] = D[i]
                            for k in range(first + done, used):
                                _update(row, U[k, i], V[k])
                            column = pivot_column(row)
                            if abs(row[column]) > negligible:
                                going, row_index = True, i
                                break
                    if not going:
                        break
                if used == len(U):
                    U, V = enlarged(U), enlarged(V)
                u, v = U[used], V[used]
                pivot = row[column]
                for i in range(m):
                    u[i] = D[i, column]
                for k in range(first + done, used):
                    _update(u, V[k, column], U[k])
                for t in range(n):
                    v[t] = row[t] / pivot
                unused[row_index] = False
                row_index = _next_row(u, unused)
                used += 1
            if used - first == done:
                break
            _pass(D, U, V, first + done, used - first - done, energies)
            for k in range(used - first - done):
                if energies[k] <= tolerance * total:
                    rank, going = done + k + 1, False
                    break
            done = used - first
            if done == limit:
                going = False
        if rank < 0:
            rank = done
        ranks[b] = rank
        used = first + rank
    return U, V


@compiled
def by_estimate(
    images: Any,
    power: Any,
    layout: Any,
    at: Any,
    tolerance: float,
    limit: int,
    U: Any,
    V: Any,
    row: Any,
    ranks: Any,
) -> tuple[Any, Any]:  # pragma: no cover (compiled)
    """Crosses until ‖u_k‖²‖v_k‖² ≤ ``tolerance`` ‖Σ u_l v_lᵀ‖_F²; rows and columns are asked for one at a time.

    As :func:`by_residual`; the residual's rows and columns are computed when they are needed, from the block's and the
    crosses so far.
    """
    m, n = U.shape[1], V.shape[1]
    pitch, columns = layout.pitch, layout.columns
    P = np.zeros(layout.channels * layout.plane, U.dtype)
    unused = np.empty(m, np.bool_)
    used = 0
    for b in range(len(images)):
        pad(images[b], power[b, 0], power[b, 1], pitch, layout.plane, layout.top, layout.left, P)
        for i in range(m):
            unused[i] = True
        row_index, rank, norm = 0, 0, 0.0
        first = used
        while rank < limit:
            _residual_row(P, at[row_index], pitch, columns, U, V, first, rank, row_index, row)
            column = pivot_column(row)
            if row[column] == 0:
                found = False
                for i in range(m):
                    if unused[i]:
                        _residual_row(P, at[i], pitch, columns, U, V, first, rank, i, row)
                        column = pivot_column(row)
                        if row[column] != 0:
                            found, row_index = True, i
                            break
                if not found:
                    break
            if used == len(U):
                U, V = enlarged(U), enlarged(V)
            u, v = U[used], V[used]
            pivot = row[column]
            place = column // columns * pitch + column % columns
            for i in range(m):
                u[i] = P[at[i] + place]
            for k in range(first, used):
                _update(u, V[k, column], U[k])
            for t in range(n):
                v[t] = row[t] / pivot
            unused[row_index] = False
            row_index = _next_row(u, unused)
            size = _product(u, u) * _product(v, v)
            norm += size
            for k in range(first, used):
                norm += 2 * _product(U[k], u) * _product(V[k], v)
            rank += 1
            used += 1
            if size <= tolerance * norm:
                break
        ranks[b] = rank
    return U, V


@compiled
def _residual_row(
    P: Any, start: int, pitch: int, columns: int, U: Any, V: Any, first: int, rank: int, i: int, row: Any
) -> None:  # pragma: no cover (compiled)
    """Row i of the block less the crosses, in the order in which they were found."""
    read(P, start, pitch, columns, row)
    for k in range(first, first + rank):
        _update(row, U[k, i], V[k])


@compiled
def _lower(P: Any, layout: Any, lines: Any, D: Any) -> None:  # pragma: no cover (compiled)
    """All rows of the block; ``lines`` is room for those of a padded channel, without what padding put between them."""
    pitch, columns, n = layout.pitch, layout.columns, D.shape[1]
    i = 0
    for c in range(layout.channels):
        for s in range(layout.S):
            read(P, c * layout.plane + s * layout.q, pitch, columns, lines)
            for r in range(layout.R):
                row, into = lines[r * layout.p * columns : r * layout.p * columns + n], D[i + r * layout.S + s]
                for t in range(n):
                    into[t] = row[t]
        i += layout.R * layout.S


@compiled
def _pass(D: Any, U: Any, V: Any, first: int, count: int, energies: Any) -> None:  # pragma: no cover (compiled)
    """Take up to four crosses from the residual; the energy that it has after each."""
    energies[:] = 0.0
    if count < 4:
        for k in range(count):
            for i in range(len(D)):
                energies[k] += _update(D[i], U[first + k, i], V[first + k])
        return
    v0, v1, v2, v3 = V[first], V[first + 1], V[first + 2], V[first + 3]
    for i in range(len(D)):
        row = D[i]
        u0, u1, u2, u3 = U[first, i], U[first + 1, i], U[first + 2, i], U[first + 3, i]
        zero = u0 - u0  # of its dtype
        e0, e1, e2, e3 = zero, zero, zero, zero
        for t in range(len(row)):
            x0 = row[t] - u0 * v0[t]
            x1 = x0 - u1 * v1[t]
            x2 = x1 - u2 * v2[t]
            x3 = x2 - u3 * v3[t]
            row[t] = x3
            e0 += x0 * x0
            e1 += x1 * x1
            e2 += x2 * x2
            e3 += x3 * x3
        energies[0] += e0
        energies[1] += e1
        energies[2] += e2
        energies[3] += e3


@compiled
def _update(row: Any, factor: Any, v: Any) -> float:  # pragma: no cover (compiled)
    """``row`` −= factor·v; the energy that it has then."""
    total = row[0] - row[0]  # a zero of the row's dtype
    for t in range(len(row)):
        x = row[t] - factor * v[t]
        row[t] = x
        total += x * x
    return np.float64(total)


@compiled
def _energy(row: Any) -> float:  # pragma: no cover (compiled)
    total = row[0] - row[0]  # a zero of the row's dtype
    for t in range(len(row)):
        total += row[t] * row[t]
    return np.float64(total)


@compiled
def _product(a: Any, b: Any) -> float:  # pragma: no cover (compiled)
    """Inner product in float64."""
    total = 0.0
    for t in range(len(a)):
        total += np.float64(a[t]) * np.float64(b[t])
    return total


@compiled
def pivot_column(row: Any) -> int:  # pragma: no cover (compiled)
    """Where a row is largest in magnitude, the first such place."""
    return place_of(row, _largest(row))


@compiled
def _largest(row: Any) -> Any:  # pragma: no cover (compiled)
    w = width(row)
    m0 = m1 = m2 = m3 = zeros(row)
    t = 0
    while t + 4 * w <= len(row):
        m0, m1 = larger(m0, load(row, (t,))), larger(m1, load(row, (t + w,)))
        m2, m3 = larger(m2, load(row, (t + 2 * w,))), larger(m3, load(row, (t + 3 * w,)))
        t += 4 * w
    largest = peak(larger(larger(m0, m1), larger(m2, m3)))
    while t < len(row):
        largest = max(largest, abs(row[t]))
        t += 1
    return largest


@compiled
def place_of(row: Any, largest: Any) -> int:  # pragma: no cover (compiled)
    """The first place of that magnitude, which no other one exceeds; 0 where there is none."""
    w = width(row)
    start = 0
    while start + 4 * w <= len(row):
        m0, m1 = larger(zeros(row), load(row, (start,))), larger(zeros(row), load(row, (start + w,)))
        m2, m3 = larger(m0, load(row, (start + 2 * w,))), larger(m1, load(row, (start + 3 * w,)))
        if reaches(larger(m2, m3), largest):
            break
        start += 4 * w
    for t in range(start, len(row)):
        if abs(row[t]) == largest:
            return t
    return 0


@compiled
def _next_row(u: Any, unused: Any) -> int:  # pragma: no cover (compiled)
    """Where u is largest among the unused rows; 0 if there is none."""
    best, row = -1.0, 0
    for i in range(len(u)):
        if unused[i] and abs(u[i]) > best:
            best, row = abs(u[i]), i
    return row


@compiled
def enlarged(packed: Any) -> Any:  # pragma: no cover (compiled)
    """A copy with room for more than twice as many rows."""
    out = np.empty((2 * len(packed) + 1, packed.shape[1]), packed.dtype)
    out[: len(packed)] = packed
    return out
