"""Products of factors of many ranks, W·(U V) and G·(U V)ᵀ, one block after the other and nothing copied."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrbench.kernels.loops import combine, compiled, for_parts

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
    out = torch.empty_strided((N, K, n), strides, dtype=left.dtype)
    target = (out.mT if channels_last else out).numpy()
    # A copy the other way round: the coefficients of one row of the result lie side by side.
    arrays = [t.contiguous().numpy() for t in (left.T, starts, V, offsets, added)]
    kernel = _times_last if channels_last else _times

    def part(start: int, stop: int) -> None:
        kernel(*arrays, target, start, stop)

    for_parts(N, part)
    return out


def against(V: Tensor, offsets: Tensor, starts: Tensor, rows: int, grad: Tensor, shared: bool) -> Tensor:
    """Σ_i V_i G_iᵀ, every block's in its own rows of the result.

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
    Tensor
        (rows, K).
    """
    N, K, _ = grad.shape
    last = not grad.is_contiguous() and grad.mT.is_contiguous()
    kernel = _against_last if last else _against
    arrays = [t.contiguous().numpy() for t in (V, offsets, starts, grad.detach().mT if last else grad.detach())]
    zeros = torch.zeros(rows, K, dtype=V.dtype)
    found: dict[int, Any] = {}

    def part(start: int, stop: int) -> None:
        # Blocks that add to the same rows do so part by part, in the order of the parts.
        into = np.zeros((rows, K), zeros.numpy().dtype) if shared else zeros.numpy()
        kernel(*arrays, into, start, stop)
        found[start] = into

    for_parts(N, part)
    if shared:
        for start in sorted(found):
            zeros += torch.from_numpy(found[start])
    return zeros


@compiled
def _times(
    left: Any, starts: Any, V: Any, offsets: Any, bias: Any, out: Any, first: int, last: int
) -> None:  # pragma: no cover (compiled)
    spare = np.empty((3, V.shape[1]), V.dtype)
    for b in range(first, last):
        _times_one(left, starts[b], V[offsets[b] : offsets[b + 1]], bias, out[b], spare)


@compiled
def _times_last(
    left: Any, starts: Any, V: Any, offsets: Any, bias: Any, out: Any, first: int, last: int
) -> None:  # pragma: no cover (compiled)
    K, n = len(left), V.shape[1]
    # A little longer than n: rows a power of two apart would share the places of a cache.
    spare, turned = np.empty((3, n), V.dtype), np.empty((K, n + 16), V.dtype)
    for b in range(first, last):
        _times_one(left, starts[b], V[offsets[b] : offsets[b + 1]], bias, turned, spare)
        into = out[b]
        for t in range(n):
            row = into[t]
            for j in range(K):
                row[j] = turned[j, t]


@compiled
def _times_one(left: Any, at: int, rows: Any, bias: Any, out: Any, spare: Any) -> None:  # pragma: no cover (compiled)
    """One block's product, into the first n columns of ``out``; ``spare``, (3, n), is for rows that there are not."""
    K, n = len(left), spare.shape[1]
    for i in range(0, K, 4):
        i1, i2, i3 = min(i + 1, K - 1), min(i + 2, K - 1), min(i + 3, K - 1)
        x0, x1 = out[i, :n], out[i1, :n] if i + 1 < K else spare[0]
        x2, x3 = out[i2, :n] if i + 2 < K else spare[1], out[i3, :n] if i + 3 < K else spare[2]
        b0, b1, b2, b3 = bias[i], bias[i1], bias[i2], bias[i3]
        for t in range(n):
            x0[t] = b0
            x1[t] = b1
            x2[t] = b2
            x3[t] = b3
        combine(rows, len(rows), left[i, at:], left[i1, at:], left[i2, at:], left[i3, at:], x0, x1, x2, x3)


@compiled
def _against_last(
    V: Any, offsets: Any, starts: Any, grad: Any, out: Any, first: int, last: int
) -> None:  # pragma: no cover (compiled)
    spare = np.empty((3, grad.shape[2]), V.dtype)
    for b in range(first, last):
        at, rank, rows = starts[b], offsets[b + 1] - offsets[b], V[offsets[b] : offsets[b + 1]]
        for k in range(0, rank, 4):
            k1, k2, k3 = min(k + 1, rank - 1), min(k + 2, rank - 1), min(k + 3, rank - 1)
            x0, x1 = out[at + k], out[at + k1] if k + 1 < rank else spare[0]
            x2, x3 = out[at + k2] if k + 2 < rank else spare[1], out[at + k3] if k + 3 < rank else spare[2]
            combine(grad[b], len(grad[b]), rows[k], rows[k1], rows[k2], rows[k3], x0, x1, x2, x3)


@compiled
def _against(
    V: Any, offsets: Any, starts: Any, grad: Any, out: Any, first: int, last: int
) -> None:  # pragma: no cover (compiled)
    for b in range(first, last):
        at, begin, rank = starts[b], offsets[b], offsets[b + 1] - offsets[b]
        for k in range(0, rank, 2):
            # The last two may be one.
            other = min(k + 1, rank - 1)
            _two_dots(V[begin + k], V[begin + other], grad[b], out[at + k], out[at + other], other > k)


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
