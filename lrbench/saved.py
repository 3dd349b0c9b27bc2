"""What a forward pass keeps for the backward pass, for whom, and what of it a convolution's compression would free.

Autograd keeps tensors; memory is freed by storages. A convolution's input often is somebody else's tensor, too: a ReLU
keeps its output, batch normalisation its input. The pass is really run, on the meta device, where nothing is computed
or allocated, and every tensor that autograd keeps is met through its hooks.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lrbench.conv import convolutions, unwrap
from lrbench.im2col import Geometry

__all__ = ["Call", "PlanError", "Storage", "Trace", "trace_saved"]


class PlanError(ValueError):
    """A model cannot be planned; the message says why."""


@dataclass(eq=False)
class Storage:
    """Memory that the pass met, and who keeps it.

    Attributes
    ----------
    number : int
        From 0, in the order in which the pass met it.
    nbytes : int
        Of the whole storage, whatever part a tensor shows.
    held : torch.UntypedStorage
        The storage itself: while it lives, no other has its identity.
    keepers : list of Keeper
        Who keeps a tensor of it for the backward pass, in order; one for each tensor.
    """

    number: int
    nbytes: int
    held: torch.UntypedStorage = field(repr=False)
    keepers: "list[Keeper]" = field(default_factory=list)


@dataclass(frozen=True)
class Keeper:
    """One tensor that is kept.

    Attributes
    ----------
    name : str
        The innermost module that ran, or the function within it where that module has children of its own.
    relu : bool
        Whether it is a ReLU, which needs of its output no more than a bit for each number.
    call : Call or None
        The convolution call that keeps it.
    """

    name: str
    relu: bool = False
    call: "Call | None" = None


@dataclass(eq=False)
class Call:
    """One call of a convolution.

    Attributes
    ----------
    layer : str
        The module's name.
    geometry : Geometry
        Of the convolution.
    in_shape : tuple of int
        (N, C, H, W) of its input, N = 1 where that has three dimensions.
    out_channels : int
        K.
    itemsize : int
        Bytes of a number of the input.
    input : Storage
        What the input, as the layer is given it, lies in.
    input_bytes : int
        Of the input itself.
    kept : list of Storage
        What the convolution keeps besides its weight: its input or the padded copy of it.
    frozen : bool
        Whether the weight takes no gradient, so that nothing needs the input, which PyTorch keeps all the same.
    """

    layer: str
    geometry: Geometry
    in_shape: tuple[int, int, int, int]
    out_channels: int
    itemsize: int
    input: Storage
    input_bytes: int
    frozen: bool
    kept: list[Storage] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Trace:
    """What a pass kept.

    Attributes
    ----------
    calls : list of Call
        Of all convolutions, in the order of the pass.
    storages : list of Storage
        All that it met, parameters and buffers left out.
    batch : Storage
        The caller's.
    """

    calls: list[Call]
    storages: list[Storage]
    batch: Storage


def trace_saved(model: nn.Module, shape: tuple[int, ...]) -> Trace:
    """Run a model's forward pass in training mode on the meta device, and see what autograd keeps.

    Parameters
    ----------
    model : torch.nn.Module
        On any device; it is left as it is, and nothing of its size is allocated.
    shape : tuple of int
        Of the batch, (N, C, H, W).

    Raises
    ------
    PlanError
        If the model cannot be copied, or its forward pass fails for a batch of this shape or on the meta device.
    """
    copied = _on_meta(model)
    floating = (p.dtype for p in copied.parameters() if p.dtype.is_floating_point)
    x = torch.empty(shape, dtype=next(floating, torch.float32), device="meta")
    recorder = _Recorder(copied)
    batch = recorder.storage(x)
    with recorder.watching(), torch.enable_grad():
        try:
            copied(x)
        except Exception as error:
            where = f", in {recorder.running()}"
            raise PlanError(
                f"the forward pass fails for a batch of shape {tuple(shape)} on the meta device{where} "
                f"({_first_line(error)}): give a shape that the model takes, and a model that reads no values"
            ) from error
    owned = {id(recorder.known[tensor.untyped_storage()._cdata]) for tensor in recorder.owned()}
    return Trace(recorder.calls, [s for s in recorder.known.values() if id(s) not in owned], batch)


def _on_meta(model: nn.Module) -> nn.Module:
    """Copy a model without its numbers."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
            lazy: Any = type(tensor)
            memo[id(tensor)] = lazy(device="meta", dtype=tensor.dtype)
            continue
        empty = torch.empty_like(tensor, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
    try:
        return unwrap(copy.deepcopy(model, memo)).to("meta").train()
    except Exception as error:
        raise PlanError(f"the model cannot be copied to the meta device ({_first_line(error)})") from error


class _Recorder(TorchFunctionMode):
    """Watches one forward pass of a model that is its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.names = {id(module): name for name, module in model.named_modules()}
        self.known: dict[int, Storage] = {}
        self.calls: list[Call] = []
        self._modules: list[nn.Module] = []
        self._functions: list[str] = []
        self._call: Call | None = None
        self._weights: set[int] = set()

    def running(self) -> str:
        """Name of the innermost module that runs, or that failed."""
        return (self.names.get(id(self._modules[-1]), "") if self._modules else "") or "the model"

    def owned(self) -> Iterator[Tensor]:
        """The model's parameters and buffers, of which the pass met the storage."""
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            if tensor.untyped_storage()._cdata in self.known:
                yield tensor

    def storage(self, tensor: Tensor) -> Storage:
        """What a tensor lies in."""
        held = tensor.untyped_storage()
        # The identity of a storage is told by its address, which is another's once it is freed: so it is kept.
        return self.known.setdefault(held._cdata, Storage(len(self.known), held.nbytes(), held))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it the model's pass is recorded."""
        with ExitStack() as stack:
            for module in self.model.modules():
                stack.callback(module.register_forward_pre_hook(self._enter, prepend=True).remove)
                stack.callback(module.register_forward_hook(self._leave).remove)
            for name, conv in convolutions(self.model).items():
                # Where wrap puts the compressed convolution: what is kept within is what that would not keep.
                vars(conv)["_conv_forward"] = self._watched(name, conv)
                stack.callback(vars(conv).pop, "_conv_forward")
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor))
            stack.enter_context(self)
            yield

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note which function runs."""
        self._functions.append(getattr(func, "__name__", str(func)))
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._functions.pop()

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self._modules.append(module)

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        while self._modules.pop() is not module:  # one that raised what its caller caught
            pass

    def _watched(self, name: str, conv: nn.Conv2d) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            images = tuple(x.shape) if x.ndim == 4 else (1, *x.shape)
            call = Call(
                layer=name,
                geometry=Geometry.of(conv),
                in_shape=images,  # type: ignore[arg-type]
                out_channels=weight.shape[0],
                itemsize=x.itemsize,
                input=self.storage(x),
                input_bytes=x.numel() * x.itemsize,
                frozen=not weight.requires_grad,
            )
            self._call, self._weights = call, {id(self.storage(t)) for t in (weight, bias) if t is not None}
            try:
                out = type(conv)._conv_forward(conv, x, weight, bias)
            finally:
                self._call = None
            self.calls.append(call)
            return out

        return convolve

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = self.storage(tensor)
        call = None if id(storage) in self._weights else self._call
        if call is not None and storage not in call.kept:
            call.kept.append(storage)
        function = self._functions[-1] if self._functions else "a function"
        name = self.running() if call is None else call.layer or "the model"
        if call is None and self._modules and next(self._modules[-1].children(), None) is not None:
            name = f"{function} in {name}"
        storage.keepers.append(Keeper(name, function in ("relu", "relu_"), call))
        return tensor


def _first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    text = str(error).strip().partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
