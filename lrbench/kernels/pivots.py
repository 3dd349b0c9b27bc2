"""Crosses of which only the pivots are found first: neither the block nor its residual is ever formed.

With G = D Dᵀ, the residual after k crosses is R = B D, where every cross changes B to (1 − u e_iᵀ / p) B. Beside the
identity B has one column for each pivot row: a row of R is a combination of k + 1 rows of D, windows of one small
image, and column i of R Rᵀ is B G bᵢ, where bᵢ is row i of B. With it the energy of R follows from cross to cross. That
takes some 2 k (m + n) multiplications for a cross, where a pass over the residual takes 2 m n.
"""

from typing import Any

import numpy as np

from lrbench.kernels.crosses import pivot_column
from lrbench.kernels.gram import reflect, rows_gram, rows_scratch
from lrbench.kernels.lanes import broadcast, fma, larger, load, peak, store, width, zeros
from lrbench.kernels.layout import pad
from lrbench.kernels.loops import compiled
from lrbench.kernels.project import (
    enter,
    formed_residual,
    line_of_vectors,
    residual_scratch,
    squared_norm,
    store_lines,
)
from lrbench.kernels.windows import SLACK, combine, combine_two, vectors

__all__ = ["find", "write"]


@compiled
def find(
    images: Any,
    power: Any,
    layout: Any,
    at: Any,
    tolerance: float,
    floor: float,
    limit: int,
    row: Any,
    gram: Any,
    U: Any,
    C: Any,
    chosen: Any,
    ranks: Any,
) -> None:  # pragma: no cover (compiled)
    """Pivots as :func:`lrbench.kernels.crosses.by_residual` finds them, up to rounding.

    Parameters
    ----------
    images, power, layout, at, tolerance, floor, limit
        As for :func:`lrbench.kernels.crosses.by_residual`.
    row : array
        (n + ``SLACK``,), scratch, in the dtype of the arithmetic on rows; that with G and B is in float64.
    gram : array
        Empty, of the dtype that G is computed in.
    U : array
        (N, limit, m) in that dtype, written: the columns of the crosses.
    C : array
        (N, limit, limit) in that dtype, written: row k of V is Σ_{l <= k} C[k, l] D_l over the pivot rows D_l.
    chosen : array
        (N, limit) int64, written: the pivot rows.
    ranks : array
        (N,) int64, written.
    """
    m, n = len(at), layout.lines * layout.columns
    pitch, columns = layout.pitch, layout.columns
    P = np.zeros(layout.channels * layout.plane + SLACK, row.dtype)
    pixels, values = P[: layout.channels * layout.plane], row[:n]
    source, target = vectors(layout, P)
    scratch = rows_scratch(layout, gram)
    # Zeros fill the last vectors.
    wide = (m + 15) // 16 * 16
    G, B = np.zeros((m, wide)), np.zeros((limit + 1, wide))
    u, g, y, energy = np.zeros(wide), np.zeros(wide), np.zeros(wide), np.empty(m)
    rows, each = np.empty(limit + 1, np.int64), np.arange(limit + 1)
    a, d, c = np.empty(limit + 1), np.empty(limit + 1), np.empty(limit + 1, row.dtype)
    starts, unused = np.empty(limit + 1, np.int64), np.zeros(wide)  # ones where a row has been no pivot row
    for b in range(len(images)):
        rows_gram(images[b], power[b, 0], power[b, 1], layout, scratch, G)
        reflect(G)
        pad(images[b], power[b, 0], power[b, 1], pitch, layout.plane, layout.top, layout.left, pixels)
        total = 0.0
        for k in range(m):
            energy[k] = G[k, k]
            total += energy[k]
            unused[k] = 1.0
        left, negligible = total, floor * np.sqrt(total)
        i, rank = 0, 0
        while rank < limit and left > tolerance * total:
            _residual_row(P, at, B, rank, i, starts, c, source, target, row)
            column = pivot_column(values)
            if abs(row[column]) <= negligible:
                # Passed over for the first unused row that is not zero; without one the residual is zero.
                found = False
                for k in range(m):
                    if unused[k] > 0:
                        _residual_row(P, at, B, rank, k, starts, c, source, target, row)
                        column = pivot_column(values)
                        if abs(row[column]) > negligible:
                            found, i = True, k
                            break
                if not found:
                    break
            pivot, place = np.float64(row[column]), column // columns * pitch + column % columns
            inverse = 1.0 / pivot
            for k in range(m):
                u[k] = P[at[k] + place]
            for k in range(rank):
                a[k], d[k] = B[k, i], P[starts[k] + place]
            _mix(u, B, each, d, rank, u)
            u[i] = pivot
            # Column i of the residual's Gram matrix.
            _mix(G[i], G, rows, a, rank, y)
            for k in range(rank):
                d[k] = y[rows[k]]
            _mix(y, B, each, d, rank, g)
            for k in range(rank):
                a[k] *= -inverse
                C[b, rank, k] = -a[k]
            C[b, rank, rank] = inverse
            chosen[b, rank] = i
            into, last, size = U[b, rank], B[rank], g[i]
            left = 0.0
            for k in range(rank):  # but for rounding errors they are
                u[rows[k]], energy[rows[k]] = 0.0, 0.0
            for k in range(m):
                into[k] = u[k]
                u[k] = into[k]  # what is stored, not what was computed, is taken away
                last[k] = -u[k] * inverse
                energy[k] += last[k] * (2 * g[k] + last[k] * size)
                left += energy[k]
            _spread(u, a, rank, B)
            rows[rank] = i
            unused[i] = 0.0
            i = _next_row(u, unused, m)
            rank += 1
        ranks[b] = rank


