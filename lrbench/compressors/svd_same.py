"""The SVD beside the paper's ACA: what the best factors lose at its sizes, and take at its errors.

These are diagnostics. They tell whether what ACA does to a network comes of the low rank or of the factors chosen.
"""

import torch
from torch import Tensor

from lrbench.blocks import Blocks
from lrbench.compressors import register
from lrbench.compressors.aca import EstimatedACA
from lrbench.compressors.base import Compressor
from lrbench.compressors.certificate import residual_norms
from lrbench.compressors.spectral import (
    GRAM_LIMIT,
    gram_spectrum,
    leading_vectors,
    shorter_side,
    triangle_spectrum,
)
from lrbench.kernels.kernel_blocks import KernelBlocks
from lrbench.low_rank import Basis


@register("svd-same-rank")
class SameRankSVD(Compressor):
    """The truncated SVD with the rank that ``aca-estimate`` takes on the same block: as many bytes, the least error.

    On a CPU the squared error is proven to exceed the least by no more than a millionth of it, or by 1e-13 of the
    block's energy, before U and V are rounded to their dtype.

    Parameters
    ----------
    eps : float
        Tolerance of the stopping rule of ``aca-estimate``, in (0, 1].
    factors : {None, "bfloat16", "float16"}
        As :class:`~lrbench.compressors.base.Compressor` takes it.
    """

    guarantee = None
    forms_blocks = False
    version = 2

    def factorize(self, blocks: Blocks) -> Basis:
        """Take ACA's ranks, and the singular vectors of as many."""
        return leading_vectors(blocks, EstimatedACA(self.eps).factorize(blocks).ranks, self.eps < GRAM_LIMIT)


@register("svd-same-error")
class SameErrorSVD(Compressor):
    """The truncated SVD of the least rank whose error is not above that of ``aca-estimate`` on the same block.

    On a CPU that rank is proven to be the least.

    Parameters
    ----------
    eps : float
        Tolerance of the stopping rule of ``aca-estimate``, in (0, 1].
    factors : {None, "bfloat16", "float16"}
        As :class:`~lrbench.compressors.base.Compressor` takes it.
    """

    guarantee = None
    forms_blocks = False
    version = 2

    def factorize(self, blocks: Blocks) -> Basis:
        """Measure ACA's errors, and take the singular vectors that they leave no room to drop."""
        known = EstimatedACA(self.eps).factorize(blocks)
        lost, total = residual_norms(blocks, known, torch.zeros_like(known.ranks)).square(), blocks.squared_norm()
        view = KernelBlocks.of(blocks)
        if view is None:
            energies, vectors = gram_spectrum(blocks)
            ranks = _least_ranks(energies, lost)
        else:
            vectors, ranks = view.bases(shorter_side(blocks), (lost / total.where(total > 0, 1)).sqrt())
        # Of errors so small the Gram matrix does not tell; LAPACK does, and costs more. Below zero no rank was found.
        small = (lost < GRAM_LIMIT**2 * total) | (ranks < 0)
        if small.any():
            energies, vectors[small] = triangle_spectrum(blocks.select(small.nonzero()[:, 0]))
            ranks[small] = _least_ranks(energies, lost[small])
        # By Eckart and Young those of ACA are enough.
        return Basis(shorter_side(blocks), vectors, torch.minimum(ranks, known.ranks))


def _least_ranks(energies: Tensor, lost: Tensor) -> Tensor:
    """The least ranks that lose no more than ``lost``."""
    return (energies.cumsum(1) > lost[:, None]).sum(1)
