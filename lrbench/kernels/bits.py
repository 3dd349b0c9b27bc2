"""Bits in place of numbers: which elements pass a gate, and which place of its window each maximum came from."""

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
    for_parts(-(-size // _CHUNK), lambda start, stop: _pack(source, into, start * _CHUNK, stop * _CHUNK))
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
        _gate(coded, source, factors, closed is None, into, start * _CHUNK, stop * _CHUNK)

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
    (_, S), (a, b), (top, left), (p, q) = window
    H, W = indices.shape[1:]
    rows = torch.arange(H, device=indices.device)[:, None] * a - top
    columns = torch.arange(W, device=indices.device) * b - left
    line = indices.div(size[1], rounding_mode="floor")
    places = (line - rows).div_(p, rounding_mode="floor").mul_(S)
    places += (indices - line * size[1] - columns).div_(q, rounding_mode="floor")
    width = _width(window)
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
    P, H, W = grad.shape
    width = _width(window)
    if grad.itemsize < 4:  # windows that overlap: summed first, rounded then
        return spread(places, grad.to(torch.float32), window, size).to(grad.dtype)
    out = torch.zeros(P, *size, dtype=grad.dtype, device=grad.device)
    if _compiled(grad) and width <= 8:
        source, coded, into = grad.contiguous().numpy(), places.numpy(), out.numpy()
        numbers = (width, S, a, b, top, left, p, q)
        for_parts(P, lambda start, stop: _spread(coded, source, into, numbers, start, stop))
        return out
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


@exact
def _pack(values: Any, out: Any, first: int, last: int) -> None:  # pragma: no cover (compiled)
    whole = len(values) // 8
    for i in range(first, min(last, whole)):
        byte = 0
        for j in range(8):
            byte |= (not values[8 * i + j] <= 0) << j
        out[i] = byte
    if first <= whole < last and whole < len(out):
        byte = 0
        for j in range(len(values) - 8 * whole):
            byte |= (not values[8 * whole + j] <= 0) << j
        out[whole] = byte


@exact
def _gate(
    bits: Any, values: Any, factors: Any, zero: Any, out: Any, first: int, last: int
) -> None:  # pragma: no cover (compiled)
    for i in range(first, min(last, len(bits))):
        byte = bits[i]
        for t in range(8 * i, min(8 * i + 8, len(values))):
            if byte & 1:
                out[t] = values[t] * factors[0]
            else:
                out[t] = factors[1] if zero else values[t] * factors[1]
            byte >>= 1


@exact
def _spread(
    places: Any, grad: Any, out: Any, numbers: Any, first: int, last: int
) -> None:  # pragma: no cover (compiled)
    width, S, a, b, top, left, p, q = numbers
    each, mask = 8 // width, (1 << width) - 1
    H, W = grad.shape[1:]
    for plane in range(first, last):
        for y in range(H):
            t = (plane * H + y) * W
            for x in range(W):
                place = (places[t // each] >> (t % each * width)) & mask
                out[plane, y * a - top + place // S * p, x * b - left + place % S * q] += grad[plane, y, x]
                t += 1
