"""QR factorization with column pivoting, stopped on the residual."""

import torch

from lrbench.blocks import Blocks
from lrbench.compressors import register
from lrbench.compressors.base import Compressor
from lrbench.compressors.deflation import Pair, deflated
from lrbench.low_rank import LowRank


@register("cpqr")
class PivotedQR(Compressor):
    """D P = Q R, the next column of Q being the largest that is left (P. Businger and G. H. Golub, 1965).

    U holds the leading columns of Q, and V is R with its columns in the block's order. Norms are not downdated, which
    cancels: the residual is kept, in float64 and of the factors as they are stored, and its norms are computed anew.

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
        return deflated(blocks, self.aim, "columns", _largest_column, self.largest_rank(blocks) + 1)


def _largest_column(R: torch.Tensor, dtype: torch.dtype) -> Pair:
    """The largest column of each residual, normalized, and its product with the residual."""
    norms = R.square().sum(1)
    each, j = torch.arange(len(R), device=R.device), norms.argmax(1)
    size = norms[each, j].sqrt()
    u = (R[each, :, j] / torch.where(size == 0, 1, size)[:, None]).to(dtype)
    return u, (u.to(torch.float64)[:, None] @ R)[:, 0].to(dtype)
