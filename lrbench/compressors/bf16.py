"""The layer's input in half the bits."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lrbench.compressors import register
from lrbench.compressors.on_input import InputCompressor
from lrbench.encoded import Code


@dataclass(frozen=True)
class _Halves(Code):
    """Images in bfloat16."""

    images: Tensor

    def decode(self) -> Tensor:
        return self.images.to(self.dtype)


@register("bf16")
class HalfPrecision(InputCompressor):
    """Keep x in bfloat16: 8 significant bits of each number, rounded to nearest.

    Parameters
    ----------
    eps : float
        Accepted for the sake of the common interface, and ignored: the relative error of each number is at most 2⁻⁸,
        if it is not subnormal.
    """

    uses_eps = False

    def encode(self, images: Tensor, weights: Tensor) -> Code:
        """Round the images."""
        _, C, H, W = images.shape
        return _Halves((C, H, W), images.dtype, images.to(torch.bfloat16))
