"""What a compressor returns: packed factors of a batch, and the blocks that are kept as they are."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import wraps
from typing import Any, Literal, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from lrbench.blocks import Blocks, DenseBlocks
from lrbench.im2col import Geometry, Im2col

__all__ = ["Basis", "Factors", "LowRank", "Origin"]


_Method = TypeVar("_Method", bound=Callable[..., Any])


def _in_full_precision(method: _Method) -> _Method:
    """Keep autocast, which would round what was certified, out of a method."""

    @wraps(method)
    def plain(self: Any, *arguments: Any) -> Any:
        with torch.autocast(self.device.type, enabled=False):
            return method(self, *arguments)

    return cast(_Method, plain)


class Origin(IntEnum):
    """How a block came to be represented."""

    OWN = 0
    """By the compressor's own method."""
    ESCALATED = 1
    """By the truncated SVD, because the compressor's own factors did not keep the tolerance."""
    STORED = 2
    """As it is, because its factors would have been larger than the block."""


@dataclass(frozen=True)
class LowRank:
    """Ragged low-rank approximations U_i V_i of N blocks, packed one behind the other.

    Attributes
    ----------
    U : Tensor
        (Σ r_i, m): the columns of every U_i, block by block.
    V : Tensor
        (Σ r_i, n): the rows of every V_i, likewise.
    ranks : Tensor
        (N,) int64, the r_i.
    """

    U: Tensor
    V: Tensor
    ranks: Tensor

    @classmethod
    def from_padded(cls, U: Tensor, V: Tensor, ranks: Tensor) -> "LowRank":
        """Pack the leading ``ranks[i]`` columns of U_i and rows of V_i: U (N, m, k), V (N, k, n), ranks (N,) <= k."""
        kept = torch.arange(V.shape[1], device=V.device) < ranks[:, None]
        return cls(U.mT[kept], V[kept], ranks)

    @classmethod
    def concatenate(cls, parts: "list[LowRank]") -> "LowRank":
        """Join batches of blocks of one shape."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("U", "V", "ranks")))

    @property
    def offsets(self) -> Tensor:
        """(N + 1,) int64: rows ``offsets[i]:offsets[i + 1]`` of U and V belong to block i."""
        return torch.cat([self.ranks.new_zeros(1), self.ranks.cumsum(0)])

    def select(self, index: Tensor) -> "LowRank":
        """The blocks at ``index``, (K,) int64, in that order."""
        rows = _ranges(self.offsets[:-1][index], self.ranks[index])
        return LowRank(self.U[rows], self.V[rows], self.ranks[index])

    @classmethod
    def by_rank(cls, ranks: Tensor, factorize: "Callable[[Tensor, int], tuple[Tensor, Tensor]]") -> "LowRank":
        """Build the factors of all blocks of one rank at a time.

        Nothing is padded, and a block's factors do not depend, not even in their last bit, on its neighbours' ranks.

        Parameters
        ----------
        ranks : Tensor
            (N,) int64.
        factorize
            Given indices (B,) and their rank r, gives U (B, m, r) and V (B, r, n).
        """
        order, parts = [], []
        for r in ranks.unique().tolist():
            index = (ranks == r).nonzero()[:, 0]
            U, V = factorize(index, r)
            order.append(index)
            parts.append(cls(U.mT.flatten(0, 1), V.flatten(0, 1), ranks[index]))
        return cls.concatenate(parts).select(torch.cat(order).argsort())

    def replace(self, index: Tensor, other: "LowRank") -> "LowRank":
        """Put the blocks of ``other`` in the places ``index``, (K,) int64."""
        where = torch.arange(len(self.ranks), device=index.device)
        where[index] = len(self.ranks) + torch.arange(len(index), device=index.device)
        return LowRank.concatenate([self, other]).select(where)


@dataclass(frozen=True)
class Basis:
    """One side of the factors; the other is the blocks' projection on it, which the certificate computes.

    Attributes
    ----------
    side : {"rows", "columns"}
        Whether the vectors are columns of U_i, so that V_i = U_iᵀ D_i, or rows of V_i, so that U_i = D_i V_iᵀ.
    vectors : Tensor
        (N, k, m) or (N, k, n) float64, of which the leading ``ranks[i]`` rows, orthonormal, are block i's.
    ranks : Tensor
        (N,) int64, the r_i <= k.
    """

    side: Literal["rows", "columns"]
    vectors: Tensor
    ranks: Tensor


class _Kept(NamedTuple):
    """The layout of blocks that are kept as they are: images to lower, or (without a geometry) dense blocks."""

    geometry: Geometry | None


class _Layout(NamedTuple):
    """All of some factors but their tensors."""

    groups: int
    kept: _Kept | None


class Factors:
    """The approximations D̂_i of a batch of blocks, in the memory that they are said to take.

    Attributes
    ----------
    U, V : Tensor
        (Σ r_i, m) and (Σ r_i, n): the columns of every U_i and the rows of every V_i, packed block by block.
    offsets : Tensor
        (N + 1,) int64: rows ``offsets[i]:offsets[i + 1]`` of U and V belong to block i.
    origin : Tensor
        (N,) uint8, see :class:`Origin`.
    kept : Blocks or None
        The blocks that are kept as they are, as a copy.
    kept_index : Tensor
        (K,) int64: which blocks those are.
    groups : int
        Of the convolution that reads the blocks.
    """

    def __init__(
        self,
        U: Tensor,
        V: Tensor,
        offsets: Tensor,
        origin: Tensor,
        kept_index: Tensor | None = None,
        kept: Blocks | None = None,
        groups: int = 1,
    ) -> None:
        self.U, self.V, self.offsets, self.origin = U, V, offsets, origin
        self.kept = kept
        self.kept_index = offsets.new_zeros(0) if kept_index is None else kept_index
        self.groups = groups

    @property
    def shape(self) -> torch.Size:
        """(N, m, n)."""
        return torch.Size((len(self.origin), self.U.shape[1], self.V.shape[1]))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the factors."""
        return self.U.dtype

    @property
    def device(self) -> torch.device:
        """Where the factors are."""
        return self.U.device

    @property
    def ranks(self) -> Tensor:
        """(N,) int64; a block that is kept as it is has rank min(m, n)."""
        ranks = self.offsets.diff()
        ranks[self.kept_index] = min(self.shape[1:])
        return ranks

    @property
    def nbytes(self) -> int:
        """Bytes of the storages that the factors hold, offsets and origins included, each storage once."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self.tensors()}
        return sum(storages.values())

    @_in_full_precision
    def dense(self) -> Tensor:
        """Form the approximations, a new (N, m, n) tensor."""
        N, m, n = self.shape
        out = torch.zeros(N, m, n, dtype=self.dtype, device=self.device)
        for index, rows in self._buckets():
            out[index] = self.U[rows].mT @ self.V[rows]
        if self.kept is not None:
            out[self.kept_index] = self.kept.dense().to(self.dtype)
        return out

    @_in_full_precision
    def matmul(self, weight: Tensor) -> Tensor:
        """W D̂_i for every block, as (W U_i) V_i, never forming D̂_i where there are factors.

        Parameters
        ----------
        weight : Tensor
            (K, m), of the factors' dtype. With g groups, rows ``j·K/g:(j + 1)·K/g`` meet the blocks of group j.

        Returns
        -------
        Tensor
            (N, K/groups, n).
        """
        g = self.groups
        W = self._grouped(weight)
        out = torch.zeros(len(self.origin), W.shape[1], self.V.shape[1], dtype=self.dtype, device=self.device)
        left = self.U @ W[0].T if g == 1 else None  # (Σ r_i, K): one product serves all blocks
        for index, rows in self._buckets():
            WU = (left[rows] if left is not None else self.U[rows] @ W[index % g].mT).mT
            out[index] = WU @ self.V[rows]
        for j, index, kept in self._kept_by_group():
            out[index] = kept.matmul(W[j])
        return out

    @_in_full_precision
    def grad_weight(self, grad: Tensor) -> Tensor:
        """Σ_i G_i D̂_iᵀ, as (G_i V_iᵀ) U_iᵀ, never forming D̂_i where there are factors.

        Parameters
        ----------
        grad : Tensor
            (N, K/groups, n), of the factors' dtype.

        Returns
        -------
        Tensor
            (K, m): of a grouped convolution, each group's rows.
        """
        N, _, n = self.shape
        if grad.ndim != 3 or (grad.shape[0], grad.shape[2]) != (N, n):
            raise ValueError(f"grad has shape {tuple(grad.shape)}: it must be ({N}, K/groups, {n})")
        g, k = self.groups, grad.shape[1]
        out = torch.zeros(g, k, self.U.shape[1], dtype=self.dtype, device=self.device)
        right = self.U.new_empty(len(self.U), k)  # (Σ r_i, K): V_i G_iᵀ
        for index, rows in self._buckets():
            right[rows] = self.V[rows] @ grad[index].mT
        if g == 1:
            torch.mm(right.T, self.U, out=out[0])
        else:
            for index, rows in self._buckets():
                out.index_add_(0, index % g, right[rows].mT @ self.U[rows])
        for j, index, kept in self._kept_by_group():
            out[j] += kept.grad_weight(grad[index])
        return out.flatten(0, 1)

    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor that the factors hold."""
        kept = () if self.kept is None else (self.kept.tensor,)
        return (self.U, self.V, self.offsets, self.origin, self.kept_index, *kept)

    @property
    def layout(self) -> _Layout:
        """All but the tensors: with :meth:`tensors` it makes the same factors again."""
        if self.kept is None:
            return _Layout(self.groups, None)
        return _Layout(self.groups, _Kept(self.kept.geometry if isinstance(self.kept, Im2col) else None))

    @classmethod
    def restore(cls, layout: _Layout, tensors: tuple[Tensor, ...]) -> "Factors":
        """Make factors from what :attr:`layout` and :meth:`tensors` gave."""
        U, V, offsets, origin, kept_index, *rest = tensors
        kept: Blocks | None = None
        if layout.kept is not None:
            geometry = layout.kept.geometry
            kept = DenseBlocks(rest[0]) if geometry is None else Im2col.of(rest[0], geometry)
        return cls(U, V, offsets, origin, kept_index, kept, layout.groups)

    def low_rank(self, index: Tensor | None = None) -> LowRank:
        """The factors alone; blocks that are kept as they are have none."""
        whole = LowRank(self.U, self.V, self.offsets.diff())
        return whole if index is None else whole.select(index)

    def _buckets(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks of one rank at a time: their indices (B,), and the rows (B, r) of U and V that are theirs."""
        ranks = self.offsets.diff()
        for r in ranks.unique().tolist():
            if r:
                index = (ranks == r).nonzero()[:, 0]
                yield index, self.offsets[index, None] + torch.arange(r, device=self.device)

    def _kept_by_group(self) -> Iterator[tuple[int, Tensor, Blocks]]:
        if self.kept is None or len(self.kept_index) == 0:
            return
        if self.groups == 1:
            everything = len(self.kept_index) == len(self.origin)
            yield 0, torch.arange(len(self.origin), device=self.device) if everything else self.kept_index, self.kept
            return
        group = self.kept_index % self.groups
        for j in group.unique().tolist():
            chosen = (group == j).nonzero()[:, 0]
            yield j, self.kept_index[chosen], self.kept.select(chosen)

    def _grouped(self, weight: Tensor) -> Tensor:
        """Check a weight and give it as (groups, K/groups, m)."""
        m = self.U.shape[1]
        if weight.ndim != 2 or weight.shape[1] != m or weight.shape[0] % self.groups:
            raise ValueError(
                f"weight has shape {tuple(weight.shape)}: it must be (K, {m}) with K a multiple of {self.groups} groups"
            )
        return weight.unflatten(0, (self.groups, -1))


def _ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """Concatenate the ranges ``starts[i] : starts[i] + lengths[i]``."""
    ends = lengths.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    within = torch.arange(total, device=starts.device) - torch.repeat_interleave(ends - lengths, lengths)
    return within + torch.repeat_interleave(starts, lengths)
