"""Crosses of a block whose residual is never formed while they are found: a Gram matrix tells its size.

With G = D Dᵀ, the residual after k crosses is R = B D, where every cross changes B to (1 − u e_iᵀ / p) B. Beside the
identity B has one column for each pivot row: a row of R is a combination of k + 1 rows of D, windows of one small
image, and column i of R Rᵀ is B G bᵢ, where bᵢ is row i of B. With it the energy of R follows from cross to cross. That
takes some 2 k (m + n) multiplications for a cross, where a pass over the residual takes 2 m n.
"""

from typing import Any

import numpy as np

from lrbench.kernels.crosses import pivot_column, place_of
from lrbench.kernels.gram import reflect, rows_gram, rows_scratch
from lrbench.kernels.lanes import broadcast, fma, larger, load, peak, store, width, zeros
from lrbench.kernels.layout import pad, squared_norm
from lrbench.kernels.loops import compiled, exact
from lrbench.kernels.residual import enter, formed_residual, line_of_vectors, residual_scratch
from lrbench.kernels.turns import sum_before, take, tell
from lrbench.kernels.windows import SLACK, combine, vectors

__all__ = ["by_gram"]


@compiled
def by_gram(
    images: Any,
    power: Any,
    layout: Any,
    at: Any,
    counts: Any,
    tolerance: float,
    floor: float,
    limit: int,
    gram: Any,
    check: bool,
    turn: Any,
    first: int,
    ranks: Any,
    ends: Any,
    U: Any,
    V: Any,
    squared: Any,
    norms: Any,
) -> None:  # pragma: no cover (compiled)
    """Crosses as :func:`lrbench.kernels.crosses.by_residual` finds them, up to rounding, stored and checked one by one.

    Several threads may be in here at once: each takes one block after the other until there are none, or no room.

    Parameters
    ----------
    images, power, layout, at, counts
        As for :func:`lrbench.kernels.project.project_rows`.
    tolerance, floor, limit
        As for :func:`lrbench.kernels.crosses.by_residual`.
    gram : array
        Empty, of the dtype that G is computed in.
    check : bool
        Whether to tell what is lost.
    turn : array
        (1,) int64, the next block that nobody has taken: see :mod:`lrbench.kernels.turns`.
    first : int
        The first block that is to be taken.
    ranks : array
        (N,) int64, below zero from the first block on; written.
    ends : array
        (N + 1,) int64: ``ends[i + 1]`` is written when the crosses of block i have their place, before that one;
        ``ends[first]`` is read.
    U, V : array
        (., m) and (., n) in the dtype of the arithmetic on pixels, written: the crosses, block by block, as far as
        there is room for all of a block's. Blocks that there is no room for are to be taken again.
    squared, norms : array
        (N,) float64: see :func:`lrbench.kernels.residual.residuals`; written if they are asked for.
    """
    m, span = len(at), line_of_vectors(layout, V)
    P = np.zeros(layout.channels * layout.plane + SLACK, V.dtype)
    pixels = P[: layout.channels * layout.plane]
    source, target = vectors(layout, P, span)
    search, products = _search_scratch(m, limit, V), rows_scratch(layout, gram)
    lost = residual_scratch(layout, limit, V)
    G, rows, columns, chosen = search[0], lost[1], np.empty((limit, m), V.dtype), np.empty(limit, np.int64)
    energies = np.empty(limit)
    order, used = np.empty(4 * len(lost[2]), np.int64), np.zeros(m)
    memory, end = V.reshape(-1), ends[first]
    while True:
        b = take(turn)
        if b >= len(images):
            return
        rows_gram(images[b], power[b, 0], power[b, 1], layout, products, G)
        reflect(G)
        pad(images[b], power[b, 0], power[b, 1], layout.pitch, layout.plane, layout.top, layout.left, pixels)
        rank = _search(P, layout, at, tolerance, floor, limit, source, target, search, columns, rows, energies, chosen)
        tell(ranks, (b,), rank)
        for k in range(rank):
            _settle(columns[k], power[b, 2], power[b, 3])
            _settle(rows[k, : layout.lines * span], power[b, 4], power[b, 5])
        end += sum_before(ranks, first, b)
        first = b
        ahead = memory[end * V.shape[1] : (end + rank) * V.shape[1]]
        if check:
            _arrange(chosen, rank, used, order)
            for k in range(rank):
                enter(k, columns[k], 1.0, energies[k], order, lost)
            norms[b] = squared_norm(pixels, counts)
            squared[b] = formed_residual(P, at, order, rank, V.shape[1], norms[b], lost, ahead)
        if end + rank > len(V):
            return
        for k in range(rank):
            _place(columns[k], power[b, 2], m, m, U[end + k])
            _place(rows[k], power[b, 4], layout.columns, span, V[end + k])
        ends[b + 1] = end + rank


@compiled
def _search_scratch(m: int, limit: int, work: Any) -> Any:  # pragma: no cover (compiled)
    """What :func:`_search` works in; the first is for G, (m, .), of which m columns are to be written."""
    # Zeros fill the last vectors.
    wide = (m + 15) // 16 * 16
    G, B, vectors = np.zeros((m, wide)), np.zeros((limit + 1, wide)), np.zeros((4, wide))
    factors, energy = np.empty((2, limit + 1)), np.empty(m)
    places = np.empty((3, limit + 1), np.int64)
    places[2] = np.arange(limit + 1)
    return G, B, vectors, factors, energy, places, np.empty(limit + 1, work.dtype)


