"""Interpolative decomposition, block by block, by pivoted Cholesky factorization of the rows' Gram matrix."""

from typing import Any

import numpy as np

from lrbench.kernels.crosses import enlarged
from lrbench.kernels.gram import reflect, rows_gram, rows_scratch
from lrbench.kernels.layout import pad, read
from lrbench.kernels.loops import compiled, subtract

__all__ = ["by_rows"]


@compiled
def by_rows(
    images: Any, power: Any, layout: Any, at: Any, tolerance: float, limit: int, U: Any, V: Any, ranks: Any
) -> tuple[Any, Any]:  # pragma: no cover (compiled)
    """Rows of each block, as they are, and the coefficients that come nearest to the others.

    Parameters
    ----------
    images, power, layout, at, tolerance, limit, ranks
        As :func:`lrbench.kernels.deflation.by_crosses` takes them.
    U, V : array
        (capacity, m) and (capacity, n), in the images' dtype: coefficients and rows.

    Returns
    -------
    tuple
        U and V, or larger arrays in their place.
    """
    m = len(at)
    G = np.empty((m, m))
    scratch = rows_scratch(layout, G)
    P = np.zeros(layout.channels * layout.plane, V.dtype)
    L, C = np.empty((limit, m)), np.empty((limit, m))
    left, c, chosen = np.empty(m), np.empty(max(1, limit)), np.empty(max(1, limit), np.int64)
    used = 0
    for b in range(len(images)):
        rows_gram(images[b], power[b, 0], power[b, 1], layout, scratch, G)
        reflect(G)
        total = 0.0
        for i in range(m):
            left[i] = G[i, i]
            total += left[i]
        rank, energy = 0, total
        while energy > tolerance * total and rank < limit:
            i = 0
            for k in range(1, m):
                if left[k] > left[i]:
                    i = k
            if left[i] <= 0.0:
                break
            row = L[rank]
            row[:] = G[i]
            for k in range(rank):
                c[k] = L[k, i]
            subtract(L, rank, c, row)
            scale = 1.0 / np.sqrt(left[i])
            for t in range(m):
                row[t] *= scale
            energy = 0.0
            for t in range(m):
                left[t] = max(0.0, left[t] - row[t] * row[t])
            left[i] = 0.0
            for t in range(m):
                energy += left[t]
            chosen[rank] = i
            rank += 1
        # Back substitution: the rows of C times the chosen columns of L give L.
        for k in range(rank - 1, -1, -1):
            row = C[k]
            row[:] = L[k]
            for j in range(k + 1, rank):
                factor, other = L[k, chosen[j]], C[j]
                for t in range(m):
                    row[t] -= factor * other[t]
            scale = 1.0 / L[k, chosen[k]]
            for t in range(m):
                row[t] *= scale
        pad(images[b], power[b, 0], power[b, 1], layout.pitch, layout.plane, layout.top, layout.left, P)
        for k in range(rank):
            if used == len(U):
                U, V = enlarged(U), enlarged(V)
            u = U[used]
            for t in range(m):
                u[t] = C[k, t]
            for j in range(rank):
                u[chosen[j]] = 1.0 if j == k else 0.0
            read(P, at[chosen[k]], layout.pitch, layout.columns, V[used])
            used += 1
        ranks[b] = rank
    return U, V
