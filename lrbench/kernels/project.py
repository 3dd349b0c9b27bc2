"""What stands between a block and its factors: the other factor by projection, and the residual.

Both are computed in float64, or in float32 with a bound of what its rounding can do added to what is told.
"""

from typing import Any

import numpy as np

from lrbench.kernels.lanes import broadcast, fma, load, store, summed, width, zeros
from lrbench.kernels.layout import pad, read
from lrbench.kernels.loops import accumulate, ask_for, compiled, correlate, dot, exact, inner

__all__ = ["project_columns", "project_rows", "residuals"]

CACHE = 1 << 15
"""Bytes of factors that are worked on at a time."""


@compiled
def project_rows(
    images: Any,
    power: Any,
    layout: Any,
    at: Any,
    counts: Any,
    basis: Any,
    offsets: Any,
    work: Any,
    U: Any,
    V: Any,
    squared: Any,
    norms: Any,
) -> None:  # pragma: no cover (compiled)
    """Store bases U_i, compute V_i = U_iᵀ D_i from what was stored, store that, and tell what is lost.

    In float64 the loss is ‖D‖² − 2⟨UᵀD, V⟩ + ⟨UᵀU, VVᵀ⟩ of the stored factors, with a bound of its rounding error
    added. In float32 it is ‖D‖² − ‖V‖², with bounds of what rounding does to V and what U lacks in orthogonality.

    Parameters
    ----------
    images : array
        (N, C, H, W).
    power : array
        (N, 6) float64, powers of two: the images are scaled by the product of the first two; U is stored times the
        third and V times the fifth, each followed by its inverse.
    layout, at, counts
        A :class:`Layout`, its row offsets, and how often each number of a padded channel occurs in a block.
    basis : array
        (N, ., m) float64.
    offsets : array
        (N + 1,) int64: block i has rank ``offsets[i + 1] − offsets[i]``.
    work : array
        Empty, of the dtype of the arithmetic: float64, or the images'.
    U, V : array
        (Σ r_i, m) and (Σ r_i, n), written.
    squared, norms : array
        (N,) float64, written: no less than the scaled blocks' ‖D − UV‖_F², and their ‖D‖_F².
    """
    m, n = len(at), V.shape[1]
    pitch, columns = layout.pitch, layout.columns
    P = np.zeros(layout.channels * layout.plane, work.dtype)
    most = 0
    for b in range(len(images)):
        most = max(most, offsets[b + 1] - offsets[b])
    A, B = np.empty((most, m), work.dtype), np.empty((most, n), work.dtype)
    wide, row = np.empty((2, (layout.lines - 1) * pitch + columns), work.dtype), np.empty(n, work.dtype)
    products = np.empty(most)
    memory = V.reshape(-1)
    for b in range(len(images)):
        pad(images[b], power[b, 0], power[b, 1], pitch, layout.plane, layout.top, layout.left, P)
        norm = _squared_norm(P, counts)
        first, rank = offsets[b], offsets[b + 1] - offsets[b]
        met = 0.0
        for k in range(rank):
            _store(basis[b, k], power[b, 2], power[b, 3], U[first + k], A[k])
        for k in range(0, rank, 2):
            other = min(k + 1, rank - 1)
            accumulate(P, at, A[k], A[other], wide[0], wide[1])
            ask_for(memory, (first + k + 2) * n, 2 * n)
            for index in range(k, other + 1):
                read(wide[index - k], 0, pitch, columns, row)
                _store(row, power[b, 4], power[b, 5], V[first + index], B[index])
                met += dot(row, B[index])
        _judge(A, B, rank, norm, met, m, products, squared, norms, b)


