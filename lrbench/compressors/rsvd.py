"""Randomized singular value decomposition, its sketch grown until the tolerance is kept."""

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from lrbench.blocks import Blocks, aligned_copy, aligned_product, each_block
from lrbench.compressors import register
from lrbench.compressors.base import Compressor
from lrbench.compressors.certificate import residual_norms
from lrbench.compressors.hashing import GOLDEN, content_keys, mixed
from lrbench.compressors.spectral import GRAM_LIMIT, INSIDE, per_matrix, thin_svd, truncated_svd, truncation_ranks
from lrbench.factors import Basis, LowRank
from lrbench.kernels.kernel_blocks import KernelBlocks


@register("rsvd")
class RandomizedSVD(Compressor):
    """Project each block on the range of a random sketch of it, and truncate the SVD of the projection.

    On a CPU the power iteration and the projection go through the Gram matrix, which an image's correlations give.

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
    randomized = True
    version = 2

    def __init__(self, eps: float = 0.1, sketch: int = 16, oversampling: int = 5, seed: int = 0) -> None:
        super().__init__(eps)
        for what, value, least in (("sketch", sketch, 1), ("oversampling", oversampling, 0), ("seed", seed, 0)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{what} is {value!r}: use a whole number of at least {least}")
        self.sketch, self.oversampling, self.seed = sketch, oversampling, seed
        self.forms_blocks = self.eps < GRAM_LIMIT

    def factorize(self, blocks: Blocks) -> LowRank | Basis:
        """Sketch all blocks; sketch those that need more again, with twice the columns."""
        view = KernelBlocks.of(blocks)
        if view is not None and self.eps >= GRAM_LIMIT:
            return self._through_gram(blocks)
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

    def _through_gram(self, blocks: Blocks) -> Basis:
        """As :meth:`_sketched`, of the blocks or their transposes, but for one product all with the Gram matrix."""
        N, m, n = blocks.shape
        side: Literal["rows", "columns"] = "rows" if m <= n else "columns"
        least, length = min(m, n), max(m, n)
        words = _words(content_keys(blocks) + self.seed, length)
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        index = each_block(blocks)
        columns = self.sketch
        while len(index):
            part = blocks if len(index) == N else blocks.select(index)
            if columns >= least:  # the sketch would span everything
                whole = truncated_svd(part, self.eps)
                assert isinstance(whole, Basis)
                vectors, ranks = whole.vectors, whole.ranks
            else:
                view = KernelBlocks.of(part)
                assert view is not None
                tests = _gaussian(self.seed, columns, length)
                vectors, ranks = view.sketched(side, tests, words[index], INSIDE * self.eps, self.oversampling)
            done = ranks >= 0
            if len(index) == N and bool(done.all()):
                return Basis(side, vectors, ranks)
            found.append((index[done], vectors[done], ranks[done]))
            index = index[~done]
            columns *= 2
        most = max(int(ranks.max()) if len(ranks) else 0 for _, _, ranks in found)
        vectors = torch.zeros(N, most, least, dtype=torch.float64)
        ranks = torch.zeros(N, dtype=torch.int64)
        for places, some, theirs in found:
            vectors[places, : some.shape[1]] = some[:, :most]
            ranks[places] = theirs
        return Basis(side, vectors, ranks)

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
        shared = _gaussian(self.seed, columns, n).to(blocks.device)
        words = _words(content_keys(blocks) + self.seed, n)
        bits = words[:, :, None] >> torch.arange(64, device=words.device)
        return shared * ((bits & 1) * 2 - 1).flatten(1)[:, None, :n]


@lru_cache(maxsize=16)
def _gaussian(seed: int, columns: int, n: int) -> Tensor:
    """The test matrix that all blocks share, transposed: (columns, n) float64."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(columns, n, generator=generator, dtype=torch.float64, device="cpu")


def _words(keys: Tensor, n: int) -> Tensor:
    """Hashes whose bits are n signs, by key: (N,) int64 -> (N, n / 64) int64."""
    return mixed(keys[:, None] + torch.arange(-(-n // 64), device=keys.device) * GOLDEN)
