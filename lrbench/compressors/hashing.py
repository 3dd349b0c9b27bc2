"""Random numbers that depend on a seed and on what a block holds, and on nothing else."""

import torch
from torch import Tensor

from lrbench.blocks import Blocks
from lrbench.kernels.kernel_blocks import KernelBlocks

__all__ = ["GOLDEN", "content_keys", "mixed", "uniform"]

GOLDEN = -7046029254386353131
"""2**64 divided by the golden ratio, as an int64."""


def mixed(keys: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (G. L. Steele, D. Lea and C. H. Flood, 2014), on int64 with wrap-around."""
    keys = (keys ^ _shifted(keys, 30)) * -4658895280553007687
    keys = (keys ^ _shifted(keys, 27)) * -7723592293110705685
    return keys ^ _shifted(keys, 31)


def content_keys(blocks: Blocks) -> Tensor:
    """A hash of each block's numbers, (N,) int64; −0.0 and 0.0 are one number."""
    view = KernelBlocks.of(blocks)
    if view is not None:
        return mixed(view.keys(_weights(view.images[0].size, blocks.device)))
    numbers = blocks.tensor.flatten(1) + 0.0
    bits = numbers.contiguous().view(torch.int64 if numbers.dtype == torch.float64 else torch.int32).to(torch.int64)
    return mixed((bits * _weights(bits.shape[1], bits.device)).sum(1))


def uniform(keys: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Numbers in [0, 1), multiples of 2⁻²⁴, by key: (N,) int64 -> (N, count).

    Number t of key k is the upper half of a_k h_t + b_k modulo 2**64, of which any two are independent (M.
    Dietzfelbinger, 1996) unless their places have one h_t, as a pair in 2³² has; a_k and b_k are hashes of the key, h_t
    of the place.
    """
    places = _shifted(mixed(torch.arange(1, count + 1, device=keys.device) * GOLDEN), 32)
    words = mixed(keys)[:, None] * places
    words += mixed(keys + GOLDEN)[:, None]
    return (words >> 40).bitwise_and_((1 << 24) - 1).to(dtype).mul_(2.0**-24)


def _shifted(keys: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's is arithmetic."""
    return (keys >> bits) & ((1 << (64 - bits)) - 1)


def _weights(count: int, device: torch.device) -> Tensor:
    return mixed(torch.arange(count, device=device)) | 1
