"""Crosses: rank-one updates built from a row and a column of the residual.

The algorithm stands here twice. On a CPU a kernel takes one block after the other, whose residual then stays in the
cache; elsewhere all blocks take their steps together. Both choose the same pivots, up to rounding.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numba
import numpy as np
import torch
from torch import Tensor

from lrbench.blocks import Blocks
from lrbench.compressors.spectral import INSIDE
from lrbench.factors import LowRank

__all__ = ["cross_approximation"]


def cross_approximation(blocks: Blocks, eps: float, stop: Literal["residual", "estimate"]) -> LowRank:
    """Approximate blocks by crosses with partial pivoting.

    The first pivot row is row 0. In each step the pivot column is where the pivot row of the residual is largest, v is
    that row divided by the pivot, u that column of the residual; the next pivot row is where u is largest among the
    rows not yet used. A pivot row that is zero is passed over for the first unused row that is not; with the residual
    as the rule, whose size is known, a row of rounding errors counts as zero.

    Parameters
    ----------
    blocks : Blocks
        N finite blocks, m x n, of moderate scale. The residuals are held dense, in the blocks' dtype.
    eps : float
        In (0, 1].
    stop
        ``residual``: when the Frobenius norm of the residual is inside eps times the block's, or when the factors
        are larger than the block. ``estimate``: when ‖u_k‖‖v_k‖ ≤ eps ‖Σ u_l v_lᵀ‖_F; cross k is kept.

    Returns
    -------
    LowRank
        In the blocks' dtype.
    """
    m, n = blocks.shape[1:]
    limit = min(m, n, m * n // (m + n) + 1) if stop == "residual" else min(m, n)
    R = blocks.dense()
    floor = 8 * torch.finfo(R.dtype).eps if stop == "residual" else 0.0
    if R.device.type == "cpu":
        return _block_by_block(R, eps, stop == "residual", limit, floor)
    return _in_step(R, eps, stop == "residual", limit, floor)


def _block_by_block(R: Tensor, eps: float, on_residual: bool, limit: int, floor: float) -> LowRank:
    """Run the kernel, each thread on a part of the blocks; R is overwritten."""
    N, m, n = R.shape
    U, V = np.empty((N, limit, m), R.numpy().dtype), np.empty((N, limit, n), R.numpy().dtype)
    ranks = np.zeros(N, np.int64)
    tolerance = (INSIDE * eps if on_residual else eps) ** 2
    threads = min(torch.get_num_threads(), N)

    def part(k: int) -> None:
        cut = slice(k * N // threads, (k + 1) * N // threads)
        _kernel(R.numpy()[cut], tolerance, on_residual, floor, U[cut], V[cut], ranks[cut])

    if threads == 1:
        part(0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(part, range(threads)))
    packed_U, packed_V = (
        np.concatenate([F[i, :r] for i, r in enumerate(ranks)]) if N else F.reshape(0, F.shape[2]) for F in (U, V)
    )
    return LowRank(torch.from_numpy(packed_U), torch.from_numpy(packed_V), torch.from_numpy(ranks))


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def _kernel(
    R: Any, tolerance: float, on_residual: bool, floor: float, U: Any, V: Any, ranks: Any
) -> None:  # pragma: no cover (compiled)
    N, m, n = R.shape
    for b in range(N):
        D = R[b]
        total = 0.0
        for i in range(m):
            s = D[0, 0] * 0
            for j in range(n):
                s += D[i, j] * D[i, j]
            total += s
        negligible = floor * np.sqrt(total)
        unused = np.ones(m, np.bool_)
        norm = 0.0  # ‖Σ u_l v_lᵀ‖², of the estimate
        row = 0
        k = 0
        while k < U.shape[1]:
            largest = abs(D[row, 0])
            for j in range(1, n):
                largest = max(largest, abs(D[row, j]))
            if largest <= negligible:
                # Passed over for the first unused row that is not zero; without one the residual is zero.
                found = False
                for i in range(m):
                    if unused[i] and not found:
                        for j in range(n):
                            if abs(D[i, j]) > negligible:
                                found = True
                                row = i
                                break
                if not found:
                    break
                continue
            column = 0
            while column < n - 1 and abs(D[row, column]) != largest:
                column += 1
            pivot = D[row, column]
            u, v = U[b, k], V[b, k]
            for i in range(m):
                u[i] = D[i, column]
            for j in range(n):
                v[j] = D[row, j] / pivot
            residual = 0.0
            for i in range(m):
                s = pivot * 0
                for j in range(n):
                    r = D[i, j] - u[i] * v[j]
                    D[i, j] = r
                    s += r * r
                residual += s
            unused[row] = False
            best = pivot * 0 - 1
            row = 0
            for i in range(m):
                if unused[i] and abs(u[i]) > best:
                    best = abs(u[i])
                    row = i
            k += 1
            if on_residual:
                if residual <= tolerance * total:
                    break
                continue
            uu, vv = 0.0, 0.0
            for i in range(m):
                uu += np.float64(u[i]) * np.float64(u[i])
            for j in range(n):
                vv += np.float64(v[j]) * np.float64(v[j])
            norm += uu * vv
            for p in range(k - 1):
                uu_p, vv_p = 0.0, 0.0
                for i in range(m):
                    uu_p += np.float64(U[b, p, i]) * np.float64(u[i])
                for j in range(n):
                    vv_p += np.float64(V[b, p, j]) * np.float64(v[j])
                norm += 2 * uu_p * vv_p
            if uu * vv <= tolerance * norm:
                break
        ranks[b] = k


def _in_step(R: Tensor, eps: float, on_residual: bool, limit: int, floor: float) -> LowRank:
    """Let all blocks take their steps together; R is overwritten."""
    N, m, n = R.shape
    U, V = R.new_zeros(N, limit, m), R.new_zeros(N, limit, n)
    ranks = torch.zeros(N, dtype=torch.int64, device=R.device)
    total = _energy(R)
    active = (total > 0).nonzero()[:, 0]  # which block each residual in R belongs to
    R = R[active]
    row = torch.zeros_like(active)
    negligible = floor * total[active].sqrt()
    unused = torch.ones(len(active), m, dtype=torch.bool, device=R.device)
    norm = total.new_zeros(len(active))  # ‖Σ u_l v_lᵀ‖², of the estimate
    for k in range(limit):
        if len(active) == 0:
            break
        each = torch.arange(len(active), device=R.device)
        v = R[each, row]
        dry = v.abs().amax(1) <= negligible
        if bool(dry.any()):
            alive = (R[dry].abs().amax(2) > negligible[dry, None]) & unused[dry]
            row[dry] = alive.to(torch.uint8).argmax(1)  # the first one
            v = R[each, row]
            v[dry] *= alive.any(1)[:, None]  # without one there is nothing left to represent
        column = v.abs().argmax(1)
        pivot = v[each, column]
        u = R[each, :, column]
        v = v / torch.where(pivot == 0, 1, pivot)[:, None]  # a residual that is zero everywhere gives a zero cross
        R.baddbmm_(u[:, :, None], v[:, None, :], alpha=-1)
        unused[each, row] = False
        row = torch.where(unused, u.abs(), -1).argmax(1)
        U[active, k], V[active, k] = u, v
        ranks[active] += pivot != 0
        if on_residual:
            done = _energy(R) <= total[active] * (INSIDE * eps) ** 2
        else:
            u, v = u.to(torch.float64), v.to(torch.float64)
            size = u.square().sum(1) * v.square().sum(1)
            uu = U[active, :k].to(torch.float64) @ u[:, :, None]
            vv = V[active, :k].to(torch.float64) @ v[:, :, None]
            norm = norm + 2 * (uu * vv).sum((1, 2)) + size
            done = size <= eps**2 * norm
        done |= pivot == 0
        if bool(done.any()):
            going = (~done).nonzero()[:, 0]
            active, row, unused, norm, R = active[going], row[going], unused[going], norm[going], R[going]
            negligible = negligible[going]
    return LowRank.from_padded(U.mT, V, ranks)


def _energy(R: Tensor) -> Tensor:
    """Squared Frobenius norms, (N,) float64."""
    return R.square().sum(2, dtype=torch.float64).sum(1)
