"""Products of factors of many ranks, W·(U V) and G·(U V)ᵀ, one block after the other and nothing copied."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lrbench.kernels import lanes
from lrbench.kernels.lanes import add, broadcast, fma, load, store, width, zeros
from lrbench.kernels.loops import compiled, for_parts, inlined

__all__ = ["against", "times"]


def times(
    left: Tensor,
    starts: Tensor,
    V: Tensor,
    places: Tensor,
    ranks: Tensor,
    bias: Tensor | None,
    channels_last: bool = False,
) -> Tensor:
    """(W U_i) V_i + b for every block.

    Parameters
    ----------
    left : Tensor
        (·, K): U Wᵀ. From ``starts[i]`` on, its rows belong to block i.
    starts : Tensor
        (N,) int64.
    V : Tensor
        (·, n): rows ``places[i]:places[i] + ranks[i]`` belong to block i.
    places, ranks : Tensor
        (N,) int64.
    bias : Tensor or None
        (K,), of the same dtype: float32 or float64, on a CPU.
    channels_last : bool
        Whether the K numbers that belong to one column are to lie side by side in memory.

    Returns
    -------
    Tensor
        (N, K, n).
    """
    N, K, n = len(starts), left.shape[1], V.shape[1]
    added = left.new_zeros(K) if bias is None else bias.detach()
    # No view of another tensor, whatever its strides: what a layer returns may be worked on in place.
    strides = (n * K, 1, K) if channels_last else (n * K, n, 1)
    out = torch.empty_strided((N, K, n), strides, dtype=left.dtype, device="cpu")
    # Vectors go along what lies side by side in the result.
    sides = [(V, places), (left, starts)] if channels_last else [(left, starts), (V, places)]
    (rows, first), (columns, other) = sides
    target, missing = out.mT if channels_last else out, _tile(left) - columns.shape[1]
    if missing > 0:  # there is no tile so narrow
        columns = F.pad(columns, (0, missing))
        added = F.pad(added, (0, missing)) if channels_last else added
        target = torch.empty(*target.shape[:2], columns.shape[1], dtype=left.dtype, device="cpu")
    arrays = [t.contiguous().numpy() for t in (rows, columns, first, other, ranks, added)]

    def part(start: int, stop: int) -> None:
        _multiply(*arrays, channels_last, target.numpy(), start, stop)

    for_parts(N, part)
    if missing > 0:
        (out.mT if channels_last else out).copy_(target[..., :-missing])
    return out


def against(
    V: Tensor, places: Tensor, ranks: Tensor, starts: Tensor, rows: int, grad: Tensor, shared: bool
) -> tuple[Tensor, Tensor]:
    """Σ_i V_i G_iᵀ, every block's in its own rows of the result, and the sum of all columns of the G_i.

    Parameters
    ----------
    V, places, ranks, starts
        As for :func:`times`.
    rows : int
        Of the result.
    grad : Tensor
        (N, K, n), of the dtype of V; what :func:`times` calls channels last is read as it is.
    shared : bool
        Whether blocks may have rows in common.

    Returns
    -------
    tuple of Tensor
        (rows, K) and (K,), of one reading of the gradient.
    """
    N, K, _ = grad.shape
    tile = _tile(V)
    last = K >= tile and not grad.is_contiguous() and grad.mT.is_contiguous()
    kernel = _against_last if last else _against
    arrays = [t.contiguous().numpy() for t in (V, places, ranks, starts, grad.detach().mT if last else grad.detach())]
    odd = K % tile if last else 0
    out = torch.zeros(rows, K - odd + tile if odd else K, dtype=V.dtype, device="cpu")
    sums = torch.zeros(N, out.shape[1], dtype=V.dtype, device="cpu")  # each block's own: in no thread's order
    found: dict[int, Any] = {}

    def part(start: int, stop: int) -> None:
        # Blocks that add to the same rows do so part by part, in the order of the parts.
        into = np.zeros(out.shape, out.numpy().dtype) if shared else out.numpy()
        kernel(*arrays, into, sums.numpy(), start, stop)
        found[start] = into

    for_parts(N, part)
    if shared:
        for start in sorted(found):
            out += torch.from_numpy(found[start])
    total = sums.sum(0)
    if odd:  # the last tile is of the last columns, in whole, and has a place of its own
        return torch.cat([out[:, : K - odd], out[:, -odd:]], 1), torch.cat([total[: K - odd], total[-odd:]])
    return out, total


def _tile(factors: Tensor) -> int:
    """Columns of a tile: of two vectors."""
    return 2 * lanes.BYTES // factors.element_size()


@compiled
def _multiply(
    left: Any,
    right: Any,
    starts: Any,
    others: Any,
    ranks: Any,
    bias: Any,
    along: bool,
    out: Any,
    first: int,
    last: int,
) -> None:  # pragma: no cover (compiled)
    """``out[b]``, (p, q), = Lᵀ R + ``bias``, which is each column's where it goes ``along`` the rows, else each row's.

    L are the rows of ``left`` from ``starts[b]`` on and R those of ``right`` from ``others[b]`` on, as many as the
    block's rank. Four rows of the result and two vectors of its columns at a time stay in registers until all is summed
    up; what the last tile shares with the one before is written twice, with the same numbers.
    """
    p, q, w = left.shape[1], right.shape[1], width(right)
    for b in range(first, last):
        rank = ranks[b]
        L, R, into = left[starts[b] : starts[b] + rank], right[others[b] : others[b] + rank], out[b]
        for t0 in range(0, p, 4):
            for i in range(0, q, 2 * w):
                j = min(i, q - 2 * w)
                t1, t2, t3 = min(t0 + 1, p - 1), min(t0 + 2, p - 1), min(t0 + 3, p - 1)
                if along:
                    x0, y0 = load(bias, (j,)), load(bias, (j + w,))
                    x1, x2, x3, y1, y2, y3 = x0, x0, x0, y0, y0, y0
                else:
                    x0, x1 = broadcast(bias, (t0,)), broadcast(bias, (t1,))
                    x2, x3 = broadcast(bias, (t2,)), broadcast(bias, (t3,))
                    y0, y1, y2, y3 = x0, x1, x2, x3
                for k in range(rank):
                    u, v = load(R, (k, j)), load(R, (k, j + w))
                    a0, a1 = broadcast(L, (k, t0)), broadcast(L, (k, t1))
                    a2, a3 = broadcast(L, (k, t2)), broadcast(L, (k, t3))
                    x0, x1, x2, x3 = fma(x0, a0, u), fma(x1, a1, u), fma(x2, a2, u), fma(x3, a3, u)
                    y0, y1, y2, y3 = fma(y0, a0, v), fma(y1, a1, v), fma(y2, a2, v), fma(y3, a3, v)
                store(into, (t0, j), x0)
                store(into, (t1, j), x1)
                store(into, (t2, j), x2)
                store(into, (t3, j), x3)
                store(into, (t0, j + w), y0)
                store(into, (t1, j + w), y1)
                store(into, (t2, j + w), y2)
                store(into, (t3, j + w), y3)


@compiled
def _against_last(
    V: Any, places: Any, ranks: Any, starts: Any, grad: Any, out: Any, sums: Any, first: int, last: int
) -> None:  # pragma: no cover (compiled)
    """Sum some rows of the gradient at a time, as many as the innermost cache holds, for a tile of the result.

    A row of ones stands behind those of V, so that the gradient's own sums are one row more of the result. Where there
    are several tiles all is read once in order first, because what is read in order is fetched ahead of time: tile by
    tile only a part of each row would be.
    """
    n, K, w = grad.shape[1], grad.shape[2], width(V)
    most, unused, highest = min(n, max(16, 512 * w // K)), np.empty(w, V.dtype), 0
    for b in range(first, last):
        highest = max(highest, ranks[b])
    # Tiles are of up to four rows: what is found in those behind the ones is nobody's.
    rows, found = np.ones((highest + 4, most), V.dtype), np.empty((highest + 4, out.shape[1]), V.dtype)
    for b in range(first, last):
        at, place, rank = starts[b], places[b], ranks[b]
        rows[rank] = 1
        for k in range(rank + 4):
            found[k] = 0
        for s in range(0, n, most):
            count = min(most, n - s)
            G = grad[b, s : s + count]
            for k in range(rank):
                row, given = rows[k], V[place + k, s : s + count]
                for t in range(count):
                    row[t] = given[t]
            if K > 4 * w:
                total = zeros(V)
                for t in range(count):
                    for i in range(0, K - w + 1, 2 * w):  # every line of the cache
                        total = fma(total, load(G, (t, i)), load(G, (t, i)))
                store(unused, (0,), total)  # or the compiler would leave it all out
            i = 0
            while i < K:
                if K - i >= 4 * w:
                    for k in range(0, rank + 1, 2):
                        _two_rows(rows, k, G, i, found)
                    i += 4 * w
                else:
                    for k in range(0, rank + 1, 4):
                        _four_rows(rows, k, G, min(i, K - 2 * w), found, i)
                    i += 2 * w
        for k in range(rank):
            row, given = out[at + k], found[k]
            for j in range(len(given)):
                row[j] += given[j]
        row, given = sums[b], found[rank]
        for j in range(len(given)):
            row[j] = given[j]


@inlined
def _two_rows(rows: Any, k: int, G: Any, j: int, found: Any) -> None:  # pragma: no cover (compiled)
    """Add Σ_t rows[k, t] G[t] from column j on, four vectors, and the same of the next row."""
    w = width(G)
    x0, x1, x2, x3 = zeros(G), zeros(G), zeros(G), zeros(G)
    y0, y1, y2, y3 = zeros(G), zeros(G), zeros(G), zeros(G)
    for t in range(len(G)):
        g0, g1 = load(G, (t, j)), load(G, (t, j + w))
        g2, g3 = load(G, (t, j + 2 * w)), load(G, (t, j + 3 * w))
        a, c = broadcast(rows, (k, t)), broadcast(rows, (k + 1, t))
        x0, x1, x2, x3 = fma(x0, a, g0), fma(x1, a, g1), fma(x2, a, g2), fma(x3, a, g3)
        y0, y1, y2, y3 = fma(y0, c, g0), fma(y1, c, g1), fma(y2, c, g2), fma(y3, c, g3)
    add(found, (k, j), x0)
    add(found, (k, j + w), x1)
    add(found, (k, j + 2 * w), x2)
    add(found, (k, j + 3 * w), x3)
    add(found, (k + 1, j), y0)
    add(found, (k + 1, j + w), y1)
    add(found, (k + 1, j + 2 * w), y2)
    add(found, (k + 1, j + 3 * w), y3)


@inlined
def _four_rows(rows: Any, k: int, G: Any, j: int, found: Any, i: int) -> None:  # pragma: no cover (compiled)
    """Add Σ_t rows[k, t] G[t] from column j on, two vectors, at column i, and the same of the three rows next."""
    w = width(G)
    x0, x1, x2, x3 = zeros(G), zeros(G), zeros(G), zeros(G)
    y0, y1, y2, y3 = zeros(G), zeros(G), zeros(G), zeros(G)
    for t in range(len(G)):
        g0, g1 = load(G, (t, j)), load(G, (t, j + w))
        a0, a1 = broadcast(rows, (k, t)), broadcast(rows, (k + 1, t))
        a2, a3 = broadcast(rows, (k + 2, t)), broadcast(rows, (k + 3, t))
        x0, x1, x2, x3 = fma(x0, a0, g0), fma(x1, a1, g0), fma(x2, a2, g0), fma(x3, a3, g0)
        y0, y1, y2, y3 = fma(y0, a0, g1), fma(y1, a1, g1), fma(y2, a2, g1), fma(y3, a3, g1)
    add(found, (k, i), x0)
    add(found, (k, i + w), y0)
    add(found, (k + 1, i), x1)
    add(found, (k + 1, i + w), y1)
    add(found, (k + 2, i), x2)
    add(found, (k + 2, i + w), y2)
    add(found, (k + 3, i), x3)
    add(found, (k + 3, i + w), y3)


@compiled
def _against(
    V: Any, places: Any, ranks: Any, starts: Any, grad: Any, out: Any, sums: Any, first: int, last: int
) -> None:  # pragma: no cover (compiled)
    for b in range(first, last):
        at, begin, rank = starts[b], places[b], ranks[b]
        _totals(grad[b], sums[b])
        for k in range(0, rank, 2):
            # The last two may be one.
            other = min(k + 1, rank - 1)
            _two_dots(V[begin + k], V[begin + other], grad[b], out[at + k], out[at + other], other > k)


@compiled
def _totals(G: Any, out: Any) -> None:  # pragma: no cover (compiled)
    """Add the sum of every row of G."""
    for j in range(len(G)):
        row, total = G[j], out[j]
        for t in range(len(row)):
            total += row[t]
        out[j] = total


@compiled
def _two_dots(v: Any, w: Any, G: Any, out: Any, also: Any, two: bool) -> None:  # pragma: no cover (compiled)
    """Add the inner products of v, and of w, with every row of G."""
    zero = v[0] - v[0]  # of its dtype
    j = 0
    while j + 4 <= len(G):
        g0, g1, g2, g3 = G[j], G[j + 1], G[j + 2], G[j + 3]
        s0, s1, s2, s3, t0, t1, t2, t3 = zero, zero, zero, zero, zero, zero, zero, zero
        for t in range(len(v)):
            x, y = v[t], w[t]
            a, b, c, d = g0[t], g1[t], g2[t], g3[t]
            s0 += x * a
            s1 += x * b
            s2 += x * c
            s3 += x * d
            t0 += y * a
            t1 += y * b
            t2 += y * c
            t3 += y * d
        out[j] += s0
        out[j + 1] += s1
        out[j + 2] += s2
        out[j + 3] += s3
        if two:
            also[j] += t0
            also[j + 1] += t1
            also[j + 2] += t2
            also[j + 3] += t3
        j += 4
    while j < len(G):
        g0 = G[j]
        s0, t0 = zero, zero
        for t in range(len(v)):
            s0 += v[t] * g0[t]
            t0 += w[t] * g0[t]
        out[j] += s0
        if two:
            also[j] += t0
        j += 1
