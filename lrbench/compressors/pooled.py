"""One basis for many blocks: finding it, improving it, extending it, and how much of it each block needs.

A basis is touched only through products with the blocks, which for images are convolutions: D is never formed, and
whatever a device has for convolving does the work.
"""

import torch
from torch import Tensor

from lrbench.blocks import Blocks
from lrbench.compressors.certificate import projection_slack
from lrbench.compressors.spectral import INSIDE
from lrbench.kernels.prefix import row_energies

__all__ = ["beside", "improved", "needed", "projected"]

_LEAST = 8
"""Vectors that a basis grows by, at the least."""

_SEED = 20110
"""Of the directions in which a search begins."""


def projected(blocks: Blocks, basis: Tensor) -> Tensor:
    """The products of a basis (k, m) with every block, (N, k, n); the basis may be empty."""
    return blocks.matmul(basis) if len(basis) else blocks.tensor.new_empty(len(blocks), 0, blocks.shape[2])


def needed(coefficients: Tensor, total: Tensor, m: int, eps: float) -> tuple[Tensor, Tensor]:
    """How many of a basis' leading vectors each block needs.

    Parameters
    ----------
    coefficients : Tensor
        (N, k, n): the blocks' projections on orthonormal vectors.
    total : Tensor
        (N,) float64, the blocks' squared norms.
    m : int
        Length of the vectors.
    eps : float
        The tolerance.

    Returns
    -------
    tuple
        The ranks, (N,) int64, and whether the basis is enough, (N,) bool, for each block; where it is not the rank
        is k.
    """
    k = coefficients.shape[1]
    allowed = (INSIDE * eps) ** 2
    slack = projection_slack(m, k, coefficients.dtype)
    # A little more of the tolerance given away spares the forming of residuals; a lot is not.
    allowed = allowed - slack if slack < 0.3 * allowed else allowed
    held = row_energies(coefficients).cumsum(1)
    lost = total[:, None] - torch.cat([torch.zeros_like(total)[:, None], held], 1)
    short = lost > allowed * total[:, None]
    return short[:, :k].sum(1), ~short[:, k]


def beside(blocks: Blocks, basis: Tensor, total: Tensor) -> Tensor:
    """Directions in which to extend a basis: the leading ones of what blocks have outside its span.

    Subspace iteration on Σ_i D_i D_iᵀ / ‖D_i‖² (N. Halko, P.-G. Martinsson and J. A. Tropp, 2011, algorithm 4.4).

    Parameters
    ----------
    blocks : Blocks
        Those that need more; none is zero.
    basis : Tensor
        (k, m), k < m, orthonormal.
    total : Tensor
        (N,) float64, the blocks' squared norms.

    Returns
    -------
    Tensor
        (p, m), orthonormal, p about a quarter of k.
    """
    k, m = basis.shape
    count = min(m - k, max(_LEAST, k // 4))
    generator = torch.Generator("cpu").manual_seed(_SEED + k)
    found = torch.randn(count, m, generator=generator, dtype=torch.float64, device="cpu").to(blocks.device)
    held, weights = basis.to(torch.float64), _weights(total, basis.dtype)
    for _ in range(2):
        found = _outside(found, held)
        found = blocks.grad_weight(blocks.matmul(found.to(basis.dtype)) * weights).to(torch.float64)
    return _outside(_outside(found, held), held).to(basis.dtype)


def improved(blocks: Blocks, basis: Tensor, coefficients: Tensor, total: Tensor) -> Tensor:
    """The basis after one step of subspace iteration, its vectors by descending weight in the blocks."""
    product = blocks.grad_weight(coefficients * _weights(total, basis.dtype)).to(torch.float64)  # (k, m)
    values, order = torch.linalg.eigh(product @ product.T)
    found = order.flip(1).T @ product
    if len(values) and float(values[0]) <= 1e-10 * float(values[-1]):
        return _orthonormal(found).to(basis.dtype)
    found /= values.flip(0).sqrt()[:, None]
    # What rounding left of a slant, one step of Newton and Schulz takes.
    return (1.5 * found - 0.5 * (found @ found.T) @ found).to(basis.dtype)


def _weights(total: Tensor, dtype: torch.dtype) -> Tensor:
    """1 / ‖D_i‖², as (N, 1, 1): relative errors count alike; 0 for zero blocks."""
    return torch.where(total > 0, 1 / total, 0.0).to(dtype)[:, None, None]


def _outside(rows: Tensor, held: Tensor) -> Tensor:
    """Orthonormal rows, orthogonal to those that are held."""
    return _orthonormal(rows - (rows @ held.T) @ held)


def _orthonormal(rows: Tensor) -> Tensor:
    """Orthonormal rows of the same leading spans, (k, m) float64."""
    Q, _ = torch.linalg.qr(rows.T)
    return Q.T
