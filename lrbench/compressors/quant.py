"""The layer's input in a few bits a number, rounded at random so that each is right on average."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lrbench.blocks import DenseBlocks
from lrbench.compressors import register
from lrbench.compressors.hashing import content_keys, uniform
from lrbench.compressors.on_input import InputCompressor
from lrbench.encoded import Code

GROUP = 256
"""Numbers that have a smallest value and a step in common, as in ActNN."""


@dataclass(frozen=True)
class _Levels(Code):
    """Levels q, packed into bytes, and for each group of numbers its smallest value and its step: x̂ = least + q·step.

    Attributes
    ----------
    bits : int
        Of a level: 8, 4 or 2.
    packed : Tensor
        (N, C·H·W·bits / 8, rounded up) uint8; of a byte the lowest bits come first.
    least, steps : Tensor
        (N, groups) bfloat16.
    """

    bits: int
    packed: Tensor
    least: Tensor
    steps: Tensor

    def decode(self) -> Tensor:
        C, H, W = self.size
        q = torch.stack([self.packed >> shift for shift in range(0, 8, self.bits)], 2) if self.bits < 8 else self.packed
        q = q.flatten(1).bitwise_and((1 << self.bits) - 1)[:, : C * H * W].to(self.dtype)
        return _affine(q, self.least, self.steps).unflatten(1, (C, H, W))


class Quantised(InputCompressor):
    """Keep x in levels of a few bits, in groups of 256 numbers, with stochastic rounding.

    The per-group quantisation of ActNN (J. Chen, L. Zheng, Z. Yao, D. Wang, I. Stoica, M. W. Mahoney and J. E.
    Gonzalez, 2021, section 3.2): x̂ = least + step·⌊(x − least) / step + u⌋ with u uniform in [0, 1), so that x̂ is x
    on average. Groups are cut from each image as it lies in memory; the smallest value and the step are kept in
    bfloat16, the former rounded down and the latter up. The u follow from ``seed`` and the image alone.

    Parameters
    ----------
    eps : float
        Accepted for the sake of the common interface, and ignored.
    seed : int
        Of the rounding, at least 0.
    """

    uses_eps = False
    randomized = True
    bits: ClassVar[int]

    def __init__(self, eps: float = 0.1, seed: int = 0) -> None:
        super().__init__(eps)
        if not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed is {seed!r}: use a whole number of at least 0")
        self.seed = seed

    def encode(self, images: Tensor, weights: Tensor) -> Code:
        """Round the images to levels at random."""
        _, C, H, W = images.shape
        numbers, top = images.flatten(1), (1 << self.bits) - 1
        # A last group that is not full is filled up with its last number.
        short = -numbers.shape[1] % min(GROUP, numbers.shape[1])
        filled = torch.cat([numbers, numbers[:, -1:].expand(-1, short)], 1) if short else numbers
        low, high = filled.unflatten(1, (-1, min(GROUP, numbers.shape[1]))).aminmax(dim=2)
        least = _rounded(low, -torch.inf)
        steps = _rounded((high - least.to(images.dtype)) / top, torch.inf)
        spread = _spread(steps.to(images.dtype), numbers.shape[1])
        q = (numbers - _spread(least.to(images.dtype), numbers.shape[1])).div_(torch.where(spread > 0, spread, 1))
        keys = content_keys(DenseBlocks(numbers[:, :, None])) + self.seed
        q = q.add_(uniform(keys, numbers.shape[1], images.dtype)).floor_().clamp_(0, top).to(torch.uint8)
        return _Levels((C, H, W), images.dtype, self.bits, _packed(q, self.bits), least, steps)


@register("quant8")
class Quantised8(Quantised):
    """Keep x in eight bits a number, stochastically rounded."""

    bits = 8


@register("quant4")
class Quantised4(Quantised):
    """Keep x in four bits a number, stochastically rounded."""

    bits = 4


@register("quant2")
class Quantised2(Quantised):
    """Keep x in two bits a number, stochastically rounded."""

    bits = 2


def _rounded(values: Tensor, towards: float) -> Tensor:
    """Values in bfloat16, none on the other side of its own."""
    rounded = values.to(torch.bfloat16)
    wrong = rounded.to(values.dtype) > values if towards < 0 else rounded.to(values.dtype) < values
    return torch.where(wrong, torch.nextafter(rounded, torch.full_like(rounded, towards)), rounded)


def _spread(per_group: Tensor, count: int) -> Tensor:
    """A group's value for each of its numbers: (N, groups) -> (N, count)."""
    return per_group.repeat_interleave(min(GROUP, count), 1)[:, :count]


def _affine(q: Tensor, least: Tensor, steps: Tensor) -> Tensor:
    """Least + q·step, in the dtype and the memory of q."""
    count = q.shape[1]
    return q.mul_(_spread(steps.to(q.dtype), count)).add_(_spread(least.to(q.dtype), count))


def _packed(q: Tensor, bits: int) -> Tensor:
    """Levels side by side in bytes: (N, count) uint8 -> (N, count·bits / 8, rounded up)."""
    each = 8 // bits
    q = torch.nn.functional.pad(q, (0, -q.shape[1] % each)).unflatten(1, (-1, each))
    packed = q[:, :, 0].clone()
    for place in range(1, each):
        packed |= q[:, :, place] << (place * bits)
    return packed
