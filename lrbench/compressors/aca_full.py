"""Adaptive cross approximation with full pivoting, stopped on the true residual."""

import torch

from lrbench.blocks import Blocks
from lrbench.compressors import register
from lrbench.compressors.base import Compressor
from lrbench.compressors.deflation import Pair, deflated
from lrbench.low_rank import LowRank


@register("aca-full")
class FullyPivotedACA(Compressor):
    """Crosses through the largest number of the whole residual (M. Bebendorf, 2008, section 3.4; Gaussian elimination).

    No part of a block goes unseen, because all of it is looked through in each step; that is what partial pivoting
    saves. The residual is kept in float64, of the factors as they are stored, and its norm is computed anew.

    Parameters
    ----------
    eps : float
        Requested relative Frobenius error, in (0, 1].
    factors : {None, "bfloat16", "float16"}
        As :class:`~lrbench.compressors.base.Compressor` takes it.
    """

    guarantee = "block"

    def factorize(self, blocks: Blocks) -> LowRank:
        """See :func:`lrbench.compressors.deflation.deflated`."""
        return deflated(blocks, self.aim, "crosses", _largest_cross, self.largest_rank(blocks) + 1)


def _largest_cross(R: torch.Tensor, dtype: torch.dtype) -> Pair:
    """The column and the row through the largest number of each residual, the row divided by it."""
    N, _, n = R.shape
    each, place = torch.arange(N, device=R.device), R.abs().flatten(1).argmax(1)
    i, j = place // n, place % n
    pivot = R[each, i, j]
    u, v = R[each, :, j], R[each, i] / torch.where(pivot == 0, 1, pivot)[:, None]
    return u.to(dtype), v.to(dtype)
