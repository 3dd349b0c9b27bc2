"""The layer's input, averaged over small patches."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lrbench.compressors import register
from lrbench.compressors.on_input import InputCompressor
from lrbench.encoded import Code


@dataclass(frozen=True)
class _Means(Code):
    """Means of patches, of ``patch`` = (height, width) pixels; at the lower and the right edge of what is left."""

    patch: tuple[int, int]
    means: Tensor

    def decode(self) -> Tensor:
        _, H, W = self.size
        images = self.means.repeat_interleave(self.patch[0], 2)[:, :, :H]
        return images.repeat_interleave(self.patch[1], 3)[:, :, :, :W]


@register("pool")
class PatchMeans(InputCompressor):
    """Replace each patch of x by the mean of what windows reach of it, channel by channel.

    The activations' half of gradient filtering (Y. Yang, G. Li and R. Marculescu, 2023), which keeps the patches' means
    for the backward pass; the output's gradient stays as it is here.

    Parameters
    ----------
    eps : float
        Accepted for the sake of the common interface, and ignored.
    patch : int
        Height and width of a patch, at least 1.
    """

    uses_eps = False
    version = 2

    def __init__(self, eps: float = 0.1, patch: int = 2) -> None:
        super().__init__(eps)
        if not isinstance(patch, int) or patch < 1:
            raise ValueError(f"patch is {patch!r}: use a whole number of at least 1")
        self.patch = patch

    def encode(self, images: Tensor, weights: Tensor) -> Code:
        """Average patches."""
        _, C, H, W = images.shape
        patch = (min(self.patch, H), min(self.patch, W))
        means = F.avg_pool2d(images, patch, ceil_mode=True, count_include_pad=False)
        reached = (weights > 0).to(images.dtype)[None, None]
        if not bool(reached.all()):
            # Where no window reaches there are zeros, which are no part of the mean.
            share = F.avg_pool2d(reached, patch, ceil_mode=True, count_include_pad=False)
            means = means / torch.where(share > 0, share, 1)
        return _Means((C, H, W), images.dtype, patch, means)
