"""Randomized singular value decomposition, its sketch grown until the tolerance is kept."""

from typing import Literal

import torch
from torch import Tensor

from lrbench.blocks import Blocks, each_block
from lrbench.compressors import register
from lrbench.compressors.base import Compressor
from lrbench.compressors.draws import gaussian, signs, sketching_matrices
from lrbench.compressors.projection import truncated_projection
from lrbench.compressors.spectral import GRAM_LIMIT, INSIDE, per_matrix, truncated_svd
from lrbench.kernels.kernel_blocks import KernelBlocks
from lrbench.low_rank import Basis, LowRank


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
    factors : {None, "bfloat16", "float16"}
        As :class:`~lrbench.compressors.base.Compressor` takes it.
    """

    guarantee = "block"
    randomized = True
    version = 2

    def __init__(
        self,
        eps: float = 0.1,
        sketch: int = 16,
        oversampling: int = 5,
        seed: int = 0,
        factors: str | None = None,
    ) -> None:
        super().__init__(eps, factors)
        for what, value, least in (("sketch", sketch, 1), ("oversampling", oversampling, 0), ("seed", seed, 0)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{what} is {value!r}: use a whole number of at least {least}")
        self.sketch, self.oversampling, self.seed = sketch, oversampling, seed
        self.forms_blocks = self.aim < GRAM_LIMIT

    def factorize(self, blocks: Blocks) -> LowRank | Basis:
        """Sketch all blocks; sketch those that need more again, with twice the columns."""
        view = KernelBlocks.of(blocks)
        if view is not None and self.aim >= GRAM_LIMIT:
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
        words = signs(blocks, self.seed, length)
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        index = each_block(blocks)
        columns = self.sketch
        while len(index):
            part = blocks if len(index) == N else blocks.select(index)
            if columns >= least:  # the sketch would span everything
                whole = truncated_svd(part, self.aim)
                vectors, ranks = whole.vectors, whole.ranks
            else:
                view = KernelBlocks.of(part)
                assert view is not None
                tests = gaussian(self.seed, columns, length)
                vectors, ranks = view.sketched(side, tests, words[index], INSIDE * self.aim, self.oversampling)
            done = ranks >= 0
            if len(index) == N and bool(done.all()):
                return Basis(side, vectors, ranks)
            found.append((index[done], vectors[done], ranks[done]))
            index = index[~done]
            columns *= 2
        most = max(int(ranks.max()) if len(ranks) else 0 for _, _, ranks in found)
        vectors = torch.zeros(N, most, least, dtype=torch.float64, device=blocks.device)
        ranks = torch.zeros(N, dtype=torch.int64, device=blocks.device)
        for places, some, theirs in found:
            vectors[places, : some.shape[1]] = some[:, :most]
            ranks[places] = theirs
        return Basis(side, vectors, ranks)

    def _sketched(self, blocks: Blocks, columns: int) -> tuple[LowRank, Tensor]:
        """Factors from a sketch of some columns, and whether it was wide enough."""
        Q, _ = per_matrix(torch.linalg.qr, blocks.right_product(sketching_matrices(blocks, self.seed, columns)))
        P, _ = per_matrix(torch.linalg.qr, blocks.left_product(Q).mT)
        Q, _ = per_matrix(torch.linalg.qr, blocks.right_product(P.mT))
        found = truncated_projection(blocks, Q, self.aim)
        # If not even all columns keep the tolerance, every one is counted as lost: the rank is at its limit.
        return found, found.ranks + self.oversampling <= columns
