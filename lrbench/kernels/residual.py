"""The residual of factors, formed a tile at a time, and what its rounding can have hidden.

It is computed in float64, or in float32; a bound of its rounding is added to what is told.
"""

from typing import Any

import numpy as np

from lrbench.kernels.lanes import broadcast, fma, load, store, width, zeros
from lrbench.kernels.layout import pad, squared_norm, widen
from lrbench.kernels.loops import ask_for, compiled
from lrbench.kernels.norms import energy, length

__all__ = ["enter", "formed_residual", "line_of_vectors", "residual_scratch", "residuals"]

CACHE = 1 << 14
"""Bytes of factors that are worked on at a time."""


@compiled
def residuals(
    images: Any,
    power: Any,
    layout: Any,
    at: Any,
    counts: Any,
    offsets: Any,
    work: Any,
    U: Any,
    V: Any,
    squared: Any,
    norms: Any,
) -> None:  # pragma: no cover (compiled)
    """Squared norms of the scaled blocks' D − UV, the residual itself formed a tile at a time, and of D.

    A bound of what rounding can have hidden is added: in float32 always, in float64 where it exceeds 1e-12 ‖D‖, as it
    does of factors that cancel one another out.

    Parameters
    ----------
    images, power, layout, at, counts, offsets, work, U, V, squared, norms
        As for :func:`lrbench.kernels.project.project_rows`; U and V are read, in any dtype.
    """
    n, most = V.shape[1], 0
    for b in range(len(images)):
        most = max(most, offsets[b + 1] - offsets[b])
    P = np.zeros(layout.channels * layout.plane + width(work), work.dtype)
    pixels = P[: layout.channels * layout.plane]
    scratch, span = residual_scratch(layout, most, work), line_of_vectors(layout, work)
    memory, order = V.reshape(-1), np.minimum(np.arange(4 * len(scratch[2])), len(at) - 1)
    for b in range(len(images)):
        pad(images[b], power[b, 0], power[b, 1], layout.pitch, layout.plane, layout.top, layout.left, pixels)
        first, rank = offsets[b], offsets[b + 1] - offsets[b]
        for k in range(rank):
            widen(V[first + k], power[b, 5], layout.columns, span, scratch[1][k])
            row = scratch[1][k]
            enter(k, U[first + k], power[b, 3], energy(row[: len(scratch[3])]), order, scratch)
        # While this block is worked on the next one's V is asked for.
        ahead = memory[offsets[b + 1] * n : offsets[min(b + 2, len(images))] * n]
        norms[b] = squared_norm(pixels, counts)
        squared[b] = formed_residual(P, at, order, rank, n, norms[b], scratch, ahead)


@compiled
def line_of_vectors(layout: Any, work: Any) -> int:  # pragma: no cover (compiled)
    """How many numbers the vectors of a row's line hold: its columns, and what the last one holds beside."""
    return (layout.columns + width(work) - 1) // width(work) * width(work)


