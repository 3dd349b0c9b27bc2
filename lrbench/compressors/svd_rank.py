"""The truncated SVD of a given rank: what the best factors of a fixed budget lose."""

import torch

from lrbench.blocks import Blocks
from lrbench.compressors import register
from lrbench.compressors.base import Compressor
from lrbench.compressors.spectral import leading_vectors
from lrbench.low_rank import Basis


@register("svd-rank")
class FixedRankSVD(Compressor):
    """The truncated SVD of rank ``rank``, whatever it loses: the least error that so many terms allow.

    No rank-r approximation is nearer in the Frobenius norm (C. Eckart and G. Young, 1936). On a CPU the squared
    error is proven to exceed the least by no more than a millionth of it, or by 1e-13 of the block's energy, before U
    and V are rounded to their dtype. Nothing is stored as it is, even where
    factors are larger than the block, but what a half precision cannot hold; a zero block has rank 0.

    Parameters
    ----------
    eps : float
        Accepted for the sake of the common interface, and ignored.
    factors : {None, "bfloat16", "float16"}
        As :class:`~lrbench.compressors.base.Compressor` takes it.
    rank : int
        Of every block, at least 1; of one with fewer rows or columns, as many as there are.
    """

    guarantee = None
    uses_eps = False
    forms_blocks = False

    def __init__(self, eps: float = 0.1, factors: str | None = None, rank: int = 8) -> None:
        super().__init__(eps, factors)
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ValueError(f"rank is {rank!r}: use a whole number of at least 1")
        self.rank = rank

    def __repr__(self) -> str:
        half = "" if self.factors is None else f", factors={self.factors!r}"
        return f"{type(self).__name__}(rank={self.rank}{half})"

    def factorize(self, blocks: Blocks) -> Basis:
        """Take the leading singular vectors."""
        N, m, n = blocks.shape
        ranks = torch.full((N,), min(self.rank, m, n), device=blocks.device)
        return leading_vectors(blocks, ranks * (blocks.squared_norm() > 0))
