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
from lrbench.compressors.spectral import GRAM_LIMIT, gram_spectrum, shorter_side, triangle_spectrum
from lrbench.factors import Basis


@register("svd-same-rank")
class SameRankSVD(Compressor):
    """The truncated SVD with the rank that ``aca-estimate`` takes on the same block: as many bytes, the least error.

    Parameters
    ----------
    eps : float
        Tolerance of the stopping rule of ``aca-estimate``, in (0, 1].
    factors : {None, "bfloat16", "float16"}
        As :class:`~lrbench.compressors.base.Compressor` takes it.
    """

    guarantee = None
    forms_blocks = False

    def factorize(self, blocks: Blocks) -> Basis:
        """Take ACA's ranks, and the singular vectors of as many."""
        ranks = EstimatedACA(self.eps).factorize(blocks).ranks
        _, vectors = gram_spectrum(blocks) if self.eps >= GRAM_LIMIT else triangle_spectrum(blocks)
        return Basis(shorter_side(blocks), vectors, ranks)


@register("svd-same-error")
class SameErrorSVD(Compressor):
    """The truncated SVD of the least rank whose error is not above that of ``aca-estimate`` on the same block.

    Parameters
    ----------
    eps : float
        Tolerance of the stopping rule of ``aca-estimate``, in (0, 1].
    factors : {None, "bfloat16", "float16"}
        As :class:`~lrbench.compressors.base.Compressor` takes it.
    """

    guarantee = None
    forms_blocks = False

    def factorize(self, blocks: Blocks) -> Basis:
        """Measure ACA's errors, and take the singular vectors that they leave no room to drop."""
        known = EstimatedACA(self.eps).factorize(blocks)
        lost = residual_norms(blocks, known, torch.zeros_like(known.ranks)).square()
        energies, vectors = gram_spectrum(blocks)
        # Of errors so small the Gram matrix does not tell; LAPACK does, and costs more.
        small = (lost < GRAM_LIMIT**2 * blocks.squared_norm()).nonzero()[:, 0]
        if len(small):
            energies[small], vectors[small] = triangle_spectrum(blocks.select(small))
        return Basis(shorter_side(blocks), vectors, _least_ranks(energies, lost, known.ranks))


def _least_ranks(energies: Tensor, lost: Tensor, most: Tensor) -> Tensor:
    """The least ranks that lose no more than ``lost``; those of ACA, ``most``, are enough by Eckart and Young."""
    ranks = (energies.cumsum(1) > lost[:, None]).sum(1)
    return torch.minimum(ranks, most)
