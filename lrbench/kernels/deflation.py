"""Factors from rank-one updates of a residual that is formed, kept in float64, and stays in the cache.

What is taken from the residual is a pair as it is stored, rounded: the residual is that of the stored factors, and its
energy is summed anew after every pair.
"""

from typing import Any

import numpy as np

from lrbench.kernels.crosses import enlarged
from lrbench.kernels.layout import pad, read
from lrbench.kernels.loops import compiled

__all__ = ["by_columns", "by_crosses"]


@compiled
def by_crosses(
    images: Any,
    power: Any,
    layout: Any,
    at: Any,
    tolerance: float,
    limit: int,
    U: Any,
    V: Any,
    R: Any,
    bits: Any,
    ranks: Any,
) -> tuple[Any, Any]:  # pragma: no cover (compiled)
    """Crosses with full pivoting, until the residual's energy is at most ``tolerance`` times the block's.

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
    limit : int
        Largest rank.
    U, V : array
        (capacity, m) and (capacity, n), in the dtype in which factors are stored: room for the first pairs.
    R, bits : array
        (m, n) float64, scratch, and the same memory as whole numbers.
    ranks : array
        (N,) int64, written.

    Returns
    -------
    tuple
        U and V, or larger arrays in their place: the leading Σ r_i rows are the pairs, block by block.
    """
    m, n = R.shape
    P = np.zeros(layout.channels * layout.plane)
    largest = np.empty(m, np.int64)
    used = 0
    for b in range(len(images)):
        pad(images[b], power[b, 0], power[b, 1], layout.pitch, layout.plane, layout.top, layout.left, P)
        total, first = 0.0, used
        for i in range(m):
            read(P, at[i], layout.pitch, layout.columns, R[i])
            total += _energy(R[i])
            largest[i] = _largest(bits[i])
        left = total
        while left > tolerance * total and used - first < limit:
            i = 0
            for k in range(1, m):
                if largest[k] > largest[i]:
                    i = k
            j = _place(bits[i], largest[i])
            pivot = R[i, j]
            if pivot == 0.0:
                break
            if used == len(U):
                U, V = enlarged(U), enlarged(V)
            u, v = U[used], V[used]
            for k in range(m):
                u[k] = R[k, j]
            for t in range(n):
                v[t] = R[i, t] / pivot
            left = 0.0
            for k in range(m):
                left += _take(R[k], np.float64(u[k]), v)
                largest[k] = _largest(bits[k])
            used += 1
        ranks[b] = used - first
    return U, V


@compiled
def by_columns(
    images: Any, power: Any, layout: Any, at: Any, tolerance: float, limit: int, U: Any, V: Any, R: Any, ranks: Any
) -> tuple[Any, Any]:  # pragma: no cover (compiled)
    """As :func:`by_crosses`, with U_k the largest column of the residual, normalized, and V_k its product with D.

    This is the QR factorization with column pivoting. The columns' norms are summed anew in each step.
    """
    m, n = R.shape
    P = np.zeros(layout.channels * layout.plane)
    norms, w, zeros = np.empty(n), np.empty(n), np.zeros(n, V.dtype)
    used = 0
    for b in range(len(images)):
        pad(images[b], power[b, 0], power[b, 1], layout.pitch, layout.plane, layout.top, layout.left, P)
        first = used
        norms[:] = 0.0
        for i in range(m):
            read(P, at[i], layout.pitch, layout.columns, R[i])
            _take_and_add(R[i], 0.0, zeros, norms)
        total = _sum(norms)
        left = total
        while left > tolerance * total and used - first < limit:
            j = 0
            for t in range(1, n):
                if norms[t] > norms[j]:
                    j = t
            size = np.sqrt(norms[j])
            if size == 0.0:
                break
            if used == len(U):
                U, V = enlarged(U), enlarged(V)
            u, v = U[used], V[used]
            w[:] = 0.0
            for i in range(m):
                u[i] = R[i, j] / size
            for i in range(m):
                _add(R[i], np.float64(u[i]), w)
            for t in range(n):
                v[t] = w[t]
            norms[:] = 0.0
            for i in range(m):
                _take_and_add(R[i], np.float64(u[i]), v, norms)
            left = _sum(norms)
            used += 1
        ranks[b] = used - first
    return U, V


@compiled
def _energy(row: Any) -> float:  # pragma: no cover (compiled)
    total = 0.0
    for t in range(len(row)):
        total += row[t] * row[t]
    return total


@compiled
def _take(row: Any, factor: float, v: Any) -> float:  # pragma: no cover (compiled)
    """``row`` −= factor·v; the energy that it has then."""
    total = 0.0
    for t in range(len(row)):
        x = row[t] - factor * np.float64(v[t])
        row[t] = x
        total += x * x
    return total


@compiled
def _take_and_add(row: Any, factor: float, v: Any, norms: Any) -> None:  # pragma: no cover (compiled)
    """``row`` −= factor·v; its squares are added to ``norms``."""
    for t in range(len(row)):
        x = row[t] - factor * np.float64(v[t])
        row[t] = x
        norms[t] += x * x


@compiled
def _add(row: Any, factor: float, w: Any) -> None:  # pragma: no cover (compiled)
    for t in range(len(row)):
        w[t] += factor * row[t]


@compiled
def _sum(values: Any) -> float:  # pragma: no cover (compiled)
    total = 0.0
    for t in range(len(values)):
        total += values[t]
    return total


@compiled
def _largest(bits: Any) -> Any:  # pragma: no cover (compiled)
    """The largest magnitude in a row of float64, as the whole number of its bits."""
    mask = np.int64(0x7FFFFFFFFFFFFFFF)
    most = np.int64(0)
    for t in range(len(bits)):
        most = max(most, bits[t] & mask)
    return most


@compiled
def _place(bits: Any, most: int) -> int:  # pragma: no cover (compiled)
    """The first place of a magnitude."""
    mask = np.int64(0x7FFFFFFFFFFFFFFF)
    for t in range(len(bits)):
        if bits[t] & mask == most:
            return t
    return 0
