"""Gradient checkpointing, as PyTorch has it: the baseline of every method that saves memory."""

from itertools import pairwise

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["Checkpointed"]


class Checkpointed(nn.Module):
    """A sequential model that keeps the inputs of some segments, and computes the rest again in the backward pass.

    The gradients are exact, dropout's masks included (T. Chen, B. Xu, C. Zhang and C. Guestrin, 2016).

    Parameters
    ----------
    model : torch.nn.Sequential
        The model; its modules are shared.
    segments : int
        How many parts, of about as many modules each, in 1..len(model).

    Raises
    ------
    ValueError
        If the model is not sequential, or has not that many modules.
    """

    def __init__(self, model: nn.Module, segments: int) -> None:
        super().__init__()
        if not isinstance(model, nn.Sequential):
            raise ValueError(f"the model is a {type(model).__name__}: only nn.Sequential is cut into segments")
        if not 1 <= segments <= len(model):
            raise ValueError(f"segments is {segments}: this model can be cut into 1 to {len(model)}")
        self.model = model
        self.segments = segments

    def forward(self, x: Tensor) -> Tensor:
        """Compute what the model computes."""
        ends = [len(self.model) * k // self.segments for k in range(self.segments + 1)]
        for start, stop in pairwise(ends):
            x = checkpoint(self.model[start:stop], x, use_reentrant=False)
        return x
