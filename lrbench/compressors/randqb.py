"""Randomized QB factorization, grown by a few columns at a time until its running error indicator is small enough."""

import torch
from torch import Tensor

from lrbench.blocks import Blocks, aligned_copy, aligned_product, each_block
from lrbench.compressors import register
from lrbench.compressors.base import Compressor
from lrbench.compressors.draws import gaussian, signs, sketching_matrices
from lrbench.compressors.projection import truncated_projection
from lrbench.compressors.spectral import GRAM_LIMIT, INSIDE, per_matrix, shorter_side
from lrbench.kernels.kernel_blocks import KernelBlocks
from lrbench.low_rank import Basis, LowRank


@register("randqb")
class RandomizedQB(Compressor):
    """D ≈ QB, the error known at every step from ‖D‖² − ‖B‖², then the truncated SVD of B.

    Blocked, with power iteration and an error indicator that costs nothing (W. Yu, Y. Gu and Y. Li, 2018, algorithm 2,
    randQB_EI). Below eps = 1e-5 the indicator, a difference of squares, drowns in rounding; there the residual is
    formed. No rank is given in advance, and none is the last but min(m, n).

    A block's random numbers are its own, as those of ``rsvd`` are.

    Parameters
    ----------
    eps : float
        Requested relative Frobenius error, in (0, 1].
    width : int
        Columns that Q grows by, at least 1.
    power : int
        Steps of power iteration for each, at least 0.
    seed : int
        Of the random matrices, at least 0.
    factors : {None, "bfloat16", "float16"}
        As :class:`~lrbench.compressors.base.Compressor` takes it.
    """

    guarantee = "block"
    randomized = True

    def __init__(
        self, eps: float = 0.1, width: int = 4, power: int = 2, seed: int = 0, factors: str | None = None
    ) -> None:
        super().__init__(eps, factors)
        self.forms_blocks = self.aim < GRAM_LIMIT
        for what, value, least in (("width", width, 1), ("power", power, 0), ("seed", seed, 0)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{what} is {value!r}: use a whole number of at least {least}")
        self.width, self.power, self.seed = width, power, seed

    def factorize(self, blocks: Blocks) -> LowRank | Basis:
        """Through the Gram matrix on a CPU, as long as that tells the error."""
        m, n = blocks.shape[1:]
        view = KernelBlocks.of(blocks)
        if view is None or self.aim < GRAM_LIMIT:
            return self._in_step(blocks)
        side = shorter_side(blocks)
        tests, words = gaussian(self.seed, min(m, n), max(m, n)), signs(blocks, self.seed, max(m, n))
        inside = INSIDE * self.aim
        vectors, ranks = view.grown(side, tests, words, inside, _FURTHER * inside, self.width, self.power)
        # An iteration that did not end gives nothing, which the certificate does not let pass.
        return Basis(side, vectors, ranks.clamp(min=0))

    def _in_step(self, blocks: Blocks) -> LowRank:
        """Let all blocks grow together; those that are done leave."""
        side = min(blocks.shape[1:])
        total = blocks.squared_norm()
        enough = (_FURTHER * self.aim) ** 2 * total
        tests = sketching_matrices(blocks, self.seed, side)
        D = aligned_copy(blocks.dense(), torch.float64)
        index, order, parts = each_block(blocks), [], []
        Q, B = D[:, :, :0], D[:, :0]
        while len(index):
            columns = slice(Q.shape[2], min(Q.shape[2] + self.width, side))
            more = self._columns(D, Q, B, aligned_copy(tests[:, columns]))
            Q, B = torch.cat([Q, more], 2), torch.cat([B, aligned_product(aligned_copy(more.mT), D)], 1)
            Q, B = aligned_copy(Q), aligned_copy(B)
            if self.aim < GRAM_LIMIT:
                left = (D - aligned_product(Q, B)).square_().sum((1, 2))
            else:
                left = total - B.square().sum((1, 2))
            done = (left <= enough) | (Q.shape[2] == side)
            if bool(done.any()):
                order.append(index[done])
                parts.append(truncated_projection(blocks.select(index[done]), Q[done], self.aim))
                going = (~done).nonzero()[:, 0]
                index, total, enough, tests = index[going], total[going], enough[going], tests[going]
                D, Q, B = aligned_copy(D[going]), aligned_copy(Q[going]), aligned_copy(B[going])
        return LowRank.concatenate(parts).select(torch.cat(order).argsort())

    def _columns(self, D: Tensor, Q: Tensor, B: Tensor, tests: Tensor) -> Tensor:
        """Orthonormal columns beside those of Q, from tests (N, w, n): (N, m, w)."""
        found = _orthonormal(_beside(Q, B, D, tests.mT))
        for _ in range(self.power):
            back = aligned_product(aligned_copy(D.mT), found)
            if Q.shape[2]:
                back -= aligned_product(aligned_copy(B.mT), aligned_product(aligned_copy(Q.mT), found))
            found = _orthonormal(_beside(Q, B, D, _orthonormal(back)))
        if Q.shape[2]:
            # Where little is left beside Q, rounding turns what was found back to it; of nothing, more than once.
            for _ in range(2):
                inside = aligned_product(Q, aligned_product(aligned_copy(Q.mT), found))
                found = _orthonormal(found - inside)
        return found


_FURTHER = 0.5
"""How far Q goes, relative to the tolerance, so that the SVD has something to cut."""


def _beside(Q: Tensor, B: Tensor, D: Tensor, X: Tensor) -> Tensor:
    """(D − QB) X."""
    product = aligned_product(D, X)
    if Q.shape[2]:
        product -= aligned_product(Q, aligned_product(B, X))
    return product


def _orthonormal(columns: Tensor) -> Tensor:
    Q, _ = per_matrix(torch.linalg.qr, columns)
    return aligned_copy(Q)
