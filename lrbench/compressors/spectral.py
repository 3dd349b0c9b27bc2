"""The truncated SVD of many blocks, and the rank that a tolerance asks for."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import torch
from torch import Tensor

from lrbench.blocks import Blocks
from lrbench.kernels.kernel_blocks import KernelBlocks
from lrbench.low_rank import Basis

__all__ = [
    "GRAM_LIMIT",
    "INSIDE",
    "gram_spectrum",
    "largest_rank",
    "leading_vectors",
    "per_matrix",
    "shorter_side",
    "thin_svd",
    "through_gram",
    "through_triangle",
    "triangle_spectrum",
    "truncated_svd",
    "truncation_ranks",
]

INSIDE = 1 - 1e-4
"""How far inside the tolerance to aim: enough for rounding, too little to cost a rank."""

GRAM_LIMIT = 1e-5
"""Below this eps the squared singular values of a float64 Gram matrix no longer tell the tail."""


def truncated_svd(blocks: Blocks, eps: float) -> Basis:
    """Factors of the least rank that keeps the relative Frobenius error below ``eps`` (Eckart and Young, 1936).

    For eps >= 1e-5 the singular vectors of the shorter side are eigenvectors of the Gram matrix, accumulated in
    float64, and the other side follows by projection. On a CPU the matrix is decomposed as far as is needed to prove
    the rank to be the least, and the squared error to exceed the least at that rank by no more than a millionth of
    eps²; elsewhere it is decomposed whole. Where on a CPU rows of float32 images are the shorter side, and rounding is
    far below what may be lost, the matrix is computed in float32, and again where rounding might decide on the rank:
    the rank is proven as otherwise, and the error at it typically exceeds the least by some 1e-7 of eps². Below 1e-5, D
    is formed and decomposed.

    Parameters
    ----------
    blocks : Blocks
        N finite blocks, m x n, of moderate scale.
    eps : float
        In (0, 1).

    Returns
    -------
    Basis
        float64: U_i with orthonormal columns, or V_i with orthonormal rows, whichever is shorter.
    """
    if eps < GRAM_LIMIT:
        return through_triangle(blocks, eps)
    side = shorter_side(blocks)
    view = KernelBlocks.of(blocks)
    if view is None:
        return through_gram(blocks, eps)
    vectors, ranks = view.bases(side, INSIDE * eps)
    failed = (ranks < 0).nonzero()[:, 0]
    if len(failed):
        # No block is known that brings it here; LAPACK's iteration is another one.
        whole = through_gram(blocks.select(failed), eps)
        vectors[failed], ranks[failed] = whole.vectors, whole.ranks
    return Basis(side, vectors, ranks)


def leading_vectors(blocks: Blocks, ranks: Tensor, precise: bool = False) -> Basis:
    """Factors of the given ranks and the least error that they allow (Eckart and Young, 1936).

    The vectors are those of :func:`truncated_svd`: from Gram matrices, or, if what is lost has to be told from 1e-16 of
    a block's energy, from the blocks themselves.

    Parameters
    ----------
    blocks : Blocks
        N finite blocks, m x n, of moderate scale.
    ranks : Tensor
        (N,) int64, in 0..min(m, n).
    precise : bool
        Whether to decompose the blocks themselves.

    Returns
    -------
    Basis
        float64.
    """
    side, view = shorter_side(blocks), KernelBlocks.of(blocks)
    if view is None or precise:
        _, vectors = triangle_spectrum(blocks) if precise else gram_spectrum(blocks)
        return Basis(side, vectors, ranks)
    vectors, found = view.bases(side, 1.0, ranks)
    failed = (found < 0).nonzero()[:, 0]
    if len(failed):
        vectors[failed] = gram_spectrum(blocks.select(failed))[1]
    return Basis(side, vectors, ranks)


def shorter_side(blocks: Blocks) -> Literal["rows", "columns"]:
    """Which of the sides the basis of a truncated SVD belongs to."""
    return "rows" if blocks.shape[1] <= blocks.shape[2] else "columns"


def through_gram(blocks: Blocks, eps: float) -> Basis:
    """The truncated SVD from the whole Gram matrix; see :func:`truncated_svd`."""
    energies, vectors = gram_spectrum(blocks)
    return Basis(shorter_side(blocks), vectors, truncation_ranks(energies, blocks.squared_norm(), eps))


def through_triangle(blocks: Blocks, eps: float) -> Basis:
    """The truncated SVD from the triangular factor of the longer side; see :func:`truncated_svd`."""
    energies, vectors = triangle_spectrum(blocks)
    return Basis(shorter_side(blocks), vectors, truncation_ranks(energies, energies.sum(1), eps))


def gram_spectrum(blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Squared singular values and singular vectors of the shorter side, from float64 Gram matrices.

    Returns
    -------
    tuple
        Squared singular values, ascending and non-negative, (N, k), with an error of about 1e-16 of the largest; and,
        in the opposite order, the vectors that belong to them, (N, k, k), a row for each. Both float64.
    """
    eigenvalues, Q = per_matrix(torch.linalg.eigh, blocks.gram(shorter_side(blocks)))
    return eigenvalues.clamp(min=0), Q.flip(2).mT


def triangle_spectrum(blocks: Blocks) -> tuple[Tensor, Tensor]:
    """As :func:`gram_spectrum`, of the blocks themselves: singular values have an error of 1e-16 of the largest.

    The longer side is triangularized by Householder's reflections first, and the SVD is that of the triangle
    (T. F. Chan, 1982).
    """
    D = blocks.dense()
    _, R = per_matrix(_triangle, D.mT if shorter_side(blocks) == "rows" else D)
    U, S, _ = per_matrix(thin_svd, R.mT)
    return S.square().flip(1), U.mT


def _triangle(matrices: Tensor) -> Sequence[Tensor]:
    return torch.linalg.qr(matrices.to(torch.float64), mode="r")


def largest_rank(m: int, n: int, ratio: float = 1.0) -> int:
    """The largest r with r (m + n) <= ratio·m n: of factors, each of whose numbers takes 1/ratio of the block's."""
    return math.floor(ratio * m * n / (m + n))


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


def per_matrix(decomposition: Callable[[Tensor], Sequence[Tensor]], matrices: Tensor) -> tuple[Tensor, ...]:
    """Decompose matrices (N, ., .) by LAPACK, and stack each part of the results.

    On a CPU LAPACK gains nothing from two threads on one small matrix: each thread takes a matrix at a time. It also
    gives other last bits where a matrix is aligned otherwise in memory; here each is copied to memory of its own.

    Parameters
    ----------
    decomposition
        Such as ``torch.linalg.eigh``.
    matrices : Tensor
        (N, ., .), float64.
    """
    if matrices.device.type != "cpu" or len(matrices) == 0:
        return tuple(decomposition(matrices))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # MKL's first call in a new thread may give other last bits than all later ones: it is made for nothing.
        with ThreadPoolExecutor(threads, initializer=decomposition, initargs=(matrices[0],)) as pool:
            parts = list(pool.map(decomposition, matrices.unbind()))
    finally:
        torch.set_num_threads(threads)
    return tuple(torch.stack(part) for part in zip(*parts, strict=True))


def thin_svd(matrices: Tensor) -> Sequence[Tensor]:
    """U, S and Vᵀ without the columns that no singular value belongs to."""
    return torch.linalg.svd(matrices, full_matrices=False)
