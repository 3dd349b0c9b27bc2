"""Gradient checkpointing, as PyTorch has it: the baseline of every method that saves memory."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["checkpointed", "segments_of", "uncheckpointed"]

_Model = TypeVar("_Model", bound=nn.Module)


def checkpointed(model: _Model, segments: int) -> _Model:
    """Make a sequential model keep the inputs of some segments, and compute the rest again in the backward pass.

    The gradients are exact, dropout's masks included, and buffers, such as running statistics, are those of one forward
    pass (T. Chen, B. Xu, C. Zhang and C. Guestrin, 2016). The last segment keeps everything, as by
    :func:`torch.utils.checkpoint.checkpoint_sequential`: its backward pass comes first, and to compute it again would
    lower no peak.

    Parameters
    ----------
    model : torch.nn.Sequential
        The model, changed in place; module objects, parameters and ``state_dict`` keys stay as they are.
    segments : int
        How many parts, of about as many modules each, in 2..len(model).

    Returns
    -------
    torch.nn.Sequential
        ``model``.

    Raises
    ------
    ValueError
        If the model is not sequential, has a forward of its own, has not that many modules, or is checkpointed already.
    """
    if segments_of(model):
        raise ValueError(f"the model is checkpointed already, in {segments_of(model)} segments: take a plain one")
    own = "forward" in vars(model)
    if own or not isinstance(model, nn.Sequential) or type(model).forward is not nn.Sequential.forward:
        kind = f"{type(model).__name__}{' with a forward of its own' if own else ''}"
        raise ValueError(f"the model is a {kind}: only nn.Sequential is cut into segments")
    if not 2 <= segments <= len(model):
        able = f"can be cut into 2 to {len(model)}" if len(model) > 1 else "has too few modules to be cut"
        raise ValueError(f"segments is {segments}: this model {able}")
    # In the instance's dictionary it comes before the class's method.
    vars(model)["forward"] = _Segments(model, segments)
    return model


def uncheckpointed(model: _Model) -> _Model:
    """Make a model, and every module in it, keep everything again, in place, and return it."""
    for module in model.modules():
        if segments_of(module):
            del vars(module)["forward"]
    return model


def segments_of(model: nn.Module) -> int:
    """The number of segments of a checkpointed model; 0 for any other."""
    forward = vars(model).get("forward")
    return forward.segments if isinstance(forward, _Segments) else 0


@dataclass(eq=False)
class _Segments:
    """What a checkpointed model calls in place of its class's ``forward``."""

    model: nn.Sequential
    segments: int

    def __call__(self, x: Tensor) -> Tensor:
        """Compute what the model computes."""
        ends = [len(self.model) * k // self.segments for k in range(self.segments + 1)]
        *again, last = pairwise(ends)
        for part in again:
            x = checkpoint(self._part, *part, x, use_reentrant=False, context_fn=partial(self._contexts, *part))
        return self._part(*last, x)

    def _contexts(self, start: int, stop: int) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """What a part is computed in, and what it is computed again in."""
        return nullcontext(), _as_they_were(self._modules(start, stop))

    def _part(self, start: int, stop: int, x: Tensor) -> Tensor:
        for module in self._modules(start, stop):
            x = module(x)
        return x

    def _modules(self, start: int, stop: int) -> list[nn.Module]:
        # A slice of a class derived from Sequential would be another model of that class.
        return list(self.model)[start:stop]


@contextmanager
def _as_they_were(modules: list[nn.Module]) -> Iterator[None]:
    """Give buffers their values back at the end, such as statistics that a second forward pass would count again."""
    owners = [
        (module, *each) for top in modules for module in top.modules() for each in module.named_buffers("", False)
    ]
    before = [(module, name, buffer, buffer.clone()) for module, name, buffer in owners]
    try:
        yield
    finally:
        for owner, name, buffer, value in before:
            # Past autograd, which would take it for a change of what it saved.
            buffer.data.copy_(value)
            owner._buffers[name] = buffer
