"""The check: how far factors are, as stored, from the blocks that they stand for."""

import torch
from torch import Tensor

from lrbench.blocks import Blocks, scale_by_power_of_two
from lrbench.factors import LowRank

__all__ = ["residual_norms", "unscaled"]


def residual_norms(blocks: Blocks, low_rank: LowRank, exponent: Tensor) -> Tensor:
    """Frobenius norms of D_i − 2**(−e_i) U_i V_i, computed in float64 from the factors as they are stored.

    The residual itself is formed, a strip at a time: no identity with a cancellation in it stands between the
    factors and the verdict. Its rounding error is of the order of 1e-16 ‖D_i‖.

    Parameters
    ----------
    blocks : Blocks
        The blocks D_i, scaled to a largest magnitude near one.
    low_rank : LowRank
        The factors, in any dtype and in the scale of the original blocks.
    exponent : Tensor
        (N,) int64: the original blocks are 2**e_i times as large as ``blocks``.

    Returns
    -------
    Tensor
        (N,) float64; NaN or infinite where a factor is.
    """
    total = torch.zeros(len(blocks), dtype=torch.float64, device=blocks.device)
    ranks, offsets = low_rank.ranks, low_rank.offsets.tolist()
    held = slice(0, 0)
    U = V = total
    for part, columns, D in blocks.strips("columns"):
        if part != held:
            held = part
            rows = slice(offsets[part.start], offsets[part.stop])
            U, V = _padded(low_rank.U[rows], low_rank.V[rows], ranks[part])
            V = scale_by_power_of_two(V, -exponent[part])
        D.baddbmm_(U.mT, V[:, :, columns], alpha=-1)
        total[part] += D.square_().sum((1, 2))
    return total.sqrt()


def unscaled(low_rank: LowRank, exponent: Tensor) -> LowRank:
    """Factors of 2**e_i D_i from factors of D_i; both share the exponent, so that neither leaves its dtype's range."""
    half = exponent.div(2, rounding_mode="floor")
    ranks = low_rank.ranks
    return LowRank(
        scale_by_power_of_two(low_rank.U, half.repeat_interleave(ranks)),
        scale_by_power_of_two(low_rank.V, (exponent - half).repeat_interleave(ranks)),
        ranks,
    )


def _padded(U: Tensor, V: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Packed factors as float64 (N, r, m) and (N, r, n), filled up with zeros to the largest rank."""
    largest = int(ranks.max()) if len(ranks) else 0
    filled = torch.arange(largest, device=ranks.device) < ranks[:, None]
    out = []
    for packed in (U, V):
        full = torch.zeros(len(ranks), largest, packed.shape[1], dtype=torch.float64, device=packed.device)
        full[filled] = packed.to(torch.float64)
        out.append(full)
    return out[0], out[1]
