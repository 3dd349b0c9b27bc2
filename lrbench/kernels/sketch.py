"""Bases from randomized subspace iteration, whose powers go through the Gram matrix of an image."""

from typing import Any

import numpy as np

from lrbench.kernels.gram import columns_gram, columns_scratch, rows_gram, rows_scratch
from lrbench.kernels.lanczos import ANY, lanczos_scratch, leading_eigenvectors
from lrbench.kernels.layout import pad
from lrbench.kernels.loops import accumulate, combine, compiled, correlate, dot, inner, inner_symmetric, subtract

__all__ = [
    "append",
    "columns_sketched",
    "expand",
    "rows_sketched",
    "sketch_columns",
    "sketch_rows",
    "truncate",
]

TOO_NARROW = -1
"""Stands for a rank where the sketch left too few columns unused."""


@compiled
def rows_sketched(
    images: Any,
    power: Any,
    layout: Any,
    at: Any,
    tests: Any,
    words: Any,
    eps: float,
    spare: int,
    bases: Any,
    ranks: Any,
) -> None:  # pragma: no cover (compiled)
    """Orthonormal bases from sketches D Ω, of as many vectors as the truncated SVD of the projection keeps.

    With Q = orth(D Dᵀ D Ω), which one power iteration gives, B = QᵀD has B Bᵀ = Qᵀ(D Dᵀ)Q.

    Parameters
    ----------
    images : array
        (N, C, H, W).
    power : array
        (N, .) float64: the images are scaled by the product of the first two.
    layout, at
        A :class:`Layout` and its row offsets.
    tests : array
        (k, width) in the images' dtype: Ωᵀ, a row's lines standing where those of a padded image are, zeros between.
    words : array
        (N, .) int64: bit t of a block's words is the sign that row t of Ω is multiplied by.
    eps : float
        In (0, 1).
    spare : int
        Columns of the sketch that must remain unused.
    bases : array
        (N, ., m) float64, written: the leading ``ranks[i]`` rows.
    ranks : array
        (N,) int64, written; TOO_NARROW where k columns were too few.
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
        sketch_rows(P, at, tests, signs, 0, k, tested, found, Y)
        rows_gram(images[b], power[b, 0], power[b, 1], layout, scratch, G)
        ranks[b] = _projected(G, Y, eps, spare, Q, T, space, bases[b])


@compiled
def columns_sketched(
    images: Any,
    power: Any,
    layout: Any,
    at: Any,
    tests: Any,
    words: Any,
    eps: float,
    spare: int,
    bases: Any,
    ranks: Any,
) -> None:  # pragma: no cover (compiled)
    """As :func:`rows_sketched`, of Dᵀ: tests (k, m), bases (N, ., n)."""
    n, k = bases.shape[2], len(tests)
    scratch, space = columns_scratch(layout), lanczos_scratch(k)
    P, G = np.zeros(layout.channels * layout.plane, tests.dtype), np.empty((n, n))
    signs, tested = np.zeros(tests.shape[1], tests.dtype), np.empty((2, tests.shape[1]), tests.dtype)
    wide = np.empty((2, (layout.lines - 1) * layout.pitch + layout.columns), tests.dtype)
    Y, Q, T = np.empty((k, n)), np.empty((k, n)), np.empty((k, k))
    for b in range(len(images)):
        pad(images[b], power[b, 0], power[b, 1], layout.pitch, layout.plane, layout.top, layout.left, P)
        expand(words[b], len(signs), len(signs), signs)
        sketch_columns(P, at, layout, tests, signs, 0, k, tested, wide, Y)
        columns_gram(images[b], power[b, 0], power[b, 1], layout, scratch, G)
        ranks[b] = _projected(G, Y, eps, spare, Q, T, space, bases[b])


@compiled
def _projected(
    G: Any, Y: Any, eps: float, spare: int, Q: Any, T: Any, space: Any, basis: Any
) -> int:  # pragma: no cover (compiled)
    """The truncated SVD of the projection on the range of G Y: its left vectors into ``basis``, and the rank."""
    n, k = len(G), len(Y)
    trace = 0.0
    for i in range(n):
        trace += G[i, i]
    if trace == 0.0:
        return 0
    # G multiplies what sets the columns of a sketch apart by σ², relative to σ₁²: down to here float64 tells it.
    size = k
    if eps < 1e-3:
        size = _orthonormal(Y, k, Q)
    else:
        Q[:] = Y
    for j in range(size):
        inner_symmetric(G, Q[j], Y[j])
    size = _orthonormal(Y, size, Q)
    r = truncate(G, Y, eps, size, Q, T, space, basis)
    return TOO_NARROW if r < 0 or r + spare > k else r


@compiled
def truncate(
    G: Any, Y: Any, eps: float, size: int, Q: Any, T: Any, space: Any, basis: Any
) -> int:  # pragma: no cover (compiled)
    """The truncated SVD of the projection on rows of Q, as many as are given: its left vectors into ``basis``.

    Parameters
    ----------
    G : array
        (n, n) float64, the Gram matrix; not zero.
    Y, T, space
        (k, n), (k, k) and from :func:`lrbench.kernels.lanczos.lanczos_scratch`, scratch.
    eps : float
        In (0, 1).
    size : int
        Of the rows of Q, <= k; the others are not read.
    Q : array
        (k, n) float64.
    basis : array
        (., n) float64, written.

    Returns
    -------
    int
        The rank; TOO_NARROW where the projection loses more than eps allows.
    """
    n = len(G)
    trace = 0.0
    for i in range(n):
        trace += G[i, i]
    held = 0.0
    T[:] = 0.0
    for j in range(size):
        inner_symmetric(G, Q[j], Y[j])
        for i in range(j + 1):
            T[i, j] = dot(Q[i], Y[j])
            T[j, i] = T[i, j]
        held += T[j, j]
    # What the projection has lost already is taken from the allowance.
    allowed = eps * eps * trace - max(0.0, trace - held)
    if allowed <= 0.0 or held <= 0.0:
        return TOO_NARROW
    r = leading_eigenvectors(T, np.sqrt(min(1.0, allowed / held)), ANY, space)
    if r < 0:
        return TOO_NARROW
    combine(T, r, Q, size, basis)
    return r


@compiled
def _orthonormal(Y: Any, count: int, Q: Any) -> int:  # pragma: no cover (compiled)
    """Orthonormal rows Q that span those of Y; their number."""
    return append(Y, 0, count, Q, 0)


@compiled
def append(Y: Any, first: int, last: int, Q: Any, size: int) -> int:  # pragma: no cover (compiled)
    """Extend orthonormal rows Q, ``size`` of them, by what rows of Y have beside them; return their number.

    By Gram and Schmidt, twice.
    """
    c = np.empty(max(1, size + last - first))
    for j in range(first, last):
        if size == len(Q):
            break
        q = Q[size]
        for t in range(len(q)):
            q[t] = Y[j, t]
        before = dot(q, q)
        for _ in range(2):
            inner(Q, size, q, c)
            subtract(Q, size, c, q)
        after = dot(q, q)
        # What is left of a vector in the span of the others is rounding.
        if after > 1e-24 * before:
            scale = 1.0 / np.sqrt(after)
            for t in range(len(q)):
                q[t] *= scale
            size += 1
    return size


@compiled
def sketch_rows(
    P: Any, at: Any, tests: Any, signs: Any, first: int, last: int, tested: Any, found: Any, Y: Any
) -> None:  # pragma: no cover (compiled)
    """Rows ``first`` to ``last`` of (D Ω)ᵀ, from a padded image; ``tested`` and ``found`` are scratch."""
    for j in range(first, last, 2):
        other = min(j + 1, last - 1)
        _flip(tests[j], signs, tested[0])
        _flip(tests[other], signs, tested[1])
        correlate(P, at, tested[0], tested[1], found[0], found[1])
        Y[j] = found[0]
        Y[other] = found[1]


@compiled
def sketch_columns(
    P: Any, at: Any, layout: Any, tests: Any, signs: Any, first: int, last: int, tested: Any, wide: Any, Y: Any
) -> None:  # pragma: no cover (compiled)
    """As :func:`sketch_rows`, of Dᵀ."""
    for j in range(first, last, 2):
        other = min(j + 1, last - 1)
        _flip(tests[j], signs, tested[0])
        _flip(tests[other], signs, tested[1])
        accumulate(P, at, tested[0], tested[1], wide[0], wide[1])
        for y in range(layout.lines):
            for t in range(layout.columns):
                Y[j, y * layout.columns + t] = wide[0, y * layout.pitch + t]
                Y[other, y * layout.columns + t] = wide[1, y * layout.pitch + t]


@compiled
def _flip(row: Any, signs: Any, out: Any) -> None:  # pragma: no cover (compiled)
    for t in range(len(row)):
        out[t] = row[t] * signs[t]


@compiled
def expand(words: Any, columns: int, pitch: int, signs: Any) -> None:  # pragma: no cover (compiled)
    """Signs from bits, in lines of ``columns`` that begin every ``pitch`` numbers."""
    lines = (len(signs) - columns) // pitch + 1
    for y in range(lines):
        line = signs[y * pitch : y * pitch + columns]
        for t in range(columns):
            place = y * columns + t
            line[t] = 2 * ((words[place >> 6] >> (place & 63)) & 1) - 1
