"""The largest numbers of the layer's input, and where they are."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lrbench.compressors import register
from lrbench.compressors.on_input import InputCompressor
from lrbench.compressors.spectral import INSIDE
from lrbench.encoded import Code


@dataclass(frozen=True)
class _Sparse(Code):
    """The numbers that are not dropped.

    Attributes
    ----------
    counts : Tensor
        (N,) int64: how many are each image's.
    places : Tensor
        (Σ counts,) int16 or int32: where each is in its image, ascending.
    values : Tensor
        (Σ counts,), of the images' dtype.
    """

    counts: Tensor
    places: Tensor
    values: Tensor
    ragged = ("places", "values")

    def decode(self) -> Tensor:
        C, H, W = self.size
        images = self.values.new_zeros(len(self.counts), C * H * W)
        owner = torch.arange(len(self.counts), device=images.device).repeat_interleave(self.counts)
        images[owner, self.places.to(torch.int64)] = self.values
        return images.unflatten(1, (C, H, W))


@register("topk")
class LargestEntries(InputCompressor):
    """Keep the fewest numbers of x that keep the tolerance, and take all others for zero.

    Dropping the smaller activations, for the backward pass, is DropIT (J. Chen, K. Xu, Y. Wang, Y. Cheng and A. Yao,
    2023); here a number counts with w_p x_p², its share of ‖D‖², and how many are kept follows from the tolerance, for
    each image by itself.

    Parameters
    ----------
    eps : float
        Requested relative Frobenius error, in (0, 1].
    """

    guarantee = "block"

    def encode(self, images: Tensor, weights: Tensor) -> Code:
        """Drop what adds up to less than the tolerance, the smallest first."""
        _, C, H, W = images.shape
        energies = images.to(torch.float64).square().mul_(weights).flatten(1)
        ascending, order = energies.sort(dim=1, stable=True)
        lost = ascending.cumsum_(1)
        allowed = 1.0 if self.eps == 1 else (INSIDE * self.eps) ** 2
        dropped = (lost <= allowed * lost[:, -1:]).sum(1)
        kept = torch.arange(C * H * W, device=images.device) >= dropped[:, None]
        mask = torch.empty_like(kept).scatter_(1, order, kept)
        index = torch.int16 if C * H * W <= torch.iinfo(torch.int16).max else torch.int32
        places = mask.nonzero()[:, 1].to(index)
        return _Sparse((C, H, W), images.dtype, C * H * W - dropped, places, images.flatten(1)[mask])
