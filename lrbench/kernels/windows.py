"""Rows of a block that is never lowered: windows of the padded image, read and combined a vector at a time."""

from typing import Any

import numpy as np

from lrbench.kernels.lanes import broadcast, fma, larger, load, peak, prefetch, store, width, zeros
from lrbench.kernels.loops import compiled

__all__ = ["SLACK", "combine", "combine_two", "vectors"]

SLACK = 16
"""Numbers behind a padded image, and behind a row, that may be read, or written, as well: two vectors, but for one."""

_TILE = 4
"""Pairs of vectors that :func:`combine` holds in registers."""


@compiled
def vectors(layout: Any, P: Any, span: int) -> tuple[Any, Any]:  # pragma: no cover (compiled)
    """Where pairs of vectors of a row begin: in a window, from its first number on, and in the row; both int64.

    In the row lines stand ``span`` numbers apart. The pairs are in order. The last one of a line reaches into the next
    line, or behind the row, where the columns are no multiple of it; the next one puts that right. There are as many as
    :func:`combine` takes at a time, or a multiple; the last one is repeated.
    """
    w = 2 * width(P)
    lines, columns, pitch = layout.lines, layout.columns, layout.pitch
    if pitch == columns == span:
        lines, columns = 1, lines * columns
    each = (columns + w - 1) // w
    count = lines * each
    source, target = np.empty((2, (count + _TILE - 1) // _TILE * _TILE), np.int64)
    for q in range(len(source)):
        y, j = min(q, count - 1) // each, min(q, count - 1) % each
        source[q] = y * pitch + j * w
        target[q] = y * span + j * w
    return source, target


@compiled
def combine(
    P: Any, starts: Any, c: Any, count: int, source: Any, target: Any, row: Any, ahead: Any
) -> Any:  # pragma: no cover (compiled)
    """``row`` = Σ_k c_k D_k, the D_k being rows of a block.

    Parameters
    ----------
    P : array
        The padded image, and ``SLACK`` numbers.
    starts : array
        (>= count,) int64: where each row's window begins in P.
    c : array
        (>= count,), in P's dtype.
    count : int
    source, target : array
        Where pairs of vectors are read from, in a window, and written to: see :func:`vectors`.
    row : array
        In P's dtype, written, as far as the last pair reaches.
    ahead : array
        (.,): memory that is asked for meanwhile, a bit at a time; the processor waits for no more than some lines.

    Returns
    -------
    scalar
        The largest magnitude of what was written, what was put right later included.
    """
    nothing, asked, w = zeros(P), 0, width(P)
    largest = nothing
    bit = (len(ahead) * _TILE + len(source) - 1) // len(source)
    for q in range(0, len(source), _TILE):
        p0, p1, p2, p3 = source[q], source[q + 1], source[q + 2], source[q + 3]
        x0 = x1 = x2 = x3 = x4 = x5 = x6 = x7 = nothing
        for t in range(asked, min(asked + bit, len(ahead)), 64 // ahead.itemsize):
            prefetch(ahead, (t,))
        asked += bit
        for k in range(count):
            a, f = starts[k], broadcast(c, (k,))
            x0, x1 = fma(x0, f, load(P, (a + p0,))), fma(x1, f, load(P, (a + p0 + w,)))
            x2, x3 = fma(x2, f, load(P, (a + p1,))), fma(x3, f, load(P, (a + p1 + w,)))
            x4, x5 = fma(x4, f, load(P, (a + p2,))), fma(x5, f, load(P, (a + p2 + w,)))
            x6, x7 = fma(x6, f, load(P, (a + p3,))), fma(x7, f, load(P, (a + p3 + w,)))
        t0, t1, t2, t3 = target[q], target[q + 1], target[q + 2], target[q + 3]
        store(row, (t0,), x0)
        store(row, (t0 + w,), x1)
        store(row, (t1,), x2)
        store(row, (t1 + w,), x3)
        store(row, (t2,), x4)
        store(row, (t2 + w,), x5)
        store(row, (t3,), x6)
        store(row, (t3 + w,), x7)
        largest = larger(larger(larger(larger(largest, x0), x1), x2), x3)
        largest = larger(larger(larger(larger(largest, x4), x5), x6), x7)
    return peak(largest)


@compiled
def combine_two(
    P: Any, starts: Any, c: Any, d: Any, count: int, source: Any, target: Any, row: Any, other: Any, ahead: Any
) -> None:  # pragma: no cover (compiled)
    """As :func:`combine`, and ``other`` likewise with d: what is read from the image is shared."""
    nothing, asked, w = zeros(P), 0, width(P)
    bit = (len(ahead) * (_TILE // 2) + len(source) - 1) // len(source)
    for q in range(0, len(source), _TILE // 2):
        p0, p1 = source[q], source[q + 1]
        x0 = x1 = x2 = x3 = y0 = y1 = y2 = y3 = nothing
        for t in range(asked, min(asked + bit, len(ahead)), 64 // ahead.itemsize):
            prefetch(ahead, (t,))
        asked += bit
        for k in range(count):
            a, f, g = starts[k], broadcast(c, (k,)), broadcast(d, (k,))
            v0, v1 = load(P, (a + p0,)), load(P, (a + p0 + w,))
            v2, v3 = load(P, (a + p1,)), load(P, (a + p1 + w,))
            x0, x1, x2, x3 = fma(x0, f, v0), fma(x1, f, v1), fma(x2, f, v2), fma(x3, f, v3)
            y0, y1, y2, y3 = fma(y0, g, v0), fma(y1, g, v1), fma(y2, g, v2), fma(y3, g, v3)
        t0, t1 = target[q], target[q + 1]
        store(row, (t0,), x0)
        store(row, (t0 + w,), x1)
        store(row, (t1,), x2)
        store(row, (t1 + w,), x3)
        store(other, (t0,), y0)
        store(other, (t0 + w,), y1)
        store(other, (t1,), y2)
        store(other, (t1 + w,), y3)
