"""The other factor, by projection on a basis, and what is lost by it.

Both are computed in float64, or in float32 with a bound of what its rounding can do added to what is told.
"""

from typing import Any

import numpy as np

from lrbench.kernels.lanes import width
from lrbench.kernels.layout import pad, squared_norm, widen
from lrbench.kernels.loops import compiled, correlate, dot, exact, inner
from lrbench.kernels.norms import energy, wide_product
from lrbench.kernels.windows import SLACK, combine, combine_two, vectors

__all__ = ["project_columns", "project_rows"]


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
                _store_row(row, power[b, 4], power[b, 5], V[first + index])
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
            widen(B[k], 1.0, columns, pitch, wide[0])
            widen(B[other], 1.0, columns, pitch, wide[1])
            correlate(P, at, wide[0], wide[1], column[0], column[1])
            for index in range(k, other + 1):
                _store(column[index - k], power[b, 2], power[b, 3], U[first + index], A[index])
                met += dot(column[index - k], A[index])
        _judge(B, A, m, rank, norm, met, n, products, squared, norms, b)


@exact
def _store(values: Any, f: float, g: float, stored: Any, back: Any) -> None:  # pragma: no cover (compiled)
    """Round values times f to the factors' dtype, and give what was stored, times g, in the dtype of the arithmetic."""
    to, fro = values.dtype.type(f), back.dtype.type(g)  # exponents of half a number's own range
    for t in range(len(values)):
        stored[t] = values[t] * to
    for t in range(len(values)):
        back[t] = stored[t] * fro


@exact
def _store_row(row: Any, f: float, g: float, stored: Any) -> None:  # pragma: no cover (compiled)
    """As :func:`_store`, of a row in the dtype of the arithmetic, in its place."""
    to, fro = row.dtype.type(f), row.dtype.type(g)
    same = to == 1 and fro == 1 and row.itemsize == stored.itemsize
    if same:
        for t in range(len(stored)):
            stored[t] = row[t]
    else:
        for t in range(len(stored)):
            stored[t] = row[t] * to
        for t in range(len(stored)):
            row[t] = stored[t] * fro


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
            held += energy(B[k, :other_length])
        for other in range(k + 1):
            product = wide_product(A[k], A[other])
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