@compiled
def write(
    images: Any,
    power: Any,
    layout: Any,
    at: Any,
    counts: Any,
    ends: Any,
    check: bool,
    columns: Any,
    coefficients: Any,
    chosen: Any,
    U: Any,
    V: Any,
    squared: Any,
    norms: Any,
) -> None:  # pragma: no cover (compiled)
    """The crosses of the pivots that :func:`find` found, and what they lose: of what was stored, in its dtype.

    Parameters
    ----------
    images, power, layout, at, counts
        As for :func:`lrbench.kernels.project.project_rows`.
    ends : array
        (N + 1,) int64: the crosses of block i are those from ``ends[i]`` on, before ``ends[i + 1]``.
    check : bool
        Whether to tell what is lost.
    columns, coefficients, chosen
        U, C and ``chosen`` of :func:`find`; what is above the diagonal of C is overwritten.
    U, V : array
        (., m) and (., n), written.
    squared, norms : array
        (N,) float64: see :func:`lrbench.kernels.project.residuals`; written if they are asked for.
    """
    n, most = V.shape[1], coefficients.shape[1]
    P = np.zeros(layout.channels * layout.plane + SLACK, V.dtype)
    pixels, span, w = P[: layout.channels * layout.plane], line_of_vectors(layout, V), width(V)
    source, target = vectors(layout, P)
    for q in range(len(target)):  # lines stand whole vectors apart
        target[q] = min(q * w, layout.lines * span - w)
    scratch = residual_scratch(layout, most, V)
    memory, rows, starts = V.reshape(-1), scratch[1], np.empty(most, np.int64)
    column, order, used = np.empty(len(at), V.dtype), np.empty(4 * len(scratch[2]), np.int64), np.zeros(len(at))
    for b in range(len(images)):
        pad(images[b], power[b, 0], power[b, 1], layout.pitch, layout.plane, layout.top, layout.left, pixels)
        first, rank, C = ends[b], ends[b + 1] - ends[b], coefficients[b]
        # Pivot rows first: what later crosses have there is zero.
        for k in range(rank):
            starts[k], order[k] = at[chosen[b, k]], chosen[b, k]
            used[order[k]] = 1
        rest = rank
        for i in range(len(at)):
            if used[i] == 0 and rest < len(order):
                order[rest] = i
                rest += 1
            used[i] = 0
        order[rest:] = order[rest - 1]
        for k in range(0, rank, 2):
            ahead = memory[(first + k + 2) * n : (first + k + 4) * n]
            if k + 1 < rank:
                C[k, k + 1] = 0
                combine_two(P, starts, C[k], C[k + 1], k + 2, source, target, rows[k], rows[k + 1], ahead)
            else:
                combine(P, starts, C[k], k + 1, source, target, rows[k], ahead)
            for i in range(k, min(k + 2, rank)):
                column[:] = columns[b, i]
                store_lines(column, power[b, 2], power[b, 3], len(at), len(at), U[first + i])
                store_lines(rows[i], power[b, 4], power[b, 5], layout.columns, span, V[first + i])
                for y in range(layout.lines if check else 0):
                    for t in range(y * span + layout.columns, (y + 1) * span):
                        rows[i, t] = 0
                if check:
                    enter(i, U[first + i], power[b, 3], order, scratch)
        if check:
            norms[b] = squared_norm(pixels, counts)
            squared[b] = formed_residual(P, at, order, rank, n, norms[b], scratch, memory[:0])


@compiled
def _residual_row(
    P: Any, at: Any, B: Any, rank: int, i: int, starts: Any, c: Any, source: Any, target: Any, row: Any
) -> None:  # pragma: no cover (compiled)
    """Row i of the residual; ``starts`` holds where the pivot rows begin, and takes row i itself."""
    for k in range(rank):
        c[k] = B[k, i]
    c[rank] = 1.0
    starts[rank] = at[i]
    combine(P, starts, c, rank + 1, source, target, row, row[:0])


@compiled
def _next_row(u: Any, unused: Any, m: int) -> int:  # pragma: no cover (compiled)
    """Where u is largest in magnitude among the unused rows; 0 if there is none."""
    largest = zeros(u)
    for t in range(0, len(u), width(u)):
        largest = larger(largest, fma(zeros(u), load(u, (t,)), load(unused, (t,))))
    most = peak(largest)
    for k in range(m):
        if abs(u[k]) == most and unused[k] > 0:
            return k
    return 0


@compiled
def _mix(first: Any, rows: Any, chosen: Any, c: Any, count: int, out: Any) -> None:  # pragma: no cover (compiled)
    """``out`` = first + Σ_k c_k rows[chosen_k], over whole tiles of four vectors."""
    w = width(out)
    for t in range(0, len(out), 4 * w):
        x0, x1 = load(first, (t,)), load(first, (t + w,))
        x2, x3 = load(first, (t + 2 * w,)), load(first, (t + 3 * w,))
        for k in range(count):
            f, r = broadcast(c, (k,)), chosen[k]
            x0, x1 = fma(x0, f, load(rows, (r, t))), fma(x1, f, load(rows, (r, t + w)))
            x2, x3 = fma(x2, f, load(rows, (r, t + 2 * w))), fma(x3, f, load(rows, (r, t + 3 * w)))
        store(out, (t,), x0)
        store(out, (t + w,), x1)
        store(out, (t + 2 * w,), x2)
        store(out, (t + 3 * w,), x3)


@compiled
def _spread(u: Any, c: Any, count: int, rows: Any) -> None:  # pragma: no cover (compiled)
    """``rows[k]`` += c_k u, over whole vectors."""
    w = width(u)
    for k in range(count):
        f = broadcast(c, (k,))
        for t in range(0, len(u), w):
            store(rows, (k, t), fma(load(rows, (k, t)), f, load(u, (t,))))
