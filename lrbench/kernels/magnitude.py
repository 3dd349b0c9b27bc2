"""The largest magnitude in each block."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrbench.kernels.loops import compiled, for_parts

__all__ = ["largest_magnitudes"]


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
    out = torch.zeros(len(values), dtype=values.dtype)
    largest = out.numpy().view(whole)
    for_parts(len(values), lambda start, stop: _largest(bits[start:stop], np.iinfo(whole).max, largest[start:stop]))
    return out


@compiled
def _largest(bits: Any, mask: Any, out: Any) -> None:  # pragma: no cover (compiled)
    for b in range(len(bits)):
        row = bits[b]
        most = row[0] & 0
        for t in range(len(row)):
            most = max(most, row[t] & mask)
        out[b] = most