@compiled
def _search(
    P: Any,
    layout: Any,
    at: Any,
    tolerance: float,
    floor: float,
    limit: int,
    source: Any,
    target: Any,
    scratch: Any,
    columns: Any,
    rows: Any,
    energies: Any,
    chosen: Any,
) -> int:  # pragma: no cover (compiled)
    """The crosses of one block, and how many.

    Parameters
    ----------
    P, source, target
        The padded image, and where the vectors of a row begin in it and in ``rows``.
    scratch
        From :func:`_search_scratch`, with G in its place.
    columns : array
        (limit, m), written: the columns of the crosses.
    rows : array
        (limit, .), written: their rows, lines whole vectors apart, zeros between and behind.
    energies : array
        (limit,) float64, written: the rows' squared norms.
    chosen : array
        (limit,) int64, written: the pivot rows.
    """
    G, B, (u, g, y, unused), (a, d), energy, (pivots, starts, each), c = scratch
    m, span = len(at), line_of_vectors(layout, rows)
    total = 0.0
    for k in range(m):
        energy[k] = G[k, k]
        total += energy[k]
        unused[k] = 1.0  # zero where a row has been a pivot row
    left, negligible = total, floor * np.sqrt(total)
    i, rank = 0, 0
    while rank < limit and left > tolerance * total:
        row = rows[rank]
        column = _residual_row(P, layout, at, B, rank, i, starts, c, source, target, row)
        if abs(row[column]) <= negligible:
            # Passed over for the first unused row that is not zero; without one the residual is zero.
            found = False
            for k in range(m):
                if unused[k] > 0:
                    column = _residual_row(P, layout, at, B, rank, k, starts, c, source, target, row)
                    if abs(row[column]) > negligible:
                        found, i = True, k
                        break
            if not found:
                break
        pivot, place = np.float64(row[column]), column // span * layout.pitch + column % span
        inverse = 1.0 / pivot
        for k in range(m):
            u[k] = P[at[k] + place]
        for k in range(rank):
            a[k], d[k] = B[k, i], P[starts[k] + place]
        _mix(u, B, each, d, rank, u)
        u[i] = pivot
        # Column i of the residual's Gram matrix.
        _mix(G[i], G, pivots, a, rank, y)
        for k in range(rank):
            d[k] = y[pivots[k]]
        _mix(y, B, each, d, rank, g)
        for k in range(rank):
            a[k] *= -inverse
        energies[rank] = _scale(row[: layout.lines * span], inverse)
        into, last, size = columns[rank], B[rank], g[i]
        left = 0.0
        for k in range(rank):  # but for rounding errors they are
            u[pivots[k]], energy[pivots[k]] = 0.0, 0.0
        for k in range(m):
            into[k] = u[k]
            u[k] = into[k]  # what is stored, not what was computed, is taken away
            last[k] = -u[k] * inverse
            energy[k] += last[k] * (2 * g[k] + last[k] * size)
            left += energy[k]
        _spread(u, a, rank, B)
        pivots[rank] = chosen[rank] = i
        unused[i] = 0.0
        i = _next_row(u, unused, m)
        rank += 1
    return rank


@compiled
def _arrange(chosen: Any, rank: int, used: Any, order: Any) -> None:  # pragma: no cover (compiled)
    """Pivot rows first: what later crosses have there is zero. ``used`` is zero, and will be."""
    for k in range(rank):
        order[k] = chosen[k]
        used[order[k]] = 1
    rest = rank
    for i in range(len(used)):
        if used[i] == 0 and rest < len(order):
            order[rest] = i
            rest += 1
        used[i] = 0
    order[rest:] = order[rest - 1]


@compiled
def _scale(row: Any, factor: float) -> float:  # pragma: no cover (compiled)
    """``row`` times a number; the energy that it has then."""
    f = row.dtype.type(factor)
    energy = f - f  # a zero of the row's dtype
    for t in range(len(row)):
        x = row[t] * f
        row[t] = x
        energy += x * x
    return np.float64(energy)


@exact
def _settle(row: Any, f: float, g: float) -> None:  # pragma: no cover (compiled)
    """What remains of numbers that are stored times f, a power of two, when they are read times g, its inverse."""
    if f == 1 and g == 1:
        return
    to, fro = row.dtype.type(f), row.dtype.type(g)  # exponents of half a number's own range
    for t in range(len(row)):
        row[t] = (row[t] * to) * fro


@exact
def _place(row: Any, f: float, columns: int, span: int, stored: Any) -> None:  # pragma: no cover (compiled)
    """Store a row times f, whose lines stand ``span`` apart."""
    factor = row.dtype.type(f)
    if span == columns:
        columns = span = len(stored)  # as a single line
    for y in range(len(stored) // columns):
        line, into = row[y * span : y * span + columns], stored[y * columns : (y + 1) * columns]
        for t in range(columns):
            into[t] = line[t] * factor


@compiled
def _residual_row(
    P: Any, layout: Any, at: Any, B: Any, rank: int, i: int, starts: Any, c: Any, source: Any, target: Any, row: Any
) -> int:  # pragma: no cover (compiled)
    """Row i of the residual, and where it is largest; ``starts`` holds where pivot rows begin, and takes that one."""
    for k in range(rank):
        c[k] = B[k, i]
    c[rank] = 1.0
    starts[rank] = at[i]
    largest = combine(P, starts, c, rank + 1, source, target, row, row[:0])
    span, w = line_of_vectors(layout, row), 2 * width(row)
    values = row[: layout.lines * span]
    if len(source) * w == layout.lines * layout.columns:
        return place_of(values, largest)
    # What was read from between the lines is no part of the row.
    for y in range(layout.lines if span > layout.columns else 0):
        row[y * span + layout.columns : (y + 1) * span] = 0
    row[len(values) : len(values) + w] = 0
    return pivot_column(values)


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
