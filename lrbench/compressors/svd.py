"""The truncated singular value decomposition: the smallest rank that there is for a tolerance."""

from lrbench.blocks import Blocks
from lrbench.compressors import register
from lrbench.compressors.base import Compressor
from lrbench.compressors.spectral import truncated_svd
from lrbench.low_rank import Basis


@register("svd")
class TruncatedSVD(Compressor):
    """The best approximation of each block (C. Eckart and G. Young, 1936, theorem I), cut where eps allows.

    Parameters
    ----------
    eps : float
        Requested relative Frobenius error, in (0, 1].
    factors : {None, "bfloat16", "float16"}
        As :class:`~lrbench.compressors.base.Compressor` takes it.
    """

    guarantee = "block"
    forms_blocks = False
    version = 4

    def factorize(self, blocks: Blocks) -> Basis:
        """See :func:`lrbench.compressors.spectral.truncated_svd`."""
        return truncated_svd(blocks, self.aim)
