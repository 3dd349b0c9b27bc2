"""ACA that finds the range of a block, and the SVD of the block's projection on it."""

import torch
from torch import Tensor

from lrbench.blocks import Blocks, aligned
from lrbench.compressors import register
from lrbench.compressors.base import Compressor
from lrbench.compressors.certificate import stored
from lrbench.compressors.crosses import cross_approximation
from lrbench.compressors.projection import truncated_projection
from lrbench.compressors.spectral import GRAM_LIMIT, INSIDE, per_matrix, shorter_side
from lrbench.kernels.kernel_blocks import KernelBlocks
from lrbench.low_rank import Basis, LowRank


@register("aca-svd")
class RecompressedACA(Compressor):
    """Crosses of partially pivoted ACA, their columns orthonormalized, and the truncated SVD of the projection on them.

    Recompression (M. Bebendorf, 2008, section 2.6) takes the SVD of the crosses U V, whose errors add to those of the
    crosses themselves. Here it is that of the block's own projection: with Q from the QR factorization of U the
    squared error is exactly ‖D‖² − ‖QᵀD‖² and what is cut from QᵀD, and QQᵀD is never further from D than U V is.
    On a CPU it is V that is orthonormalized where rows are the shorter.

    Parameters
    ----------
    eps : float
        Requested relative Frobenius error, in (0, 1].
    factors : {None, "bfloat16", "float16"}
        As :class:`~lrbench.compressors.base.Compressor` takes it.
    """

    guarantee = "block"
    forms_blocks = False

    def factorize(self, blocks: Blocks) -> LowRank | Basis:
        """Let the crosses go further than eps, so that the SVD has something to cut."""
        proposed = cross_approximation(blocks, _FURTHER * self.aim, stop="residual", most=self.largest_rank(blocks))
        crosses = stored(blocks, proposed, torch.zeros(len(blocks), dtype=torch.int64, device=blocks.device))
        view = KernelBlocks.of(blocks)
        if view is not None and self.aim >= GRAM_LIMIT:
            side = shorter_side(blocks)
            given = crosses.U if side == "rows" else crosses.V
            vectors, found = view.within(side, given, crosses.ranks, INSIDE * self.aim)
            # A span that is too small gives nothing, which the certificate does not let pass.
            return Basis(side, vectors, found.clamp(min=0))
        ranks, first = crosses.ranks, crosses.offsets[:-1]
        order, parts = [], []
        for r in ranks.unique().tolist():
            index = (ranks == r).nonzero()[:, 0]
            rows = first[index, None] + torch.arange(r, device=first.device)
            order.append(index)
            parts.append(truncated_projection(blocks.select(index), _orthonormal(crosses.U[rows]), self.aim))
        return LowRank.concatenate(parts).select(torch.cat(order).argsort())


_FURTHER = 0.5
"""The crosses' tolerance, relative to what is asked for."""


def _orthonormal(rows: Tensor) -> Tensor:
    """Orthonormal columns, (N, m, r) float64, that span rows (N, r, m)."""
    N, r, m = rows.shape
    if r == 0:
        return aligned(N, m, r, torch.float64, rows.device)
    Q, _ = per_matrix(torch.linalg.qr, rows.to(torch.float64).mT)
    return Q
