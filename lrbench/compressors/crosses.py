"""Crosses: rank-one updates built from a row and a column of the residual.

The algorithm stands here for all blocks together, step by step, and for a CPU, block by block, in
:mod:`lrbench.kernels.crosses` and, without a residual, in :mod:`lrbench.kernels.pivots`. All choose the same pivots, up
to rounding.
"""

from typing import Literal, overload

import torch
from torch import Tensor

from lrbench.blocks import Blocks
from lrbench.compressors.spectral import INSIDE
from lrbench.kernels.kernel_blocks import KernelBlocks
from lrbench.low_rank import Crosses, LowRank

__all__ = ["cross_approximation"]


@overload
def cross_approximation(blocks: Blocks, eps: float, stop: Literal["estimate"], most: int | None = None) -> LowRank: ...


@overload
def cross_approximation(
    blocks: Blocks, eps: float, stop: Literal["residual"], most: int | None = None
) -> LowRank | Crosses: ...


def cross_approximation(
    blocks: Blocks, eps: float, stop: Literal["residual", "estimate"], most: int | None = None
) -> LowRank | Crosses:
    """Approximate blocks by crosses with partial pivoting.

    The first pivot row is row 0. In each step the pivot column is where the pivot row of the residual is largest, v is
    that row divided by the pivot, u that column of the residual; the next pivot row is where u is largest among the
    rows not yet used. A pivot row that is zero is passed over for the first unused row that is not; with the residual
    as the rule, whose size is known, a row of rounding errors counts as zero.

    Parameters
    ----------
    blocks : Blocks
        N finite blocks, m x n, of moderate scale. The arithmetic is of their dtype.
    eps : float
        In (0, 1].
    stop
        ``residual``: when the Frobenius norm of the residual is inside eps times the block's, or when the factors
        have a rank above ``most``. ``estimate``: when ‖u_k‖‖v_k‖ ≤ eps ‖Σ u_l v_lᵀ‖_F; cross k is kept.
    most : int, optional
        Rank of the largest factors that are no larger than their block.

    Returns
    -------
    LowRank or Crosses
        In the blocks' dtype.
    """
    m, n = blocks.shape[1:]
    limit = min(m, n) if most is None else min(m, n, most + 1)
    floor = 8 * torch.finfo(blocks.dtype).eps if stop == "residual" else 0.0
    view = KernelBlocks.of(blocks)
    if view is None:
        return _in_step(blocks.dense(), eps, stop == "residual", limit, floor)
    tolerance = (INSIDE * eps if stop == "residual" else eps) ** 2
    if stop == "residual" and view.tells_pivots(tolerance):
        return Crosses(tolerance, floor, limit)
    return LowRank(*view.crosses(stop, tolerance, floor, limit))


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