@compiled
def project_columns(
    images: Any,
    power: Any,
    layout: Any,
    at: Any,
    counts: Any,
    basis: Any,
    offsets: Any,
    work: Any,
    U: Any,
    V: Any,
    squared: Any,
    norms: Any,
) -> None:  # pragma: no cover (compiled)
    """As :func:`project_rows`, with bases V_i, (N, ., n), and U_i = D_i V_iᵀ."""
    m, n = len(at), V.shape[1]
    pitch, columns = layout.pitch, layout.columns
    P = np.zeros(layout.channels * layout.plane, work.dtype)
    most = 0
    for b in range(len(images)):
        most = max(most, offsets[b + 1] - offsets[b])
    A, B = np.empty((most, m), work.dtype), np.empty((most, n), work.dtype)
    wide, column = np.zeros((2, (layout.lines - 1) * pitch + columns), work.dtype), np.empty((2, m), work.dtype)
    products = np.empty(most)
    for b in range(len(images)):
        pad(images[b], power[b, 0], power[b, 1], pitch, layout.plane, layout.top, layout.left, P)
        norm = _squared_norm(P, counts)
        first, rank = offsets[b], offsets[b + 1] - offsets[b]
        met = 0.0
        for k in range(rank):
            _store(basis[b, k], power[b, 4], power[b, 5], V[first + k], B[k])
        for k in range(0, rank, 2):
            other = min(k + 1, rank - 1)
            _widen(B[k], 1.0, columns, pitch, wide[0])
            _widen(B[other], 1.0, columns, pitch, wide[1])
            correlate(P, at, wide[0], wide[1], column[0], column[1])
            for index in range(k, other + 1):
                _store(column[index - k], power[b, 2], power[b, 3], U[first + index], A[index])
                met += dot(column[index - k], A[index])
        _judge(B, A, rank, norm, met, n, products, squared, norms, b)


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
        As for :func:`project_rows`; U and V are read, in any dtype.
    """
    m, n = len(at), V.shape[1]
    pitch, columns = layout.pitch, layout.columns
    most = 0
    for b in range(len(images)):
        most = max(most, offsets[b + 1] - offsets[b])
    # Tiles are of two vectors each. The last vector of a line, and that of a tile, may read on behind the image.
    w = width(work)
    span = (columns + w - 1) // w * w
    tile, vectors = 2 * w, layout.lines * span // w
    tiles = (vectors + 1) // 2
    place = np.zeros(2 * tiles, np.int64)
    for q in range(vectors):
        place[q] = q * w // span * pitch + q * w % span
    P = np.zeros(layout.channels * layout.plane + w, work.dtype)
    pixels = P[: layout.channels * layout.plane]
    # What one tile is made of lies together: rows a power of two apart would share the places of a cache.
    fours = (m + 3) // 4
    B, c = np.empty((tiles, most, tile), work.dtype), np.zeros((fours, most, 4), work.dtype)
    row, counted = np.zeros(tiles * tile, work.dtype), np.zeros(tiles * tile, work.dtype)
    sums, lengths = np.empty((4 * fours, width(work)), work.dtype), np.empty(most)
    unit = 2.0**-24 if work.itemsize < 8 else 2.0**-53
    for y in range(layout.lines):
        counted[y * span : y * span + columns] = 1
    memory = V.reshape(-1)
    for b in range(len(images)):
        pad(images[b], power[b, 0], power[b, 1], pitch, layout.plane, layout.top, layout.left, pixels)
        first, rank = offsets[b], offsets[b + 1] - offsets[b]
        for k in range(rank):
            _widen(V[first + k], power[b, 5], columns, span, row)
            lengths[k] = np.sqrt(_fill(row, B, k))
            if lengths[k] < 1e-15:  # squares may have vanished
                lengths[k] = _length(row)
            u = U[first + k]
            for i in range(m):
                c[i // 4, k, i % 4] = -np.float64(u[i]) * power[b, 3]
        sums[:] = 0
        # While this block is worked on the next one's V is asked for, a bit for each tile.
        ahead = offsets[b + 1] * n
        bit = (offsets[min(b + 2, len(images))] * n - ahead + tiles * fours - 1) // (tiles * fours)
        # As many tiles at a time as the innermost cache holds.
        some = max(1, CACHE // (tile * work.itemsize * (rank + 1)))
        for start in range(0, tiles, some):
            stop = min(start + some, tiles)
            for four in range(fours):
                ask_for(memory, ahead, (stop - start) * bit)
                ahead += (stop - start) * bit
                _add_energies(P, at, place, B, c[four], rank, counted, start, stop, sums, 4 * four)
        total = 0.0
        for i in range(m):
            for t in range(width(work)):
                total += np.float64(sums[i, t])
        norm = _squared_norm(pixels, counts)
        # Each number of the residual is a sum of rank + 1 products (N. J. Higham, 2002, section 3.1), each energy a sum
        # of squares.
        size = np.sqrt(norm)
        for k in range(rank):
            size += _length(U[first + k]) * lengths[k] * power[b, 3]
        hidden = (rank + 2) * unit / (1 - (rank + 2) * unit) * size
        if work.itemsize < 8 or not hidden <= 1e-12 * np.sqrt(norm):
            total = (np.sqrt(total * (1 + 2 * n * unit)) + hidden) ** 2
        squared[b] = total
        norms[b] = norm


@compiled
def _squared_norm(P: Any, counts: Any) -> float:  # pragma: no cover (compiled)
    """‖D‖_F²: pixels squared, each as often as it occurs."""
    plane = len(counts)
    total = 0.0
    for c in range(len(P) // plane):
        pixels = P[c * plane : (c + 1) * plane]
        for t in range(plane):
            total += counts[t] * pixels[t] * pixels[t]
    return total


@exact
def _store(values: Any, f: float, g: float, stored: Any, back: Any) -> None:  # pragma: no cover (compiled)
    """Round values times f to the factors' dtype, and give what was stored, times g, in the dtype of the arithmetic."""
    to, fro = values.dtype.type(f), back.dtype.type(g)  # exponents of half a number's own range
    for t in range(len(values)):
        stored[t] = values[t] * to
    for t in range(len(values)):
        back[t] = stored[t] * fro


