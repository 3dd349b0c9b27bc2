"""The largest magnitude in each block, and the energy."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrbench.kernels.loops import compiled, for_parts

__all__ = ["largest_magnitudes", "weighted_energies"]

_WORTH_THREADS = 1 << 23
"""Bytes that are read in as long as it takes threads to begin and to come to an end."""


def largest_magnitudes(values: Tensor) -> Tensor:
    """Largest magnitude among ``values[i]``, (N,), of their dtype; NaN or infinite if one of them is.

    Parameters
    ----------
    values : Tensor
        (N, ...), float32 or float64, on a CPU.
    """
    # Without its sign a floating number orders as the whole number of its bits, infinity and NaN above all others.
    whole = np.int32 if values.dtype == torch.float32 else np.int64
    bits = values.flatten(1).contiguous().numpy().view(whole)
    out = torch.zeros(len(values), dtype=values.dtype, device="cpu")
    largest = out.numpy().view(whole)
    most = np.iinfo(whole).max
    if bits.nbytes < _WORTH_THREADS:
        _largest(bits, most, largest)
    else:
        for_parts(len(values), lambda start, stop: _largest(bits[start:stop], most, largest[start:stop]))
    return out


@compiled
def _largest(bits: Any, mask: Any, out: Any) -> None:  # pragma: no cover (compiled)
    for b in range(len(bits)):
        row = bits[b]
        most = row[0] & 0
        for t in range(len(row)):
            most = max(most, row[t] & mask)
        out[b] = most


def weighted_energies(images: Tensor, weights: Tensor) -> Tensor:
    """Σ w_p x_p² over the pixels of each image, (N,) float64; what weighs nothing may be anything.

    Parameters
    ----------
    images : Tensor
        (N, C, H, W), float32 or float64, on a CPU.
    weights : Tensor
        (H, W) float64.
    """
    source, w = images.contiguous().flatten(2).numpy(), weights.contiguous().flatten().numpy()
    out = torch.empty(len(images), dtype=torch.float64, device="cpu")
    into = out.numpy()
    for_parts(len(images), lambda start, stop: _energies(source[start:stop], w, into[start:stop]))
    return out


@compiled
def _energies(images: Any, weights: Any, out: Any) -> None:  # pragma: no cover (compiled)
    for b in range(len(images)):
        total = 0.0
        for c in range(images.shape[1]):
            plane = images[b, c]
            for t in range(len(weights)):
                x = np.float64(plane[t]) if weights[t] > 0 else 0.0
                total += weights[t] * x * x
        out[b] = total
