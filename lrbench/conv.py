"""The compressed convolution, and putting it into a model and out again.

A wrapped layer stays the ``torch.nn.Conv2d`` that it was, with its class, parameters, buffers and hooks; only what it
calls to convolve is another. Compression is straight-through: nothing is differentiated through a compressor, and the
input's gradient is Wᵀ·G, lifted back, on every path.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lrbench.bit_modules import lean, unlean
from lrbench.checkpointing import checkpointed, uncheckpointed
from lrbench.compressed import Compressed, full_precision
from lrbench.compressors import Compressor, get_compressor
from lrbench.im2col import Geometry, Im2col, format_of
from lrbench.policy import Policy

__all__ = [
    *("PATHS", "CompressedConvolution", "compressed_layers", "convolutions"),
    *("masked_layers", "plain_copy", "unwrap", "wrap"),
]

Path = Literal["forward", "backward", "both"]
PATHS: tuple[Path, ...] = ("forward", "backward", "both")
_Model = TypeVar("_Model", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Given:
    """What stands for a layer's input before the layer has met it.

    Attributes
    ----------
    compressed : Compressed
    belongs_to : callable
        Whether that is of an input, (N, C, H, W).
    """

    compressed: Compressed
    belongs_to: Callable[[Tensor], bool]


@dataclass(eq=False)
class CompressedConvolution:
    """What a wrapped layer calls to convolve.

    Attributes
    ----------
    conv : torch.nn.Conv2d
        The layer that it belongs to.
    compressor : Compressor
        The layer's own instance.
    path : {"forward", "backward", "both"}
        Where D̂ takes the place of D: in the product W·D, in the weight's gradient G·Dᵀ, or in both.
    exact_eval : bool
        Whether the layer convolves exactly while ``conv.training`` is False.
    given : Given or None
        What stands for the next input, where it is known already: see :class:`lrbench.KeptInput`.
    """

    conv: nn.Conv2d
    compressor: Compressor
    path: Path
    exact_eval: bool = False
    given: Given | None = None

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve (N, C, H, W) or (C, H, W), as ``Conv2d._conv_forward`` does."""
        exact = self.exact_eval and not self.conv.training
        # What the native convolution refuses, it refuses in its own words.
        refused = x.ndim not in (3, 4) or x.shape[-3] != weight.shape[1] * self.conv.groups
        if exact or refused or not x.dtype.is_floating_point:
            return type(self.conv)._conv_forward(self.conv, x, weight, bias)
        return _convolve(self, x, weight, bias)

    def compress(self, blocks: Im2col) -> Compressed:
        """What the layer's compressor makes of its input; what evaluation meets leaves no trace in training.

        Raises
        ------
        RuntimeError
            If a compressor with a state is called again in a backward pass.
        """
        if self.given is not None:
            return self.given.compressed
        # There is no public word for it; torch's own checkpointing asks in this way.
        if self.compressor.stateful and self.conv.training and torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                f"{self.compressor!r} keeps what it saw, so that its forward pass cannot be computed again as "
                "checkpointing does in the backward pass: leave this layer out of what is checkpointed"
            )
        compressor = self.compressor if self.conv.training else copy.deepcopy(self.compressor)
        if not compressor.on_input:
            # Kernels read images line by line, and products are wanted row by row: they are put in order once.
            blocks = blocks.like(blocks.tensor.contiguous())
        return compressor.compress(blocks)


