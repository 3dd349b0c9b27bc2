"""The truncated SVD by way of a QR factorization."""

from lrbench.blocks import Blocks
from lrbench.compressors import register
from lrbench.compressors.base import Compressor
from lrbench.compressors.spectral import through_triangle
from lrbench.low_rank import Basis


@register("qr-svd")
class TriangleSVD(Compressor):
    """QR of the longer side first, then the SVD of the small triangle (T. F. Chan, 1982).

    Nothing is squared: singular values down to 1e-16 of the largest are told, so that small tolerances are kept, too.

    Parameters
    ----------
    eps : float
        Requested relative Frobenius error, in (0, 1].
    factors : {None, "bfloat16", "float16"}
        As :class:`~lrbench.compressors.base.Compressor` takes it.
    """

    guarantee = "block"

    def factorize(self, blocks: Blocks) -> Basis:
        """See :func:`lrbench.compressors.spectral.through_triangle`."""
        return through_triangle(blocks, self.aim)
