"""Bits in place of numbers: which elements pass a gate, and which place of its window each maximum came from."""

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrbench.kernels.loops import exact, for_parts

__all__ = ["gated", "pack_gate", "pack_places", "spread"]

_CHUNK = 1 << 15
"""Bytes of bits that a thread takes at a time."""


def _compiled(values: Tensor) -> bool:
    return values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)


def pack_gate(values: Tensor) -> Tensor:
    """Pack a bit for each element, 1 unless it is at most 0 (as NaN is not): floating (n,) -> (⌈n/8⌉,) uint8."""
    size = -(-len(values) // 8)
    if not _compiled(values):
        open_ = torch.zeros(8 * size, dtype=torch.uint8, device=values.device)
        open_[: len(values)] = ~(values <= 0)
        return (open_.view(-1, 8) << torch.arange(8, dtype=torch.uint8, device=values.device)).sum(1, dtype=torch.uint8)
    out = torch.empty(size, dtype=torch.uint8, device="cpu")
    source, into = values.numpy(), out.numpy()

    def work(start: int, stop: int) -> None:
        part = slice(start * _CHUNK, stop * _CHUNK)
        _pack(source[8 * part.start : 8 * part.stop], _GATHER, into[part])

    for_parts(-(-size // _CHUNK), work)
    return out


def gated(bits: Tensor, values: Tensor, scale: float, closed: float | None = None) -> Tensor:
    """Scale the elements whose bit is set, and close the gate to the others.

    Parameters
    ----------
    bits : Tensor
        (⌈n/8⌉,) uint8, of :func:`pack_gate`.
    values : Tensor
        (n,), floating.
    scale : float
        What open elements are multiplied by.
    closed : float, optional
        What the others are multiplied by; without it they become 0, whatever they are.
    """
    if not _compiled(values):
        places = torch.arange(8, dtype=torch.uint8, device=values.device)
        open_ = ((bits[:, None] >> places) & 1).flatten()[: len(values)].to(torch.bool)
        return torch.where(open_, values * scale, 0.0 if closed is None else values * closed)
    out = torch.empty_like(values)
    coded, source, into = bits.numpy(), values.numpy(), out.numpy()
    factors = np.array([scale, 0.0 if closed is None else closed], source.dtype)

    def work(start: int, stop: int) -> None:
        part = slice(start * _CHUNK, stop * _CHUNK)
        elements = slice(8 * part.start, 8 * part.stop)
        _gate(coded[part], source[elements], factors, closed is None, into[elements])

    for_parts(-(-len(bits) // _CHUNK), work)
    return out


def pack_places(indices: Tensor, window: "Window", size: tuple[int, int]) -> Tensor:
    """Keep of each maximum its place in its window, in as few bits as tell the places apart, or in a byte.

    Parameters
    ----------
    indices : Tensor
        (P, H', W') int64: for each plane, where in the flat plane of H·W pixels each maximum is.
    window : tuple
        Kernel size, stride, padding and dilation, each (vertical, horizontal).
    size : tuple of int
        (H, W).

    Returns
    -------
    Tensor
        uint8, packed; (P, H', W') int32 where a window has more than 256 places.
    """
    (R, S), (a, b), (top, left), (p, q) = window
    H, W = indices.shape[1:]
    width = _width(window)
    if width <= 8 and indices.device.type == "cpu":
        flat = indices.contiguous().view(-1)
        coded = torch.empty(len(flat), dtype=torch.uint8, device="cpu")
        source, place, numbers = flat.numpy(), coded.numpy(), (H, W, size[1], R, S, a, b, top, left, p, q)
        for_parts(len(indices) * H, lambda start, stop: _place(source, place, numbers, start, stop))
        if width == 8:
            return coded
        out = torch.empty(-(-len(flat) * width // 8), dtype=torch.uint8, device="cpu")
        into = out.numpy()
        for_parts(-(-len(out) // _CHUNK), lambda start, stop: _join(place, width, into, start * _CHUNK, stop * _CHUNK))
        return out
    return _pack_in_torch(indices, window, size)


def _pack_in_torch(indices: Tensor, window: "Window", size: tuple[int, int]) -> Tensor:
    (_, S), (a, b), (top, left), (p, q) = window
    H, W = indices.shape[1:]
    width = _width(window)
    rows = torch.arange(H, device=indices.device)[:, None] * a - top
    columns = torch.arange(W, device=indices.device) * b - left
    line = indices.div(size[1], rounding_mode="floor")
    places = (line - rows).div_(p, rounding_mode="floor").mul_(S)
    places += (indices - line * size[1] - columns).div_(q, rounding_mode="floor")
    if width > 8:
        return places.to(torch.int32)
    coded = places.flatten().to(torch.uint8)
    each = 8 // width
    if each == 1:
        return coded
    full = torch.zeros(-(-len(coded) // each) * each, dtype=torch.uint8, device=coded.device)
    full[: len(coded)] = coded
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=coded.device)
    return (full.view(-1, each) << shifts).sum(1, dtype=torch.uint8)


def spread(places: Tensor, grad: Tensor, window: "Window", size: tuple[int, int]) -> Tensor:
    """Add each number at the place its maximum came from: (P, H', W') -> (P, H, W).

    Parameters
    ----------
    places : Tensor
        Of :func:`pack_places`.
    grad : Tensor
        (P, H', W'), floating.
    window, size : tuple
        As for :func:`pack_places`.
    """
    (_, S), (a, b), (top, left), (p, q) = window
    width = _width(window)
    if grad.itemsize < 4:  # windows that overlap: summed first, rounded then
        return spread(places, grad.to(torch.float32), window, size).to(grad.dtype)
    if _compiled(grad) and width <= 8:
        out = torch.zeros(len(grad), *size, dtype=grad.dtype, device="cpu")
        source, coded, into = grad.contiguous().numpy(), places.numpy(), out.flatten(1).numpy()
        place = np.arange(1 << width)
        moved = place // S * p * size[1] + place % S * q  # from the window's corner, in the flat plane
        numbers = ({1: 3, 2: 2, 4: 1, 8: 0}[width], size[1], a, b, top, left)
        for_parts(len(grad), lambda start, stop: _spread(coded, source, into, moved, numbers, start, stop))
        return out
    return _spread_in_torch(places, grad, window, size)


def _spread_in_torch(places: Tensor, grad: Tensor, window: "Window", size: tuple[int, int]) -> Tensor:
    (_, S), (a, b), (top, left), (p, q) = window
    P, H, W = grad.shape
    width = _width(window)
    out = torch.zeros(P, *size, dtype=grad.dtype, device=grad.device)
    if width <= 8:
        shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=places.device)
        places = ((places[:, None] >> shifts) & ((1 << width) - 1)).flatten()[: grad.numel()]
    wide = places.view(P, H, W).to(torch.int64)
    lines = torch.arange(H, device=grad.device)[:, None] * a - top + wide.div(S, rounding_mode="floor") * p
    columns = torch.arange(W, device=grad.device) * b - left + wide % S * q
    out.flatten(1).scatter_add_(1, (lines * size[1] + columns).flatten(1), grad.flatten(1))
    return out


Window = tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]


def _width(window: Window) -> int:
    """Bits that a place takes: 1, 2, 4 or 8; 32 in a window of more than 256 places."""
    places = window[0][0] * window[0][1]
    return next((width for width in (1, 2, 4, 8) if places <= 1 << width), 32)


_GATHER = np.uint64(0x0102040810204080 if sys.byteorder == "little" else 0x8040201008040201)
"""Times eight bytes that are 0 or 1, it brings the one that is k-th in memory to bit 56 + k, and nothing is carried."""


@exact
def _pack(values: Any, gather: Any, out: Any) -> None:  # pragma: no cover (compiled)
    # First a comparison, then a multiplication, in two loops: each becomes wide instructions.
    whole = len(values) // 8
    opened = np.empty(4096, np.uint8)
    for first in range(0, whole, 512):
        source, into = values[8 * first : 8 * min(first + 512, whole)], out[first : min(first + 512, whole)]
        for t in range(len(source)):
            opened[t] = 0 if source[t] <= 0 else 1
        words = opened.view(np.uint64)
        for i in range(len(into)):
            into[i] = (words[i] * gather) >> np.uint64(56)
    if whole < len(out):
        byte = 0
        for j in range(len(values) - 8 * whole):
            byte |= (not values[8 * whole + j] <= 0) << j
        out[whole] = byte


@exact
def _gate(bits: Any, values: Any, factors: Any, zero: Any, out: Any) -> None:  # pragma: no cover (compiled)
    # No branch in the inner loops, whose length is known: eight elements are one instruction.
    whole, scale, closed = len(values) // 8, factors[0], factors[1]
    if zero:
        for i in range(whole):
            byte = np.uint32(bits[i])
            for j in range(8):
                open_ = values[8 * i + j] * scale
                out[8 * i + j] = open_ if (byte >> np.uint32(j)) & np.uint32(1) else closed
    else:
        for i in range(whole):
            byte = np.uint32(bits[i])
            for j in range(8):
                open_, shut = values[8 * i + j] * scale, values[8 * i + j] * closed
                out[8 * i + j] = open_ if (byte >> np.uint32(j)) & np.uint32(1) else shut
    for t in range(8 * whole, len(values)):
        if bits[whole] >> (t - 8 * whole) & 1:
            out[t] = values[t] * scale
        else:
            out[t] = closed if zero else values[t] * closed


@exact
def _place(indices: Any, out: Any, numbers: Any, first: int, last: int) -> None:  # pragma: no cover (compiled)
    # How often a multiple was reached is a quotient, too, and sooner there than by a division.
    H, W, size, R, S, a, b, top, left, p, q = numbers
    rest = np.empty(W, np.int64)
    for row in range(first, last):
        line, into = indices[row * W : (row + 1) * W], out[row * W : (row + 1) * W]
        corner = (row % H * a - top) * size
        for x in range(W):
            into[x] = 0
        for k in range(1, R):
            reached = corner + k * p * size
            for x in range(W):
                into[x] += line[x] >= reached
        for x in range(W):
            rest[x] = line[x] - corner - into[x] * p * size - x * b + left
            into[x] *= S
        for k in range(1, S):
            reached = k * q
            for x in range(W):
                into[x] += rest[x] >= reached


@exact
def _join(places: Any, width: Any, out: Any, first: int, last: int) -> None:  # pragma: no cover (compiled)
    each = 8 // width
    for i in range(first, min(last, len(out))):
        byte = 0
        for j in range(min(each, len(places) - i * each)):
            byte |= places[i * each + j] << (j * width)
        out[i] = byte


@exact
def _spread(
    places: Any, grad: Any, out: Any, moved: Any, numbers: Any, first: int, last: int
) -> None:  # pragma: no cover (compiled)
    fold, size, a, b, top, left = numbers  # 2**fold places lie in a byte
    width, last_one, mask = 8 >> fold, (1 << fold) - 1, len(moved) - 1
    H, W = grad.shape[1:]
    for plane in range(first, last):
        for y in range(H):
            t = (plane * H + y) * W
            corner = (y * a - top) * size - left
            for x in range(W):
                place = (places[t >> fold] >> ((t & last_one) * width)) & mask
                out[plane, corner + x * b + moved[place]] += grad[plane, y, x]
                t += 1
