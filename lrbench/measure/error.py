"""How far what a compressor returned is from what it was given."""

import math

import torch
from torch import Tensor

from lrbench.blocks import Blocks, ScaledBlocks, as_blocks, block_norms, scale_by_power_of_two
from lrbench.compressed import Compressed
from lrbench.compressors.certificate import residual_norms
from lrbench.encoded import EncodedInput, as_images
from lrbench.factors import Factors

__all__ = ["relative_error", "violations"]


def relative_error(blocks: Blocks | Tensor, compressed: Compressed) -> Tensor:
    """‖D_i − D̂_i‖_F / ‖D_i‖_F of every block, in float64, from what is stored.

    Of factors the residual is formed; of an encoded input x̂ is decoded and compared with x, each pixel counting as
    often as it occurs in D; of anything else D̂ is formed.

    Parameters
    ----------
    blocks : Im2col or Tensor
        The blocks, (N, m, n), as they were given to the compressor.
    compressed : Compressed
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
    if blocks.shape != compressed.shape:
        raise ValueError(
            f"blocks have shape {tuple(blocks.shape)} and what stands for them {tuple(compressed.shape)}: "
            "they must agree"
        )
    if len(blocks) == 0:
        return torch.zeros(0, dtype=torch.float64, device=blocks.device)
    if blocks.dtype.itemsize < 4:
        blocks = blocks.like(blocks.tensor.to(torch.float32))
    magnitude = blocks.abs_max()
    exponent = torch.where(torch.isfinite(magnitude), torch.frexp(magnitude).exponent, 0).to(torch.int64)
    work = ScaledBlocks(blocks, -exponent)
    norms = block_norms(work)
    if isinstance(compressed, Factors):
        residual = _of_factors(blocks, work, compressed, exponent)
        occupied = _occupied(compressed, residual, norms == 0)
    elif isinstance(compressed, EncodedInput) and as_images(blocks).geometry == compressed.geometry:
        residual, occupied = _of_images(blocks, compressed, exponent)
    else:
        residual, occupied = _of_blocks(blocks, compressed, exponent)
    # Beside a zero block any size is infinite, even one whose square underflows.
    return torch.where(norms == 0, torch.where(occupied, math.inf, 0.0), residual / norms)


def _of_factors(blocks: Blocks, work: Blocks, factors: Factors, exponent: Tensor) -> Tensor:
    """‖D_i − D̂_i‖_F, scaled by 2**(−e_i)."""
    residual = residual_norms(work, factors.low_rank(), exponent)
    if factors.kept is not None:
        # Kept blocks have no factors: what is kept is compared with what was given.
        index = factors.kept_index
        difference = blocks.select(index).dense().sub_(factors.kept.dense())
        residual[index] = _norms(scale_by_power_of_two(difference, -exponent[index]).to(torch.float64))
    return residual


def _occupied(factors: Factors, residual: Tensor, asked: Tensor) -> Tensor:
    """Whether D̂_i is other than zero, (N,) bool, for the zero blocks that are ``asked`` for."""
    occupied = residual != 0
    for i in (asked & ~occupied).nonzero()[:, 0]:
        pair = factors.low_rank(i[None])
        occupied[i] = bool((pair.U.T.to(torch.float64) @ pair.V.to(torch.float64)).any())
    return occupied


def _of_images(blocks: Blocks, encoded: EncodedInput, exponent: Tensor) -> tuple[Tensor, Tensor]:
    """‖D_i − D̂_i‖_F, scaled by 2**(−e_i), and whether D̂_i is other than zero, from the decoded input."""
    source, decoded = as_images(blocks), encoded.decode()
    x, approximation = (
        scale_by_power_of_two(images.to(torch.float64), -exponent) for images in (source.images, decoded)
    )
    difference = x.sub_(approximation)
    top = source.like(difference).abs_max()  # divided out, or small squares would vanish
    norms = source.like(difference.div_(torch.where(top > 0, top, 1)[:, None, None, None])).squared_norm().sqrt()
    return top * norms, source.like(decoded).abs_max() > 0


def _of_blocks(blocks: Blocks, compressed: Compressed, exponent: Tensor) -> tuple[Tensor, Tensor]:
    """The same from D̂ itself, a part at a time."""
    g = compressed.groups
    residuals, occupied = [], []
    for part in torch.arange(len(blocks), device=blocks.device).split(max(1, _PART // g) * g):
        approximation = compressed.select(part).dense().to(torch.float64)
        occupied.append(approximation.flatten(1).any(1))
        difference = blocks.select(part).dense().to(torch.float64).sub_(approximation)
        residuals.append(_norms(scale_by_power_of_two(difference, -exponent[part])))
    return torch.cat(residuals), torch.cat(occupied)


_PART = 16
"""Blocks that are formed at a time."""


def _norms(difference: Tensor) -> Tensor:
    """Frobenius norms, (N,), whose squares may be out of range."""
    top = difference.abs().amax((1, 2))
    return top * torch.linalg.matrix_norm(difference / torch.where(top > 0, top, 1)[:, None, None])


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
