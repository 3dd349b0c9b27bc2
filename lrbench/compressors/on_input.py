"""What the methods have in common that replace a layer's input x by an x̂; D̂ is the lowering of x̂."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from lrbench.blocks import Blocks, scale_by_power_of_two
from lrbench.compressors import base
from lrbench.compressors.base import Compressor, scale_exponents, without
from lrbench.encoded import Code, EncodedInput, as_images, lost_energy
from lrbench.factors import Origin
from lrbench.im2col import Im2col

__all__ = ["InputCompressor"]


class InputCompressor(Compressor, ABC):
    """A method that replaces images by a code of fewer bytes.

    A subclass gives :meth:`encode`; :meth:`compress` calls it with finite images, scaled by a power of two to a largest
    magnitude in (1/2, 1], and checks what the class promises: the error in D, from the images that are decoded from
    what is stored, in float64. With ``guarantee = "block"`` an image is stored as it is where the check fails or the
    code is larger than the image; with ``"batch"``, all images are. A plain block m x n counts as an image of m
    channels and one line, and with g groups each group's slice of an image is an image of its own.

    Parameters
    ----------
    eps : float
        Requested relative Frobenius error, in (0, 1].
    """

    on_input = True
    low_rank = False
    forms_blocks = False
    rescales: ClassVar[bool] = True
    """Whether images are scaled; if ``pooled``, all by one power of two."""

    def __init__(self, eps: float = 0.1) -> None:
        super().__init__(eps)

    @abstractmethod
    def encode(self, images: Tensor, weights: Tensor) -> Code:
        """Replace images by a code.

        Parameters
        ----------
        images : Tensor
            (N, C, H, W), N >= 1, finite, float32 or float64, contiguous; 0 where no window reaches. It must be left
            as it is.
        weights : Tensor
            (H, W) float64: how often each pixel occurs in a block, so that ‖D − D̂‖_F² = Σ_p w_p (x_p − x̂_p)².
        """

    def _represent(self, blocks: Blocks, magnitude: Tensor, bad: Tensor | None) -> EncodedInput:
        """Scale, encode and check finite images."""
        source = as_images(blocks)
        if bad is not None:
            magnitude = torch.where(bad, magnitude.new_zeros(()), magnitude)
        exponent = scale_exponents(magnitude.max().expand(len(magnitude)) if self.pooled else magnitude)
        if not self.rescales:
            exponent = torch.zeros_like(exponent)
        finite = source if bad is None else without(source, bad)
        limit = base.WORKSPACE_BYTES.get(source.device.type, 1 << 30)
        step = len(source) if self.pooled else max(1, limit // (_SCRATCH * source.images[0].numel()))
        codes, failed = [], []
        for start in range(0, len(source), step):
            part = slice(start, start + step)
            code, broken = self._checked(finite.select(part), exponent[part])
            codes.append(code)
            failed.append(broken)
        origin = torch.full((len(source),), int(Origin.OWN), dtype=torch.uint8, device=source.device)
        scale = exponent.to(torch.int16) if self.rescales else None
        encoded = EncodedInput(codes[0].joined(codes[1:]), source.geometry, origin, scale)
        stored = torch.cat(failed) if bad is None else torch.cat(failed) | bad
        return _with_stored(encoded, source, stored) if bool(stored.any()) else encoded

    def _represent_nothing(self, blocks: Blocks) -> EncodedInput:
        source = as_images(blocks)
        one = source.like(source.images.new_zeros(1, *source.images.shape[1:]))
        return self._represent(one, one.abs_max(), None).select(torch.arange(0))

    def _prepared(self, source: Im2col, weights: Tensor, exponent: Tensor) -> Tensor:
        """Images as :meth:`encode` is to see them."""
        images, reached = source.images, weights > 0
        if not bool(reached.all()):
            images = torch.where(reached, images, images.new_zeros(()))
        return (scale_by_power_of_two(images, -exponent) if bool(exponent.any()) else images).contiguous()

    def _checked(self, source: Im2col, exponent: Tensor) -> tuple[Code, Tensor]:
        """A code, and which images, (N,) bool, do not keep the promise or are smaller than theirs."""
        weights = source.multiplicity()
        code = self.encode(self._prepared(source, weights, exponent), weights)
        if self.guarantee is None:
            return code, torch.zeros(len(source), dtype=torch.bool, device=source.device)
        decoded = scale_by_power_of_two(code.decode(), exponent)
        lost = lost_energy(source, decoded, exponent)
        energy = lost_energy(source, torch.zeros_like(decoded), exponent)
        image_bytes = source.images[0].numel() * source.images.itemsize
        if self.guarantee == "block":
            return code, ~(lost <= self.eps**2 * energy) | (code.sizes() > image_bytes)
        held = sum(tensor.numel() * tensor.itemsize for tensor in code.tensors())
        kept = bool(lost.sum() <= self.eps**2 * energy.sum()) and held <= image_bytes * len(source)
        return code, torch.full((len(source),), not kept, dtype=torch.bool, device=source.device)


_SCRATCH = 64
"""Bytes of scratch for a number of an image, about: images are encoded a bounded slice at a time."""


def _with_stored(encoded: EncodedInput, source: Im2col, stored: Tensor) -> EncodedInput:
    """Put copies of some images in the place of their codes."""
    index = stored.nonzero()[:, 0]
    code = encoded.code.select((~stored).nonzero()[:, 0])
    origin, exponent = encoded.origin.clone(), encoded.exponent
    origin[index] = int(Origin.STORED)
    return EncodedInput(code, encoded.geometry, origin, exponent, index, source.images[index].contiguous())
