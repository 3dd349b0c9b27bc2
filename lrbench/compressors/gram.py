"""The truncated SVD by way of the Gram matrix, the method of snapshots."""

from lrbench.blocks import Blocks
from lrbench.compressors import register
from lrbench.compressors.base import Compressor
from lrbench.compressors.spectral import through_gram
from lrbench.low_rank import Basis


@register("gram")
class GramSVD(Compressor):
    """The eigenvectors of the shorter side's Gram matrix, all of them, and the projection on those that eps asks for.

    The method of snapshots (L. Sirovich, 1987), with LAPACK's symmetric eigenvalue solver in float64. Squaring hides
    singular values below 1e-8 of the largest: far below eps = 1e-5 blocks are escalated.

    Parameters
    ----------
    eps : float
        Requested relative Frobenius error, in (0, 1].
    factors : {None, "bfloat16", "float16"}
        As :class:`~lrbench.compressors.base.Compressor` takes it.
    """

    guarantee = "block"
    forms_blocks = False

    def factorize(self, blocks: Blocks) -> Basis:
        """See :func:`lrbench.compressors.spectral.through_gram`."""
        return through_gram(blocks, self.aim)
