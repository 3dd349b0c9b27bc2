"""A basis that is kept from call to call: most of what one batch spans, the next one spans, too."""

from typing import Any

from torch import Tensor

from lrbench.blocks import Blocks
from lrbench.compressors import register
from lrbench.compressors.pooled import improved
from lrbench.compressors.shared import BatchBasis
from lrbench.low_rank import SharedBasis


@register("warm")
class WarmBasis(BatchBasis):
    """As ``shared``, from the basis of the call before: extended where it falls short, refreshed now and then.

    A refresh is a step of subspace iteration on the batch at hand, for the calls to come; vectors that nobody has used
    since the last one are dropped.

    Parameters
    ----------
    eps : float
        Requested relative Frobenius error, in (0, 1].
    refresh : int
        Calls from one refresh to the next, at least 1.
    factors : {None, "bfloat16", "float16"}
        As :class:`~lrbench.compressors.base.Compressor` takes it.
    """

    stateful = True

    def __init__(self, eps: float = 0.1, refresh: int = 8, factors: str | None = None) -> None:
        super().__init__(eps, factors)
        if not isinstance(refresh, int) or refresh < 1:
            raise ValueError(f"refresh is {refresh!r}: use a whole number of at least 1")
        self.refresh = self.period = refresh
        self._basis: Tensor | None = None
        self._calls = 0
        self._used = 0

    def factorize(self, blocks: Blocks) -> SharedBasis:
        """Project on the basis that there is, if it fits the blocks."""
        known = self._basis
        if known is None or known.shape[1] != blocks.shape[1]:
            proposal = self._found(blocks)
            self._basis, self._calls, self._used = proposal.vectors, 0, len(proposal.vectors)
            return proposal
        blocks, total = blocks.select(slice(None)), blocks.squared_norm()
        proposal = self._extended(blocks, known.to(blocks.device, blocks.dtype), total)
        self._basis = proposal.vectors
        self._calls += 1
        self._used = max(self._used, int(proposal.ranks.max()))
        if self._calls % self.refresh == 0 and self._used:
            better = improved(blocks, self._basis, proposal.coefficients, total)
            self._basis, self._used = better[: self._used], 0
        return self._trimmed(proposal)

    def state_dict(self) -> dict[str, Any]:
        """The basis, (k, m), and how often and how far it has been used."""
        return {} if self._basis is None else {"basis": self._basis, "calls": self._calls, "used": self._used}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self._basis = state.get("basis")
        self._calls, self._used = state.get("calls", 0), state.get("used", 0)
