"""Leading rows of many matrices: what they weigh, and packing as many of each as are wanted."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrbench.kernels.loops import compiled, exact, for_parts

__all__ = ["packed_rows", "row_energies"]


def _compiled(values: Tensor) -> bool:
    return values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)


def row_energies(values: Tensor) -> Tensor:
    """Σ_t values[i, k, t]², accumulated in float64: (N, k, n) -> (N, k) float64."""
    if not _compiled(values):
        return torch.linalg.vector_norm(values, dim=2, dtype=torch.float64).square()
    out = torch.empty(values.shape[:2], dtype=torch.float64, device="cpu")
    source, into = values.contiguous().numpy(), out.numpy()
    for_parts(len(values), lambda start, stop: _energies(source[start:stop], into[start:stop]))
    return out


def packed_rows(values: Tensor, counts: Tensor, exponent: Tensor) -> Tensor:
    """The leading ``counts[i]`` rows of values[i], times 2**exponent[i], packed: (N, k, n) -> (Σ counts, n).

    Parameters
    ----------
    values : Tensor
        (N, k, n), float32 or float64.
    counts, exponent : Tensor
        (N,) int64.
    """
    if not _compiled(values):
        kept = torch.arange(values.shape[1], device=values.device) < counts[:, None]
        scaled = torch.ldexp(values.to(torch.float64), exponent[:, None, None])
        return scaled.to(values.dtype)[kept]
    ends = np.concatenate([np.zeros(1, np.int64), counts.numpy().cumsum()])
    out = values.new_empty(int(ends[-1]), values.shape[2])
    source, into, power = values.contiguous().numpy(), out.numpy(), np.ldexp(1.0, exponent.numpy())
    for_parts(len(values), lambda start, stop: _pack(source, ends, power, into, start, stop))
    return out


@compiled
def _energies(values: Any, out: Any) -> None:  # pragma: no cover (compiled)
    for b in range(len(values)):
        for k in range(values.shape[1]):
            row = values[b, k]
            total = 0.0
            for t in range(len(row)):
                x = np.float64(row[t])
                total += x * x
            out[b, k] = total


@exact
def _pack(values: Any, ends: Any, power: Any, out: Any, first: int, last: int) -> None:  # pragma: no cover (compiled)
    for b in range(first, last):
        for k in range(ends[b + 1] - ends[b]):
            row, into = values[b, k], out[ends[b] + k]
            for t in range(len(row)):
                into[t] = row[t] * power[b]
