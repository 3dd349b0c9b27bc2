"""Modules that keep for the backward pass the least that their gradients need: bits, where PyTorch keeps numbers.

A ReLU keeps its output, which the next convolution keeps, too: compressing the convolution's copy frees nothing while
the ReLU holds its own. The gradient needs one bit an element. So does dropout's, where PyTorch keeps a mask of numbers
(on a CPU); and max pooling, which keeps its input and an int64 for each output, needs the maximum's place in its
window.

Outputs, gradients and the random numbers drawn are those of the plain modules, bit for bit; but where windows of a
pooling overlap, in half precisions, whose sums are rounded once here, and on CUDA, where they are summed in any order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lrbench.im2col import format_of
from lrbench.kernels.bits import Window, gated, pack_gate, pack_places, spread

__all__ = ["LeanModule", "lean", "lean_modules", "unlean"]

_Model = TypeVar("_Model", bound=nn.Module)


def lean(model: _Model) -> _Model:
    """Make ReLUs, dropouts and max poolings of a model keep bits, in place.

    Parameters
    ----------
    model : torch.nn.Module
        Any module. ``ReLU``, ``Dropout`` and ``MaxPool2d`` in it, and classes derived from them that compute as they
        do, are changed; module objects, parameters and ``state_dict`` keys stay as they are. Calls of functions such
        as ``torch.relu`` are not.

    Returns
    -------
    torch.nn.Module
        ``model``.

    Raises
    ------
    ValueError
        If the model is lean already.
    """
    if lean_modules(model):
        raise ValueError(f"the model is lean already ({', '.join(lean_modules(model))}): call lrbench.unlean first")
    for module in model.modules():
        for cls, compute in _COMPUTE.items():
            own = "forward" in vars(module)
            if isinstance(module, cls) and type(module).forward is cls.forward and not own:
                # In the instance's dictionary it comes before the class's method.
                vars(module)["forward"] = LeanModule(module, compute)
    return model


def unlean(model: _Model) -> _Model:
    """Make every module of a model plain again, in place, and return the model."""
    for module in lean_modules(model).values():
        del vars(module)["forward"]
    return model


def lean_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that keep bits, by name."""
    return {
        name: module for name, module in model.named_modules() if isinstance(vars(module).get("forward"), LeanModule)
    }


@dataclass(eq=False)
class LeanModule:
    """What a lean module calls in place of its class's ``forward``.

    Attributes
    ----------
    module : torch.nn.Module
        The module that it belongs to.
    compute : callable
        Given the module and its input, gives its output; None where the plain module keeps no more.
    """

    module: nn.Module
    compute: Callable[[Any, Tensor], Tensor | None]

    def __call__(self, input: Tensor) -> Tensor:
        """Compute what the module computes."""
        out = None
        if torch.is_grad_enabled() and input.requires_grad and input.dtype.is_floating_point and input.numel():
            out = _eager(self.compute, self.module, input)
        return cast(Tensor, type(self.module).forward(self.module, input) if out is None else out)


@torch.compiler.disable
def _eager(compute: Callable[[Any, Tensor], Tensor | None], module: nn.Module, x: Tensor) -> Tensor | None:
    return compute(module, x)


def _relu(module: nn.ReLU, x: Tensor) -> Tensor:
    return cast(Tensor, _ReLU.apply(x, module.inplace))


def _dropout(module: nn.Dropout, x: Tensor) -> Tensor | None:
    if not module.training or module.inplace or not 0 < module.p < 1:
        return None
    return cast(Tensor, _Dropout.apply(x, module.p))


def _max_pool(module: nn.MaxPool2d, x: Tensor) -> Tensor | None:
    if x.ndim != 4 or module.return_indices:
        return None
    window = cast(
        Window,
        tuple(
            tuple(value) if isinstance(value, tuple | list) else (value, value)
            for value in (module.kernel_size, module.stride, module.padding, module.dilation)
        ),
    )
    return cast(Tensor, _MaxPool.apply(x, window, module.ceil_mode))


_COMPUTE: dict[type[nn.Module], Callable[[Any, Tensor], Tensor | None]] = {
    nn.ReLU: _relu,
    nn.Dropout: _dropout,
    nn.MaxPool2d: _max_pool,
}


class _ReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        if inplace:
            ctx.mark_dirty(x)
            out = x.relu_()
        else:
            out = x.relu()
        ctx.format = format_of(out)
        ctx.save_for_backward(pack_gate(_line(out, ctx.format)))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (bits,) = ctx.saved_tensors
        return _shaped(gated(bits, _line(grad, ctx.format), 1.0), grad, ctx.format), None


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        if x.device.type == "cuda":  # where the plain module draws by another kernel
            out, mask = torch.native_dropout(x, p, True)
            noise = mask.to(x.dtype)
        else:
            noise = torch.empty_like(x).bernoulli_(1 - p)
        ctx.format = format_of(noise)
        ctx.save_for_backward(pack_gate(_line(noise, ctx.format)))
        # What the plain module multiplies by: on a CPU numbers of a mask, of its dtype, on CUDA a number beside it.
        ctx.scale = 1 / (1 - p) if x.device.type == "cuda" else float(torch.ones(1, dtype=x.dtype).div_(1 - p))
        # In the memory of the mask, which nobody needs any more.
        return out if x.device.type == "cuda" else noise.div_(1 - p).mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (bits,) = ctx.saved_tensors
        # Times zero, as the mask of numbers does it: infinity becomes NaN.
        return _shaped(gated(bits, _line(grad, ctx.format), ctx.scale, 0.0), grad, ctx.format), None


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Window, ceil_mode: bool) -> Tensor:
        kernel, stride, padding, dilation = window
        out, indices = F.max_pool2d_with_indices(x, kernel, stride, padding, dilation, ceil_mode)
        ctx.window, ctx.shape, ctx.format = window, x.shape, format_of(x)
        ctx.save_for_backward(pack_places(indices.flatten(0, 1), window, (x.shape[2], x.shape[3])))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        size = (ctx.shape[2], ctx.shape[3])
        spread_out = spread(places, grad.flatten(0, 1), ctx.window, size).view(ctx.shape)
        return spread_out.contiguous(memory_format=ctx.format), None, None


def _line(x: Tensor, order: torch.memory_format) -> Tensor:
    """All elements in an order, (numel,)."""
    x = x.contiguous(memory_format=order)
    return (x.permute(0, 2, 3, 1) if order == torch.channels_last else x).reshape(-1)


def _shaped(line: Tensor, like: Tensor, order: torch.memory_format) -> Tensor:
    """The inverse of :func:`_line`."""
    if order == torch.channels_last:
        N, C, H, W = like.shape
        return line.view(N, H, W, C).permute(0, 3, 1, 2)
    return line.view(like.shape)
