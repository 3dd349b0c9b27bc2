"""What a compressor must agree with: the same quantities, computed in float64 by numpy, without any of its code."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrbench.compressed import Compressed
from lrbench.factors import Factors

__all__ = ["Matrix", "eckart_young_rank", "factor_pair", "relative_errors", "storage_bytes", "unit_scaled"]

Matrix = NDArray[np.float64]


def unit_scaled(D: Matrix) -> tuple[Matrix, int]:
    """A matrix as 2**exponent times one of largest magnitude in (1/2, 1]: its squares neither overflow nor vanish."""
    largest = np.abs(D).max(initial=0.0)
    exponent = int(np.ceil(np.log2(largest))) if largest else 0
    return np.ldexp(D, -exponent), exponent


def eckart_young_rank(D: Matrix, eps: float) -> int:
    """Least rank of any matrix within ``eps`` of D, relative, in the Frobenius norm."""
    energies = np.linalg.svd(unit_scaled(D)[0], compute_uv=False)[::-1] ** 2
    lost = np.concatenate([[0.0], energies.cumsum()])  # lost[k]: by dropping the k smallest
    return len(energies) - int((lost[1:] <= eps**2 * lost[-1]).sum())


def relative_errors(blocks: Tensor, factors: Compressed) -> Matrix:
    """‖D_i − U_i V_i‖ / ‖D_i‖, (N,), from the factors as stored; of what has none, from the dense approximation."""
    out = np.zeros(len(blocks))
    if not isinstance(factors, Factors):
        kept = dict(enumerate(factors.dense()))
    elif factors.kept is None:
        kept = {}
    else:
        kept = dict(zip(factors.kept_index.tolist(), factors.kept.dense(), strict=True))
    for i, block in enumerate(blocks):
        D, exponent = unit_scaled(block.to(torch.float64).numpy())
        if i in kept or not isinstance(factors, Factors):
            approximation = np.ldexp(kept[i].to(torch.float64).numpy(), -exponent)
        else:
            U, V = factor_pair(factors, i)
            with np.errstate(invalid="ignore"):
                approximation = np.ldexp(U, -(exponent // 2)) @ np.ldexp(V, exponent // 2 - exponent)
        with np.errstate(invalid="ignore"):
            residual, norm = np.linalg.norm(D - approximation), np.linalg.norm(D)
        out[i] = residual / norm if norm else residual
    return out


def factor_pair(factors: Factors, i: int) -> tuple[Matrix, Matrix]:
    """U_i (m x r) and V_i (r x n) in float64."""
    rows = slice(int(factors.offsets[i]), int(factors.offsets[i + 1]))
    first = rows.start if factors.starts is None else int(factors.starts[i])
    columns = slice(first, first + rows.stop - rows.start)
    return factors.U[columns].T.to(torch.float64).numpy(), factors.V[rows].to(torch.float64).numpy()


def storage_bytes(tensors: tuple[Tensor, ...]) -> int:
    """Bytes of the distinct storages behind some tensors."""
    seen = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.nbytes():
            seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())
