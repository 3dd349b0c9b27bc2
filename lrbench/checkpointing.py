"""Gradient checkpointing, as PyTorch has it: the baseline of every method that saves memory."""

from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["checkpointed", "segments_of", "uncheckpointed"]

_Model = TypeVar("_Model", bound=nn.Module)


def checkpointed(model: _Model, segments: int) -> _Model:
    """Make a sequential model keep the inputs of some segments, and compute the rest again in the backward pass.

    The gradients are exact, dropout's masks included (T. Chen, B. Xu, C. Zhang and C. Guestrin, 2016).

    Parameters
    ----------
    model : torch.nn.Sequential
        The model, changed in place; module objects, parameters and ``state_dict`` keys stay as they are.
    segments : int
        How many parts, of about as many modules each, in 1..len(model).

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
    if not 1 <= segments <= len(model):
        raise ValueError(f"segments is {segments}: this model can be cut into 1 to {len(model)}")
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
        for start, stop in pairwise(ends):
            x = checkpoint(self._part, start, stop, x, use_reentrant=False)
        return x

    def _part(self, start: int, stop: int, x: Tensor) -> Tensor:
        # A slice of a class derived from Sequential would be another model of that class.
        for module in list(self.model)[start:stop]:
            x = module(x)
        return x
