"""What stands between a block and its factors: the other factor by projection, and the residual, both in float64."""

from typing import Any

import numpy as np

from lrbench.kernels.layout import pad
from lrbench.kernels.loops import accumulate, compiled, correlate, dot, exact, inner, subtract

__all__ = ["project_columns", "project_rows", "residuals"]


@compiled
def project_rows(
    images: Any,
    power: Any,
    layout: Any,
    at: Any,
    counts: Any,
    basis: Any,
    offsets: Any,
    U: Any,
    V: Any,
    squared: Any,
    norms: Any,
) -> None:  # pragma: no cover (compiled)
    """Store bases U_i, compute V_i = U_iᵀ D_i from what was stored, store that, and tell what is lost.

    The loss is ‖D‖² − 2⟨UᵀD, V⟩ + ⟨UᵀU, VVᵀ⟩ of the stored factors, with a bound of its rounding error added.

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
    U, V : array
        (Σ r_i, m) and (Σ r_i, n), written.
    squared, norms : array
        (N,) float64, written: no less than the scaled blocks' ‖D − UV‖_F², and their ‖D‖_F².
    """
    m, n = len(at), V.shape[1]
    pitch, columns = layout.pitch, layout.columns
    P = np.zeros(layout.channels * layout.plane)
    most = 0
    for b in range(len(images)):
        most = max(most, offsets[b + 1] - offsets[b])
    A, B = np.empty((most, m)), np.empty((most, n))
    wide, row, products = np.empty((2, (layout.lines - 1) * pitch + columns)), np.empty(n), np.empty(most)
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
            for index in range(k, other + 1):
                _narrow(wide[index - k], pitch, columns, row)
                _store(row, power[b, 4], power[b, 5], V[first + index], B[index])
                met += dot(row, B[index])
        _judge(A, B, rank, norm, met, products, squared, norms, b)


@compiled
def project_columns(
    images: Any,
    power: Any,
    layout: Any,
    at: Any,
    counts: Any,
    basis: Any,
    offsets: Any,
    U: Any,
    V: Any,
    squared: Any,
    norms: Any,
) -> None:  # pragma: no cover (compiled)
    """As :func:`project_rows`, with bases V_i, (N, ., n), and U_i = D_i V_iᵀ."""
    m, n = len(at), V.shape[1]
    pitch, columns = layout.pitch, layout.columns
    P = np.zeros(layout.channels * layout.plane)
    most = 0
    for b in range(len(images)):
        most = max(most, offsets[b + 1] - offsets[b])
    A, B = np.empty((most, m)), np.empty((most, n))
    wide, column, products = np.zeros((2, (layout.lines - 1) * pitch + columns)), np.empty((2, m)), np.empty(most)
    for b in range(len(images)):
        pad(images[b], power[b, 0], power[b, 1], pitch, layout.plane, layout.top, layout.left, P)
        norm = _squared_norm(P, counts)
        first, rank = offsets[b], offsets[b + 1] - offsets[b]
        met = 0.0
        for k in range(rank):
            _store(basis[b, k], power[b, 4], power[b, 5], V[first + k], B[k])
        for k in range(0, rank, 2):
            other = min(k + 1, rank - 1)
            _widened(B[k], pitch, columns, wide[0])
            _widened(B[other], pitch, columns, wide[1])
            correlate(P, at, wide[0], wide[1], column[0], column[1])
            for index in range(k, other + 1):
                _store(column[index - k], power[b, 2], power[b, 3], U[first + index], A[index])
                met += dot(column[index - k], A[index])
        _judge(A, B, rank, norm, met, products, squared, norms, b)


@compiled
def residuals(
    images: Any, power: Any, layout: Any, at: Any, counts: Any, offsets: Any, U: Any, V: Any, squared: Any, norms: Any
) -> None:  # pragma: no cover (compiled)
    """Squared norms of the scaled blocks' D − UV, the residual itself formed a row at a time, and of D.

    Parameters
    ----------
    images, power, layout, at, counts, offsets, U, V, squared, norms
        As for :func:`project_rows`; U and V are read, in any dtype.
    """
    n = V.shape[1]
    pitch, columns = layout.pitch, layout.columns
    P = np.zeros(layout.channels * layout.plane)
    most = 0
    for b in range(len(images)):
        most = max(most, offsets[b + 1] - offsets[b])
    length = (layout.lines - 1) * pitch + columns
    B, c, row, narrow = np.zeros((most, length)), np.empty(most), np.empty(length), np.empty(n)
    for b in range(len(images)):
        pad(images[b], power[b, 0], power[b, 1], pitch, layout.plane, layout.top, layout.left, P)
        first, rank = offsets[b], offsets[b + 1] - offsets[b]
        for k in range(rank):
            _widen(V[first + k], power[b, 5], narrow)
            _widened(narrow, pitch, columns, B[k])
        total = 0.0
        for i in range(len(at)):
            for k in range(rank):
                c[k] = np.float64(U[first + k, i]) * power[b, 3]
            row[:] = P[at[i] : at[i] + length]
            subtract(B, rank, c, row)
            _narrow(row, pitch, columns, narrow)
            total += dot(narrow, narrow)
        squared[b] = total
        norms[b] = _squared_norm(P, counts)


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


@compiled
def _narrow(wide: Any, pitch: int, columns: int, out: Any) -> None:  # pragma: no cover (compiled)
    """Leave out what lies between the lines of a row."""
    for y in range(len(out) // columns):
        line, into = wide[y * pitch : y * pitch + columns], out[y * columns : (y + 1) * columns]
        for t in range(columns):
            into[t] = line[t]


@compiled
def _widened(row: Any, pitch: int, columns: int, out: Any) -> None:  # pragma: no cover (compiled)
    """Put a row's lines where those of a padded image are; what lies between them stays."""
    for y in range(len(row) // columns):
        line, into = row[y * columns : (y + 1) * columns], out[y * pitch : y * pitch + columns]
        for t in range(columns):
            into[t] = line[t]


@exact
def _store(values: Any, f: float, g: float, stored: Any, back: Any) -> None:  # pragma: no cover (compiled)
    """Round values times f to the factors' dtype, and give what was stored, times g, in float64."""
    for t in range(len(values)):
        stored[t] = values[t] * f
    for t in range(len(values)):
        back[t] = np.float64(stored[t]) * g


@exact
def _widen(stored: Any, g: float, back: Any) -> None:  # pragma: no cover (compiled)
    for t in range(len(stored)):
        back[t] = np.float64(stored[t]) * g


@compiled
def _judge(
    A: Any, B: Any, rank: int, norm: float, met: float, products: Any, squared: Any, norms: Any, b: int
) -> None:  # pragma: no cover (compiled)
    m, n = A.shape[1], B.shape[1]
    both, a_size, b_size = 0.0, 0.0, 0.0
    for k in range(rank):
        # ⟨UᵀU, VVᵀ⟩: what is beside the diagonal counts twice.
        inner(B, k + 1, B[k], products)
        b_size += products[k]
        for other in range(k + 1):
            product = dot(A[k], A[other])
            both += (2.0 if other < k else 1.0) * product * products[other]
        a_size += dot(A[k], A[k])
    # Every sum has at most m·n + r² terms, none larger in size than its part of (‖D‖ + ‖U‖‖V‖)².
    bound = (m * n + 4 * (m + n) + rank * rank) * 1.2e-16 * (np.sqrt(norm) + np.sqrt(a_size * b_size)) ** 2
    squared[b] = max(0.0, norm - 2 * met + both) + bound
    norms[b] = norm
