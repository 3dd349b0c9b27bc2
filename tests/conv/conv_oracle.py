"""The native convolution, and what a wrapped one is held against."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrbench import Factors, compressed_layers
from lrbench.compressors.svd import TruncatedSVD
from lrbench.conv import CompressedConvolution

CHANNELS = (4, 8)

# (kernel, stride, padding, dilation, groups, padding mode, bias, layout of x): every pair of values occurs.
_ROWS: list[tuple[Any, ...]] = [
    ((3, 5), (2, 1), 0, 2, 1, "circular", False, "channels_last"),
    (1, 1, (2, 1), (1, 2), 2, "zeros", True, "channels_last"),
    (3, 1, "same", 1, 4, "replicate", False, "contiguous"),
    ((2, 2), 2, "valid", (1, 2), 1, "replicate", True, "sliced"),
    ((2, 2), (2, 1), 1, 2, 4, "reflect", True, "unbatched"),
    (3, 2, "valid", 1, 2, "zeros", False, "unbatched"),
    (3, (2, 1), (2, 1), 1, 1, "reflect", False, "sliced"),
    (1, 2, 0, 1, 4, "circular", True, "contiguous"),
    (1, 1, 1, (1, 2), 1, "circular", False, "unbatched"),
    ((3, 5), 1, "valid", 2, 2, "reflect", True, "contiguous"),
    ((3, 5), 2, 1, 1, 4, "replicate", False, "channels_last"),
    ((2, 2), 1, 0, (1, 2), 2, "zeros", False, "sliced"),
    (1, (2, 1), (2, 1), 2, 4, "replicate", False, "sliced"),
    (3, (2, 1), 1, (1, 2), 1, "zeros", False, "contiguous"),
    ((2, 2), 1, "same", 2, 2, "circular", True, "channels_last"),
    ((3, 5), 1, "same", (1, 2), 4, "zeros", False, "sliced"),
    (1, 2, "valid", 2, 4, "reflect", False, "channels_last"),
    ((3, 5), 2, (2, 1), 1, 2, "replicate", False, "unbatched"),
    (3, (2, 1), "valid", 2, 2, "circular", True, "channels_last"),
    ((2, 2), (2, 1), (2, 1), 1, 2, "circular", True, "contiguous"),
    ((3, 5), 2, 1, 1, 2, "circular", False, "sliced"),
    (3, (2, 1), 0, (1, 2), 1, "replicate", True, "unbatched"),
    (1, 1, "same", (1, 2), 2, "reflect", False, "channels_last"),
    (3, 1, "same", 2, 1, "zeros", False, "unbatched"),
    (3, 2, 0, 2, 4, "reflect", False, "sliced"),
]
# An even kernel under `same` is framed by unequal sides.
_ROWS += [((2, 2), 1, "same", 1, 1, mode, True, "contiguous") for mode in ("zeros", "reflect", "replicate")]


class Case(NamedTuple):
    """A convolution's arguments and its input's layout."""

    options: dict[str, Any]
    layout: str

    def __str__(self) -> str:
        return "-".join(str(value).replace(" ", "") for value in (*self.options.values(), self.layout))

    def layer(self, dtype: torch.dtype = torch.float64) -> nn.Conv2d:
        torch.manual_seed(0)
        return nn.Conv2d(*CHANNELS, **self.options, dtype=dtype)

    def images(self, dtype: torch.dtype = torch.float64) -> Tensor:
        x = smooth_images(3, CHANNELS[0], 9, 12, dtype=dtype)
        if self.layout == "channels_last":
            return x.contiguous(memory_format=torch.channels_last)
        if self.layout == "unbatched":
            return x[1]
        if self.layout == "sliced":
            return x.repeat_interleave(2, dim=3)[..., ::2].flip(0)[:2]
        return x


NAMES = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "bias")
CASES = [Case(dict(zip(NAMES, row[:-1], strict=True)), row[-1]) for row in _ROWS]
FEW_CASES = [
    Case({"kernel_size": 3, "padding": 1}, "contiguous"),
    Case({"kernel_size": 3, "padding": (2, 1), "groups": 2, "padding_mode": "reflect"}, "unbatched"),
    Case({"kernel_size": (3, 5), "padding": "same", "groups": 4, "padding_mode": "replicate"}, "sliced"),
    Case(
        {"kernel_size": 3, "stride": (2, 1), "dilation": 2, "padding": 2, "padding_mode": "circular"}, "channels_last"
    ),
]


def smooth_images(N: int, C: int, H: int, W: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random images that low rank suits: their blocks are neither exact nor stored at eps 0.3."""
    coarse = torch.randn(N, C, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.interpolate(coarse, size=(H, W), mode="bicubic").to(dtype).contiguous()


class Outcome(NamedTuple):
    """A layer's output and gradients; of its bias None where it has none."""

    output: Tensor
    x: Tensor
    weight: Tensor
    bias: Tensor | None


def output_gradient(output: Tensor) -> Tensor:
    """A gradient with no structure, the same for equal shapes."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype)


def outcome(layer: nn.Module, x: Tensor, forward: Callable[[Tensor], Tensor] | None = None) -> Outcome:
    """Run a convolution (by ``forward`` if given) there and back; its parameters keep no gradient."""
    x = x.detach().requires_grad_()
    output = (forward or layer)(x)
    wanted = [x, *(p for p in (layer.weight, layer.bias) if p is not None)]
    grads = torch.autograd.grad(output, wanted, output_gradient(output))
    return Outcome(output.detach(), *grads, *([None] if layer.bias is None else []))


def native(layer: nn.Module) -> nn.Module:
    """The same layer without compression; its `forward` is PyTorch's own."""
    plain = copy.deepcopy(layer)
    vars(plain).pop("_conv_forward", None)
    return plain


def layer_of(model: nn.Module, name: str = "") -> CompressedConvolution:
    return compressed_layers(model)[name]


class Counting(TruncatedSVD):
    """The truncated SVD, which counts its calls."""

    def __init__(self, eps: float = 0.3) -> None:
        super().__init__(eps)
        self.calls = 0

    def compress(self, blocks: Any, **options: Any) -> Factors:
        self.calls += 1
        return super().compress(blocks, **options)
