"""Products of factors of many ranks, W·(U V) and G·(U V)ᵀ, one block after the other and nothing copied."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lrbench.kernels import lanes
from lrbench.kernels.lanes import add, broadcast, fma, load, store, width, zeros
from lrbench.kernels.loops import compiled, for_parts

__all__ = ["against", "times"]


def times(
    left: Tensor, starts: Tensor, V: Tensor, offsets: Tensor, bias: Tensor | None, channels_last: bool = False
) -> Tensor:
    """(W U_i) V_i + b for every block.

    Parameters
    ----------
    left : Tensor
        (·, K): U Wᵀ. From ``starts[i]`` on, its rows belong to block i.
    starts : Tensor
        (N,) int64.
    V : Tensor
        (Σ r_i, n): rows ``offsets[i]:offsets[i + 1]`` belong to block i.
    offsets : Tensor
        (N + 1,) int64.
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
    sides = [(V, offsets), (left, starts)] if channels_last else [(left, starts), (V, offsets)]
    (rows, first), (columns, other) = sides
    target, missing = out.mT if channels_last else out, _tile(left) - columns.shape[1]
    if missing > 0:  # there is no tile so narrow
        columns = F.pad(columns, (0, missing))
        added = F.pad(added, (0, missing)) if channels_last else added
        target = torch.empty(*target.shape[:2], columns.shape[1], dtype=left.dtype, device="cpu")
    arrays = [t.contiguous().numpy() for t in (rows, columns, first, other, offsets, added)]

    def part(start: int, stop: int) -> None:
        _multiply(*arrays, channels_last, target.numpy(), start, stop)

    for_parts(N, part)
    if missing > 0:
        (out.mT if channels_last else out).copy_(target[..., :-missing])
    return out


def against(V: Tensor, offsets: Tensor, starts: Tensor, rows: int, grad: Tensor, shared: bool) -> tuple[Tensor, Tensor]:
    """Σ_i V_i G_iᵀ, every block's in its own rows of the result, and the sum of all columns of the G_i.

    Parameters
    ----------
    V, offsets, starts
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
    arrays = [t.contiguous().numpy() for t in (V, offsets, starts, grad.detach().mT if last else grad.detach())]
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
    offsets: Any,
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
        rank = offsets[b + 1] - offsets[b]
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
    V: Any, offsets: Any, starts: Any, grad: Any, out: Any, sums: Any, first: int, last: int
) -> None:  # pragma: no cover (compiled)
    """Sum some rows of the gradient at a time for four rows of the result, two vectors of each, that stay in registers.

    As many rows as the innermost cache holds. All is read once in order first, because what is read in order is fetched
    ahead of time: tile by tile only a part of each row would be.
    """
    n, K, w = grad.shape[1], grad.shape[2], width(V)
    most, unused, one = max(16, 512 * w // K), np.empty(w, V.dtype), np.ones(1, V.dtype)
    for b in range(first, last):
        at, rank = starts[b], offsets[b + 1] - offsets[b]
        into = out[at : at + rank]
        for s in range(0, n, most):
            count = min(most, n - s)
            G, R = grad[b, s : s + count], V[offsets[b] : offsets[b + 1], s : s + count]
            if K > 2 * w:
                total = zeros(V)
                for t in range(count):
                    for i in range(0, K - w + 1, 2 * w):  # every line of the cache
                        total = fma(total, load(G, (t, i)), load(G, (t, i)))
                store(unused, (0,), total)  # or the compiler would leave it all out
            for i in range(0, K, 2 * w):
                j = min(i, K - 2 * w)
                unit = broadcast(one, (0,))
                x0, x1, y0, y1 = zeros(V), zeros(V), zeros(V), zeros(V)  # two sums each: none waits for the one before
                for t in range(count // 2):
                    x0, y0 = fma(x0, unit, load(G, (2 * t, j))), fma(y0, unit, load(G, (2 * t, j + w)))
                    x1, y1 = fma(x1, unit, load(G, (2 * t + 1, j))), fma(y1, unit, load(G, (2 * t + 1, j + w)))
                if count % 2:
                    x0, y0 = fma(x0, unit, load(G, (count - 1, j))), fma(y0, unit, load(G, (count - 1, j + w)))
                add(sums, (b, i), fma(x0, unit, x1))
                add(sums, (b, i + w), fma(y0, unit, y1))
                for k0 in range(0, rank, 4):
                    k1, k2, k3 = min(k0 + 1, rank - 1), min(k0 + 2, rank - 1), min(k0 + 3, rank - 1)
                    x0, x1, x2, x3 = zeros(V), zeros(V), zeros(V), zeros(V)
                    y0, y1, y2, y3 = zeros(V), zeros(V), zeros(V), zeros(V)
                    for t in range(count):
                        u, v = load(G, (t, j)), load(G, (t, j + w))
                        a0, a1, a2, a3 = (
                            broadcast(R, (k0, t)),
                            broadcast(R, (k1, t)),
                            broadcast(R, (k2, t)),
                            broadcast(R, (k3, t)),
                        )
                        x0, x1, x2, x3 = fma(x0, a0, u), fma(x1, a1, u), fma(x2, a2, u), fma(x3, a3, u)
                        y0, y1, y2, y3 = fma(y0, a0, v), fma(y1, a1, v), fma(y2, a2, v), fma(y3, a3, v)
                    add(into, (k0, i), x0)
                    add(into, (k0, i + w), y0)
                    if k1 > k0:
                        add(into, (k1, i), x1)
                        add(into, (k1, i + w), y1)
                    if k2 > k1:
                        add(into, (k2, i), x2)
                        add(into, (k2, i + w), y2)
                    if k3 > k2:
                        add(into, (k3, i), x3)
                        add(into, (k3, i + w), y3)


@compiled
def _against(
    V: Any, offsets: Any, starts: Any, grad: Any, out: Any, sums: Any, first: int, last: int
) -> None:  # pragma: no cover (compiled)
    for b in range(first, last):
        at, begin, rank = starts[b], offsets[b], offsets[b + 1] - offsets[b]
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
