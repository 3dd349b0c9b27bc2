"""The truncated SVD of many blocks, and the rank that a tolerance asks for."""

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import torch
from torch import Tensor

from lrbench.blocks import Blocks
from lrbench.factors import LowRank

__all__ = ["GRAM_LIMIT", "INSIDE", "eigh", "truncated_svd", "truncation_ranks"]

INSIDE = 1 - 1e-4
"""How far inside the tolerance to aim: enough for rounding, too little to cost a rank."""

GRAM_LIMIT = 1e-5
"""Below this eps the squared singular values of a float64 Gram matrix no longer tell the tail."""


def truncated_svd(blocks: Blocks, eps: float) -> LowRank:
    """Factors of the least rank that keeps the relative Frobenius error below ``eps`` (Eckart and Young, 1936).

    For eps >= 1e-5 the singular vectors of the shorter side come from the Gram matrix, accumulated in float64, and the
    other side from one product with D. Below, D is formed and decomposed.

    Parameters
    ----------
    blocks : Blocks
        N finite blocks, m x n, of moderate scale.
    eps : float
        In (0, 1).

    Returns
    -------
    LowRank
        float64: U_i with orthonormal columns, or V_i with orthonormal rows, whichever is shorter.
    """
    _, m, n = blocks.shape
    if eps < GRAM_LIMIT:
        U, S, Vh = torch.linalg.svd(blocks.dense().to(torch.float64), full_matrices=False)
        ranks = truncation_ranks(S.square().flip(1), S.square().sum(1), eps)
        return LowRank.from_padded(U, S[:, :, None] * Vh, ranks)
    side: Literal["rows", "columns"] = "rows" if m <= n else "columns"
    eigenvalues, Q = eigh(blocks.gram(side))
    ranks = truncation_ranks(eigenvalues.clamp(min=0), blocks.squared_norm(), eps)

    def project(index: Tensor, r: int) -> tuple[Tensor, Tensor]:
        basis = Q[index, :, Q.shape[2] - r :].flip(2)
        some = blocks.select(index)
        if side == "rows":
            return basis, some.left_product(basis)
        return some.right_product(basis.mT), basis.mT

    return LowRank.by_rank(ranks, project)


def truncation_ranks(energies: Tensor, total: Tensor, eps: float, missing: Tensor | None = None) -> Tensor:
    """The least ranks whose discarded energy stays inside eps² of the total.

    Parameters
    ----------
    energies : Tensor
        (N, k) squared singular values, ascending, non-negative, float64.
    total : Tensor
        (N,) squared norms of the blocks, float64.
    eps : float
        Requested relative error; the ranks aim at ``INSIDE`` times it.
    missing : Tensor, optional
        (N,) energy that the k values do not hold and that is lost whatever the rank.

    Returns
    -------
    Tensor
        (N,) int64, in 0..k.
    """
    lost = energies.cumsum(1)
    if missing is not None:
        lost = lost + missing[:, None]
    return (lost > total[:, None] * (INSIDE * eps) ** 2).sum(1)


def eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of symmetric matrices (N, k, k).

    On a CPU LAPACK gains nothing from two threads on one small matrix: each thread takes a part of the batch.
    """
    threads = torch.get_num_threads()
    if matrices.device.type != "cpu" or threads == 1 or len(matrices) < 2 * threads:
        eigenvalues, vectors = torch.linalg.eigh(matrices)
        return eigenvalues, vectors
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(torch.linalg.eigh, matrices.chunk(threads)))
    finally:
        torch.set_num_threads(threads)
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