@torch.compiler.disable
def _convolve(layer: CompressedConvolution, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    images = x if x.ndim == 4 else x.unsqueeze(0)
    if layer.given is not None and not layer.given.belongs_to(images):
        raise ValueError(
            f"factors were kept of images other than the layer's input, {tuple(x.shape)}: give the batch that the "
            "factors are of to a model that calls this layer once, on the images themselves"
        )
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        images, weight = _autocast(images, dtype), _autocast(weight, dtype)
        bias = None if bias is None else _autocast(bias, dtype)
    if weight.dtype != images.dtype or (bias is not None and bias.dtype != images.dtype):
        raise RuntimeError(
            f"input is {images.dtype}, weight {weight.dtype}"
            + ("" if bias is None else f" and bias {bias.dtype}")
            + ": a convolution needs all of one dtype"
        )
    geometry = Geometry.of(layer.conv)
    with full_precision(device):
        out = _Convolution.apply(images, weight, bias, geometry, layer, torch.is_grad_enabled())
    # What a function returns must not be a view, or the next layer could not work in place.
    size = geometry.output_size((x.shape[-2], x.shape[-1]))
    if layer.path != "backward":
        out = out.view(len(images), weight.shape[0], *size)
        if _last(images, weight):
            # As the native convolution has it, or dropout behind it would meet its numbers in another order.
            out = out.contiguous(memory_format=torch.channels_last)
    return cast(Tensor, out if x.ndim == 4 else out.squeeze(0))


def _last(images: Tensor, weight: Tensor) -> bool:
    """Whether channels are to lie side by side in memory in what comes of images and a weight."""
    return torch.channels_last in (format_of(images), format_of(weight))


def _autocast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast as autocast does: float64 is left alone."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)


class _Convolution(torch.autograd.Function):
    """W·D + b with D̂ in place of D where the path says so, keeping for backward only what is asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        layer: CompressedConvolution,
        graph: bool,
    ) -> Tensor:
        path = layer.path
        needs_x, needs_weight = (graph and needed for needed in ctx.needs_input_grad[:2])
        kept = None
        if path != "backward" or needs_weight:
            kept = layer.compress(Im2col.of(x, geometry))
        if path == "backward" or kept is None:
            out = geometry.convolve(x, weight, bias)
        else:
            added = None if bias is None else bias.to(kept.dtype)
            out = kept.matmul(weight.flatten(1).to(kept.dtype), added, _last(x, weight)).to(x.dtype)
        saved = [weight] if needs_x else []
        if needs_weight and path == "forward":
            saved.append(x)
        elif needs_weight and kept is not None:
            saved += kept.tensors()
            ctx.layout = kept.layout
        ctx.save_for_backward(*saved)
        ctx.geometry, ctx.path = geometry, path
        ctx.x_shape, ctx.weight_shape, ctx.dtype = x.shape, weight.shape, x.dtype
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            # A gradient that does not require one would hide from the guard that this step cannot be differentiated.
            grad = grad.detach().requires_grad_()
        with full_precision(grad.device.type):
            return _gradients(ctx, grad)


@once_differentiable
def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    saved = list(ctx.saved_tensors)
    grad_x = grad_weight = grad_bias = None
    K = ctx.weight_shape[0]
    grad = grad.reshape(ctx.x_shape[0], K, *ctx.geometry.output_size(ctx.x_shape[2:]))
    if needs_x:
        grad_x = ctx.geometry.grad_input(grad, saved.pop(0), ctx.x_shape)
    if needs_weight and ctx.path == "forward":
        grad_weight = ctx.geometry.grad_weight(grad, saved[0], ctx.weight_shape)
    elif needs_weight:
        kept = ctx.layout.restore(tuple(saved))
        blocks_grad = grad.reshape(kept.shape[0], K // kept.groups, kept.shape[2]).to(kept.dtype)
        if needs_bias:
            grad_weight, grad_bias = kept.gradients(blocks_grad)
            grad_bias = grad_bias.to(ctx.dtype)
        else:
            grad_weight = kept.grad_weight(blocks_grad)
        grad_weight = grad_weight.view(ctx.weight_shape).to(ctx.dtype)
    if needs_bias and grad_bias is None:
        grad_bias = grad.sum((0, 2, 3))
    return grad_x, grad_weight, grad_bias, None, None, None


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The model's convolutions by name, in the order of a mask's bits; a module that is used twice is one."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


def compressed_layers(model: nn.Module) -> dict[str, CompressedConvolution]:
    """The wrapped convolutions of a model, by name."""
    layers = {name: vars(conv).get("_conv_forward") for name, conv in convolutions(model).items()}
    return {name: layer for name, layer in layers.items() if isinstance(layer, CompressedConvolution)}


def masked_layers(model: nn.Module, mask: str | Sequence[str]) -> list[str]:
    """Names of the convolutions that a mask selects, input side first.

    Parameters
    ----------
    model
        Any module.
    mask
        A bit for each convolution, such as ``"101010"``; or a name, or a glob pattern, or a list of these.

    Raises
    ------
    ValueError
        If there is not one bit, 0 or 1, for each convolution, or a pattern matches none of them.
    """
    names = list(convolutions(model))
    shown = ", ".join(name or "the model itself" for name in names) or "none"
    if isinstance(mask, str) and len(mask) == len(names) and not set(mask) - {"0", "1"}:
        return [name for name, bit in zip(names, mask, strict=True) if bit == "1"]
    if isinstance(mask, str) and mask.isdigit() and mask not in names:
        raise ValueError(f"mask is {mask!r}: it must have {len(names)} bits, 0 or 1, for the convolutions {shown}")
    patterns = [mask] if isinstance(mask, str) else list(mask)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(f"mask is {mask!r}: give a string of bits, or names or patterns of the convolutions {shown}")
    chosen: set[str] = set()
    for pattern in patterns:
        matches = [name for name in names if fnmatchcase(name, pattern)]
        if not matches:
            raise ValueError(f"mask has {pattern!r}, which matches no convolution: there are {shown}")
        chosen.update(matches)
    return [name for name in names if name in chosen]


def wrap(
    model: _Model,
    mask: str | Sequence[str] | Policy,
    compressor: str | Compressor = "svd",
    eps: float | None = None,
    path: Path = "both",
    exact_eval: bool = False,
) -> _Model:
    """Compress what some of a model's convolutions work on, in place.

    Module objects, parameters, their order, ``state_dict`` keys, hooks and parametrizations stay as they are.

    Parameters
    ----------
    model
        Any module; a ``Conv2d`` itself may be one.
    mask
        Which convolutions: bits in the order of ``named_modules``, or names or glob patterns. Or a
        :class:`lrbench.Policy`, which says for each layer what follows here for all of them; if it is lean or has
        segments, so becomes the model, and :func:`lrbench.unlean` and
        :func:`lrbench.checkpointing.uncheckpointed` undo that.
    compressor
        A registered name, a file and a class in it such as ``./mine.py:Mine``, or an instance; each layer gets a copy.
    eps
        Requested relative Frobenius error, in (0, 1], for a compressor given by name; its own default if None.
    path
        Where the approximation acts: in the ``forward`` product, in the weight's gradient (``backward``), or in
        ``both``, as in the paper.
    exact_eval
        Convolve exactly in evaluation mode; otherwise a layer acts there as in training.

    Returns
    -------
    torch.nn.Module
        ``model``.

    Raises
    ------
    ValueError
        If the mask does not fit, the path is unknown, the compressor makes no sense there by its own word, a layer is
        wrapped already, or a layer computes its convolution in a way of its own. The model is then as it was.
    """
    if isinstance(mask, Policy):
        if (compressor, eps, path) != ("svd", None, "both"):
            raise ValueError("compressor, eps or path are given beside a policy, which names them: leave them out")
        plan = {name: (layer.make(), cast(Path, layer.path)) for name, layer in mask.layers.items()}
        unknown = [name for name in plan if name not in convolutions(model)]
        if unknown:
            shown = ", ".join(convolutions(model)) or "none"
            raise ValueError(f"the policy names {', '.join(unknown)}: the model's convolutions are {shown}")
    else:
        if isinstance(compressor, Compressor):
            if eps is not None:
                raise ValueError(f"eps is {eps} beside an instance, {compressor!r}, that has its own: give one of them")
        else:
            compressor = get_compressor(compressor, **({} if eps is None else {"eps": eps}))
        plan = dict.fromkeys(masked_layers(model, mask), (compressor, path))
    for way in {path, *(way for _, way in plan.values())}:
        if way not in PATHS:
            raise ValueError(f"path is {way!r}: use {', '.join(PATHS)}")
    wrapped = compressed_layers(model)
    if wrapped:
        raise ValueError(f"the model is wrapped already ({', '.join(wrapped)}): call lrbench.unwrap(model) first")
    layers = convolutions(model)
    for name in plan:
        cls = type(layers[name])
        own = {"forward", "_conv_forward"} & vars(layers[name]).keys()
        if own or cls.forward is not nn.Conv2d.forward or cls._conv_forward is not nn.Conv2d._conv_forward:
            raise ValueError(f"layer {name!r} is a {cls.__name__} with a forward of its own: leave it out of the mask")
    for name, (made, way) in plan.items():
        if made.stateful and isinstance(mask, Policy) and mask.segments:
            raise ValueError(
                f"{made.name or type(made).__name__} of layer {name!r} keeps what it saw, so that its forward pass "
                "cannot be computed again: leave segments out, or take a compressor without a state"
            )
        # The size of a layer's input is not known before it meets one: a grid of runs asks again, with it.
        reason = made.skip(Geometry.of(layers[name]), None, way)
        if reason is not None:
            raise ValueError(f"{made.name or type(made).__name__} is not for layer {name!r} on path {way}: {reason}")
    if isinstance(mask, Policy) and mask.lean:
        lean(model)
    if isinstance(mask, Policy) and mask.segments:
        try:
            checkpointed(model, mask.segments)
        except ValueError:
            if mask.lean:  # it was not before, or it could not have become so
                unlean(model)
            raise
    for name, (made, way) in plan.items():
        conv = layers[name]
        # In the instance's dictionary it comes before the class's method, whatever becomes of the class.
        vars(conv)["_conv_forward"] = CompressedConvolution(conv, copy.deepcopy(made), way, exact_eval)
    return model


def unwrap(model: _Model) -> _Model:
    """Make every wrapped convolution of a model plain again, in place, with its current weights; return the model."""
    layers = convolutions(model)
    for name in compressed_layers(model):
        del vars(layers[name])["_conv_forward"]
    return model


def plain_copy(model: _Model) -> _Model:
    """A copy of a model in which nothing is compressed, kept as bits, or computed again."""
    return uncheckpointed(unlean(unwrap(copy.deepcopy(model))))
