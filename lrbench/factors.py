"""What a compressor returns: packed factors of a batch, and the blocks that are kept as they are."""

from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from functools import wraps
from itertools import accumulate
from typing import Any, NamedTuple, Self, TypeVar, cast

import torch
from torch import Tensor

from lrbench.blocks import Blocks, DenseBlocks
from lrbench.compressed import Compressed, in_full_precision
from lrbench.im2col import Geometry, Im2col
from lrbench.kernels import product
from lrbench.low_rank import LowRank, ranges, select_blocks

__all__ = ["Factors", "Origin"]

_Method = TypeVar("_Method", bound=Callable[..., Any])


def _in_full_precision(method: _Method) -> _Method:
    """Lift factors to the dtype of the arithmetic, and keep autocast, which would round what was certified, out."""

    @in_full_precision
    @wraps(method)
    def plain(self: Any, *arguments: Any, **named: Any) -> Any:
        return method(self._lifted(), *arguments, **named)

    return cast(_Method, plain)


class Origin(IntEnum):
    """How a block came to be represented."""

    OWN = 0
    """By the compressor's own method."""
    ESCALATED = 1
    """By the truncated SVD, because the compressor's own factors did not keep the tolerance."""
    STORED = 2
    """As it is, because its factors would have been larger than the block."""


class _Kept(NamedTuple):
    """The layout of blocks that are kept as they are: images to lower, or (without a geometry) dense blocks."""

    geometry: Geometry | None


class _Layout(NamedTuple):
    """All of some factors but their tensors."""

    groups: int
    kept: _Kept | None
    shared: bool
    lent: bool
    dtype: torch.dtype

    def restore(self, tensors: tuple[Tensor, ...]) -> "Factors":
        U, V, offsets, origin, kept_index, *rest = tensors
        starts = rest.pop(0) if self.shared else None
        places = rest.pop(0) if self.lent else None
        kept: Blocks | None = None
        if self.kept is not None:
            geometry = self.kept.geometry
            kept = DenseBlocks(rest[0]) if geometry is None else Im2col.of(rest[0], geometry)
        return Factors(U, V, offsets, origin, kept_index, kept, self.groups, starts, self.dtype, places)


