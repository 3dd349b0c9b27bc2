"""Random test matrices, keyed by a seed and by each block's content, and by nothing else.

A block's matrix is a Gaussian one, drawn from a generator of its own by the seed, with the signs of its rows flipped by
a hash of the seed and the block's numbers.
"""

from functools import lru_cache

import torch
from torch import Tensor

from lrbench.blocks import Blocks
from lrbench.kernels.kernel_blocks import KernelBlocks

__all__ = ["gaussian", "signs", "sketching_matrices"]


@lru_cache(maxsize=16)
def gaussian(seed: int, columns: int, n: int) -> Tensor:
    """The test matrix that all blocks share, transposed: (columns, n) float64, on the CPU."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(columns, n, generator=generator, dtype=torch.float64, device="cpu")


def signs(blocks: Blocks, seed: int, n: int) -> Tensor:
    """Hashes of seed and content, whose bits are n signs for each block: (N, n / 64) int64."""
    keys = _content_keys(blocks) + seed
    return _mixed(keys[:, None] + torch.arange(-(-n // 64), device=keys.device) * _GOLDEN)


def sketching_matrices(blocks: Blocks, seed: int, columns: int) -> Tensor:
    """Transposed Gaussian test matrices of the blocks' own, (N, columns, n) float64; more columns begin with these."""
    n = blocks.shape[2]
    words = signs(blocks, seed, n)
    bits = words[:, :, None] >> torch.arange(64, device=words.device)
    return gaussian(seed, columns, n).to(blocks.device) * ((bits & 1) * 2 - 1).flatten(1)[:, None, :n]


_GOLDEN = -7046029254386353131  # 2**64 divided by the golden ratio, as an int64


def _mixed(keys: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (G. L. Steele, D. Lea and C. H. Flood, 2014), on int64 with wrap-around."""
    keys = (keys ^ _shifted(keys, 30)) * -4658895280553007687
    keys = (keys ^ _shifted(keys, 27)) * -7723592293110705685
    return keys ^ _shifted(keys, 31)


def _shifted(keys: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's is arithmetic."""
    return (keys >> bits) & ((1 << (64 - bits)) - 1)


def _content_keys(blocks: Blocks) -> Tensor:
    """A hash of each block's numbers, (N,) int64."""
    view = KernelBlocks.of(blocks)
    if view is not None:
        return _mixed(view.keys(_weights(view.images[0].size, blocks.device)))
    numbers = blocks.tensor.flatten(1) + 0.0  # −0.0 and 0.0 are one number
    bits = numbers.contiguous().view(torch.int64 if numbers.dtype == torch.float64 else torch.int32).to(torch.int64)
    return _mixed((bits * _weights(bits.shape[1], bits.device)).sum(1))


def _weights(count: int, device: torch.device) -> Tensor:
    return _mixed(torch.arange(count, device=device)) | 1
