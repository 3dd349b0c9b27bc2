"""Gram matrices of lowered blocks from the images' correlations, several times cheaper than from the blocks.

Rows of a block are one image, shifted: an inner product of two rows depends on the difference of their shifts alone,
but for what the windows leave out along the border. Columns are patches: an inner product of two is a sum, over the
kernel, of products of pixels, which many pairs of patches share.
"""

from typing import Any

import numpy as np

from lrbench.kernels.layout import pad
from lrbench.kernels.loops import compiled, dot, inner

__all__ = ["columns_gram", "columns_scratch", "rows_gram", "rows_scratch"]


@compiled
def _dot_at(P: Any, i: int, j: int, length: int) -> float:  # pragma: no cover (compiled)
    return dot(P[i : i + length], P[j : j + length])


# Inner products of one, two or three images with another one at five shifts, ``step`` apart: what is read from memory
# is shared.


@compiled
def _five_by_one(
    P: Any, i0: int, j: int, step: int, length: int, out: Any, k: int
) -> None:  # pragma: no cover (compiled)
    a = P[i0 : i0 + length]
    d0, d1, d2 = P[j : j + length], P[j + step : j + step + length], P[j + 2 * step : j + 2 * step + length]
    d3, d4 = P[j + 3 * step : j + 3 * step + length], P[j + 4 * step : j + 4 * step + length]
    s0, s1, s2, s3, s4 = 0.0, 0.0, 0.0, 0.0, 0.0
    for t in range(length):
        x = a[t]
        v0, v1, v2, v3, v4 = d0[t], d1[t], d2[t], d3[t], d4[t]
        s0 += x * v0
        s1 += x * v1
        s2 += x * v2
        s3 += x * v3
        s4 += x * v4
    out[0, k], out[0, k + 1], out[0, k + 2], out[0, k + 3], out[0, k + 4] = s0, s1, s2, s3, s4


@compiled
def _five_by_two(
    P: Any, i0: int, i1: int, j: int, step: int, length: int, out: Any, k: int
) -> None:  # pragma: no cover (compiled)
    a = P[i0 : i0 + length]
    b = P[i1 : i1 + length]
    d0, d1, d2 = P[j : j + length], P[j + step : j + step + length], P[j + 2 * step : j + 2 * step + length]
    d3, d4 = P[j + 3 * step : j + 3 * step + length], P[j + 4 * step : j + 4 * step + length]
    s0, s1, s2, s3, s4 = 0.0, 0.0, 0.0, 0.0, 0.0
    t0, t1, t2, t3, t4 = 0.0, 0.0, 0.0, 0.0, 0.0
    for t in range(length):
        x, y = a[t], b[t]
        v0, v1, v2, v3, v4 = d0[t], d1[t], d2[t], d3[t], d4[t]
        s0 += x * v0
        s1 += x * v1
        s2 += x * v2
        s3 += x * v3
        s4 += x * v4
        t0 += y * v0
        t1 += y * v1
        t2 += y * v2
        t3 += y * v3
        t4 += y * v4
    out[0, k], out[0, k + 1], out[0, k + 2], out[0, k + 3], out[0, k + 4] = s0, s1, s2, s3, s4
    out[1, k], out[1, k + 1], out[1, k + 2], out[1, k + 3], out[1, k + 4] = t0, t1, t2, t3, t4


@compiled
def _five_by_three(
    P: Any, i0: int, i1: int, i2: int, j: int, step: int, length: int, out: Any, k: int
) -> None:  # pragma: no cover (compiled)
    a = P[i0 : i0 + length]
    b = P[i1 : i1 + length]
    c = P[i2 : i2 + length]
    d0, d1, d2 = P[j : j + length], P[j + step : j + step + length], P[j + 2 * step : j + 2 * step + length]
    d3, d4 = P[j + 3 * step : j + 3 * step + length], P[j + 4 * step : j + 4 * step + length]
    s0, s1, s2, s3, s4 = 0.0, 0.0, 0.0, 0.0, 0.0
    t0, t1, t2, t3, t4 = 0.0, 0.0, 0.0, 0.0, 0.0
    u0, u1, u2, u3, u4 = 0.0, 0.0, 0.0, 0.0, 0.0
    for t in range(length):
        x, y, z = a[t], b[t], c[t]
        v0, v1, v2, v3, v4 = d0[t], d1[t], d2[t], d3[t], d4[t]
        s0 += x * v0
        s1 += x * v1
        s2 += x * v2
        s3 += x * v3
        s4 += x * v4
        t0 += y * v0
        t1 += y * v1
        t2 += y * v2
        t3 += y * v3
        t4 += y * v4
        u0 += z * v0
        u1 += z * v1
        u2 += z * v2
        u3 += z * v3
        u4 += z * v4
    out[0, k], out[0, k + 1], out[0, k + 2], out[0, k + 3], out[0, k + 4] = s0, s1, s2, s3, s4
    out[1, k], out[1, k + 1], out[1, k + 2], out[1, k + 3], out[1, k + 4] = t0, t1, t2, t3, t4
    out[2, k], out[2, k + 1], out[2, k + 2], out[2, k + 3], out[2, k + 4] = u0, u1, u2, u3, u4


