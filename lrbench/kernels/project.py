"""What stands between a block and its factors: the other factor by projection, and the residual.

Both are computed in float64, or in float32 with a bound of what its rounding can do added to what is told.
"""

from typing import Any

import numpy as np

from lrbench.kernels.lanes import broadcast, fma, load, store, summed, width, zeros
from lrbench.kernels.layout import pad
from lrbench.kernels.loops import ask_for, compiled, correlate, dot, exact, inner
from lrbench.kernels.windows import SLACK, combine, combine_two, vectors

__all__ = [
    "enter",
    "formed_residual",
    "line_of_vectors",
    "project_columns",
    "project_rows",
    "residual_scratch",
    "residuals",
    "squared_norm",
    "store_lines",
]

CACHE = 1 << 14
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
    P = np.zeros(layout.channels * layout.plane + SLACK, work.dtype)
    pixels = P[: layout.channels * layout.plane]
    source, target = vectors(layout, P, layout.columns)
    most = 0
    for b in range(len(images)):
        most = max(most, offsets[b + 1] - offsets[b])
    A, B = np.empty((most, m), work.dtype), np.empty((most, n + SLACK), work.dtype)
    computed, products = np.empty(n, work.dtype), np.empty(most)
    memory, double = V.reshape(-1), work.itemsize == 8
    for b in range(len(images)):
        pad(images[b], power[b, 0], power[b, 1], layout.pitch, layout.plane, layout.top, layout.left, pixels)
        norm = squared_norm(pixels, counts)
        first, rank = offsets[b], offsets[b + 1] - offsets[b]
        met = 0.0
        for k in range(rank):
            _store(basis[b, k], power[b, 2], power[b, 3], U[first + k], A[k])
        for k in range(0, rank, 2):
            ahead = memory[(first + k + 2) * n : (first + k + 4) * n]
            if k + 1 < rank:
                combine_two(P, at, A[k], A[k + 1], m, source, target, B[k], B[k + 1], ahead)
            else:
                combine(P, at, A[k], m, source, target, B[k], ahead)
            for index in range(k, min(k + 2, rank)):
                row = B[index, :n]
                if double:
                    computed[:] = row
                store_lines(row, power[b, 4], power[b, 5], n, n, V[first + index])
                if double:
                    met += dot(computed, row)
        _judge(A, B, n, rank, norm, met, m, products, squared, norms, b)


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
        norm = squared_norm(P, counts)
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
        _judge(B, A, m, rank, norm, met, n, products, squared, norms, b)


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
            _widen(V[first + k], power[b, 5], layout.columns, span, scratch[1][k])
            row = scratch[1][k]
            enter(k, U[first + k], power[b, 3], _energy(row[: len(scratch[3])]), order, scratch)
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
def enter(k: int, u: Any, scale: float, energy: float, order: Any, scratch: Any) -> None:  # pragma: no cover (compiled)
    """Take column k of U, times ``scale``, after those before; row k of V, of some ``energy``, is in its place.

    Rows are taken four at a time in some ``order``, int64, the last one as often as there is room for: where columns
    end in zeros for four rows these cost nothing.
    """
    _, B, c, counted, _, _, sizes, needed = scratch
    length = np.sqrt(energy)
    if length < 1e-15:  # squares may have vanished
        length = _length(B[k, : len(counted)])
    sizes[k] = _length(u) * length * scale
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
def squared_norm(P: Any, counts: Any) -> float:  # pragma: no cover (compiled)
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


@exact
def store_lines(
    row: Any, f: float, g: float, columns: int, span: int, stored: Any
) -> None:  # pragma: no cover (compiled)
    """As :func:`_store`, of a row whose lines stand ``span`` apart, in its place."""
    to, fro = row.dtype.type(f), row.dtype.type(g)
    same = to == 1 and fro == 1 and row.itemsize == stored.itemsize
    if span == columns:
        columns = span = len(stored)  # as a single line
    for y in range(len(stored) // columns):
        line, into = row[y * span : y * span + columns], stored[y * columns : (y + 1) * columns]
        if same:
            for t in range(columns):
                into[t] = line[t]
        else:
            for t in range(columns):
                into[t] = line[t] * to
            for t in range(columns):
                line[t] = into[t] * fro


@compiled
def _energy(row: Any) -> float:  # pragma: no cover (compiled)
    """The sum of the squares of a row, in its dtype, by four vectors."""
    w = width(row)
    e0 = e1 = e2 = e3 = zeros(row)
    t = 0
    while t + 4 * w <= len(row):
        x, y, z, v = load(row, (t,)), load(row, (t + w,)), load(row, (t + 2 * w,)), load(row, (t + 3 * w,))
        e0, e1, e2, e3 = fma(e0, x, x), fma(e1, y, y), fma(e2, z, z), fma(e3, v, v)
        t += 4 * w
    total = np.float64(summed(e0)) + np.float64(summed(e1)) + np.float64(summed(e2)) + np.float64(summed(e3))
    while t < len(row):
        total += np.float64(row[t]) * np.float64(row[t])
        t += 1
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


@compiled
def _judge(
    A: Any,
    B: Any,
    other_length: int,
    rank: int,
    norm: float,
    met: float,
    length: int,
    products: Any,
    squared: Any,
    norms: Any,
    b: int,
) -> None:  # pragma: no cover (compiled)
    """Tell what a projection loses.

    Parameters
    ----------
    A, B : array
        (., length) and (., >= other_length): as they are stored, the basis and the products with it.
    """
    both, held, skew, slant = 0.0, 0.0, 0.0, 0.0
    single = A.itemsize < 8
    for k in range(rank):
        if not single:
            # ⟨UᵀU, VVᵀ⟩: what is beside the diagonal counts twice.
            inner(B, k + 1, B[k, :other_length], products)
            held += products[k]
        else:
            held += _energy(B[k, :other_length])
        for other in range(k + 1):
            product = _wide_product(A[k], A[other])
            if not single:
                both += (2.0 if other < k else 1.0) * product * products[other]
            slant += product**2 * (2.0 if other < k else 0.0) + ((product - 1.0) ** 2 if other == k else 0.0)
            skew += product if other == k else 0.0
    terms = length * other_length + 4 * (length + other_length) + rank * rank
    if single:
        # V is UᵀD + E, |E| at most γ |U|ᵀ|D| whatever the order of summation (N. J. Higham, 2002, section 3.5).
        unit = 2.0**-24
        gamma = (length + 1) * unit / (1 - (length + 1) * unit)
        held /= 1 + 2 * (other_length / (4 * width(B)) + 8) * unit  # summed by four vectors: so much is certain
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
