"""The layer's input itself: what PyTorch's own convolution keeps for the backward pass."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lrbench.blocks import Blocks
from lrbench.compressors import register
from lrbench.compressors.on_input import InputCompressor
from lrbench.encoded import Code, EncodedInput, as_images
from lrbench.factors import Origin


@dataclass(frozen=True)
class _Reference(Code):
    """The images, in the dtype that they came in."""

    images: Tensor

    def decode(self) -> Tensor:
        return self.images.to(self.dtype)


@register("input")
class LayerInput(InputCompressor):
    """Keep x by reference, and lower it again whenever D is needed: error 0, and no bytes beside those of x.

    But where :class:`lrbench.Im2col` has to copy x, that copy is kept.

    Parameters
    ----------
    eps : float
        Accepted for the sake of the common interface, and ignored.
    """

    guarantee = "block"
    uses_eps = False
    rescales = False

    def encode(self, images: Tensor, weights: Tensor) -> Code:
        """Refer to the images."""
        _, C, H, W = images.shape
        return _Reference((C, H, W), torch.promote_types(images.dtype, torch.float32), images)

    def _lifted(self, blocks: Blocks) -> Blocks:
        return blocks  # a copy in float32 would be twice as large as what PyTorch keeps

    def _represent(self, blocks: Blocks, magnitude: Tensor, bad: Tensor | None) -> EncodedInput:
        source = as_images(blocks)
        code = self.encode(source.images, source.multiplicity())
        origin = torch.full((len(source),), int(Origin.OWN), dtype=torch.uint8, device=source.device)
        if bad is not None:
            origin[bad] = int(Origin.STORED)
        return EncodedInput(code, source.geometry, origin)