@compiled
def rows_scratch(layout: Any) -> tuple[Any, Any, Any]:  # pragma: no cover (compiled)
    """What :func:`rows_gram` works in."""
    pitch, guard = _frameless(layout)
    size = layout.height * pitch + 2 * guard
    C, pixels = layout.channels, layout.height * layout.width
    return np.zeros(C * size), np.zeros(C * pixels), np.zeros((3, 2 * layout.S + 3))


@compiled
def _frameless(layout: Any) -> tuple[int, int]:  # pragma: no cover (compiled)
    """Of images without their frame, the numbers from line to line, and the zeros that stand between two channels.

    Zeros between lines and channels stand for what lies outside, as far as any difference of two shifts reaches.
    """
    pitch = layout.width + (layout.S - 1) * layout.q
    return pitch, (layout.R - 1) * layout.p * pitch + (layout.S - 1) * layout.q


@compiled
def rows_gram(image: Any, f: float, g: float, layout: Any, scratch: Any, G: Any) -> None:  # pragma: no cover (compiled)
    """D Dᵀ, (m, m), of the block that the image times f·g is lowered to.

    Parameters
    ----------
    image : array
        (C, H, W).
    layout : Layout
    scratch
        From :func:`rows_scratch`.
    G : array
        (m, m) float64, written.
    """
    C, H, W, R, S, p, q = layout.channels, layout.height, layout.width, layout.R, layout.S, layout.p, layout.q
    P, Q, products = scratch
    if R == 1 and S == 1 and layout.plane == H * W:
        # Nothing is shifted: the rows are the channels.
        pad(image, f, g, W, H * W, 0, 0, P)
        rows = P.reshape(C, H * W)
        for c in range(C):
            inner(rows, c + 1, rows[c], G[c])
            for c2 in range(c):
                G[c2, c] = G[c, c2]
        return
    pitch, guard = _frameless(layout)
    size = H * pitch + 2 * guard
    pad(image, f, g, pitch, size, 0, guard, P)
    # Columns of the image in one piece each: those that some window does not meet.
    first, last = (S - 1) * q - layout.left, layout.columns - layout.left
    for c in range(C):
        for x in range(W):
            if first <= x < last:
                continue
            into, at = Q[(c * W + x) * H : (c * W + x + 1) * H], c * size + guard + x
            for y in range(H):
                into[y] = P[at + y * pitch]
    for c2 in range(C):
        for group in range(0, c2 + 1, 3):
            for dr in range(1 - R, R):
                # Of a channel with itself half the shifts tell the other half.
                members = min(3, (c2 if dr < 0 else c2 + 1) - group)
                start = c2 * size + guard + dr * p * pitch
                k = 0
                while k < 2 * S - 1:
                    step = q if k + 5 <= 2 * S - 1 else 0
                    at, i = start + (k - (S - 1)) * q, group * size + guard
                    if members == 3:
                        _five_by_three(P, i, i + size, i + 2 * size, at, step, H * pitch, products, k)
                    elif members == 2:
                        _five_by_two(P, i, i + size, at, step, H * pitch, products, k)
                    elif members == 1:
                        _five_by_one(P, i, at, step, H * pitch, products, k)
                    k += 5 if step else 1
                for c in range(group, group + members):
                    _from_products(P, Q, products[c - group], layout, c, c2, dr, G)


