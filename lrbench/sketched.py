"""Blocks multiplied by one random matrix: low-rank approximations that are right on average."""

from typing import NamedTuple, cast

import torch
from torch import Tensor

from lrbench.compressed import Compressed, Layout, in_full_precision
from lrbench.factors import Factors

__all__ = ["Sketched"]


class _Layout(NamedTuple):
    """All of sketched blocks but their tensors."""

    groups: int
    kept: Layout | None

    def restore(self, tensors: tuple[Tensor, ...]) -> "Sketched":
        U, V, origin, *rest = tensors
        kept = None if self.kept is None else cast(Factors, self.kept.restore(tuple(rest)))
        return Sketched(U, V, origin, self.groups, kept)


class Sketched(Compressed):
    """Approximations D̂_i = U_i V, with one V for the whole batch.

    Attributes
    ----------
    U : Tensor
        (N, k, m): the columns of every U_i; zeros for a block that is kept as it is.
    V : Tensor
        (k, n).
    kept : Factors or None
        Of rank 0, but for the blocks that are kept as they are; None where none is.
    """

    def __init__(self, U: Tensor, V: Tensor, origin: Tensor, groups: int = 1, kept: Factors | None = None) -> None:
        self.U, self.V, self.origin, self.groups, self.kept = U, V, origin, groups, kept

    @property
    def shape(self) -> torch.Size:
        """(N, m, n)."""
        return torch.Size((len(self.U), self.U.shape[2], self.V.shape[1]))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the factors."""
        return self.V.dtype

    @property
    def ranks(self) -> Tensor:
        """(N,) int64: k; of a block that is kept as it is, min(m, n)."""
        ranks = torch.full((len(self.U),), len(self.V), dtype=torch.int64, device=self.device)
        if self.kept is not None:
            ranks[self.kept.kept_index] = min(self.shape[1:])
        return ranks

    @in_full_precision
    def dense(self) -> Tensor:
        """Form the approximations, a new (N, m, n) tensor."""
        out = self.U.mT @ self.V
        return out if self.kept is None else out + self.kept.dense()

    @in_full_precision
    def matmul(self, weight: Tensor, bias: Tensor | None = None, channels_last: bool = False) -> Tensor:
        """W D̂_i + b for every block, as (W U_i) V + b."""
        W, (N, _, n) = self._grouped(weight), self.shape
        left = torch.einsum("gpm,igkm->igpk", W, self.U.unflatten(0, (-1, self.groups)))
        out = (left.flatten(0, 2) @ self.V).view(N, W.shape[1], n)
        added = out if bias is None else out + bias.view(self.groups, -1, 1).repeat(N // self.groups, 1, 1)
        # The sums are copies: what a layer returns may be worked on in place.
        return added.clone() if self.kept is None else added + self.kept.matmul(weight)

    @in_full_precision
    def grad_weight(self, grad: Tensor) -> Tensor:
        """Σ_i G_i D̂_iᵀ, as (G_i Vᵀ) U_iᵀ."""
        self._check_grad(grad)
        N, k, n = grad.shape
        right = (grad.reshape(N * k, n) @ self.V.T).view(N // self.groups, self.groups, k, len(self.V))
        out = torch.einsum("igpk,igkm->gpm", right, self.U.unflatten(0, (-1, self.groups))).flatten(0, 1)
        return out if self.kept is None else out + self.kept.grad_weight(grad)

    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor that is held."""
        return (self.U, self.V, self.origin, *(() if self.kept is None else self.kept.tensors()))

    @property
    def layout(self) -> _Layout:
        """All but the tensors."""
        return _Layout(self.groups, None if self.kept is None else self.kept.layout)

    def select(self, index: Tensor) -> "Sketched":
        """The blocks at ``index``, (K,) int64, in that order; with groups, whole images."""
        index = index.to(self.device)
        kept = None if self.kept is None else self.kept.select(index)
        kept = None if kept is None or kept.kept is None else kept
        return Sketched(self.U[index], self.V, self.origin[index], self.groups, kept)