@exact
def _widen(stored: Any, g: float, columns: int, pitch: int, out: Any) -> None:  # pragma: no cover (compiled)
    """A row times g, its lines put ``pitch`` apart; what lies between them stays."""
    factor = out.dtype.type(g)  # an exponent of half a number's own range
    if pitch == columns:
        columns = len(stored)  # as a single line: each costs as much to begin as a dozen numbers
    for y in range(len(stored) // columns):
        line, into = stored[y * columns : (y + 1) * columns], out[y * pitch : y * pitch + columns]
        for t in range(columns):
            into[t] = line[t] * factor


@compiled
def _fill(row: Any, B: Any, k: int) -> float:  # pragma: no cover (compiled)
    """Put a row into tiles, as row k of each; the sum of its squares, in its dtype."""
    w = width(row)
    e0 = e1 = zeros(row)
    for t in range(len(B)):
        x, y = load(row, (2 * w * t,)), load(row, (2 * w * t + w,))
        store(B, (t, k, 0), x)
        store(B, (t, k, w), y)
        e0, e1 = fma(e0, x, x), fma(e1, y, y)
    return np.float64(summed(e0)) + np.float64(summed(e1))


@compiled
def _add_energies(
    P: Any, at: Any, place: Any, B: Any, c: Any, rank: int, counted: Any, start: int, stop: int, sums: Any, i: int
) -> None:  # pragma: no cover (compiled)
    """Add the squares of D + Σ_k c[k] B[:, k] in some tiles of four rows, from i on, to those rows' sums.

    Two vectors of each row stay in registers. Of D only what is counted is taken; B is zero elsewhere. Sums of rows
    that the block does not have are to be forgotten.
    """
    last, w, nothing = len(at) - 1, width(P), zeros(P)
    a0, a1, a2, a3 = at[i], at[min(i + 1, last)], at[min(i + 2, last)], at[min(i + 3, last)]
    e0, e1, e2, e3 = load(sums, (i, 0)), load(sums, (i + 1, 0)), load(sums, (i + 2, 0)), load(sums, (i + 3, 0))
    for j in range(start, stop):
        t, s = place[2 * j], place[2 * j + 1]
        here, there = load(counted, (2 * w * j,)), load(counted, (2 * w * j + w,))
        x0, y0 = fma(nothing, here, load(P, (a0 + t,))), fma(nothing, there, load(P, (a0 + s,)))
        x1, y1 = fma(nothing, here, load(P, (a1 + t,))), fma(nothing, there, load(P, (a1 + s,)))
        x2, y2 = fma(nothing, here, load(P, (a2 + t,))), fma(nothing, there, load(P, (a2 + s,)))
        x3, y3 = fma(nothing, here, load(P, (a3 + t,))), fma(nothing, there, load(P, (a3 + s,)))
        for k in range(rank):
            u, v = load(B, (j, k, 0)), load(B, (j, k, w))
            c0, c1, c2, c3 = broadcast(c, (k, 0)), broadcast(c, (k, 1)), broadcast(c, (k, 2)), broadcast(c, (k, 3))
            x0, x1, x2, x3 = fma(x0, c0, u), fma(x1, c1, u), fma(x2, c2, u), fma(x3, c3, u)
            y0, y1, y2, y3 = fma(y0, c0, v), fma(y1, c1, v), fma(y2, c2, v), fma(y3, c3, v)
        e0, e1 = fma(fma(e0, x0, x0), y0, y0), fma(fma(e1, x1, x1), y1, y1)
        e2, e3 = fma(fma(e2, x2, x2), y2, y2), fma(fma(e3, x3, x3), y3, y3)
    store(sums, (i, 0), e0)
    store(sums, (i + 1, 0), e1)
    store(sums, (i + 2, 0), e2)
    store(sums, (i + 3, 0), e3)


@compiled
def _judge(
    A: Any, B: Any, rank: int, norm: float, met: float, length: int, products: Any, squared: Any, norms: Any, b: int
) -> None:  # pragma: no cover (compiled)
    """Tell what a projection loses.

    Parameters
    ----------
    A, B : array
        (., length) and (., .): as they are stored, the basis and the products with it.
    """
    both, held, skew, slant = 0.0, 0.0, 0.0, 0.0
    single = A.itemsize < 8
    for k in range(rank):
        if not single:
            # ⟨UᵀU, VVᵀ⟩: what is beside the diagonal counts twice.
            inner(B, k + 1, B[k], products)
            held += products[k]
        else:
            held += _wide_product(B[k], B[k])
        for other in range(k + 1):
            product = _wide_product(A[k], A[other])
            if not single:
                both += (2.0 if other < k else 1.0) * product * products[other]
            slant += product**2 * (2.0 if other < k else 0.0) + ((product - 1.0) ** 2 if other == k else 0.0)
            skew += product if other == k else 0.0
    terms = A.shape[1] * B.shape[1] + 4 * (A.shape[1] + B.shape[1]) + rank * rank
    if single:
        # V is UᵀD + E, |E| at most γ |U|ᵀ|D| whatever the order of summation (N. J. Higham, 2002, section 3.5).
        unit = 2.0**-24
        gamma = (length + 1) * unit / (1 - (length + 1) * unit)
        rounding = 2 * gamma * np.sqrt(skew * norm * held) + np.sqrt(slant) * held
        squared[b] = max(0.0, norm - held) + rounding + terms * 1.2e-16 * (norm + held)
    else:
        # Every sum has at most m·n + r² terms, none larger in size than its part of (‖D‖ + ‖U‖‖V‖)².
        bound = terms * 1.2e-16 * (np.sqrt(norm) + np.sqrt(skew * held)) ** 2
        squared[b] = max(0.0, norm - 2 * met + both) + bound
    norms[b] = norm


@compiled
def _length(x: Any) -> float:  # pragma: no cover (compiled)
    """‖x‖ in float64, also where the squares are out of its range."""
    square = _wide_product(x, x)
    if 1e-290 < square < np.inf:
        return np.sqrt(square)
    top = 0.0
    for t in range(len(x)):
        top = max(top, abs(np.float64(x[t])))
    if top == 0.0 or not top < np.inf:
        return top
    square = 0.0
    for t in range(len(x)):
        square += (np.float64(x[t]) / top) ** 2
    return top * np.sqrt(square)


@compiled
def _wide_product(a: Any, b: Any) -> float:  # pragma: no cover (compiled)
    """Inner product in float64."""
    total = 0.0
    for t in range(len(a)):
        total += np.float64(a[t]) * np.float64(b[t])
    return total
