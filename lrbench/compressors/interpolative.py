"""Interpolative decomposition: some rows of a block as they are, and what the others are made of."""

import torch

from lrbench.blocks import Blocks, each_block
from lrbench.compressors import register
from lrbench.compressors.base import Compressor
from lrbench.compressors.spectral import INSIDE
from lrbench.kernels.kernel_blocks import KernelBlocks
from lrbench.low_rank import LowRank, RowSubset


@register("id")
class Interpolative(Compressor):
    """V holds rows of D, exactly as they are; U the coefficients that come nearest to D in least squares.

    The rows are the pivots of the Cholesky factorization of D Dᵀ (N. J. Higham, 1990; the row interpolative
    decomposition of H. Cheng, Z. Gimbutas, P.-G. Martinsson and V. Rokhlin, 2005, with its pivoted QR factorization
    done on the Gram matrix). The trace of the Schur complement is the squared residual, and the Cholesky factors
    solve for the coefficients. Far below eps = 1e-6 squares no longer tell, and blocks are escalated.

    Parameters
    ----------
    eps : float
        Requested relative Frobenius error, in (0, 1].
    factors : {None, "bfloat16", "float16"}
        As :class:`~lrbench.compressors.base.Compressor` takes it.
    """

    guarantee = "block"
    forms_blocks = False

    def factorize(self, blocks: Blocks) -> RowSubset:
        """Choose rows until what they leave is inside the tolerance."""
        limit = min(*blocks.shape[1:], self.largest_rank(blocks) + 1)
        tolerance = (INSIDE * self.aim) ** 2
        view = KernelBlocks.of(blocks)
        if view is not None:
            return RowSubset(*view.interpolated(tolerance, limit))
        return _in_step(blocks, tolerance, limit)


def _in_step(blocks: Blocks, tolerance: float, limit: int) -> RowSubset:
    """Let all blocks choose their rows together."""
    N, m, n = blocks.shape
    G, each = blocks.gram("rows"), each_block(blocks)
    left = G.diagonal(dim1=1, dim2=2).clone()
    total = left.sum(1)
    L, V = G.new_zeros(N, limit, m), torch.zeros(N, limit, n, dtype=blocks.dtype, device=G.device)
    chosen = torch.zeros(N, limit, dtype=torch.int64, device=G.device)
    ranks = torch.zeros_like(each)
    for k in range(limit):
        i = left.argmax(1)
        pivot = left[each, i]
        going = (left.sum(1) > tolerance * total) & (pivot > 0)
        if not bool(going.any()):
            break
        row = G[each, i] - (L[each, :, i][:, None] @ L)[:, 0]
        row = torch.where(going, 1 / pivot.sqrt(), 0.0)[:, None] * row
        left = (left - row.square()).clamp_(min=0)
        left[each, i] = torch.where(going, 0.0, left[each, i])
        L[:, k], V[:, k], chosen[:, k] = row, blocks.rows(i), i
        ranks += going
    filled = torch.arange(limit, device=G.device) < ranks[:, None]
    triangle = L.gather(2, chosen[:, None].expand(-1, limit, -1)).triu()
    identity = torch.eye(limit, dtype=L.dtype, device=L.device)
    triangle = torch.where(filled[:, :, None] & filled[:, None], triangle, identity)
    C = torch.linalg.solve_triangular(triangle, L, upper=True)
    # What is kept is kept: no rounding in its own coefficients.
    kept = torch.zeros_like(C).scatter_(2, chosen[:, :, None], 1.0)
    own = (kept * filled[:, :, None]).amax(1, keepdim=True)
    packed = LowRank.from_padded(torch.where(own > 0, kept, C).mT, V, ranks)
    return RowSubset(packed.U, packed.V, packed.ranks)
