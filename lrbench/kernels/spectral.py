"""Bases of many blocks: a Gram matrix from an image, and its leading eigenvectors, while it is in the cache."""

from typing import Any

from lrbench.kernels.gram import columns_gram, columns_scratch, rows_gram, rows_scratch
from lrbench.kernels.lanczos import ANY, lanczos_scratch, leading_eigenvectors
from lrbench.kernels.loops import compiled

__all__ = ["ANY", "columns_bases", "rows_bases"]


@compiled
def rows_bases(
    images: Any, power: Any, layout: Any, eps: Any, bases: Any, ranks: Any
) -> None:  # pragma: no cover (compiled)
    """Orthonormal bases of the shorter side, rows, on which the blocks' projections keep a tolerance.

    Parameters
    ----------
    images : array
        (N, C, H, W).
    power : array
        (N, .) float64: the images are scaled by the product of the first two.
    layout : Layout
    eps : array
        (N,) float64, in (0, 1), for each block.
    bases : array
        (N, m, m) float64, written: the leading ``ranks[i]`` rows.
    ranks : array
        (N,) int64: ANY, or the rank that is to be; written; see :func:`leading_eigenvectors`.
    """
    scratch, space = rows_scratch(layout), lanczos_scratch(bases.shape[1])
    for b in range(len(images)):
        rows_gram(images[b], power[b, 0], power[b, 1], layout, scratch, bases[b])
        ranks[b] = leading_eigenvectors(bases[b], eps[b], ranks[b], space)


@compiled
def columns_bases(
    images: Any, power: Any, layout: Any, eps: Any, bases: Any, ranks: Any
) -> None:  # pragma: no cover (compiled)
    """As :func:`rows_bases`, of columns: (N, n, n)."""
    scratch, space = columns_scratch(layout), lanczos_scratch(bases.shape[1])
    for b in range(len(images)):
        columns_gram(images[b], power[b, 0], power[b, 1], layout, scratch, bases[b])
        ranks[b] = leading_eigenvectors(bases[b], eps[b], ranks[b], space)
