"""What stands for a batch of blocks after compression, whatever the method: the interface that a convolution uses."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, NamedTuple, Protocol, Self, TypeVar, cast

import torch
from torch import Tensor

__all__ = ["Compressed", "Joined", "Layout", "full_precision", "in_full_precision", "storage_bytes"]

_Method = TypeVar("_Method", bound=Callable[..., Any])


def full_precision(device: str) -> AbstractContextManager[Any]:
    """Keep autocast, which would round what was certified, out of what is done within.

    Where there is none, nothing is done: a step of a small network would feel what torch takes to turn it off.
    """
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def in_full_precision(method: _Method) -> _Method:
    """Keep autocast out of a method: see :func:`full_precision`."""

    @wraps(method)
    def plain(self: Any, *arguments: Any, **named: Any) -> Any:
        with full_precision(self.device.type):
            return method(self, *arguments, **named)

    return cast(_Method, plain)


class Layout(Protocol):
    """All of something compressed but its tensors."""

    def restore(self, tensors: tuple[Tensor, ...]) -> "Compressed":
        """Make the same again from what :meth:`Compressed.tensors` gave."""


class Compressed(ABC):
    """The approximations D̂_i of N blocks m x n, in the memory that they are said to take.

    Attributes
    ----------
    origin : Tensor
        (N,) uint8, see :class:`lrbench.Origin`.
    groups : int
        Of the convolution that reads the blocks: block ``i * groups + j`` belongs to group ``j`` of image ``i``.
    """

    origin: Tensor
    groups: int

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """(N, m, n)."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of the approximations."""

    @property
    @abstractmethod
    def ranks(self) -> Tensor | None:
        """(N,) int64; None where what is kept has no rank."""

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        return self.origin.device

    @property
    def nbytes(self) -> int:
        """Bytes of all storages that are held, each storage once."""
        return storage_bytes(self.tensors())

    @abstractmethod
    def dense(self) -> Tensor:
        """Form the approximations, a new (N, m, n) tensor."""

    @abstractmethod
    def matmul(self, weight: Tensor, bias: Tensor | None = None, channels_last: bool = False) -> Tensor:
        """W D̂_i + b for every block.

        Parameters
        ----------
        weight : Tensor
            (K, m), of this dtype. With g groups, rows ``j·K/g:(j + 1)·K/g`` meet the blocks of group j.
        bias : Tensor, optional
            (K,), likewise.
        channels_last : bool
            Whether the K numbers of one column should lie side by side in memory, where that is no detour.

        Returns
        -------
        Tensor
            (N, K/groups, n); without a graph, no view of another tensor.
        """

    @abstractmethod
    def grad_weight(self, grad: Tensor) -> Tensor:
        """Σ_i G_i D̂_iᵀ: (N, K/groups, n), of this dtype, -> (K, m), of a grouped convolution each group's rows."""

    def gradients(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Of a layer's weight and of its bias, from the gradient of its output.

        Parameters
        ----------
        grad : Tensor
            (N, K/groups, n), of this dtype.

        Returns
        -------
        tuple of Tensor
            What :meth:`grad_weight` gives, and the sums over all images and places, (K,).
        """
        return self.grad_weight(grad), grad.unflatten(0, (len(grad) // self.groups, self.groups)).sum((0, 3)).flatten()

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor that is held."""

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """All but the tensors: its ``restore``, given :meth:`tensors`, makes the same again."""

    @abstractmethod
    def select(self, index: Tensor) -> Self:
        """The blocks at ``index``, (K,) int64, in that order; with groups, whole images."""

    def view(self, index: Tensor) -> Self:
        """The same as :meth:`select`, but copying as little as can be: with it, all of this stays in memory."""
        return self.select(index)

    @classmethod
    def concatenate(cls, parts: "Sequence[Compressed]") -> "Compressed":
        """Join batches of one shape and one convolution, which one class of compressor made."""
        return parts[0] if len(parts) == 1 else type(parts[0])._joined(parts)

    @classmethod
    def _joined(cls, parts: "Sequence[Compressed]") -> "Compressed":
        """As :meth:`concatenate`, of two parts or more, all of this class."""
        return Joined(parts)

    def _grouped(self, weight: Tensor) -> Tensor:
        """Check a weight and give it as (groups, K/groups, m)."""
        m = self.shape[1]
        if weight.ndim != 2 or weight.shape[1] != m or weight.shape[0] % self.groups:
            raise ValueError(
                f"weight has shape {tuple(weight.shape)}: it must be (K, {m}) with K a multiple of {self.groups} groups"
            )
        return weight.unflatten(0, (self.groups, -1))

    def _check_grad(self, grad: Tensor) -> None:
        N, _, n = self.shape
        if grad.ndim != 3 or (grad.shape[0], grad.shape[2]) != (N, n):
            raise ValueError(f"grad has shape {tuple(grad.shape)}: it must be ({N}, K/groups, {n})")


class _JoinedLayout(NamedTuple):
    """The parts' layouts, and how many tensors each has."""

    parts: tuple[tuple[Layout, int], ...]

    def restore(self, tensors: tuple[Tensor, ...]) -> "Joined":
        order, *rest = tensors
        parts = []
        for layout, count in self.parts:
            parts.append(layout.restore(tuple(rest[:count])))
            del rest[:count]
        return Joined(parts, order)


class Joined(Compressed):
    """Batches side by side, where each holds something that all its blocks have in common.

    Parameters
    ----------
    parts : sequence of Compressed
        Of one shape m x n and one convolution, at least one.
    order : Tensor, optional
        (N,) int64: which of the parts' blocks, one part behind the other, each block is.
    """

    def __init__(self, parts: Sequence[Compressed], order: Tensor | None = None) -> None:
        self.parts = tuple(parts)
        self.groups = self.parts[0].groups
        origin = torch.cat([part.origin for part in self.parts])
        self.order = torch.arange(len(origin), device=origin.device) if order is None else order
        self.origin = origin[self.order]

    @property
    def shape(self) -> torch.Size:
        """(N, m, n)."""
        return torch.Size((len(self.order), *self.parts[0].shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the approximations."""
        return self.parts[0].dtype

    @property
    def ranks(self) -> Tensor | None:
        """(N,) int64, or None as for the parts."""
        ranks = [part.ranks for part in self.parts]
        return None if ranks[0] is None else torch.cat(cast(list[Tensor], ranks))[self.order]

    def dense(self) -> Tensor:
        """Form the approximations, a new (N, m, n) tensor."""
        return torch.cat([part.dense() for part in self.parts])[self.order]

    def matmul(self, weight: Tensor, bias: Tensor | None = None, channels_last: bool = False) -> Tensor:
        """W D̂_i + b, by each part."""
        return torch.cat([part.matmul(weight, bias, channels_last) for part in self.parts])[self.order]

    def grad_weight(self, grad: Tensor) -> Tensor:
        """Σ_i G_i D̂_iᵀ, by each part."""
        self._check_grad(grad)
        grads = torch.empty_like(grad, memory_format=torch.contiguous_format)
        grads[self.order] = grad
        sizes = [len(part.origin) for part in self.parts]
        shares = [part.grad_weight(own) for part, own in zip(self.parts, grads.split(sizes), strict=True)]
        return torch.stack(shares).sum(0)

    def tensors(self) -> tuple[Tensor, ...]:
        """The order, and every tensor of each part."""
        return (self.order, *(tensor for part in self.parts for tensor in part.tensors()))

    @property
    def layout(self) -> _JoinedLayout:
        """All but the tensors."""
        return _JoinedLayout(tuple((part.layout, len(part.tensors())) for part in self.parts))

    def select(self, index: Tensor) -> "Joined":
        """The blocks at ``index``; parts of which none is asked for are let go."""
        asked = self.order[index.to(self.device)]
        parts, places, first = [], [], 0
        for part in self.parts:
            mine = ((asked >= first) & (asked < first + len(part.origin))).nonzero()[:, 0]
            if len(mine):
                parts.append(part.select(asked[mine] - first))
                places.append(mine)
            first += len(part.origin)
        if not parts:
            return Joined([self.parts[0].select(asked)], asked)
        return Joined(parts, torch.cat(places).argsort())


def storage_bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of the storages behind tensors, each storage once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
