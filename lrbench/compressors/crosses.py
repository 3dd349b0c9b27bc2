"""Crosses: rank-one updates built from a row and a column of the residual."""

from typing import Literal

import torch
from torch import Tensor

from lrbench.blocks import Blocks
from lrbench.compressors.spectral import INSIDE
from lrbench.factors import LowRank

__all__ = ["cross_approximation"]


def cross_approximation(blocks: Blocks, eps: float, stop: Literal["residual", "estimate"]) -> LowRank:
    """Approximate blocks by crosses with partial pivoting, all blocks in step.

    The first pivot row is row 0. In each step the pivot column is where the pivot row of the residual is largest, v is
    that row divided by the pivot, u that column of the residual; the next pivot row is where u is largest among the
    rows not yet used. A pivot row that is zero is passed over for the first unused row that is not.

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
    R = blocks.dense()
    N, m, n = R.shape
    limit = min(m, n, m * n // (m + n) + 1) if stop == "residual" else min(m, n)
    U, V = R.new_zeros(N, limit, m), R.new_zeros(N, limit, n)
    ranks = torch.zeros(N, dtype=torch.int64, device=R.device)
    total = _energy(R)
    active = (total > 0).nonzero()[:, 0]  # which block each residual in R belongs to
    R = R[active]
    row = torch.zeros_like(active)
    unused = torch.ones(len(active), m, dtype=torch.bool, device=R.device)
    norm = total.new_zeros(len(active))  # ‖Σ u_l v_lᵀ‖², of the estimate
    for k in range(limit):
        if len(active) == 0:
            break
        each = torch.arange(len(active), device=R.device)
        v = R[each, row]
        dry = (v == 0).all(1)
        if bool(dry.any()):
            row = torch.where(dry, _first_nonzero_row(R, unused, dry), row)
            v = R[each, row]
        column = v.abs().argmax(1)
        pivot = v[each, column]
        u = R[each, :, column]
        v = v / torch.where(pivot == 0, 1, pivot)[:, None]  # a residual that is zero everywhere gives a zero cross
        R.baddbmm_(u[:, :, None], v[:, None, :], alpha=-1)
        unused[each, row] = False
        row = torch.where(unused, u.abs(), -1).argmax(1)
        U[active, k], V[active, k] = u, v
        ranks[active] += pivot != 0
        if stop == "residual":
            done = _energy(R) <= total[active] * (INSIDE * eps) ** 2
        else:
            u, v = u.to(torch.float64), v.to(torch.float64)
            size = u.square().sum(1) * v.square().sum(1)
            before = (U[active, :k].to(torch.float64) @ u[:, :, None]) * (
                V[active, :k].to(torch.float64) @ v[:, :, None]
            )
            norm = norm + 2 * before.sum((1, 2)) + size
            done = size <= eps**2 * norm
        done |= pivot == 0
        if bool(done.any()):
            going = (~done).nonzero()[:, 0]
            active, row, unused, norm, R = active[going], row[going], unused[going], norm[going], R[going]
    return LowRank.from_padded(U.mT, V, ranks)


def _energy(R: Tensor) -> Tensor:
    """Squared Frobenius norms, (N,) float64, summed in float64 along the longer axis only."""
    return R.square().sum(2, dtype=torch.float64).sum(1) if R.numel() else R.new_zeros(len(R), dtype=torch.float64)


def _first_nonzero_row(R: Tensor, unused: Tensor, dry: Tensor) -> Tensor:
    """The first unused row that is not zero, (N,), looked for where ``dry`` says so; 0 where there is none."""
    row = torch.zeros(len(R), dtype=torch.int64, device=R.device)
    alive = (R[dry] != 0).any(2) & unused[dry]
    row[dry] = alive.to(torch.uint8).argmax(1)
    return row
