"""Bases of many blocks: a Gram matrix from an image, and its leading eigenvectors, while it is in the cache."""

from typing import Any

import numpy as np

from lrbench.kernels.gram import columns_gram, columns_scratch, in_double, rows_doubt, rows_gram, rows_scratch
from lrbench.kernels.lanczos import ANY, lanczos_scratch, leading_eigenvectors, room
from lrbench.kernels.loops import compiled, trace
from lrbench.kernels.several import LANES, leading_of_several, several_scratch

__all__ = ["ANY", "columns_bases", "rows_bases"]


@compiled
def rows_bases(
    images: Any, power: Any, layout: Any, work: Any, together: bool, eps: Any, bases: Any, ranks: Any
) -> None:  # pragma: no cover (compiled)
    """Orthonormal bases of the shorter side, rows, on which the blocks' projections keep a tolerance.

    Parameters
    ----------
    images : array
        (N, C, H, W).
    power : array
        (N, .) float64: the images are scaled by the product of the first two.
    layout : Layout
    work : array
        Empty, of the dtype that Gram matrices are computed in: float64, or where no rank is given the images'. Where
        rounding to that might decide on a rank, the matrix is computed again, in float64.
    together : bool
        Whether to decompose several matrices at a time.
    eps : array
        (N,) float64, in (0, 1), for each block.
    bases : array
        (N, m, m) float64, written: the leading ``ranks[i]`` rows.
    ranks : array
        (N,) int64: ANY, or the rank that is to be; written; see :func:`leading_eigenvectors`.
    """
    m = bases.shape[1]
    scratch, space = rows_scratch(layout, work), _scratch(m, together)
    precise = in_double(scratch)
    doubts, margins, group = np.empty(LANES), np.empty(LANES), LANES if together else 1
    for first in range(0, len(images), group):
        end = min(first + group, len(images))
        for b in range(first, end):
            energy = rows_gram(images[b], power[b, 0], power[b, 1], layout, scratch, bases[b])
            doubts[b - first] = rows_doubt(energy, layout, work) / max(trace(bases[b]), 1e-300)
        _leading(bases[first:end], eps[first:end], ranks[first:end], margins, together, space)
        if work.itemsize == 8:
            continue
        for b in range(first, end):
            # The trace, and the sum of r eigenvalues (K. Fan, 1949), which √r times the Frobenius norm bounds.
            if doubts[b - first] * (1 + np.sqrt(max(0, ranks[b]))) > margins[b - first]:
                ranks[b] = ANY
                rows_gram(images[b], power[b, 0], power[b, 1], layout, precise, bases[b])
                _leading(bases[b : b + 1], eps[b : b + 1], ranks[b : b + 1], margins[b - first :], False, space)


@compiled
def columns_bases(
    images: Any, power: Any, layout: Any, together: bool, eps: Any, bases: Any, ranks: Any
) -> None:  # pragma: no cover (compiled)
    """As :func:`rows_bases`, of columns, in float64: (N, n, n)."""
    scratch, space = columns_scratch(layout), _scratch(bases.shape[1], together)
    margins, group = np.empty(LANES), LANES if together else 1
    for first in range(0, len(images), group):
        end = min(first + group, len(images))
        for b in range(first, end):
            columns_gram(images[b], power[b, 0], power[b, 1], layout, scratch, bases[b])
        _leading(bases[first:end], eps[first:end], ranks[first:end], margins, together, space)


@compiled
def _scratch(n: int, together: bool) -> tuple[Any, Any]:  # pragma: no cover (compiled)
    return lanczos_scratch(n), several_scratch(n if together else 1)


@compiled
def _leading(
    G: Any, eps: Any, ranks: Any, margins: Any, together: bool, scratch: Any
) -> None:  # pragma: no cover (compiled)
    """Leading eigenvectors of a few Gram matrices, and the margins of :func:`leading_of_several`."""
    if together:
        leading_of_several(G, eps, ranks, margins, scratch[1])
        return
    for b in range(len(G)):
        total = trace(G[b])
        ranks[b] = leading_eigenvectors(G[b], eps[b], ranks[b], scratch[0])
        margins[b] = room(scratch[0]) / max(total, 1e-300)
