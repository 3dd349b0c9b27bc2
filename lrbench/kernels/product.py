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
    out = torch.empty_strided((N, K, n), strides, dtype=left.dtype, device="cpu")
    target = (out.mT if channels_last else out).numpy()
    # Otherwise a copy the other way round: the coefficients of one row of the result lie side by side.
    coefficients = left if channels_last else left.T
    arrays = [t.contiguous().numpy() for t in (coefficients, starts, V, offsets, added)]
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
    zeros = torch.zeros(rows, K, dtype=V.dtype, device="cpu")
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
    K, n = len(left), V.shape[1]
    spare = np.empty((3, n), V.dtype)  # for rows that there are not
    for b in range(first, last):
        at, rows, into = starts[b], V[offsets[b] : offsets[b + 1]], out[b]
        for i in range(0, K, 4):
            i1, i2, i3 = min(i + 1, K - 1), min(i + 2, K - 1), min(i + 3, K - 1)
            x0, x1 = into[i], into[i1] if i + 1 < K else spare[0]
            x2, x3 = into[i2] if i + 2 < K else spare[1], into[i3] if i + 3 < K else spare[2]
            b0, b1, b2, b3 = bias[i], bias[i1], bias[i2], bias[i3]
            for t in range(n):
                x0[t] = b0
                x1[t] = b1
                x2[t] = b2
                x3[t] = b3
            combine(rows, len(rows), left[i, at:], left[i1, at:], left[i2, at:], left[i3, at:], x0, x1, x2, x3)


@compiled
def _times_last(
    left: Any, starts: Any, V: Any, offsets: Any, bias: Any, out: Any, first: int, last: int
) -> None:  # pragma: no cover (compiled)
    """Two columns at a time: each row of ``left`` that is read serves both, and every number is written where it goes.

    What is left over of fours comes first, with the bias. All in one loop: a view that is handed on costs more than K
    products.
    """
    K, n = left.shape[1], V.shape[1]
    spare = np.empty(K, V.dtype)
    for b in range(first, last):
        rank = offsets[b + 1] - offsets[b]
        L, R, into = left[starts[b] : starts[b] + rank], V[offsets[b] : offsets[b + 1]], out[b]
        for t in range(0, n, 2):
            u = min(t + 1, n - 1)
            x, y = into[t], into[u] if u > t else spare
            k = rank % 4
            if k == 0:
                for j in range(K):
                    x[j] = bias[j]
                    y[j] = bias[j]
            elif k == 1:
                l0, a0, c0 = L[0], R[0, t], R[0, u]
                for j in range(K):
                    v0, s = l0[j], bias[j]
                    x[j] = s + a0 * v0
                    y[j] = s + c0 * v0
            elif k == 2:
                l0, l1, a0, a1, c0, c1 = L[0], L[1], R[0, t], R[1, t], R[0, u], R[1, u]
                for j in range(K):
                    v0, v1, s = l0[j], l1[j], bias[j]
                    x[j] = s + a0 * v0 + a1 * v1
                    y[j] = s + c0 * v0 + c1 * v1
            else:
                l0, l1, l2 = L[0], L[1], L[2]
                a0, a1, a2, c0, c1, c2 = R[0, t], R[1, t], R[2, t], R[0, u], R[1, u], R[2, u]
                for j in range(K):
                    v0, v1, v2, s = l0[j], l1[j], l2[j], bias[j]
                    x[j] = s + a0 * v0 + a1 * v1 + a2 * v2
                    y[j] = s + c0 * v0 + c1 * v1 + c2 * v2
            while k < rank:
                l0, l1, l2, l3 = L[k], L[k + 1], L[k + 2], L[k + 3]
                a0, a1, a2, a3 = R[k, t], R[k + 1, t], R[k + 2, t], R[k + 3, t]
                c0, c1, c2, c3 = R[k, u], R[k + 1, u], R[k + 2, u], R[k + 3, u]
                for j in range(K):
                    v0, v1, v2, v3 = l0[j], l1[j], l2[j], l3[j]
                    x[j] += (a0 * v0 + a1 * v1) + (a2 * v2 + a3 * v3)
                    y[j] += (c0 * v0 + c1 * v1) + (c2 * v2 + c3 * v3)
                k += 4


@compiled
def _against_last(
    V: Any, offsets: Any, starts: Any, grad: Any, out: Any, first: int, last: int
) -> None:  # pragma: no cover (compiled)
    """Four columns of the gradient at a time, for three rows of the result, and for those left over one by one."""
    n, K = grad.shape[1], grad.shape[2]
    for b in range(first, last):
        at, rank, G = starts[b], offsets[b + 1] - offsets[b], grad[b]
        rows, into = V[offsets[b] : offsets[b + 1]], out[at : at + rank]
        t = 0
        while t + 4 <= n:
            g0, g1, g2, g3 = G[t], G[t + 1], G[t + 2], G[t + 3]
            k = 0
            while k + 3 <= rank:
                x, y, z = into[k], into[k + 1], into[k + 2]
                p, q, r = rows[k, t:], rows[k + 1, t:], rows[k + 2, t:]
                a0, a1, a2, a3, b0, b1, b2, b3 = p[0], p[1], p[2], p[3], q[0], q[1], q[2], q[3]
                c0, c1, c2, c3 = r[0], r[1], r[2], r[3]
                for j in range(K):
                    v0, v1, v2, v3 = g0[j], g1[j], g2[j], g3[j]
                    x[j] += (a0 * v0 + a1 * v1) + (a2 * v2 + a3 * v3)
                    y[j] += (b0 * v0 + b1 * v1) + (b2 * v2 + b3 * v3)
                    z[j] += (c0 * v0 + c1 * v1) + (c2 * v2 + c3 * v3)
                k += 3
            while k < rank:
                x, p = into[k], rows[k, t:]
                a0, a1, a2, a3 = p[0], p[1], p[2], p[3]
                for j in range(K):
                    x[j] += (a0 * g0[j] + a1 * g1[j]) + (a2 * g2[j] + a3 * g3[j])
                k += 1
            t += 4
        while t < n:
            g0 = G[t]
            for k in range(rank):
                x, a0 = into[k], rows[k, t]
                for j in range(K):
                    x[j] += a0 * g0[j]
            t += 1


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
