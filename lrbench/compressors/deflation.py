"""Factors that grow by a pair at a time, each taken from a residual that is kept.

The algorithm stands here for all blocks together, step by step, and in :mod:`lrbench.kernels.deflation` for a CPU,
block by block.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lrbench.blocks import Blocks
from lrbench.compressors.spectral import INSIDE
from lrbench.kernels.kernel_blocks import KernelBlocks
from lrbench.low_rank import LowRank

__all__ = ["Pair", "deflated"]

Pair = tuple[Tensor, Tensor]
"""Of each block a column of U, (N, m), and a row of V, (N, n), as they are stored."""


def deflated(
    blocks: Blocks,
    eps: float,
    by: Literal["crosses", "columns"],
    choose: Callable[[Tensor, torch.dtype], Pair],
    limit: int,
) -> LowRank:
    """Take pairs from blocks until their residuals' Frobenius norms are inside eps times the blocks'.

    Parameters
    ----------
    blocks : Blocks
        N finite blocks, m x n, of moderate scale.
    eps : float
        In (0, 1].
    by
        Which kernel does it on a CPU.
    choose
        Does the same elsewhere: from residuals (N, m, n), float64, pairs in a dtype; zeros where a residual is zero.
    limit : int
        Largest rank.

    Returns
    -------
    LowRank
        In the blocks' dtype.
    """
    N, m, n = blocks.shape
    limit, tolerance = min(m, n, limit), (INSIDE * eps) ** 2
    view = KernelBlocks.of(blocks)
    if view is not None:
        return LowRank(*view.deflated(by, tolerance, limit))
    R = blocks.dense().to(torch.float64)
    U, V = (torch.zeros(N, limit, side, dtype=blocks.dtype, device=R.device) for side in (m, n))
    ranks = torch.zeros(N, dtype=torch.int64, device=R.device)
    total = R.square().sum((1, 2))
    active = (total > 0).nonzero()[:, 0]
    R = R[active]
    for k in range(limit):
        if len(active) == 0:
            break
        u, v = choose(R, blocks.dtype)
        R.baddbmm_(u.to(torch.float64)[:, :, None], v.to(torch.float64)[:, None], alpha=-1)
        U[active, k], V[active, k] = u, v
        ranks[active] += u.any(1)
        going = ((R.square().sum((1, 2)) > tolerance * total[active]) & u.any(1)).nonzero()[:, 0]
        active, R = active[going], R[going]
    return LowRank.from_padded(U.mT, V, ranks)
