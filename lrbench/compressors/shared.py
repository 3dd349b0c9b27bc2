"""One basis for the whole batch, of which each block takes as many vectors as it needs."""

import torch
from torch import Tensor

from lrbench.blocks import Blocks
from lrbench.compressors import register
from lrbench.compressors.base import Compressor
from lrbench.compressors.pooled import beside, improved, needed, projected
from lrbench.low_rank import SharedBasis


@register("shared")
class BatchBasis(Compressor):
    """The leading left singular vectors of the batch's blocks, side by side, each block divided by its norm.

    U is kept once for the batch; block i has V_i = U_iᵀ D_i for the leading vectors that its tolerance asks for. The
    basis is found by subspace iteration (N. Halko, P.-G. Martinsson and J. A. Tropp, 2011, algorithm 4.4) and grows
    until every block holds.

    Parameters
    ----------
    eps : float
        Requested relative Frobenius error, in (0, 1].
    factors : {None, "bfloat16", "float16"}
        As :class:`~lrbench.compressors.base.Compressor` takes it.
    """

    guarantee = "block"
    forms_blocks = False
    pooled = True
    version = 2

    def factorize(self, blocks: Blocks) -> SharedBasis:
        """Find a basis for these blocks, and project them on it."""
        return self._found(blocks)

    def _found(self, blocks: Blocks) -> SharedBasis:
        """A basis that is enough for all blocks, the most important of its vectors first."""
        blocks, total = blocks.select(slice(None)), blocks.squared_norm()
        proposal = self._extended(blocks, blocks.tensor.new_empty(0, blocks.shape[1]), total)
        for _ in range(_IMPROVEMENTS):
            if len(proposal.vectors):
                basis = improved(blocks, proposal.vectors, proposal.coefficients, total)
                proposal = self._extended(blocks, basis, total)
        return self._trimmed(proposal)

    def _extended(self, blocks: Blocks, basis: Tensor, total: Tensor) -> SharedBasis:
        """Project blocks of a single group on a basis, and extend it until it is enough."""
        m = blocks.shape[1]
        coefficients = projected(blocks, basis)
        while True:
            ranks, enough = needed(coefficients, total, m, self.aim)
            if len(basis) == m or bool(enough.all()):
                return SharedBasis(basis, coefficients, ranks)
            lacking = (~enough).nonzero()[:, 0]
            more = beside(blocks.select(lacking), basis, total[lacking])
            basis = torch.cat([basis, more])
            coefficients = torch.cat([coefficients, projected(blocks, more)], 1)

    @staticmethod
    def _trimmed(proposal: SharedBasis) -> SharedBasis:
        """The same without vectors that no block needs."""
        return SharedBasis(proposal.vectors[: int(proposal.ranks.max())], proposal.coefficients, proposal.ranks)


_IMPROVEMENTS = 2
"""Steps of subspace iteration after the basis is large enough: more change the ranks by little."""
