"""Random test matrices, keyed by a seed and by each block's content, and by nothing else.

A block's matrix is a Gaussian one, drawn from a generator of its own by the seed, with the signs of its rows flipped by
a hash of the seed and the block's numbers.
"""

from functools import lru_cache

import torch
from torch import Tensor

from lrbench.blocks import Blocks
from lrbench.compressors.hashing import GOLDEN, content_keys, mixed

__all__ = ["gaussian", "signs", "sketching_matrices"]


@lru_cache(maxsize=16)
def gaussian(seed: int, columns: int, n: int) -> Tensor:
    """The test matrix that all blocks share, transposed: (columns, n) float64, on the CPU."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(columns, n, generator=generator, dtype=torch.float64, device="cpu")


def signs(blocks: Blocks, seed: int, n: int) -> Tensor:
    """Hashes of seed and content, whose bits are n signs for each block: (N, n / 64) int64."""
    keys = content_keys(blocks) + seed
    return mixed(keys[:, None] + torch.arange(-(-n // 64), device=keys.device) * GOLDEN)


def sketching_matrices(blocks: Blocks, seed: int, columns: int) -> Tensor:
    """Transposed Gaussian test matrices of the blocks' own, (N, columns, n) float64."""
    n = blocks.shape[2]
    words = signs(blocks, seed, n)
    bits = words[:, :, None] >> torch.arange(64, device=words.device)
    return gaussian(seed, columns, n).to(blocks.device) * ((bits & 1) * 2 - 1).flatten(1)[:, None, :n]