@compiled
def residual_scratch(
    layout: Any, most: int, work: Any
) -> tuple[Any, Any, Any, Any, Any, Any, Any, Any]:  # pragma: no cover (compiled)
    """What :func:`formed_residual` works in, for ranks up to ``most``, in the dtype of ``work``.

    The second, (most, .), is for V: rows whose lines stand whole vectors apart, zeros between and behind.
    """
    # Tiles are of three vectors each. The last vector of a line, and that of a tile, may read on behind the image.
    w, span, m = width(work), line_of_vectors(layout, work), layout.channels * layout.R * layout.S
    vectors = layout.lines * span // w
    tiles, fours = (vectors + 2) // 3, (m + 3) // 4
    place = np.zeros(3 * tiles, np.int64)
    for q in range(vectors):
        place[q] = q * w // span * layout.pitch + q * w % span
    counted = np.zeros(3 * w * tiles, work.dtype)
    for y in range(layout.lines):
        counted[y * span : y * span + layout.columns] = 1
    whole = np.empty(tiles, np.bool_)
    for j in range(tiles):
        whole[j] = counted[3 * w * j : 3 * w * (j + 1)].all()
    # Rows an even number of cache lines apart would share the places of a cache.
    line = 64 // work.itemsize
    B = np.zeros((most, (len(counted) // line // 2 * 2 + 3) * line), work.dtype)
    c = np.zeros((fours, most, 4), work.dtype)
    sums, sizes = np.empty((4 * fours, w), work.dtype), np.empty(most)
    return place, B, c, counted, whole, sums, sizes, np.zeros(fours, np.int64)


@compiled
def enter(
    k: int, u: Any, scale: float, squared: float, order: Any, scratch: Any
) -> None:  # pragma: no cover (compiled)
    """Take column k of U, times ``scale``, after those before; row k of V, of that ``squared`` norm, is in its place.

    Rows are taken four at a time in some ``order``, int64, the last one as often as there is room for: where columns
    end in zeros for four rows these cost nothing.
    """
    _, B, c, counted, _, _, sizes, needed = scratch
    size = np.sqrt(squared)
    if size < 1e-15:  # squares may have vanished
        size = length(B[k, : len(counted)])
    sizes[k] = length(u) * size * scale
    factor = -B.dtype.type(scale)
    for four in range(len(c)):
        found = False
        for i in range(4):
            value = u[order[4 * four + i]] * factor
            c[four, k, i] = value
            found |= value != 0
        needed[four] = k + 1 if found else (needed[four] if k > 0 else 0)


@compiled
def formed_residual(
    P: Any, at: Any, order: Any, rank: int, n: int, norm: float, scratch: Any, ahead: Any
) -> float:  # pragma: no cover (compiled)
    """‖D − UV‖_F² of what :func:`enter` took, formed a tile at a time, and what rounding can have hidden.

    Parameters
    ----------
    P : array
        The padded image, and a vector more.
    at, order : array
        Row offsets, and the order of rows that :func:`enter` was given.
    rank, n : int
        Of the factors, and the length of V's rows.
    norm : float
        ‖D‖_F².
    scratch
        From :func:`residual_scratch`.
    ahead : array
        (.,): memory that is asked for meanwhile.
    """
    place, B, c, counted, whole, sums, sizes, needed = scratch
    m, tiles, fours = len(at), len(place) // 3, len(c)
    unit = 2.0**-24 if P.itemsize < 8 else 2.0**-53
    sums[:] = 0
    bit, asked = (len(ahead) + tiles * fours - 1) // (tiles * fours), 0
    # As many tiles at a time as the innermost cache holds.
    some = max(1, CACHE // (3 * width(P) * P.itemsize * (rank + 1)))
    for start in range(0, tiles, some):
        stop = min(start + some, tiles)
        for four in range(fours):
            ask_for(ahead, asked, (stop - start) * bit)
            asked += (stop - start) * bit
            count = min(needed[four], rank)
            _add_energies(P, at, order, place, B, c[four], count, counted, whole, start, stop, sums, 4 * four)
    total = 0.0
    for i in range(m):
        for t in range(width(P)):
            total += np.float64(sums[i, t])
    # Each number of the residual is a sum of rank + 1 products (N. J. Higham, 2002, section 3.1), each energy a sum of
    # squares.
    size = np.sqrt(norm)
    for k in range(rank):
        size += sizes[k]
    hidden = (rank + 2) * unit / (1 - (rank + 2) * unit) * size
    if P.itemsize < 8 or not hidden <= 1e-12 * np.sqrt(norm):
        total = (np.sqrt(total * (1 + 2 * n * unit)) + hidden) ** 2
    return total


@compiled
def _add_energies(
    P: Any,
    at: Any,
    order: Any,
    place: Any,
    B: Any,
    c: Any,
    count: int,
    counted: Any,
    whole: Any,
    start: int,
    stop: int,
    sums: Any,
    i: int,
) -> None:  # pragma: no cover (compiled)
    """Add the squares of D + Σ_k c[k] B[k], k < count, in some tiles of four rows, from i on, to those rows' sums.

    Three vectors of each row stay in registers. Of D only what is counted is taken; B is zero elsewhere. Sums of rows
    that the block does not have are to be forgotten.
    """
    w, nothing = width(P), zeros(P)
    a0, a1, a2, a3 = at[order[i]], at[order[i + 1]], at[order[i + 2]], at[order[i + 3]]
    e0, e1, e2, e3 = load(sums, (i, 0)), load(sums, (i + 1, 0)), load(sums, (i + 2, 0)), load(sums, (i + 3, 0))
    for j in range(start, stop):
        at0, at1, at2, t = place[3 * j], place[3 * j + 1], place[3 * j + 2], 3 * w * j
        x0, y0, z0 = load(P, (a0 + at0,)), load(P, (a0 + at1,)), load(P, (a0 + at2,))
        x1, y1, z1 = load(P, (a1 + at0,)), load(P, (a1 + at1,)), load(P, (a1 + at2,))
        x2, y2, z2 = load(P, (a2 + at0,)), load(P, (a2 + at1,)), load(P, (a2 + at2,))
        x3, y3, z3 = load(P, (a3 + at0,)), load(P, (a3 + at1,)), load(P, (a3 + at2,))
        if not whole[j]:
            n0, n1, n2 = load(counted, (t,)), load(counted, (t + w,)), load(counted, (t + 2 * w,))
            x0, y0, z0 = fma(nothing, n0, x0), fma(nothing, n1, y0), fma(nothing, n2, z0)
            x1, y1, z1 = fma(nothing, n0, x1), fma(nothing, n1, y1), fma(nothing, n2, z1)
            x2, y2, z2 = fma(nothing, n0, x2), fma(nothing, n1, y2), fma(nothing, n2, z2)
            x3, y3, z3 = fma(nothing, n0, x3), fma(nothing, n1, y3), fma(nothing, n2, z3)
        for k in range(count):
            u, v, s = load(B, (k, t)), load(B, (k, t + w)), load(B, (k, t + 2 * w))
            c0, c1, c2, c3 = broadcast(c, (k, 0)), broadcast(c, (k, 1)), broadcast(c, (k, 2)), broadcast(c, (k, 3))
            x0, x1, x2, x3 = fma(x0, c0, u), fma(x1, c1, u), fma(x2, c2, u), fma(x3, c3, u)
            y0, y1, y2, y3 = fma(y0, c0, v), fma(y1, c1, v), fma(y2, c2, v), fma(y3, c3, v)
            z0, z1, z2, z3 = fma(z0, c0, s), fma(z1, c1, s), fma(z2, c2, s), fma(z3, c3, s)
        e0, e1 = fma(fma(fma(e0, x0, x0), y0, y0), z0, z0), fma(fma(fma(e1, x1, x1), y1, y1), z1, z1)
        e2, e3 = fma(fma(fma(e2, x2, x2), y2, y2), z2, z2), fma(fma(fma(e3, x3, x3), y3, y3), z3, z3)
    store(sums, (i, 0), e0)
    store(sums, (i + 1, 0), e1)
    store(sums, (i + 2, 0), e2)
    store(sums, (i + 3, 0), e3)
