"""The truncated SVD of a projection: what is left to do once the range of a block is known."""

import torch
from torch import Tensor

from lrbench.blocks import Blocks, aligned_copy, aligned_product, each_block
from lrbench.compressors.certificate import residual_norms
from lrbench.compressors.spectral import GRAM_LIMIT, per_matrix, thin_svd, truncation_ranks
from lrbench.low_rank import LowRank

__all__ = ["truncated_projection"]


def truncated_projection(blocks: Blocks, Q: Tensor, eps: float) -> LowRank:
    """Project blocks on orthonormal columns, and cut the projection's SVD where eps allows.

    What the columns do not reach, ‖D‖² − ‖QᵀD‖², is taken from the allowance. Where that is too much every rank is
    kept.

    Parameters
    ----------
    blocks : Blocks
        N finite blocks, m x n, of moderate scale.
    Q : Tensor
        (N, m, k) float64.
    eps : float
        In (0, 1).
    """
    B = blocks.left_product(Q)
    total = blocks.squared_norm()
    if eps < GRAM_LIMIT:
        # Squares and differences of squares no longer tell so small a tail: it is computed, not subtracted.
        W, S, _ = per_matrix(thin_svd, B)
        W, energies = W.flip(2), S.square().flip(1)
        every = torch.full_like(each_block(blocks), B.shape[1])
        missing = residual_norms(blocks, LowRank.from_padded(Q, B, every), torch.zeros_like(every)).square()
    else:
        eigenvalues, W = per_matrix(torch.linalg.eigh, aligned_product(B, B.mT))
        energies = eigenvalues.clamp(min=0)
        missing = (total - energies.sum(1)).clamp(min=0)

    def truncate(index: Tensor, r: int) -> tuple[Tensor, Tensor]:
        leading = aligned_copy(W[index, :, W.shape[2] - r :].flip(2))
        U = aligned_product(aligned_copy(Q[index]), leading)
        return U, aligned_product(leading.mT, aligned_copy(B[index]))

    return LowRank.by_rank(truncation_ranks(energies, total, eps, missing), truncate)
