"""The largest numbers of the layer's input, and where they are."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
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
    places : Tensor
        (N, ⌈C·H·W / 8⌉) uint8: a bit for each number of an image, the lowest bit first, 1 where it is kept. Beside an
        index of 2 bytes that is less as soon as one in 16 is kept, and never more than a 32nd of single precision.
    values : Tensor
        (Σ counts,), of the images' dtype.
    """

    places: Tensor
    values: Tensor
    ragged = ("values",)

    @property
    def counts(self) -> Tensor:
        """How many numbers are each image's, (N,) int64."""
        # Place by place in the bytes: PyTorch widens to int64 what it sums. Those behind the last number are zero.
        return torch.stack([(self.places >> place & 1).sum(1) for place in range(8)]).sum(0)

    def decode(self) -> Tensor:
        kept = self._kept()
        return self.values.new_zeros(kept.shape).masked_scatter_(kept, self.values).unflatten(1, self.size)

    def _kept(self) -> Tensor:
        C, H, W = self.size
        shifts = torch.arange(8, dtype=torch.uint8, device=self.places.device)
        return (self.places[:, :, None] >> shifts & 1).flatten(1)[:, : C * H * W].bool()


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
    version = 2

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
        shifts = torch.arange(8, dtype=torch.uint8, device=images.device)
        bits = F.pad(mask, (0, -mask.shape[1] % 8)).unflatten(1, (-1, 8))
        places = (bits.to(torch.uint8) << shifts).sum(2, dtype=torch.uint8)
        return _Sparse((C, H, W), images.dtype, places, images.flatten(1)[mask])
