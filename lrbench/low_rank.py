"""What a low-rank method finds: factors of many blocks, or one side of them, before anybody has checked them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["Basis", "Crosses", "LowRank", "RowSubset", "SharedBasis", "ranges", "select_blocks"]


@dataclass(frozen=True)
class LowRank:
    """Ragged low-rank approximations U_i V_i of N blocks, packed one behind the other.

    Attributes
    ----------
    U : Tensor
        (Σ r_i, m): the columns of every U_i, block by block; with ``starts``, (k, m), in any order.
    V : Tensor
        (Σ r_i, n): the rows of every V_i, block by block.
    ranks : Tensor
        (N,) int64, the r_i.
    starts : Tensor or None
        (N,) int64: rows ``starts[i]:starts[i] + ranks[i]`` of U belong to block i, and maybe to others, too. None where
        U is packed as V is.
    """

    U: Tensor
    V: Tensor
    ranks: Tensor
    starts: Tensor | None = None

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
        U, V, ranks = (torch.cat([getattr(part, name) for part in parts]) for name in ("U", "V", "ranks"))
        if all(part.starts is None for part in parts):
            return cls(U, V, ranks)
        before, starts = 0, []
        for part in parts:
            starts.append(before + (part.offsets[:-1] if part.starts is None else part.starts))
            before += len(part.U)
        return cls(U, V, ranks, torch.cat(starts))

    @property
    def offsets(self) -> Tensor:
        """(N + 1,) int64: rows ``offsets[i]:offsets[i + 1]`` of V, and of a packed U, belong to block i."""
        return torch.cat([self.ranks.new_zeros(1), self.ranks.cumsum(0)])

    def to(self, dtype: torch.dtype) -> "LowRank":
        """The same in another dtype, or itself."""
        if self.U.dtype == self.V.dtype == dtype:
            return self
        return LowRank(self.U.to(dtype), self.V.to(dtype), self.ranks, self.starts)

    def packed(self) -> "LowRank":
        """The same with a U_i for each block, whatever they share."""
        return self if self.starts is None else LowRank(self.U[ranges(self.starts, self.ranks)], self.V, self.ranks)

    def select(self, index: Tensor) -> "LowRank":
        """The blocks at ``index``, (K,) int64, in that order."""
        return select_blocks(self.U, self.V, self.offsets, self.starts, index)

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


class RowSubset(LowRank):
    """Factors whose V are rows of the blocks, to be kept as they are: U takes nothing of their scale."""


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


class Crosses(NamedTuple):
    """Crosses that are still to be found: the certificate does so, and looks at each block in the same pass.

    Attributes
    ----------
    tolerance : float
        What may be lost of a block's squared norm.
    floor : float
        What is smaller than that part of a block's norm is a rounding error, and no pivot.
    limit : int
        Largest rank, at which a block's crosses end whatever they lose.
    """

    tolerance: float
    floor: float
    limit: int


@dataclass(frozen=True)
class SharedBasis:
    """Columns that all U_i have in common, of which each block takes as many as it needs, and the projections on them.

    Attributes
    ----------
    vectors : Tensor
        (k, m): orthonormal up to rounding.
    coefficients : Tensor
        (N, k or more, n), of the vectors' dtype: these times every block, computed in any order of summation.
    ranks : Tensor
        (N,) int64, the r_i <= k: of block i the leading r_i vectors and coefficients are meant.
    """

    vectors: Tensor
    coefficients: Tensor
    ranks: Tensor


def select_blocks(
    U: Tensor, V: Tensor, offsets: Tensor, starts: Tensor | None, index: Tensor, places: Tensor | None = None
) -> LowRank:
    """The blocks at ``index`` of those that are kept as :class:`lrbench.Factors` keeps them; no others are touched."""
    first = offsets[:-1][index]
    ranks = offsets[1:][index] - first
    rows = ranges(first, ranks)
    # Line by line: a third of the time of V[rows].
    V = V.index_select(0, rows if places is None else ranges(places[index], ranks))
    if starts is None:
        return LowRank(U.index_select(0, rows), V, ranks)
    # What is nobody's any more is dropped from U, the rest stays in its order.
    starts = starts[index]
    used = torch.zeros(len(U), dtype=torch.bool, device=U.device)
    used[ranges(starts, ranks)] = True
    moved = used.cumsum(0) - 1
    starts = torch.where(ranks > 0, moved[starts.clamp(max=max(0, len(U) - 1))], 0) if len(used) else starts
    return LowRank(U if bool(used.all()) else U[used], V, ranks, starts)


def ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """Concatenate the ranges ``starts[i] : starts[i] + lengths[i]``."""
    ends = lengths.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    moved = torch.repeat_interleave(starts - (ends - lengths), lengths, output_size=total)
    return moved.add_(torch.arange(total, device=starts.device))