@compiled
def _from_products(
    P: Any, Q: Any, products: Any, layout: Any, c: int, c2: int, dr: int, G: Any
) -> None:  # pragma: no cover (compiled)
    """Inner products of rows from those of whole images: less what the rows' windows leave out."""
    H, W, R, S, p, q = layout.height, layout.width, layout.R, layout.S, layout.p, layout.q
    pitch, guard = _frameless(layout)
    size = H * pitch + 2 * guard
    base = c * size + guard
    first, last = max(0, -dr * p), min(H, H - dr * p)
    for r in range(max(0, -dr), min(R, R - dr)):
        low = r * p - layout.top
        high = low + layout.lines
        y0, y1 = max(first, low), min(last, high)
        whole = y0 == first and y1 == last
        for ds in range(0 if c2 == c and dr == 0 else 1 - S, S):
            value = products[ds + S - 1]
            shift = (c2 - c) * size + dr * p * pitch + ds * q
            if not whole:
                # The lines that row r's window does not meet …
                for y in range(first, min(low, last)):
                    value -= _dot_at(P, base + y * pitch, base + y * pitch + shift, W)
                for y in range(max(high, first), last):
                    value -= _dot_at(P, base + y * pitch, base + y * pitch + shift, W)
            x0, x1 = max(0, -ds * q), min(W, W - ds * q)
            for s in range(max(0, -ds), min(S, S - ds)):
                # … and the columns, of the lines that it does meet.
                near = s * q - layout.left
                far = near + layout.columns
                entry = value
                if y1 > y0 and (near > x0 or far < x1):
                    for x in range(x0, min(near, x1)):
                        at = (c2 * W + x + ds * q) * H + y0 + dr * p
                        entry -= _dot_at(Q, (c * W + x) * H + y0, at, y1 - y0)
                    for x in range(max(x0, far), x1):
                        at = (c2 * W + x + ds * q) * H + y0 + dr * p
                        entry -= _dot_at(Q, (c * W + x) * H + y0, at, y1 - y0)
                i, j = (c * R + r) * S + s, (c2 * R + r + dr) * S + s + ds
                G[i, j] = entry
                G[j, i] = entry


@compiled
def columns_scratch(layout: Any) -> tuple[Any, Any, Any]:  # pragma: no cover (compiled)
    """What :func:`columns_gram` works in."""
    plane = layout.plane
    return (
        np.zeros(layout.channels * plane),
        np.zeros((plane, plane)),
        np.zeros(plane // layout.pitch * layout.columns * plane),
    )


@compiled
def columns_gram(
    image: Any, f: float, g: float, layout: Any, scratch: Any, G: Any
) -> None:  # pragma: no cover (compiled)
    """Dᵀ D, (n, n), of the block that the image times f·g is lowered to, on and below the diagonal.

    What it takes is as for :func:`rows_gram`; what it leaves above the diagonal is not to be read.
    """
    R, S, p, q, lines, columns = layout.R, layout.S, layout.p, layout.q, layout.lines, layout.columns
    P, products, partial = scratch
    pitch, plane = layout.pitch, layout.plane
    height = plane // pitch
    pad(image, f, g, pitch, plane, layout.top, layout.left, P)
    pixels = P.reshape(layout.channels, plane)
    # Products of pixels, summed over channels: of every pixel with those of its own line and of the lines before.
    for i in range(plane):
        _products(pixels, i, products[i, : (i // pitch + 1) * pitch])
    # Summed over the kernel's columns, then over its rows.
    for y in range(height):
        for x in range(columns):
            reach = (y + 1) * pitch
            row = partial[(y * columns + x) * plane : (y * columns + x) * plane + reach]
            row[:] = products[y * pitch + x, :reach]
            for s in range(1, S):
                _add(products[y * pitch + x + s * q, s * q : reach], row)
    for y in range(lines):
        for x in range(columns):
            row = G[y * columns + x]
            for r in range(R):
                at = ((y + r * p) * columns + x) * plane + r * p * pitch
                for y2 in range(y + 1):
                    source = partial[at + y2 * pitch : at + y2 * pitch + columns]
                    into = row[y2 * columns : (y2 + 1) * columns]
                    if r == 0:
                        for t in range(columns):
                            into[t] = source[t]
                    else:
                        for t in range(columns):
                            into[t] += source[t]


@compiled
def _products(pixels: Any, i: int, out: Any) -> None:  # pragma: no cover (compiled)
    """``out[t]`` = Σ_c pixels[c, i] pixels[c, t]."""
    C = len(pixels)
    length = len(out)
    for t in range(length):
        out[t] = 0.0
    c = 0
    while c + 8 <= C:
        p0, p1, p2, p3 = pixels[c], pixels[c + 1], pixels[c + 2], pixels[c + 3]
        p4, p5, p6, p7 = pixels[c + 4], pixels[c + 5], pixels[c + 6], pixels[c + 7]
        c0, c1, c2, c3, c4, c5, c6, c7 = p0[i], p1[i], p2[i], p3[i], p4[i], p5[i], p6[i], p7[i]
        for t in range(length):
            out[t] += (c0 * p0[t] + c1 * p1[t] + c2 * p2[t] + c3 * p3[t]) + (
                c4 * p4[t] + c5 * p5[t] + c6 * p6[t] + c7 * p7[t]
            )
        c += 8
    while c < C:
        p0 = pixels[c]
        c0 = p0[i]
        for t in range(length):
            out[t] += c0 * p0[t]
        c += 1


@compiled
def _add(a: Any, b: Any) -> None:  # pragma: no cover (compiled)
    """``b[t]`` += a[t] as far as a reaches."""
    for t in range(len(a)):
        b[t] += a[t]
