"""Randomized singular value decomposition, its sketch grown until the tolerance is kept."""

import torch
from torch import Tensor

from lrbench.blocks import Blocks, aligned_copy, aligned_product, each_block
from lrbench.compressors import register
from lrbench.compressors.base import Compressor
from lrbench.compressors.certificate import residual_norms
from lrbench.compressors.spectral import GRAM_LIMIT, per_matrix, thin_svd, truncation_ranks
from lrbench.factors import LowRank


@register("rsvd")
class RandomizedSVD(Compressor):
    """Project each block on the range of a random sketch of it, and truncate the SVD of the projection.

    Randomized subspace iteration with one pass of power iteration (N. Halko, P.-G. Martinsson and J. A. Tropp, 2011,
    algorithms 4.4 and 5.1). The energy outside the sketch is known exactly, ‖D‖² − ‖QᵀD‖²; where the tolerance does
    not leave ``oversampling`` unused columns, the sketch is doubled, up to the full side of the block.

    The sketch of a block is a Gaussian matrix, drawn from a generator of its own by ``seed``, with the signs of its
    rows flipped by a hash of ``seed`` and the block's content: a block's factors depend neither on its neighbours nor
    on torch's global generator.

    Parameters
    ----------
    eps : float
        Requested relative Frobenius error, in (0, 1].
    sketch : int
        Columns of the first sketch, at least 1.
    oversampling : int
        Columns that must remain unused, at least 0.
    seed : int
        Of the random sketches, at least 0.
    """

    guarantee = "block"

    def __init__(self, eps: float = 0.1, sketch: int = 16, oversampling: int = 5, seed: int = 0) -> None:
        super().__init__(eps)
        for what, value, least in (("sketch", sketch, 1), ("oversampling", oversampling, 0), ("seed", seed, 0)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{what} is {value!r}: use a whole number of at least {least}")
        self.sketch, self.oversampling, self.seed = sketch, oversampling, seed

    def factorize(self, blocks: Blocks) -> LowRank:
        """Sketch all blocks; sketch those that need more again, with twice the columns."""
        side = min(blocks.shape[1:])
        index = each_block(blocks)
        columns = min(self.sketch, side)
        factors: LowRank | None = None
        while True:
            found, done = self._sketched(blocks, columns)
            factors = found if factors is None else factors.replace(index, found)
            if columns == side or bool(done.all()):
                return factors
            again = (~done).nonzero()[:, 0]
            blocks, index = blocks.select(again), index[again]
            columns = min(2 * columns, side)

    def _sketched(self, blocks: Blocks, columns: int) -> tuple[LowRank, Tensor]:
        """Factors from a sketch of some columns, and whether it was wide enough."""
        Q, _ = per_matrix(torch.linalg.qr, blocks.right_product(self._test_matrices(blocks, columns)))
        P, _ = per_matrix(torch.linalg.qr, blocks.left_product(Q).mT)
        Q, _ = per_matrix(torch.linalg.qr, blocks.right_product(P.mT))
        B = blocks.left_product(Q)
        total = blocks.squared_norm()
        if self.eps < GRAM_LIMIT:
            # Squares and differences of squares no longer tell so small a tail: it is computed, not subtracted.
            W, S, _ = per_matrix(thin_svd, B)
            W, energies = W.flip(2), S.square().flip(1)
            every = torch.full_like(each_block(blocks), B.shape[1])
            missing = residual_norms(blocks, LowRank.from_padded(Q, B, every), torch.zeros_like(every)).square()
        else:
            eigenvalues, W = per_matrix(torch.linalg.eigh, aligned_product(B, B.mT))
            energies = eigenvalues.clamp(min=0)
            missing = (total - energies.sum(1)).clamp(min=0)
        ranks = truncation_ranks(energies, total, self.eps, missing)
        # If not even all columns keep the tolerance, every one is counted as lost: the rank is at its limit.
        done = ranks + self.oversampling <= columns

        def truncate(index: Tensor, r: int) -> tuple[Tensor, Tensor]:
            leading = aligned_copy(W[index, :, W.shape[2] - r :].flip(2))
            U = aligned_product(aligned_copy(Q[index]), leading)
            return U, aligned_product(leading.mT, aligned_copy(B[index]))

        return LowRank.by_rank(ranks, truncate), done

    def _test_matrices(self, blocks: Blocks, columns: int) -> Tensor:
        """Transposed Gaussian test matrices, (N, columns, n) float64."""
        n = blocks.shape[2]
        generator = torch.Generator("cpu").manual_seed(self.seed)
        shared = torch.randn(columns, n, generator=generator, dtype=torch.float64, device="cpu").to(blocks.device)
        keys = _content_keys(blocks) + self.seed
        position = torch.arange(n, device=blocks.device)
        signs = (_mixed(keys[:, None] + position * _GOLDEN) & 1) * 2 - 1
        return shared * signs[:, None, :]


_GOLDEN = -7046029254386353131  # 2**64 divided by the golden ratio, as an int64


def _mixed(keys: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (G. L. Steele, D. Lea and C. H. Flood, 2014), on int64 with wrap-around."""
    keys = (keys ^ _shifted(keys, 30)) * -4658895280553007687
    keys = (keys ^ _shifted(keys, 27)) * -7723592293110705685
    return keys ^ _shifted(keys, 31)


def _shifted(keys: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's is arithmetic."""
    return (keys >> bits) & ((1 << (64 - bits)) - 1)


def _content_keys(blocks: Blocks) -> Tensor:
    """A hash of each block's numbers, (N,) int64."""
    numbers = blocks.tensor.flatten(1) + 0.0  # −0.0 and 0.0 are one number
    bits = numbers.contiguous().view(torch.int64 if numbers.dtype == torch.float64 else torch.int32).to(torch.int64)
    position = torch.arange(bits.shape[1], device=bits.device)
    return _mixed((bits * (_mixed(position) | 1)).sum(1))
