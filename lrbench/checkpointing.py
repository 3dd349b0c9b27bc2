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
        If the model is not sequential, has not that many modules, or is checkpointed already.
    """
    if segments_of(model):
        raise ValueError(f"the model is checkpointed already, in {segments_of(model)} segments: take a plain one")
    if not isinstance(model, nn.Sequential) or type(model).forward is not nn.Sequential.forward:
        raise ValueError(f"the model is a {type(model).__name__}: only nn.Sequential is cut into segments")
    if not 1 <= segments <= len(model):
        raise ValueError(f"segments is {segments}: this model can be cut into 1 to {len(model)}")
    # In the instance's dictionary it comes before the class's method.
    vars(model)["forward"] = _Segments(model, segments)
    return model


def uncheckpointed(model: _Model) -> _Model:
    """Make a model keep everything again, in place, and return it."""
    if segments_of(model):
        del vars(model)["forward"]
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
            x = checkpoint(self.model[start:stop], x, use_reentrant=False)
        return x
