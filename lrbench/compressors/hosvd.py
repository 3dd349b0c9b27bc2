"""The Tucker decomposition of a whole activation: what images, channels, lines and columns have in common."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lrbench.compressors import register
from lrbench.compressors.on_input import InputCompressor
from lrbench.compressors.spectral import INSIDE
from lrbench.encoded import Code


@dataclass(frozen=True)
class _Tucker(Code):
    """A core and a basis for each of its four modes.

    Attributes
    ----------
    core : Tensor
        (p, q, r, s).
    images, channels, lines, columns : Tensor
        (N, p), (C, q), (H, r) and (W, s).
    """

    core: Tensor
    images: Tensor
    channels: Tensor
    lines: Tensor
    columns: Tensor
    common = ("core", "channels", "lines", "columns")

    def select(self, index: Tensor) -> "_Tucker":
        """The images at ``index``; where there are none, nothing of what they had in common."""
        if len(index):
            return super().select(index)
        none = {name: tensor[:, :0].clone() for name, tensor in zip(self.names()[2:], self.tensors()[2:], strict=True)}
        return self.replace(core=self.core.new_empty(0, 0, 0, 0), images=self.images.new_empty(0, 0), **none)

    def decode(self) -> Tensor:
        C, H, W = self.size
        p, q = self.core.shape[:2]
        # The images' mode comes last: all before it is as small as the core.
        x = self.lines @ (self.core @ self.columns.T)
        x = self.channels @ x.reshape(p, q, H * W)
        return (self.images @ x.reshape(p, C * H * W)).view(-1, C, H, W)


@register("hosvd")
class HigherOrderSVD(InputCompressor):
    """The truncated higher-order SVD of the batch (N, C, H, W), of the ranks that take the fewest numbers.

    L. De Lathauwer, B. De Moor and J. Vandewalle (2000); for activations, L.-T. Nguyen, A. Quélennec, E. Tartaglione,
    S. Tardieu and V.-T. Nguyen (2024), who choose each mode's rank by its own energy. A pixel's weight w_p, how often
    it occurs in D, is a product of one for its line and one for its column, whatever the padding: decomposed is x times
    its square root, so that errors are those of D. The bases are orthonormal, so the energy that a truncation holds is
    that of the core which is left, and a table of its partial sums gives, for all combinations of ranks at once, which
    keep the tolerance for the batch as a whole; of these the smallest is taken.

    Single images may be further off than ``eps``: those that weigh little in their batch.

    Parameters
    ----------
    eps : float
        Requested relative Frobenius error of the batch, in (0, 1].
    """

    guarantee = "batch"
    pooled = True

    def encode(self, images: Tensor, weights: Tensor) -> Code:
        """Decompose the batch, and cut it to the best ranks."""
        # In exact arithmetic the weights are this product; none has any where windows meet nothing but padding.
        lines, columns = weights.sum(1), weights.sum(0) / weights.sum().clamp(min=1)
        roots = (lines.sqrt(), columns.sqrt())
        core = images.to(torch.float64) * roots[0][:, None] * roots[1]
        bases: list[Tensor] = []
        for mode, size in enumerate(images.shape):
            unfolded = core.movedim(mode, 0).reshape(size, -1)
            _, Q = torch.linalg.eigh(unfolded @ unfolded.T)
            bases.append(Q.flip(1))
        for mode, Q in enumerate(bases):
            core = torch.tensordot(Q.T, core, dims=([1], [mode])).movedim(0, mode)
        ranks = self._best_ranks(core, torch.finfo(images.dtype).eps)
        # Copies: a view would hold all that was cut off.
        core = core[tuple(slice(rank) for rank in ranks)].clone(memory_format=torch.contiguous_format).to(images.dtype)
        for mode, root in zip((2, 3), roots, strict=True):
            bases[mode] = torch.where(root > 0, 1 / root, 0)[:, None] * bases[mode]
        cut = [
            Q[:, :rank].clone(memory_format=torch.contiguous_format).to(images.dtype)
            for Q, rank in zip(bases, ranks, strict=True)
        ]
        _, C, H, W = images.shape
        return _Tucker((C, H, W), images.dtype, core, *cut)

    def _best_ranks(self, core: Tensor, rounding: float) -> tuple[int, ...]:
        """The ranks, one for each mode, of the fewest numbers that hold enough of a core's energy."""
        held = core.square()
        for mode in range(4):
            held = held.cumsum(mode)
        total = held[-1, -1, -1, -1]
        if self.eps == 1 or total == 0:
            return (0, 0, 0, 0)
        # Rounding to the stored dtype takes its part of the tolerance.
        allowed = max(0.0, (INSIDE * self.eps) ** 2 - (4 * rounding) ** 2)
        enough = total - held <= allowed * total
        numbers = torch.ones((), dtype=torch.int64, device=core.device)
        bases = torch.zeros((), dtype=torch.int64, device=core.device)
        for mode, size in enumerate(core.shape):
            rank = torch.arange(1, size + 1, device=core.device).view([-1 if m == mode else 1 for m in range(4)])
            numbers = numbers * rank
            bases = bases + size * rank
        cost = torch.where(enough, numbers + bases, torch.iinfo(torch.int64).max)
        place = int(cost.argmin())
        ranks = []
        for size in reversed(core.shape):
            ranks.append(place % size + 1)
            place //= size
        return tuple(reversed(ranks))