class Factors(Compressed):
    """Low-rank approximations U_i V_i of a batch of blocks, and the blocks that are kept as they are.

    Attributes
    ----------
    U, V : Tensor
        (Σ r_i, m) and (Σ r_i, n): the columns of every U_i and the rows of every V_i, packed block by block; with
        ``starts`` U is (k, m), with ``places`` V has other rows, too. Maybe in a half precision, from which they are
        lifted to be computed with.
    offsets : Tensor
        (N + 1,) int64: rows ``offsets[i]:offsets[i + 1]`` of V, and of U, belong to block i.
    starts : Tensor or None
        (N,) int64: which row of U is the first of block i, where blocks share columns; None elsewhere.
    places : Tensor or None
        (N,) int64: which row of V is the first of block i, where V is that of more blocks; None elsewhere.
    origin : Tensor
        (N,) uint8, see :class:`Origin`.
    kept : Blocks or None
        The blocks that are kept as they are, as a copy.
    kept_index : Tensor
        (K,) int64: which blocks those are.
    groups : int
        Of the convolution that reads the blocks.
    dtype : torch.dtype
        Of products, of approximations, and of the blocks that are kept: that of U and V, if they are not stored in a
        half precision.
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
        starts: Tensor | None = None,
        dtype: torch.dtype | None = None,
        places: Tensor | None = None,
    ) -> None:
        self.U, self.V, self.offsets, self.origin = U, V, offsets, origin
        self.starts, self.places = starts, places
        self.kept = kept
        self.kept_index = offsets.new_zeros(0) if kept_index is None else kept_index
        self.groups = groups
        self._dtype = U.dtype if dtype is None else dtype

    @property
    def shape(self) -> torch.Size:
        """(N, m, n)."""
        return torch.Size((len(self.origin), self.U.shape[1], self.V.shape[1]))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the arithmetic: the blocks' own, in whatever precision the factors are stored."""
        return self._dtype

    @property
    def ranks(self) -> Tensor:
        """(N,) int64: how many rows of V are a block's; of one that is kept as it is, min(m, n)."""
        ranks = self.offsets.diff()
        ranks[self.kept_index] = min(self.shape[1:])
        return ranks

    @_in_full_precision
    def dense(self) -> Tensor:
        """Form the approximations, a new (N, m, n) tensor."""
        N, m, n = self.shape
        out = torch.zeros(N, m, n, dtype=self.dtype, device=self.device)
        for index, left, rows in self._buckets():
            out[index] = self.U[left].mT @ self.V[rows]
        if self.kept is not None:
            out[self.kept_index] = self.kept.dense().to(self.dtype)
        return out

    @_in_full_precision
    def matmul(self, weight: Tensor, bias: Tensor | None = None, channels_last: bool = False) -> Tensor:
        """W D̂_i + b for every block, as (W U_i) V_i + b, never forming D̂_i where there are factors.

        Parameters
        ----------
        weight : Tensor
            (K, m), of :attr:`dtype`. With g groups, rows ``j·K/g:(j + 1)·K/g`` meet the blocks of group j.
        bias : Tensor, optional
            (K,), likewise.
        channels_last : bool
            Whether the K numbers of one column should lie side by side in memory, where that is no detour.

        Returns
        -------
        Tensor
            (N, K/groups, n).
        """
        g, N = self.groups, len(self.origin)
        W = self._grouped(weight)
        if g == 1 and self.kept is not None and len(self.kept_index) == N:  # nothing to put together
            out = self.kept.matmul(weight)
            return out if bias is None else out.add_(bias[:, None])
        added = None if bias is None else bias.view(g, -1)
        left = self.U @ W[0].T if g == 1 else None  # (·, K): one product serves all blocks
        if left is not None and self._compiled(weight, bias):
            first, rows = self._first_rows
            out = product.times(left, first, self.V, rows, self.offsets.diff(), bias, channels_last)
        else:
            out = torch.zeros(N, W.shape[1], self.V.shape[1], dtype=self.dtype, device=self.device)
            for index, first, rows in self._buckets():
                WU = (left[first] if left is not None else self.U[first] @ W[index % g].mT).mT
                out[index] = WU @ self.V[rows]
            if added is not None:
                out.view(-1, g * W.shape[1], self.V.shape[1]).add_(added.reshape(-1, 1))
        for j, places, kept in self._kept_by_group():
            out[places] = kept.matmul(W[j]) if added is None else kept.matmul(W[j]).add_(added[j, :, None])
        return out

    @_in_full_precision
    def grad_weight(self, grad: Tensor) -> Tensor:
        """Σ_i G_i D̂_iᵀ, as (G_i V_iᵀ) U_iᵀ, never forming D̂_i where there are factors.

        Parameters
        ----------
        grad : Tensor
            (N, K/groups, n), of :attr:`dtype`.

        Returns
        -------
        Tensor
            (K, m): of a grouped convolution, each group's rows.
        """
        self._check_grad(grad)
        g, k = self.groups, grad.shape[1]
        if g == 1 and self._compiled(grad):
            return self.gradients(grad)[0]
        out = torch.zeros(g, k, self.U.shape[1], dtype=self.dtype, device=self.device)
        if g == 1:
            right = self.U.new_zeros(len(self.U), k)  # V_i G_iᵀ, of all blocks that use a column
            for index, first, rows in self._buckets():
                right.index_add_(0, first.flatten(), (self.V[rows] @ grad[index].mT).flatten(0, 1))
            out[0] = right.T @ self.U
        else:
            for index, first, rows in self._buckets():
                out.index_add_(0, index % g, (self.V[rows] @ grad[index].mT).mT @ self.U[first])
        for j, places, kept in self._kept_by_group():
            out[j] += kept.grad_weight(grad[places])
        return out.flatten(0, 1)

    @_in_full_precision
    def gradients(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Of a layer's weight and of its bias, of one reading of ``grad`` where a kernel does it."""
        if self.groups > 1 or not self._compiled(grad):
            return super().gradients(grad)
        self._check_grad(grad)
        (first, rows), shared = self._first_rows, self.starts is not None
        right, sums = product.against(self.V, rows, self.offsets.diff(), first, len(self.U), grad, shared)
        out = right.T @ self.U
        for _, places, kept in self._kept_by_group():
            out += kept.grad_weight(grad[places])
        return out, sums

    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor that the factors hold."""
        first = [rows for rows in (self.starts, self.places) if rows is not None]
        kept = () if self.kept is None else (self.kept.tensor,)
        return (self.U, self.V, self.offsets, self.origin, self.kept_index, *first, *kept)

    @property
    def layout(self) -> _Layout:
        """All but the tensors: with :meth:`tensors` it makes the same factors again."""
        kept = None if self.kept is None else _Kept(self.kept.geometry if isinstance(self.kept, Im2col) else None)
        return _Layout(self.groups, kept, self.starts is not None, self.places is not None, self.dtype)

    def low_rank(self, index: Tensor | None = None) -> LowRank:
        """The factors alone; blocks that are kept as they are have none."""
        if index is not None:
            return select_blocks(self.U, self.V, self.offsets, self.starts, index, self.places)
        ranks = self.offsets.diff()
        V = self.V if self.places is None else self.V.index_select(0, ranges(self.places, ranks))
        return LowRank(self.U, V, ranks, self.starts)

    def _lifted(self) -> "Factors":
        """The same with U and V in the dtype of the arithmetic, or itself."""
        if self.U.dtype == self.dtype:
            return self
        U, V = self.U.to(self.dtype), self.V.to(self.dtype)
        first = (self.starts, None, self.places)
        return Factors(U, V, self.offsets, self.origin, self.kept_index, self.kept, self.groups, *first)

    def _compiled(self, *others: Tensor | None) -> bool:
        """Whether the kernels take the factors, and what they are multiplied by carries no graph."""
        graph = torch.is_grad_enabled() and any(other is not None and other.requires_grad for other in others)
        return self.device.type == "cpu" and self.dtype in (torch.float32, torch.float64) and not graph

    @property
    def _first_rows(self) -> tuple[Tensor, Tensor]:
        """(N,) int64 each: where a block's rows of U, and of V, begin."""
        packed = self.offsets[:-1]
        return packed if self.starts is None else self.starts, packed if self.places is None else self.places

    def select(self, index: Tensor) -> Self:
        """The blocks at ``index``, (K,) int64, in that order; with groups, whole images."""
        index = index.to(self.device)
        chosen = self.low_rank(index)
        packed = (chosen.U, chosen.V, chosen.offsets)
        return type(self)(*packed, *self._others(index), self.groups, chosen.starts, self.dtype)

    def view(self, index: Tensor) -> Self:
        """The same as :meth:`select`, with the rows of V where they are, if each block has columns of its own."""
        if self.starts is not None or self.U.dtype != self.dtype:
            return self.select(index)
        index = index.to(self.device)
        first, places = (rows[index] for rows in self._first_rows)
        offsets = torch.nn.functional.pad((self.offsets[1:][index] - first).cumsum(0), (1, 0))
        U = self.U.index_select(0, ranges(first, offsets.diff()))
        return type(self)(U, self.V, offsets, *self._others(index), self.groups, None, self.dtype, places)

    def _others(self, index: Tensor) -> tuple[Tensor, Tensor, Blocks | None]:
        """Origins of some blocks, which of them are kept as they are, and those."""
        kept, places = None, self.kept_index[:0]
        if self.kept is not None:
            place = torch.full_like(self.offsets[1:], -1)
            place[self.kept_index] = torch.arange(len(self.kept_index), device=self.device)
            places = (place[index] >= 0).nonzero()[:, 0]
            kept = self.kept.select(place[index[places]]) if len(places) else None
        return self.origin[index], places, kept

    @classmethod
    def _joined(cls, parts: Sequence[Compressed]) -> "Factors":
        parts = cast("Sequence[Factors]", parts)
        joined = LowRank.concatenate([part.low_rank() for part in parts])
        origin = torch.cat([part.origin for part in parts])
        kept = [part.kept for part in parts if part.kept is not None]
        before = [0, *accumulate(len(part.origin) for part in parts)]
        index = torch.cat([first + part.kept_index for first, part in zip(before, parts, strict=False)])
        whole = kept[0].like(torch.cat([blocks.tensor for blocks in kept])) if kept else None
        groups, dtype = parts[0].groups, parts[0].dtype
        return cls(joined.U, joined.V, joined.offsets, origin, index, whole, groups, joined.starts, dtype)

    def _buckets(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Blocks of one rank at a time: their indices (B,), and the rows (B, r) of U, and of V, that are theirs."""
        ranks, (first, places) = self.offsets.diff(), self._first_rows
        for r in ranks.unique().tolist():
            if r:
                index = (ranks == r).nonzero()[:, 0]
                counted = torch.arange(r, device=self.device)
                yield index, first[index, None] + counted, places[index, None] + counted

    def _kept_by_group(self) -> Iterator[tuple[int, Tensor | slice, Blocks]]:
        if self.kept is None or len(self.kept_index) == 0:
            return
        if self.groups == 1:
            everything = len(self.kept_index) == len(self.origin)
            yield 0, slice(None) if everything else self.kept_index, self.kept  # a view, not a copy of it all
            return
        group = self.kept_index % self.groups
        for j in group.unique().tolist():
            chosen = (group == j).nonzero()[:, 0]
            yield j, self.kept_index[chosen], self.kept.select(chosen)
