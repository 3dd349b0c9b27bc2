"""Sums over a block's numbers that tell it from others: what a random choice may depend on, and nothing else."""

from typing import Any

from lrbench.kernels.loops import compiled, exact

__all__ = ["keys"]


@compiled
def keys(images: Any, power: Any, weights: Any, row: Any, bits: Any, out: Any) -> None:  # pragma: no cover (compiled)
    """Sums of the scaled images' bits, as whole numbers, times weights, modulo 2**64; −0.0 counts as 0.0.

    Parameters
    ----------
    images : array
        (N, numbers).
    power : array
        (N, .) float64: the images are scaled by the product of the first two.
    weights : array
        (numbers,) int64.
    row, bits : array
        (numbers,), scratch in the images' dtype, and the same memory as whole numbers.
    out : array
        (N,) int64, written.
    """
    for b in range(len(images)):
        _scale(images[b], power[b, 0], power[b, 1], row)
        total = 0
        for t in range(len(bits)):
            total += bits[t] * weights[t]
        out[b] = total


@exact
def _scale(image: Any, f: float, g: float, row: Any) -> None:  # pragma: no cover (compiled)
    for t in range(len(row)):
        row[t] = (image[t] * f) * g + 0.0
