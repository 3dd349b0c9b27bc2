"""Gram matrices of lowered blocks from the images' correlations, several times cheaper than from the blocks.

Rows of a block are one image, shifted: an inner product of two rows depends on the difference of their shifts alone,
but for what the windows leave out along the border. Columns are patches: an inner product of two is a sum, over the
kernel, of products of pixels, which many pairs of patches share.
"""

from typing import Any

import numpy as np

from lrbench.kernels.lanes import fma, load, summed, width, zeros
from lrbench.kernels.layout import pad
from lrbench.kernels.loops import compiled, inner

__all__ = ["columns_gram", "columns_scratch", "in_double", "reflect", "rows_doubt", "rows_gram", "rows_scratch"]


_SLACK = 16
"""Zeros that a vector may reach into: more than it has."""

_PLANNED = 25
"""Places in a kernel up to which it is worth a plan, whose size grows with their square and more."""


@compiled
def _dot_at(P: Any, i: int, Q: Any, j: int, length: int) -> float:  # pragma: no cover (compiled)
    """In the numbers' own precision."""
    a, b = P[i : i + length], Q[j : j + length]
    total = P[0] - P[0]  # a zero of the dtype
    for t in range(length):
        total += a[t] * b[t]
    return np.float64(total)


# Inner products of one, two or three images with another one at five shifts, ``step`` apart: what is read from memory
# is shared. The last vector reads zeros of the images.


@compiled
def _five_by_one(
    P: Any, i0: int, j: int, step: int, length: int, out: Any, k: int
) -> None:  # pragma: no cover (compiled)
    s0 = s1 = s2 = s3 = s4 = zeros(P)
    for t in range(0, length, width(P)):
        x = load(P, (i0 + t,))
        v0, v1, v2 = load(P, (j + t,)), load(P, (j + step + t,)), load(P, (j + 2 * step + t,))
        v3, v4 = load(P, (j + 3 * step + t,)), load(P, (j + 4 * step + t,))
        s0, s1, s2 = fma(s0, x, v0), fma(s1, x, v1), fma(s2, x, v2)
        s3, s4 = fma(s3, x, v3), fma(s4, x, v4)
    out[0, k], out[0, k + 1], out[0, k + 2] = summed(s0), summed(s1), summed(s2)
    out[0, k + 3], out[0, k + 4] = summed(s3), summed(s4)


@compiled
def _five_by_two(
    P: Any, i0: int, i1: int, j: int, step: int, length: int, out: Any, k: int
) -> None:  # pragma: no cover (compiled)
    s0 = s1 = s2 = s3 = s4 = zeros(P)
    t0 = t1 = t2 = t3 = t4 = zeros(P)
    for t in range(0, length, width(P)):
        x, y = load(P, (i0 + t,)), load(P, (i1 + t,))
        v0, v1, v2 = load(P, (j + t,)), load(P, (j + step + t,)), load(P, (j + 2 * step + t,))
        v3, v4 = load(P, (j + 3 * step + t,)), load(P, (j + 4 * step + t,))
        s0, s1, s2 = fma(s0, x, v0), fma(s1, x, v1), fma(s2, x, v2)
        s3, s4 = fma(s3, x, v3), fma(s4, x, v4)
        t0, t1, t2 = fma(t0, y, v0), fma(t1, y, v1), fma(t2, y, v2)
        t3, t4 = fma(t3, y, v3), fma(t4, y, v4)
    out[0, k], out[0, k + 1], out[0, k + 2] = summed(s0), summed(s1), summed(s2)
    out[0, k + 3], out[0, k + 4] = summed(s3), summed(s4)
    out[1, k], out[1, k + 1], out[1, k + 2] = summed(t0), summed(t1), summed(t2)
    out[1, k + 3], out[1, k + 4] = summed(t3), summed(t4)


