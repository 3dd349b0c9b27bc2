"""Bases from the SVD of projections: on ranges that grow until they hold enough, and on ranges that are given.

With G = D Dᵀ and orthonormal columns Q the projection B = QᵀD has B Bᵀ = QᵀGQ: neither D nor B is formed.
"""

from typing import Any

import numpy as np

from lrbench.kernels.gram import columns_gram, columns_scratch, rows_gram, rows_scratch
from lrbench.kernels.lanczos import lanczos_scratch
from lrbench.kernels.layout import pad
from lrbench.kernels.loops import compiled, dot, inner_symmetric, trace
from lrbench.kernels.sketch import append, expand, sketch_columns, sketch_rows, truncate

__all__ = ["columns_grown", "columns_within", "rows_grown", "rows_within"]


@compiled
def rows_grown(
    images: Any,
    power: Any,
    layout: Any,
    at: Any,
    tests: Any,
    words: Any,
    eps: float,
    enough: float,
    width: int,
    steps: int,
    bases: Any,
    ranks: Any,
) -> None:  # pragma: no cover (compiled)
    """Bases from sketches D Ω that take in ``width`` columns of Ω at a time.

    Parameters
    ----------
    images, power, layout, at, tests, words, eps, bases, ranks
        As :func:`lrbench.kernels.sketch.rows_sketched` takes them; a rank is negative where the SVD did not converge.
    enough : float
        In (0, eps]: no more columns are taken once what lies outside Q is at most ``enough`` times ‖D‖_F.
    width : int
        At least 1.
    steps : int
        Of power iteration.
    """
    m, k = bases.shape[2], len(tests)
    P, G = np.zeros(layout.channels * layout.plane, tests.dtype), np.empty((m, m))
    scratch, space = rows_scratch(layout, G), lanczos_scratch(k)
    signs, tested = np.zeros(tests.shape[1], tests.dtype), np.empty((2, tests.shape[1]), tests.dtype)
    found = np.empty((2, m), tests.dtype)
    Y, Q, T = np.empty((k, m)), np.empty((k, m)), np.empty((k, k))
    for b in range(len(images)):
        pad(images[b], power[b, 0], power[b, 1], layout.pitch, layout.plane, layout.top, layout.left, P)
        expand(words[b], layout.columns, layout.pitch, signs)
        rows_gram(images[b], power[b, 0], power[b, 1], layout, scratch, G)
        left, drawn, size = trace(G), 0, 0
        allowed = enough * enough * left
        while drawn < k and left > allowed:
            end = min(drawn + width, k)
            sketch_rows(P, at, tests, signs, drawn, end, tested, found, Y)
            grown = _extended(G, Y, drawn, end, steps, Q, size)
            left -= _held(G, Q, size, grown, Y)
            drawn, size = end, grown
        ranks[b] = truncate(G, Y, eps, size, Q, T, space, bases[b]) if size else 0


@compiled
def columns_grown(
    images: Any,
    power: Any,
    layout: Any,
    at: Any,
    tests: Any,
    words: Any,
    eps: float,
    enough: float,
    width: int,
    steps: int,
    bases: Any,
    ranks: Any,
) -> None:  # pragma: no cover (compiled)
    """As :func:`rows_grown`, of Dᵀ: tests (k, m), bases (N, ., n)."""
    n, k = bases.shape[2], len(tests)
    scratch, space = columns_scratch(layout), lanczos_scratch(k)
    P, G = np.zeros(layout.channels * layout.plane, tests.dtype), np.empty((n, n))
    signs, tested = np.zeros(tests.shape[1], tests.dtype), np.empty((2, tests.shape[1]), tests.dtype)
    wide = np.empty((2, (layout.lines - 1) * layout.pitch + layout.columns), tests.dtype)
    Y, Q, T = np.empty((k, n)), np.empty((k, n)), np.empty((k, k))
    for b in range(len(images)):
        pad(images[b], power[b, 0], power[b, 1], layout.pitch, layout.plane, layout.top, layout.left, P)
        expand(words[b], len(signs), len(signs), signs)
        columns_gram(images[b], power[b, 0], power[b, 1], layout, scratch, G)
        left, drawn, size = trace(G), 0, 0
        allowed = enough * enough * left
        while drawn < k and left > allowed:
            end = min(drawn + width, k)
            sketch_columns(P, at, layout, tests, signs, drawn, end, tested, wide, Y)
            grown = _extended(G, Y, drawn, end, steps, Q, size)
            left -= _held(G, Q, size, grown, Y)
            drawn, size = end, grown
        ranks[b] = truncate(G, Y, eps, size, Q, T, space, bases[b]) if size else 0


@compiled
def rows_within(
    images: Any, power: Any, layout: Any, given: Any, offsets: Any, eps: float, bases: Any, ranks: Any
) -> None:  # pragma: no cover (compiled)
    """Bases within the spans of vectors that are given.

    Parameters
    ----------
    images, power, layout, eps, bases
        As :func:`lrbench.kernels.sketch.rows_sketched` takes them.
    given : array
        (Σ k_i, m): rows ``offsets[i]:offsets[i + 1]`` are block i's.
    offsets : array
        (N + 1,) int64.
    ranks : array
        (N,) int64, written; negative where the span does not hold enough for eps.
    """
    m, k = bases.shape[2], bases.shape[1]
    G, Y, Q, T = np.empty((m, m)), np.empty((k, m)), np.empty((k, m)), np.empty((k, k))
    scratch, space = rows_scratch(layout, G), lanczos_scratch(k)
    for b in range(len(images)):
        rows_gram(images[b], power[b, 0], power[b, 1], layout, scratch, G)
        size = append(given, offsets[b], offsets[b + 1], Q, 0)
        ranks[b] = truncate(G, Y, eps, size, Q, T, space, bases[b]) if size else 0


@compiled
def columns_within(
    images: Any, power: Any, layout: Any, given: Any, offsets: Any, eps: float, bases: Any, ranks: Any
) -> None:  # pragma: no cover (compiled)
    """As :func:`rows_within`, of Dᵀ: given (Σ k_i, n), bases (N, ., n)."""
    n, k = bases.shape[2], bases.shape[1]
    scratch, space = columns_scratch(layout), lanczos_scratch(k)
    G, Y, Q, T = np.empty((n, n)), np.empty((k, n)), np.empty((k, n)), np.empty((k, k))
    for b in range(len(images)):
        columns_gram(images[b], power[b, 0], power[b, 1], layout, scratch, G)
        size = append(given, offsets[b], offsets[b + 1], Q, 0)
        ranks[b] = truncate(G, Y, eps, size, Q, T, space, bases[b]) if size else 0


@compiled
def _extended(
    G: Any, Y: Any, first: int, last: int, steps: int, Q: Any, size: int
) -> int:  # pragma: no cover (compiled)
    """Extend Q by rows of Y, after some steps of power iteration on what lies outside Q; the new size."""
    grown = append(Y, first, last, Q, size)
    for _ in range(steps):
        for j in range(size, grown):
            inner_symmetric(G, Q[j], Y[first + j - size])
        grown = append(Y, first, first + grown - size, Q, size)
    return grown


@compiled
def _held(G: Any, Q: Any, first: int, last: int, Y: Any) -> float:  # pragma: no cover (compiled)
    """‖QᵀD‖² of some rows of Q; the last row of Y is scratch."""
    total = 0.0
    product = Y[len(Y) - 1]
    for j in range(first, last):
        inner_symmetric(G, Q[j], product)
        total += dot(Q[j], product)
    return total
