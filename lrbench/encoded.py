"""A layer's input in a code of few bytes: what is kept by methods that replace x rather than its blocks."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple, Self, cast

import torch
from torch import Tensor

from lrbench.blocks import Blocks, scale_by_power_of_two
from lrbench.compressed import Compressed, in_full_precision
from lrbench.im2col import Geometry, Im2col, slices_of
from lrbench.low_rank import ranges

__all__ = ["Code", "EncodedInput", "as_images", "lost_energy"]


def as_images(blocks: Blocks) -> Im2col:
    """Blocks as what they are lowered from; plain ones m x n are images of m channels and one line, and a 1x1 kernel's.

    Raises
    ------
    TypeError
        If the blocks are neither of images nor plain.
    """
    if isinstance(blocks, Im2col):
        return blocks
    _, m, n = blocks.shape
    g = blocks.groups
    return Im2col.of(blocks.tensor.reshape(len(blocks) // g, g * m, 1, n), Geometry((1, 1), groups=g))


def lost_energy(source: Im2col, images: Tensor, exponent: Tensor) -> Tensor:
    """‖D − D̂‖_F² of every block, Σ_p w_p (x_p − x̂_p)², in float64, w_p how often pixel p occurs in its block.

    Parameters
    ----------
    source : Im2col
        The blocks D, of N images x.
    images : Tensor
        (N, C, H, W): the x̂ that D̂ is lowered from.
    exponent : Tensor
        (N,) int64: both are scaled by 2**(−e_i) first.

    Returns
    -------
    Tensor
        (N,) float64.
    """
    x, approximation = (scale_by_power_of_two(part.to(torch.float64), -exponent) for part in (source.images, images))
    return source.like(x.sub_(approximation)).squared_norm()


@dataclass(frozen=True)
class Code(ABC):
    """N images in fewer bytes; a subclass is a frozen dataclass that adds tensors, and says how to read them.

    Attributes
    ----------
    size : tuple of int
        (C, H, W).
    dtype : torch.dtype
        Of the images.
    common : tuple of str
        Which tensors belong to the whole batch. All others begin with an axis of N images.
    ragged : tuple of str
        Which tensors are packed one image behind the other; then there is one more, ``counts``, (N,) int64, or a
        property of that name: how many of their rows are each image's.
    """

    size: tuple[int, int, int]
    dtype: torch.dtype
    common: ClassVar[tuple[str, ...]] = ()
    ragged: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def decode(self) -> Tensor:
        """Read the images: (N, C, H, W)."""

    @classmethod
    def names(cls) -> list[str]:
        """The tensors' names."""
        return [field.name for field in fields(cls) if field.type in (Tensor, "Tensor")]

    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor of the code."""
        return tuple(getattr(self, name) for name in self.names())

    def sizes(self) -> Tensor:
        """Bytes that belong to each image alone, (N,) int64."""
        own = set(self.names()) - {*self.common, *self.ragged}
        own_bytes = sum(t[:1].numel() * t.itemsize for t in (getattr(self, name) for name in own))
        first = getattr(self, min(own))
        sizes = torch.full((len(first),), own_bytes, dtype=torch.int64, device=first.device)
        if self.ragged:
            rows = sum(t[:1].numel() * t.itemsize if len(t) else 0 for t in (getattr(self, n) for n in self.ragged))
            sizes += rows * cast(Any, self).counts
        return sizes

    def select(self, index: Tensor) -> Self:
        """The images at ``index``, (K,) int64, in that order."""
        chosen = {name: getattr(self, name) for name in self.names()}
        rows = None
        if self.ragged:
            counts = cast(Any, self).counts
            rows = ranges((counts.cumsum(0) - counts)[index], counts[index])
        for name, tensor in chosen.items():
            if name not in self.common:
                chosen[name] = tensor[rows if name in self.ragged else index]
        return self.replace(**chosen)

    def parts(self, slices: Sequence[slice]) -> Iterator[Self]:
        """Images that follow on one another, as views."""
        ends = [0, *cast(Any, self).counts.cumsum(0).tolist()] if self.ragged else []
        for part in slices:
            chosen = {name: getattr(self, name) for name in self.names()}
            for name in chosen.keys() - set(self.common):
                rows = slice(ends[part.start], ends[part.stop]) if name in self.ragged else part
                chosen[name] = chosen[name][rows]
            yield self.replace(**chosen)

    def joined(self, others: "Sequence[Self]") -> Self:
        """These images and, behind them, those of others of the same constants; nothing may be common."""
        if not others:
            return self
        parts = (self, *others)
        return self.replace(**{name: torch.cat([getattr(part, name) for part in parts]) for name in self.names()})

    def replace(self, **tensors: Tensor) -> Self:
        """Give a code of the same constants with other tensors, all of them."""
        return cast(Self, self.made(self.constants(), tensors))

    @classmethod
    def made(cls, constants: dict[str, Any], tensors: dict[str, Tensor]) -> "Code":
        """Put a code together again."""
        return cls(**constants, **cast(Any, tensors))

    def constants(self) -> dict[str, Any]:
        """All but the tensors, by name."""
        named = set(self.names())
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in named}


class _Layout(NamedTuple):
    """All of an encoded input but its tensors."""

    code: type[Code]
    constants: dict[str, Any]
    geometry: Geometry
    scaled: bool
    kept: bool

    def restore(self, tensors: tuple[Tensor, ...]) -> "EncodedInput":
        names = self.code.names()
        code = self.code.made(self.constants, dict(zip(names, tensors, strict=False)))
        origin, *rest = tensors[len(names) :]
        exponent = rest.pop(0) if self.scaled else None
        return EncodedInput(code, self.geometry, origin, exponent, *rest)


class EncodedInput(Compressed):
    """Blocks D̂_i = im2col(x̂_i), as the code of the x̂_i; each group's slice of an image is an image of its own here.

    Attributes
    ----------
    code : Code
        Of the images that are not kept as they are.
    geometry : Geometry
        Of the convolution that reads the images.
    exponent : Tensor or None
        (N,) int16: image i is 2**e_i times what the code says; None where it says all.
    kept_index : Tensor or None
        (K,) int64: which images are kept as they are.
    kept : Tensor or None
        (K, C, H, W): those images.
    """

    def __init__(
        self,
        code: Code,
        geometry: Geometry,
        origin: Tensor,
        exponent: Tensor | None = None,
        kept_index: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> None:
        self.code, self.geometry, self.origin, self.exponent = code, geometry, origin, exponent
        self.kept_index, self.kept = kept_index, kept
        self.groups = geometry.groups

    @property
    def shape(self) -> torch.Size:
        """(N, m, n)."""
        C, H, W = self.code.size
        (R, S), (lines, columns) = self.geometry.kernel_size, self.geometry.output_size((H, W))
        return torch.Size((len(self.origin), C * R * S, lines * columns))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the approximations."""
        return self.code.dtype

    @property
    def ranks(self) -> None:
        """There are none."""
        return None

    @in_full_precision
    def decode(self) -> Tensor:
        """Read the images x̂: (N, C, H, W), N counting each group's slice."""
        images = self.code.decode()
        if self.kept_index is not None and self.kept is not None:
            coded = torch.ones(len(self.origin), dtype=torch.bool, device=self.device)
            coded[self.kept_index] = False
            whole = images.new_empty(len(coded), *self.code.size)
            whole[coded] = images
            whole[self.kept_index] = 0
            images = whole
        if self.exponent is not None and bool(self.exponent.any()):
            images = scale_by_power_of_two(images, self.exponent.to(torch.int64))
        if self.kept_index is not None and self.kept is not None:
            images[self.kept_index] = self.kept
        return images

    @in_full_precision
    def dense(self) -> Tensor:
        """Form the approximations, a new (N, m, n) tensor."""
        return Im2col.of(self._whole(), self.geometry).dense()

    @in_full_precision
    def matmul(self, weight: Tensor, bias: Tensor | None = None, channels_last: bool = False) -> Tensor:
        """W D̂_i + b for every block, by the native convolution of x̂."""
        self._grouped(weight)
        kernel = weight.reshape(len(weight), self.code.size[0], *self.geometry.kernel_size)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        out = self.geometry.convolve(self._whole().contiguous(memory_format=layout), kernel, bias)
        blocks = out.reshape(len(self.origin), len(weight) // self.groups, self.shape[2])
        if blocks.requires_grad:
            return blocks
        # The same memory, but no view: what a layer returns may be worked on in place.
        return blocks.new_empty(0).set_(
            blocks.untyped_storage(), blocks.storage_offset(), blocks.shape, blocks.stride()
        )

    @in_full_precision
    def grad_weight(self, grad: Tensor) -> Tensor:
        """Σ_i G_i D̂_iᵀ, by the native gradient of a convolution of x̂."""
        self._check_grad(grad)
        (N, m, _), (C, H, W), g = self.shape, self.code.size, self.groups
        K = grad.shape[1] * g
        shape = torch.Size((K, C, *self.geometry.kernel_size))
        grads = grad.reshape(N // g, K, *self.geometry.output_size((H, W)))
        # No more images are decoded at a time than are worked on.
        parts = slices_of(N // g, N * C * H * W * self.dtype.itemsize + grad.nbytes, self.device)
        pairs = zip(parts, self._parts([slice(part.start * g, part.stop * g) for part in parts]), strict=True)
        shares = [self.geometry.grad_weight(grads[part], own._whole(), shape) for part, own in pairs]
        return torch.stack(shares).sum(0).reshape(K, m)

    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor that is held."""
        others = (self.exponent, self.kept_index, self.kept)
        return (*self.code.tensors(), self.origin, *(tensor for tensor in others if tensor is not None))

    @property
    def layout(self) -> _Layout:
        """All but the tensors."""
        scaled, kept = self.exponent is not None, self.kept is not None
        return _Layout(type(self.code), self.code.constants(), self.geometry, scaled, kept)

    def select(self, index: Tensor) -> "EncodedInput":
        """The blocks at ``index``, (K,) int64, in that order; with groups, whole images."""
        index = index.to(self.device)
        exponent = None if self.exponent is None else self.exponent[index]
        if self.kept_index is None or self.kept is None:
            return EncodedInput(self.code.select(index), self.geometry, self.origin[index], exponent)
        is_kept = torch.zeros(len(self.origin), dtype=torch.bool, device=self.device)
        is_kept[self.kept_index] = True
        place = torch.where(is_kept, is_kept.cumsum(0), (~is_kept).cumsum(0)) - 1
        chosen = is_kept[index]
        code = self.code.select(place[index[~chosen]])
        places, images = chosen.nonzero()[:, 0], self.kept[place[index[chosen]]]
        pair = (places, images) if len(places) else ()
        return EncodedInput(code, self.geometry, self.origin[index], exponent, *pair)

    @classmethod
    def _joined(cls, parts: Sequence[Compressed]) -> Compressed:
        encoded = [cast(EncodedInput, part) for part in parts]
        first = encoded[0].code
        if first.common:
            return super()._joined(parts)
        code = first.joined([part.code for part in encoded[1:]])
        origin = torch.cat([part.origin for part in encoded])
        exponents = [part.exponent for part in encoded if part.exponent is not None]
        before, index, kept = 0, [], []
        for part in encoded:
            if part.kept_index is not None and part.kept is not None:
                index.append(before + part.kept_index)
                kept.append(part.kept)
            before += len(part.origin)
        pair = (torch.cat(index), torch.cat(kept)) if kept else ()
        return cls(code, encoded[0].geometry, origin, torch.cat(exponents) if exponents else None, *pair)

    def _parts(self, slices: Sequence[slice]) -> "Iterator[EncodedInput]":
        """Blocks that follow on one another, whole images, as views where none is kept as it is."""
        if self.kept is not None:
            yield from (self.select(torch.arange(rows.start, rows.stop)) for rows in slices)
            return
        for rows, code in zip(slices, self.code.parts(slices), strict=True):
            exponent = None if self.exponent is None else self.exponent[rows]
            yield EncodedInput(code, self.geometry, self.origin[rows], exponent)

    def _whole(self) -> Tensor:
        """The images x̂ with all their groups: (N / groups, C, H, W)."""
        images = self.decode()
        C, H, W = self.code.size
        return images.reshape(len(images) // self.groups, C * self.groups, H, W)
