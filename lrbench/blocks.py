"""Batches of matrices, read in strips: what compressors work on, whether or not it was ever formed."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import Literal, Self

import torch
from torch import Tensor

from lrbench.kernels import magnitude

__all__ = [
    "Blocks",
    "DenseBlocks",
    "ScaledBlocks",
    "aligned",
    "aligned_copy",
    "aligned_product",
    "as_blocks",
    "block_norms",
    "each_block",
    "index_per_block",
    "largest_magnitudes",
    "scale_by_power_of_two",
]

STRIP_BYTES = {"cpu": 4 << 20}
"""Scratch for one strip: it stays in a CPU's cache; elsewhere (256 MiB) it fills the device."""

Index = int | Tensor


class Blocks(ABC):
    """N matrices of one shape m x n, of one floating dtype, on one device.

    Attributes
    ----------
    shape : torch.Size
        (N, m, n).
    groups : int
        Of the convolution that reads the blocks: block ``i * groups + j`` belongs to group ``j`` of image ``i``.
    """

    groups: int = 1

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """(N, m, n)."""

    @property
    @abstractmethod
    def tensor(self) -> Tensor:
        """The tensor that holds the numbers: the blocks themselves, or the images that they are lowered from."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the numbers."""
        return self.tensor.dtype

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        return self.tensor.device

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def dense(self) -> Tensor:
        """Form the blocks, a new (N, m, n) tensor."""

    @abstractmethod
    def rows(self, i: Index) -> Tensor:
        """Row ``i`` of every block, (N, n); an int64 tensor (N,) names a row for each block."""

    @abstractmethod
    def columns(self, j: Index) -> Tensor:
        """Column ``j`` of every block, (N, m); an int64 tensor (N,) names a column for each block."""

    @abstractmethod
    def select(self, index: Tensor | slice) -> Self:
        """The blocks at ``index`` (int64 (K,): a copy; a slice: a view) as blocks of a single group."""

    @abstractmethod
    def like(self, tensor: Tensor) -> Self:
        """Blocks of the same layout over another backing tensor."""

    @abstractmethod
    def abs_max(self) -> Tensor:
        """Largest magnitude in each block, (N,), of the blocks' dtype; not finite where the block is not."""

    @abstractmethod
    def scaled(self, exponent: Tensor) -> "Blocks":
        """Block i times 2**exponent[i], in a layout that is cheap to read; exponent is int64 (N,)."""

    @abstractmethod
    def squared_norm(self) -> Tensor:
        """Squared Frobenius norms, (N,) float64."""

    @abstractmethod
    def matmul(self, weight: Tensor) -> Tensor:
        """The exact products W D_i of blocks of a single group: (K, m) -> (N, K, n)."""

    @abstractmethod
    def grad_weight(self, grad: Tensor) -> Tensor:
        """The exact Σ_i G_i D_iᵀ of blocks of a single group: (N, K, n) -> (K, m)."""

    @abstractmethod
    def _strip(self, blocks: slice, rows: slice, columns: slice, dtype: torch.dtype) -> Tensor:
        """Lower a part of some blocks into new, aligned memory; the part is cut along the granularity."""

    _row_granularity: int = 1
    _column_granularity: int = 1

    def strips(
        self, along: Literal["rows", "columns"], dtype: torch.dtype = torch.float64
    ) -> Iterator[tuple[slice, slice, Tensor]]:
        """Read all blocks once, a bounded strip at a time.

        Parameters
        ----------
        along
            The axis that is cut when a single block does not fit the scratch: strips hold all rows of some columns
            (``columns``), or all columns of some rows (``rows``).
        dtype
            Of the strips. Products are accumulated in float64 because a float32 Gram matrix overshoots eps below
            about 1e-2.

        Yields
        ------
        tuple
            (blocks, part, values): ``values`` holds rows or columns ``part`` of ``blocks``. All parts of one slice of
            blocks come before the next slice.
        """
        N, m, n = self.shape
        limit = STRIP_BYTES.get(self.device.type, 256 << 20) // dtype.itemsize
        length, width = (n, m) if along == "columns" else (m, n)
        grain = self._column_granularity if along == "columns" else self._row_granularity
        part = min(length, max(grain, limit // width // grain * grain))
        count = max(1, limit // (width * part))
        for start in range(0, N, count):
            blocks = slice(start, min(start + count, N))
            for low in range(0, length, part):
                cut = slice(low, min(low + part, length))
                pair = (slice(0, m), cut) if along == "columns" else (cut, slice(0, n))
                yield blocks, cut, self._strip(blocks, *pair, dtype)

    def gram(self, side: Literal["rows", "columns"] = "rows") -> Tensor:
        """Gram matrices in float64: D Dᵀ, (N, m, m), for ``rows``; Dᵀ D, (N, n, n), for ``columns``."""
        N, m, n = self.shape
        if side == "rows":
            out = aligned(N, m, m, torch.float64, self.device).zero_()
            for blocks, _, D in self.strips("columns"):
                out[blocks].baddbmm_(D, D.mT)
        else:
            out = aligned(N, n, n, torch.float64, self.device).zero_()
            for blocks, _, D in self.strips("rows"):
                out[blocks].baddbmm_(D.mT, D)
        return out

    def left_product(self, basis: Tensor) -> Tensor:
        """Bᵀ D in float64: (N, m, r) -> (N, r, n)."""
        out = aligned(len(self), basis.shape[2], self.shape[2], torch.float64, self.device)
        basis = aligned_copy(basis, torch.float64)
        for blocks, columns, D in self.strips("columns"):
            out[blocks, :, columns] = aligned_product(basis[blocks].mT, D)
        return out

    def right_product(self, basis: Tensor) -> Tensor:
        """D Bᵀ in float64: (N, r, n) -> (N, m, r)."""
        out = aligned(len(self), self.shape[1], basis.shape[1], torch.float64, self.device).zero_()
        for blocks, columns, D in self.strips("columns"):
            out[blocks].baddbmm_(D, aligned_copy(basis[blocks, :, columns], torch.float64).mT)
        return out


class DenseBlocks(Blocks):
    """Blocks that somebody formed already.

    Parameters
    ----------
    values : Tensor
        (N, m, n), floating, contiguous or not.
    """

    def __init__(self, values: Tensor, groups: int = 1) -> None:
        self._values = values.detach()
        self.groups = groups

    @property
    def shape(self) -> torch.Size:
        """(N, m, n)."""
        return self._values.shape

    @property
    def tensor(self) -> Tensor:
        """The blocks themselves."""
        return self._values

    def dense(self) -> Tensor:
        """Return a contiguous copy, (N, m, n)."""
        return self._values.clone(memory_format=torch.contiguous_format)

    def rows(self, i: Index) -> Tensor:
        """Row ``i`` of every block, (N, n)."""
        return self._values[each_block(self), index_per_block(i, self.shape[1], "row", self)]

    def columns(self, j: Index) -> Tensor:
        """Column ``j`` of every block, (N, m)."""
        return self._values[each_block(self), :, index_per_block(j, self.shape[2], "column", self)]

    def select(self, index: Tensor | slice) -> "DenseBlocks":
        """The blocks at ``index``."""
        return DenseBlocks(self._values[index])

    def like(self, tensor: Tensor) -> "DenseBlocks":
        """Blocks over another (N, m, n) tensor."""
        return DenseBlocks(tensor, self.groups)

    def abs_max(self) -> Tensor:
        """Largest magnitude in each block, (N,)."""
        return largest_magnitudes(self._values)

    def scaled(self, exponent: Tensor) -> "DenseBlocks":
        """Block i times 2**exponent[i]."""
        return DenseBlocks(scale_by_power_of_two(self._values, exponent), self.groups)

    def squared_norm(self) -> Tensor:
        """Squared Frobenius norms, (N,) float64."""
        out = torch.zeros(len(self), dtype=torch.float64, device=self.device)
        for blocks, _, D in self.strips("rows"):
            out[blocks] += D.square_().sum((1, 2))
        return out

    def matmul(self, weight: Tensor) -> Tensor:
        """W D_i: (K, m) -> (N, K, n)."""
        # Not torch.matmul: where the weight requires a gradient it folds the batch, which copies all blocks.
        return torch.bmm(weight.expand(len(self._values), *weight.shape), self._values)

    def grad_weight(self, grad: Tensor) -> Tensor:
        """Σ_i G_i D_iᵀ: (N, K, n) -> (K, m)."""
        return torch.bmm(grad, self._values.mT).sum(0)

    def _strip(self, blocks: slice, rows: slice, columns: slice, dtype: torch.dtype) -> Tensor:
        return aligned_copy(self._values[blocks, rows, columns], dtype)


class ScaledBlocks(Blocks):
    """Blocks times powers of two, scaled when somebody reads them.

    Parameters
    ----------
    blocks : Blocks
        N blocks, m x n.
    exponent : Tensor
        (N,) int64: block i is 2**exponent[i] times ``blocks``' block i.
    """

    def __init__(self, blocks: Blocks, exponent: Tensor) -> None:
        self.original, self.exponent = blocks, exponent
        self.groups = blocks.groups

    @cached_property
    def _scaled(self) -> Blocks:
        return self.original.scaled(self.exponent)

    @property
    def shape(self) -> torch.Size:
        """(N, m, n)."""
        return self.original.shape

    @property
    def tensor(self) -> Tensor:
        """The scaled numbers, in memory of their own."""
        return self._scaled.tensor

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the numbers."""
        return self.original.dtype

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        return self.original.device

    def dense(self) -> Tensor:
        """Form the blocks, a new (N, m, n) tensor."""
        return self._scaled.dense()

    def rows(self, i: Index) -> Tensor:
        """Row ``i`` of every block, (N, n)."""
        return self._scaled.rows(i)

    def columns(self, j: Index) -> Tensor:
        """Column ``j`` of every block, (N, m)."""
        return self._scaled.columns(j)

    def select(self, index: Tensor | slice) -> "ScaledBlocks":
        """The blocks at ``index``."""
        return ScaledBlocks(self.original.select(index), self.exponent[index])

    def like(self, tensor: Tensor) -> Blocks:  # type: ignore[override]
        """Blocks of the same layout over another backing tensor."""
        return self._scaled.like(tensor)

    def abs_max(self) -> Tensor:
        """Largest magnitude in each block, (N,)."""
        return self._scaled.abs_max()

    def scaled(self, exponent: Tensor) -> Blocks:
        """Block i times 2**exponent[i]."""
        return self._scaled.scaled(exponent)

    def squared_norm(self) -> Tensor:
        """Squared Frobenius norms, (N,) float64."""
        if self._moderate:
            return torch.ldexp(self.original.squared_norm(), 2 * self.exponent)
        return self._scaled.squared_norm()

    def matmul(self, weight: Tensor) -> Tensor:
        """W D_i: (K, m) -> (N, K, n)."""
        if self._moderate:
            return self.original.matmul(weight).mul_(self._powers)
        return self._scaled.matmul(weight)

    def grad_weight(self, grad: Tensor) -> Tensor:
        """Σ_i G_i D_iᵀ: (N, K, n) -> (K, m)."""
        if self._moderate:
            return self.original.grad_weight(grad * self._powers)
        return self._scaled.grad_weight(grad)

    @cached_property
    def _moderate(self) -> bool:
        """Whether a product may be scaled in place of the blocks: nothing leaves the dtype's range."""
        limit = 30 if self.dtype == torch.float32 else 200
        return self.dtype.itemsize >= 4 and bool((self.exponent.abs() <= limit).all())

    @property
    def _powers(self) -> Tensor:
        return _power(self.exponent, self.dtype)[:, None, None]

    def strips(
        self, along: Literal["rows", "columns"], dtype: torch.dtype = torch.float64
    ) -> Iterator[tuple[slice, slice, Tensor]]:
        """Read all blocks once, a bounded strip at a time."""
        return self._scaled.strips(along, dtype)

    def _strip(self, blocks: slice, rows: slice, columns: slice, dtype: torch.dtype) -> Tensor:
        return self._scaled._strip(blocks, rows, columns, dtype)


def largest_magnitudes(values: Tensor) -> Tensor:
    """Largest magnitude among ``values[i]``, (N,), of their dtype; not finite if one of them is not."""
    if values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64) and values[:1].numel():
        return magnitude.largest_magnitudes(values)
    return values.abs().flatten(1).amax(1)


def as_blocks(blocks: Blocks | Tensor) -> Blocks:
    """Take blocks as they are and wrap a tensor.

    Raises
    ------
    TypeError
        If ``blocks`` is neither, or its numbers are not real floating-point numbers.
    ValueError
        If a tensor has not three dimensions, or its matrices are empty.
    """
    if isinstance(blocks, Tensor):
        if blocks.ndim != 3 or 0 in blocks.shape[1:]:
            raise ValueError(
                f"blocks have shape {tuple(blocks.shape)}: give a tensor (N, m, n) with m, n >= 1, or lrbench.Im2col"
            )
        blocks = DenseBlocks(blocks)
    if not isinstance(blocks, Blocks):
        raise TypeError(f"blocks are a {type(blocks).__name__}: give a torch tensor (N, m, n) or lrbench.Im2col")
    if not blocks.dtype.is_floating_point:
        raise TypeError(f"blocks have dtype {blocks.dtype}: give a floating dtype, such as x.float()")
    return blocks


def aligned(N: int, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make an uninitialised (N, rows, columns) tensor in which every matrix begins on a boundary of 64 bytes.

    A product's last bits depend on how its matrices are aligned. With this, they do not depend on a block's place in
    its batch.
    """
    grain = 64 // dtype.itemsize
    stride = -(-rows * columns // grain) * grain
    return torch.empty(N, stride, dtype=dtype, device=device)[:, : rows * columns].unflatten(1, (rows, columns))


def aligned_copy(matrices: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Copy matrices (N, rows, columns), in another dtype if one is given, so that each is aligned."""
    N, rows, columns = matrices.shape
    return aligned(N, rows, columns, dtype or matrices.dtype, matrices.device).copy_(matrices)


def aligned_product(A: Tensor, B: Tensor) -> Tensor:
    """Multiply aligned matrices, (N, a, b) by (N, b, c), into aligned ones."""
    out = aligned(len(A), A.shape[1], B.shape[2], A.dtype, A.device)
    torch.bmm(A, B, out=out)
    return out


def block_norms(blocks: Blocks) -> Tensor:
    """Frobenius norms, (N,) float64."""
    return blocks.squared_norm().sqrt()


def scale_by_power_of_two(values: Tensor, exponent: Tensor) -> Tensor:
    """Multiply ``values[i]`` by 2**exponent[i], exactly as long as the results are normal numbers.

    Parameters
    ----------
    values : Tensor
        (N, ...), float32 or float64.
    exponent : Tensor
        (N,) int64; within twice the dtype's exponent range.
    """
    half = exponent.div(2, rounding_mode="floor")
    shape = (-1,) + (1,) * (values.ndim - 1)
    # Two steps, because one factor of 2**±140 is out of float32's range though the product is not.
    return (values * _power(half, values.dtype).view(shape)).mul_(_power(exponent - half, values.dtype).view(shape))


def _power(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    """2**exponent from its bits: exp2 and pow may be off by a unit in the last place."""
    if dtype == torch.float64:
        return ((exponent + 1023) << 52).view(torch.float64)
    return ((exponent + 127) << 23).to(torch.int32).view(torch.float32)


def each_block(blocks: Blocks) -> Tensor:
    """Give the indices of all blocks, (N,) int64: beside another index they pick one item of each."""
    return torch.arange(len(blocks), device=blocks.device)


def index_per_block(index: Index, limit: int, what: str, blocks: Blocks) -> Tensor:
    """Check an index and give it for each block, (N,) int64."""
    index = torch.as_tensor(index, device=blocks.device)
    if index.is_floating_point() or index.shape not in ((), (len(blocks),)):
        raise IndexError(f"a {what} index is an int or an int64 tensor of shape ({len(blocks)},), not {index}")
    if index.numel() and not (0 <= int(index.min()) and int(index.max()) < limit):
        raise IndexError(f"a {what} index lies outside 0..{limit - 1}: {index.tolist()}")
    return index.expand(len(blocks))