@compiled
def _five_by_three(
    P: Any, i0: int, i1: int, i2: int, j: int, step: int, length: int, out: Any, k: int
) -> None:  # pragma: no cover (compiled)
    s0 = s1 = s2 = s3 = s4 = zeros(P)
    t0 = t1 = t2 = t3 = t4 = zeros(P)
    u0 = u1 = u2 = u3 = u4 = zeros(P)
    for t in range(0, length, width(P)):
        x, y, z = load(P, (i0 + t,)), load(P, (i1 + t,)), load(P, (i2 + t,))
        v0, v1, v2 = load(P, (j + t,)), load(P, (j + step + t,)), load(P, (j + 2 * step + t,))
        v3, v4 = load(P, (j + 3 * step + t,)), load(P, (j + 4 * step + t,))
        s0, s1, s2 = fma(s0, x, v0), fma(s1, x, v1), fma(s2, x, v2)
        s3, s4 = fma(s3, x, v3), fma(s4, x, v4)
        t0, t1, t2 = fma(t0, y, v0), fma(t1, y, v1), fma(t2, y, v2)
        t3, t4 = fma(t3, y, v3), fma(t4, y, v4)
        u0, u1, u2 = fma(u0, z, v0), fma(u1, z, v1), fma(u2, z, v2)
        u3, u4 = fma(u3, z, v3), fma(u4, z, v4)
    out[0, k], out[0, k + 1], out[0, k + 2] = summed(s0), summed(s1), summed(s2)
    out[0, k + 3], out[0, k + 4] = summed(s3), summed(s4)
    out[1, k], out[1, k + 1], out[1, k + 2] = summed(t0), summed(t1), summed(t2)
    out[1, k + 3], out[1, k + 4] = summed(t3), summed(t4)
    out[2, k], out[2, k + 1], out[2, k + 2] = summed(u0), summed(u1), summed(u2)
    out[2, k + 3], out[2, k + 4] = summed(u3), summed(u4)


@compiled
def rows_scratch(layout: Any, work: Any) -> tuple[Any, Any, Any, Any]:  # pragma: no cover (compiled)
    """What :func:`rows_gram` works in; its arithmetic on pixels is in the dtype of ``work``."""
    pitch, guard = _frameless(layout)
    C, size = layout.channels, layout.height * pitch + 2 * guard
    P, Q = np.zeros(C * size + _SLACK, work.dtype), np.zeros(C * layout.height * layout.width, work.dtype)
    plan = _plan(layout)
    # The last five products of a line of differences may reach behind it.
    return P, Q, np.zeros((3, (2 * layout.R - 1) * (2 * layout.S - 1) + len(plan[1]) + 4)), plan


@compiled
def _frameless(layout: Any) -> tuple[int, int]:  # pragma: no cover (compiled)
    """Of images without their frame, the numbers from line to line, and the zeros that stand between two channels.

    Zeros between lines and channels stand for what lies outside, as far as any difference of two shifts reaches, and a
    vector more: the last one of a channel reads on.
    """
    pitch = layout.width + (layout.S - 1) * layout.q
    return pitch, max((layout.R - 1) * layout.p * pitch + (layout.S - 1) * layout.q, _SLACK)


