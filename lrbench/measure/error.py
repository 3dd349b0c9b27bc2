"""How far what a compressor returned is from what it was given."""

import math

import torch
from torch import Tensor

from lrbench.blocks import Blocks, ScaledBlocks, as_blocks, block_norms, scale_by_power_of_two
from lrbench.compressors.certificate import residual_norms
from lrbench.factors import Factors

__all__ = ["relative_error", "violations"]


def relative_error(blocks: Blocks | Tensor, factors: Factors) -> Tensor:
    """‖D_i − D̂_i‖_F / ‖D_i‖_F of every block, in float64, from the factors as they are stored.

    Parameters
    ----------
    blocks : Im2col or Tensor
        The blocks, (N, m, n), as they were given to the compressor.
    factors : Factors
        What it returned.

    Returns
    -------
    Tensor
        (N,) float64, at least 0; 0 for a zero block that is represented by zeros, infinite for one that is not, NaN
        for a block that is not finite.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    blocks = as_blocks(blocks)
    if blocks.shape != factors.shape:
        raise ValueError(f"blocks have shape {tuple(blocks.shape)} and factors {tuple(factors.shape)}: they must agree")
    if len(blocks) == 0:
        return torch.zeros(0, dtype=torch.float64, device=blocks.device)
    if blocks.dtype.itemsize < 4:
        blocks = blocks.like(blocks.tensor.to(torch.float32))
    magnitude = blocks.abs_max()
    exponent = torch.where(torch.isfinite(magnitude), torch.frexp(magnitude).exponent, 0).to(torch.int64)
    work = ScaledBlocks(blocks, -exponent)
    residual = residual_norms(work, factors.low_rank(), exponent)
    if factors.kept is not None:
        # Kept blocks have no factors: what is kept is compared with what was given.
        index = factors.kept_index
        difference = blocks.select(index).dense().sub_(factors.kept.dense())
        difference = scale_by_power_of_two(difference, -exponent[index]).to(torch.float64)
        top = difference.abs().amax((1, 2))  # divided out, or small squares would vanish
        residual[index] = top * torch.linalg.matrix_norm(difference / torch.where(top > 0, top, 1)[:, None, None])
    norms = block_norms(work)
    error = residual / norms
    # Beside a zero block any size is infinite, even one whose square underflows.
    for i in (norms == 0).nonzero()[:, 0]:
        pair = factors.low_rank(i[None])
        zero = residual[i] == 0 and not bool((pair.U.T.to(torch.float64) @ pair.V.to(torch.float64)).any())
        error[i] = 0.0 if zero else math.inf
    return error


def violations(errors: Tensor, eps: float) -> int:
    """Count the blocks whose error is above ``eps`` by more than a division's rounding; NaN is above.

    Parameters
    ----------
    errors : Tensor
        (N,) float64, relative errors.
    eps : float
        Requested relative error.
    """
    return int((~(errors <= eps * (1 + 1e-12))).sum())
