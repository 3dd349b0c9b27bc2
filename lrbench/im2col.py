"""The geometry of a convolution, and the blocks that it lowers its input to.

Everything here follows from one fact: the lowered blocks are a strided view of the padded images, in which a pixel
appears up to R·S times. Rows, columns, norms and products are read from that view; the blocks are formed by
:meth:`Im2col.dense` alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from lrbench.blocks import (
    Blocks,
    Index,
    aligned,
    each_block,
    index_per_block,
    largest_magnitudes,
    scale_by_power_of_two,
)
from lrbench.kernels.magnitude import weighted_energies

__all__ = ["Geometry", "Im2col", "break_even_rank", "format_of", "slices_of"]

Pair = tuple[int, int]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


@dataclass(frozen=True)
class Geometry:
    """What a two-dimensional convolution does to places, whatever its numbers of channels.

    Attributes
    ----------
    kernel_size, stride, dilation : tuple of int
        (vertical, horizontal).
    padding : tuple of int
        (left, right, top, bottom), as ``torch.nn.functional.pad`` takes it.
    padding_mode : str
        ``zeros``, ``reflect``, ``replicate`` or ``circular``.
    groups : int
        Number of channel groups.
    """

    kernel_size: Pair
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    padding_mode: PaddingMode = "zeros"
    groups: int = 1

    @classmethod
    def parse(
        cls,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair | str = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
    ) -> "Geometry":
        """Read the arguments of ``torch.nn.Conv2d``.

        Raises
        ------
        ValueError
            If one of them is not what ``Conv2d`` allows.
        """
        kernel, steps, holes = (
            _pair(kernel_size, "kernel_size", 1),
            _pair(stride, "stride", 1),
            _pair(dilation, "dilation", 1),
        )
        if padding_mode not in ("zeros", "reflect", "replicate", "circular"):
            raise ValueError(f"padding_mode is {padding_mode!r}: use zeros, reflect, replicate or circular")
        if not isinstance(groups, int) or groups < 1:
            raise ValueError(f"groups is {groups!r}: use a whole number of at least 1")
        if isinstance(padding, str):
            if padding not in ("same", "valid"):
                raise ValueError(f"padding is {padding!r}: use a number, a pair, 'same' or 'valid'")
            if padding == "same" and steps != (1, 1):
                raise ValueError(f"padding 'same' with stride {steps}: it is defined for stride 1 only")
            total = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, holes, strict=True)]
            top, left = total[0] // 2, total[1] // 2
            frame = (left, total[1] - left, top, total[0] - top)
        else:
            vertical, horizontal = _pair(padding, "padding", 0)
            frame = (horizontal, horizontal, vertical, vertical)
        return cls(kernel, steps, holes, frame, padding_mode, groups)  # type: ignore[arg-type]

    @classmethod
    def of(cls, conv: nn.Conv2d) -> "Geometry":
        """The geometry of a convolution."""
        return cls.parse(
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            conv.padding_mode,
        )

    def output_size(self, size: Pair) -> Pair:
        """(H', W') for images of ``size`` (H, W).

        Raises
        ------
        ValueError
            If the kernel does not fit.
        """
        left, right, top, bottom = self.padding
        padded = (size[0] + top + bottom, size[1] + left + right)
        out = tuple(
            (p - d * (k - 1) - 1) // s + 1
            for p, d, k, s in zip(padded, self.dilation, self.kernel_size, self.stride, strict=True)
        )
        if min(out) < 1:
            raise ValueError(
                f"a kernel of {self.kernel_size} with dilation {self.dilation} does not fit "
                f"images of {padded}, their padding included"
            )
        return out  # type: ignore[return-value]

    def pad(self, x: Tensor) -> Tensor:
        """The padded images; ``x`` itself where a frame of zeros is empty."""
        if self.padding_mode == "zeros":
            return F.pad(x, self.padding) if any(self.padding) else x
        return F.pad(x, self.padding, self.padding_mode)  # even by nothing, as Conv2d does: the layout may change

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The native convolution, as ``torch.nn.Conv2d`` computes it."""

        def part(x: Tensor) -> Tensor:
            x, padding = self._natively_padded(x)
            return F.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)

        graph = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        return part(x) if graph else _in_slices(part, x, weight.shape[0])

    def grad_input(self, grad: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        """The input's gradient Wᵀ G, lifted back to images of ``shape`` (N, C, H, W)."""
        return _in_slices(lambda part: self._lift(part, weight, (len(part), *shape[1:])), grad, shape[1])

    def _lift(self, grad: Tensor, weight: Tensor, shape: tuple[int, ...]) -> Tensor:
        left, right, top, bottom = self.padding
        if self._native_padding is not None:
            return conv2d_input(shape, weight, grad, self.stride, self._native_padding, self.dilation, self.groups)
        N, C, H, W = shape
        padded_shape = (N, C, H + top + bottom, W + left + right)
        padded = conv2d_input(padded_shape, weight, grad, self.stride, 0, self.dilation, self.groups)
        if self.padding_mode == "zeros":
            return padded[:, :, top : top + H, left : left + W]
        # Padding is linear: its adjoint is its derivative anywhere.
        with torch.enable_grad():
            origin = torch.zeros(shape, dtype=grad.dtype, device=grad.device, requires_grad=True)
            return torch.autograd.grad(self.pad(origin), origin, padded)[0]

    def grad_weight(self, grad: Tensor, x: Tensor, shape: torch.Size) -> Tensor:
        """The exact gradient of a weight of ``shape`` (K, C/groups, R, S)."""
        # In one memory format, or the native gradient copies both into another.
        order, shares = format_of(grad), []
        for part in slices_of(len(x), x.nbytes + grad.nbytes, x.device):
            images, padding = self._natively_padded(x[part].contiguous(memory_format=order))
            shares.append(conv2d_weight(images, shape, grad[part], self.stride, padding, self.dilation, self.groups))
        return shares[0] if len(shares) == 1 else torch.stack(shares).sum(0)

    @property
    def _native_padding(self) -> Pair | None:
        left, right, top, bottom = self.padding
        native = self.padding_mode == "zeros" and left == right and top == bottom
        return (top, left) if native else None

    def _natively_padded(self, x: Tensor) -> tuple[Tensor, Pair]:
        native = self._native_padding
        return (self.pad(x), (0, 0)) if native is None else (x, native)


class Im2col(Blocks):
    """The lowered blocks of a batch, lazily: block ``i * groups + j`` is im2col of group j of image i.

    A block's rows are shifted images, ordered (channel, kernel row, kernel column), and its columns are patches,
    ordered (output row, output column): what ``torch.nn.functional.unfold`` gives, for every geometry of ``Conv2d``.
    Nothing is lowered until :meth:`dense` is called; products are streamed through a bounded scratch.

    Parameters
    ----------
    x : Tensor
        (N, C, H, W), any floating dtype, any device, contiguous or not. It is referenced, not copied, but where
        groups of channels do not lie one behind the other: in the format channels last.
    kernel_size, stride, padding, dilation, groups, padding_mode
        As for ``torch.nn.Conv2d``.

    Attributes
    ----------
    shape : torch.Size
        (N·groups, C/groups·R·S, H'·W').

    Raises
    ------
    ValueError
        If ``x`` has not four dimensions or its channels do not divide into groups, or the kernel does not fit.
    TypeError
        If ``x`` is not floating.
    """

    def __init__(
        self,
        x: Tensor,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair | str = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
    ) -> None:
        self._setup(x, Geometry.parse(kernel_size, stride, padding, dilation, groups, padding_mode))

    @classmethod
    def of(cls, x: Tensor, geometry: Geometry) -> "Im2col":
        """The blocks of a batch under a geometry."""
        self = cls.__new__(cls)
        self._setup(x, geometry)
        return self

    def _setup(self, x: Tensor, geometry: Geometry) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"x is a {type(x).__name__}: Im2col takes a torch tensor of shape (N, C, H, W)")
        if x.ndim != 4:
            raise ValueError(f"x has shape {tuple(x.shape)}: Im2col takes images of shape (N, C, H, W)")
        if not x.dtype.is_floating_point:
            raise TypeError(f"x has dtype {x.dtype}: Im2col takes a floating dtype, such as x.float()")
        N, C, H, W = x.shape
        if C % geometry.groups or C == 0:
            raise ValueError(f"x has {C} channels: they do not divide into {geometry.groups} groups")
        self.geometry = geometry
        self.groups = geometry.groups
        # A group's slice of an image is lowered like an image of its own.
        self.images = x.detach().reshape(N * self.groups, C // self.groups, H, W)
        self.output_size = geometry.output_size((H, W))

    @property
    def shape(self) -> torch.Size:
        """(N·groups, m, n)."""
        N, C = self.images.shape[:2]
        R, S = self.geometry.kernel_size
        return torch.Size((N, C * R * S, self.output_size[0] * self.output_size[1]))

    @property
    def tensor(self) -> Tensor:
        """The images, a group's slice for each block: (N·groups, C/groups, H, W)."""
        return self.images

    def dense(self) -> Tensor:
        """Form the blocks, a new (N·groups, m, n) tensor."""
        windows = self._windows()
        return self._lower(windows, torch.empty(self.shape, dtype=self.dtype, device=self.device))

    def rows(self, i: Index) -> Tensor:
        """Row ``i`` of every block, (N·groups, n): an image shifted."""
        i = index_per_block(i, self.shape[1], "row", self)
        R, S = self.geometry.kernel_size
        return self._windows()[each_block(self), i // (R * S), i // S % R, i % S].flatten(1)

    def columns(self, j: Index) -> Tensor:
        """Column ``j`` of every block, (N·groups, m): a patch."""
        j = index_per_block(j, self.shape[2], "column", self)
        width = self.output_size[1]
        return self._windows()[each_block(self), :, :, :, j // width, j % width].flatten(1)

    def select(self, index: Tensor | slice) -> "Im2col":
        """The blocks at ``index``, as the images that they are lowered from."""
        return self._single_group(self.images[index])

    def like(self, tensor: Tensor) -> "Im2col":
        """Blocks of this geometry over other images, a group's slice for each block."""
        out = Im2col.__new__(Im2col)
        out.geometry, out.groups = self.geometry, self.groups
        out.images, out.output_size = tensor, self.geometry.output_size((tensor.shape[2], tensor.shape[3]))
        return out

    def abs_max(self) -> Tensor:
        """Largest magnitude in each block, (N·groups,); pixels that no window reaches do not count."""
        return largest_magnitudes(self.reached())

    def scaled(self, exponent: Tensor) -> "Im2col":
        """Block i times 2**exponent[i], over padded images, so that every later reading is a view."""
        padded = self.geometry.pad(scale_by_power_of_two(self.images, exponent))
        g = self.geometry
        return Im2col.of(padded, Geometry(g.kernel_size, g.stride, g.dilation))

    def squared_norm(self) -> Tensor:
        """Squared Frobenius norms, (N·groups,) float64: pixels squared, each as often as it occurs in its block."""
        weights = self.multiplicity()
        if self.device.type == "cpu" and self.dtype in (torch.float32, torch.float64):
            return weighted_energies(self.images, weights)
        # A pixel that no window reaches may be infinite; 0·inf must not spoil the sum.
        pixels = torch.where(weights > 0, self.images, self.images.new_zeros(())).to(torch.float64)
        return torch.einsum("nchw,nchw,hw->n", pixels, pixels, weights)

    def matmul(self, weight: Tensor) -> Tensor:
        """W D_i, by the native convolution: (K, m) -> (N, K, n)."""
        out = self._ungrouped.convolve(self.images, self._as_kernel(weight)).contiguous()
        # Nothing else holds `out`, and a view of it could not be overwritten where a function returns it.
        return cast(Tensor, torch.ops.aten._unsafe_view(out, (*out.shape[:2], out.shape[2] * out.shape[3])))

    def grad_weight(self, grad: Tensor) -> Tensor:
        """Σ_i G_i D_iᵀ, by the native convolution: (N, K, n) -> (K, m)."""
        K, m = grad.shape[1], self.shape[1]
        shape = torch.Size((K, self.images.shape[1], *self.geometry.kernel_size))
        return self._ungrouped.grad_weight(grad.unflatten(2, self.output_size), self.images, shape).reshape(K, m)

    @property
    def _ungrouped(self) -> Geometry:
        g = self.geometry
        return g if g.groups == 1 else Geometry(g.kernel_size, g.stride, g.dilation, g.padding, g.padding_mode)

    def _single_group(self, images: Tensor) -> "Im2col":
        return Im2col.of(images, self._ungrouped)

    def _as_kernel(self, weight: Tensor) -> Tensor:
        return weight.reshape(-1, self.images.shape[1], *self.geometry.kernel_size)

    def multiplicity(self) -> Tensor:
        """How often each pixel occurs in a block: (H, W) float64."""
        H, W = self.images.shape[2:]
        return _multiplicity(self._ungrouped, H, W).to(self.device)

    def reached(self) -> Tensor:
        """The images, or copies with zeros for what no window reaches and what may be anything."""
        H, W = self.images.shape[2:]
        if _reaches_all(self._ungrouped, H, W):
            return self.images
        return torch.where(self.multiplicity() > 0, self.images, self.images.new_zeros(()))

    def _windows(self) -> Tensor:
        """The blocks as a view of the padded images: (N·groups, C/groups, R, S, H', W')."""
        padded = self.geometry.pad(self.images)
        (R, S), (a, b), (p, q) = self.geometry.kernel_size, self.geometry.stride, self.geometry.dilation
        dn, dc, dh, dw = padded.stride()
        return padded.as_strided(
            (*padded.shape[:2], R, S, *self.output_size),
            (dn, dc, p * dh, q * dw, a * dh, b * dw),
            padded.storage_offset(),
        )

    @property
    def _row_granularity(self) -> int:  # type: ignore[override]
        return self.geometry.kernel_size[0] * self.geometry.kernel_size[1]

    @property
    def _column_granularity(self) -> int:  # type: ignore[override]
        return self.output_size[1]

    def _strip(self, blocks: slice, rows: slice, columns: slice, dtype: torch.dtype) -> Tensor:
        taps, width = self._row_granularity, self._column_granularity
        channels = slice(rows.start // taps, rows.stop // taps)
        lines = slice(columns.start // width, columns.stop // width)
        windows = self._windows()[blocks, channels, :, :, lines]
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        return self._lower(windows, aligned(len(windows), *shape, dtype, self.device))

    @staticmethod
    def _lower(windows: Tensor, out: Tensor) -> Tensor:
        """The one place where pixels are copied out R·S times: (N, C, R, S, H', W') into (N, m, n)."""
        out.view(windows.shape).copy_(windows)
        return out


SLICE_BYTES = 4 << 20
"""What slices of a large batch take in and give out: their workspaces stay small, and in a CPU's cache."""


def slices_of(count: int, nbytes: int, device: torch.device) -> list[slice]:
    """Split ``count`` images that take ``nbytes``: on a CPU, where they are many, into slices; elsewhere not."""
    if device.type != "cpu" or nbytes < 2 * SLICE_BYTES:
        return [slice(0, count)]
    step = max(1, count * SLICE_BYTES // nbytes)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def format_of(x: Tensor) -> torch.memory_format:
    """The order of a tensor's elements in memory."""
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _in_slices(convolve: Callable[[Tensor], Tensor], x: Tensor, channels: int) -> Tensor:
    """Convolve a large batch on a CPU a slice of images at a time: its workspaces would be as large as the batch."""
    first, *others = slices_of(len(x), x.nbytes * (x.shape[1] + channels) // max(1, x.shape[1]), x.device)
    if not others:
        return convolve(x)
    done = convolve(x[first])
    shape = (len(x), *done.shape[1:])
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=format_of(done))
    out[first] = done
    for part in others:
        out[part] = convolve(x[part])
    return out


def break_even_rank(m: int, n: int, numbers: int) -> float:
    """The rank at which a pair of factors, r·(m + n) numbers, is as large as ``numbers``."""
    return numbers / (m + n)


@lru_cache(maxsize=256)
def _multiplicity(geometry: Geometry, H: int, W: int) -> Tensor:
    # The adjoint of lowering, applied to ones, counts the copies. What is remembered must serve in every mode.
    with torch.inference_mode(False), torch.device("cpu"):
        ones = torch.ones(1, 1, *geometry.output_size((H, W)), dtype=torch.float64)
        kernel = torch.ones(1, 1, *geometry.kernel_size, dtype=torch.float64)
        return geometry.grad_input(ones, kernel, torch.Size((1, 1, H, W)))[0, 0]


@lru_cache(maxsize=256)
def _reaches_all(geometry: Geometry, H: int, W: int) -> bool:
    return bool((_multiplicity(geometry, H, W) > 0).all())


def _pair(value: int | Pair, what: str, least: int) -> Pair:
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= least for v in pair):
        raise ValueError(f"{what} is {value!r}: use a whole number of at least {least}, or a pair of them")
    return pair