@compiled
def _plan(layout: Any) -> tuple[Any, Any, Any, Any]:  # pragma: no cover (compiled)
    """How inner products of rows follow from those of whole images, for any two channels.

    A row's window leaves out lines and columns of the image. Where they cross, pixels are taken off twice. What is left
    out is multiplied once, whatever the number of windows that leave it out. To loop over all that for every image cost
    more than the multiplications: nothing in it depends on the numbers.

    Returns
    -------
    tuple
        Of a pair's entries, (R·S, R·S), which product of whole images they begin with. Of each product to be taken off,
        (., 4): 0 for a line, 1 for a column, 2 for a pixel; where it begins in the first channel and in the second; its
        length. Of each term, (., 4): its entry, the product, −1 or 1. And how many of these, and of those, come first
        and are enough for what is on and below the diagonal. All int64. Of kernels with more than ``_PLANNED`` places
        there are no entries, and no plan.
    """
    H, W, R, S, p, q = layout.height, layout.width, layout.R, layout.S, layout.p, layout.q
    pitch, guard = _frameless(layout)
    m, lags = R * S, 2 * S - 1
    products, terms = [(2, 0, 0, 1)], [(0, 0, 0, 0)]  # nothing, for there may be nothing else
    if m > _PLANNED:
        return np.empty((0, 0), np.int64), np.array(products), np.array(terms), np.ones(2, np.int64)
    begins = np.empty((m, m), np.int64)
    whole = (2 * R - 1) * lags
    below = np.empty(2, np.int64)
    # Of the entries of a channel with itself those on and below the diagonal are enough, whose shifts come first.
    for lag in range(whole // 2, whole // 2 + whole):
        dr, ds = lag % whole // lags - (R - 1), lag % whole % lags - (S - 1)
        first, last = max(0, -dr * p), min(H, H - dr * p)
        most = (min(R, R - dr) - 1) * p - layout.top
        far = max(0, -dr) * p - layout.top + layout.lines
        x0, x1 = max(0, -ds * q), min(W, W - ds * q)
        right = (min(S, S - ds) - 1) * q - layout.left
        left = max(0, -ds) * q - layout.left + layout.columns
        shift = dr * p * pitch + ds * q
        pairs = [
            (r, s, (r + dr) * S + s + ds, r * S + s)
            for r in range(max(0, -dr), min(R, R - dr))
            for s in range(max(0, -ds), min(S, S - ds))
        ]
        for _, _, i, j in pairs:
            begins[i, j] = (dr + R - 1) * lags + ds + S - 1
        for y in range(first, last):
            if most <= y < far:
                continue  # all windows meet it
            missed = [(i, j) for r, _, i, j in pairs if not 0 <= y - r * p + layout.top < layout.lines]
            for i, j in missed:
                terms.append((i, j, len(products), -1))
            if len(missed):
                products.append((0, guard + y * pitch, guard + y * pitch + shift, W))
        for x in range(x0, x1):
            if right <= x < left or first >= last:
                continue
            missed = [(i, j) for _, s, i, j in pairs if not 0 <= x - s * q + layout.left < layout.columns]
            for i, j in missed:
                terms.append((i, j, len(products), -1))
            if not len(missed):
                continue
            products.append((1, x * H + first, (x + ds * q) * H + first + dr * p, last - first))
            for y in range(first, last):
                if most <= y < far:
                    continue
                twice = [
                    (i, j)
                    for r, s, i, j in pairs
                    if not 0 <= y - r * p + layout.top < layout.lines
                    and not 0 <= x - s * q + layout.left < layout.columns
                ]
                for i, j in twice:
                    terms.append((i, j, len(products), 1))
                if len(twice):
                    products.append((2, guard + y * pitch + x, guard + y * pitch + x + shift, 1))
        if lag < whole:
            below[0], below[1] = len(products), len(terms)
    return begins, np.array(products), np.array(terms), below


@compiled
def rows_gram(
    image: Any, f: float, g: float, layout: Any, scratch: Any, G: Any
) -> float:  # pragma: no cover (compiled)
    """D Dᵀ, (m, m), of the block that the image times f·g is lowered to, on and below the diagonal.

    Parameters
    ----------
    image : array
        (C, H, W).
    layout : Layout
    scratch
        From :func:`rows_scratch`.
    G : array
        (m, m) float64, written; what is above the diagonal is not to be read.

    Returns
    -------
    float
        The energy of the scaled image; see :func:`rows_doubt`.
    """
    C, H, W, R, S, p, q = layout.channels, layout.height, layout.width, layout.R, layout.S, layout.p, layout.q
    P, Q, products, plan = scratch
    energy = 0.0
    if R == 1 and S == 1 and layout.plane == H * W:
        # Nothing is shifted: the rows are the channels.
        pad(image, f, g, W, H * W, 0, 0, P)
        rows = P[: C * H * W].reshape(C, H * W)
        for c in range(C):
            inner(rows, c + 1, rows[c], G[c])
            energy += G[c, c]
        return energy
    pitch, guard = _frameless(layout)
    size, m, lags = H * pitch + 2 * guard, R * S, 2 * S - 1
    whole = (2 * R - 1) * lags
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
                start, into = c2 * size + guard + dr * p * pitch, products[:, (dr + R - 1) * lags :]
                k = 0
                while k < lags:
                    step = q if k + 5 <= lags else 0
                    at, i = start + (k - (S - 1)) * q, group * size + guard
                    if members == 3:
                        _five_by_three(P, i, i + size, i + 2 * size, at, step, H * pitch, into, k)
                    elif members == 2:
                        _five_by_two(P, i, i + size, at, step, H * pitch, into, k)
                    elif members == 1:
                        _five_by_one(P, i, at, step, H * pitch, into, k)
                    k += 5 if step else 1
            for c in range(group, min(group + 3, c2 + 1)):
                z = products[c - group]
                if len(plan[0]) == 0:
                    energy += z[whole // 2] if c == c2 else 0.0
                    for dr in range(0 if c == c2 else 1 - R, R):
                        _without_plan(P, Q, z[(dr + R - 1) * lags :], layout, c, c2, dr, G)
                    continue
                energy += z[whole // 2] if c == c2 else 0.0
                _left_out(P[c * size :], P[c2 * size :], Q[c * W * H :], Q[c2 * W * H :], plan, c == c2, z[whole:])
                _assemble(z, whole, plan, c == c2, G[c2 * m : (c2 + 1) * m, c * m : (c + 1) * m])
    return energy


@compiled
def in_double(scratch: Any) -> tuple[Any, Any, Any, Any]:  # pragma: no cover (compiled)
    """Scratch of :func:`rows_gram` for arithmetic in float64, what it has in common with another shared."""
    return np.zeros(len(scratch[0])), np.zeros(len(scratch[1])), scratch[2], scratch[3]


@compiled
def reflect(G: Any) -> None:  # pragma: no cover (compiled)
    """Write what is below the diagonal above it as well."""
    for i in range(len(G)):
        for j in range(i):
            G[j, i] = G[i, j]


@compiled
def rows_doubt(energy: float, layout: Any, work: Any) -> float:  # pragma: no cover (compiled)
    """How far :func:`rows_gram` may be off: no less than the Frobenius norm of its error, and than the trace's error.

    An entry is a sum of products of two channels, and of what windows leave out, whose magnitudes together are at most
    thrice the product of the channels' norms (N. J. Higham, 2002, section 3.1). The longest are summed a lane each.
    """
    pitch, _ = _frameless(layout)
    lane = (layout.height * pitch + width(work) - 1) // width(work) + width(work)
    terms = lane + layout.height + layout.width + 4
    unit = 2.0**-24 if work.itemsize < 8 else 2.0**-53
    part = terms * unit
    return part / (1 - part) * layout.R * layout.S * energy * (1 + part) if part < 0.5 else np.inf


@compiled
def _left_out(P: Any, P2: Any, Q: Any, Q2: Any, plan: Any, own: bool, out: Any) -> None:  # pragma: no cover (compiled)
    """The products that a plan takes off, of two channels, or of one with its ``own``."""
    _, products, _, below = plan
    for k in range(below[0] if own else len(products)):
        kind, i, j, length = products[k, 0], products[k, 1], products[k, 2], products[k, 3]
        if kind == 0:
            out[k] = _dot_at(P, i, P2, j, length)
        elif kind == 1:
            out[k] = _dot_at(Q, i, Q2, j, length)
        else:
            out[k] = np.float64(P[i]) * np.float64(P2[j])


@compiled
def _assemble(z: Any, whole: int, plan: Any, own: bool, G: Any) -> None:  # pragma: no cover (compiled)
    """The entries of two channels, or of one with its ``own``, from the products that a plan names."""
    begins, _, terms, below = plan
    for i in range(len(begins)):
        row, first = G[i], begins[i]
        for j in range(i + 1 if own else len(first)):
            row[j] = z[first[j]]
    for k in range(below[1] if own else len(terms)):
        G[terms[k, 0], terms[k, 1]] += terms[k, 3] * z[whole + terms[k, 2]]


@compiled
def _without_plan(
    P: Any, Q: Any, z: Any, layout: Any, c: int, c2: int, dr: int, G: Any
) -> None:  # pragma: no cover (compiled)
    """What :func:`_left_out` and :func:`_assemble` do, for rows that are ``dr`` kernel rows apart, without a plan."""
    H, W, R, S, p, q = layout.height, layout.width, layout.R, layout.S, layout.p, layout.q
    pitch, guard = _frameless(layout)
    size = H * pitch + 2 * guard
    base, shift = c * size + guard, (c2 - c) * size + dr * p * pitch
    first, last = max(0, -dr * p), min(H, H - dr * p)
    start, stop = max(0, -dr), min(R, R - dr)
    low, high = -layout.top, layout.lines - layout.top
    left, right = -layout.left, layout.columns - layout.left
    into = G[(c2 * R + dr) * S :, c * R * S :]
    for ds in range(0 if c2 == c and dr == 0 else 1 - S, S):
        x0, x1 = max(0, -ds * q), min(W, W - ds * q)
        begin, end = max(0, -ds), min(S, S - ds)
        along, whole = shift + ds * q, z[ds + S - 1]
        for r in range(start, stop):
            for s in range(begin, end):
                into[r * S + s + ds, r * S + s] = whole
        y = first
        while y < last:
            if (stop - 1) * p + low <= y < start * p + high:
                y = start * p + high  # all windows meet what is before
                continue
            missed = _dot_at(P, base + y * pitch, P, base + y * pitch + along, W)
            for r in range(start, stop):
                if y < r * p + low or y >= r * p + high:
                    for s in range(begin, end):
                        into[r * S + s + ds, r * S + s] -= missed
            y += 1
        x = x0
        while x < x1:
            if (end - 1) * q + left <= x < begin * q + right:
                x = begin * q + right
                continue
            at = (c2 * W + x + ds * q) * H + first + dr * p
            missed = _dot_at(Q, (c * W + x) * H + first, Q, at, max(0, last - first))
            for r in range(start, stop):
                part = missed
                for y in range(first, min(r * p + low, last)):
                    part -= np.float64(P[base + y * pitch + x]) * np.float64(P[base + y * pitch + x + along])
                for y in range(max(r * p + high, r * p + low, first), last):
                    part -= np.float64(P[base + y * pitch + x]) * np.float64(P[base + y * pitch + x + along])
                for s in range(begin, end):
                    if x < s * q + left or x >= s * q + right:
                        into[r * S + s + ds, r * S + s] -= part
            x += 1


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
