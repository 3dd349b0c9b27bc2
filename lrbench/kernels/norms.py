"""Norms and inner products of vectors, in float64 or told how they are rounded."""

from typing import Any

import numpy as np

from lrbench.kernels.lanes import fma, load, summed, width, zeros
from lrbench.kernels.loops import compiled

__all__ = ["energy", "length", "wide_product"]


@compiled
def energy(row: Any) -> float:  # pragma: no cover (compiled)
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
def length(x: Any) -> float:  # pragma: no cover (compiled)
    """‖x‖ in float64, also where the squares are out of its range."""
    square = wide_product(x, x)
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
def wide_product(a: Any, b: Any) -> float:  # pragma: no cover (compiled)
    """Inner product in float64."""
    total = 0.0
    for t in range(len(a)):
        total += np.float64(a[t]) * np.float64(b[t])
    return total
