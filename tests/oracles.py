"""What lrbench must agree with: the same quantities, computed in float64 by numpy, without any of its code."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lrbench.contract.oracles import (
    Matrix,
    eckart_young_rank,
    factor_pair,
    relative_errors,
    storage_bytes,
    unit_scaled,
)

__all__ = [
    "PLAIN",
    "Allocations",
    "Arguments",
    "Matrix",
    "cross_approximation",
    "eckart_young_rank",
    "factor_pair",
    "frame",
    "geometries",
    "lowered",
    "relative_errors",
    "storage_bytes",
    "unit_scaled",
]

Pair = tuple[int, int]
Arguments = dict[str, Any]
"""Keyword arguments of ``Conv2d``, from ``kernel_size`` on, every pair written out (padding may be a word)."""

PLAIN: Arguments = {
    "kernel_size": (3, 3),
    "stride": (1, 1),
    "padding": (0, 0),
    "dilation": (1, 1),
    "groups": 1,
    "padding_mode": "zeros",
}

NUMPY_PADDING = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def frame(arguments: Arguments) -> tuple[Pair, Pair]:
    """Padding in front and behind, vertically and horizontally: an odd pixel of "same" goes behind."""
    padding = arguments["padding"]
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(arguments["kernel_size"], arguments["dilation"], strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)  # type: ignore[return-value]
    return (padding[0], padding[0]), (padding[1], padding[1])


def lowered(x: Tensor, arguments: Arguments) -> Matrix:
    """im2col of every group of every image, padded by numpy and unfolded by torch: (N·groups, m, n)."""
    N, C = x.shape[:2]
    mode = NUMPY_PADDING[arguments["padding_mode"]]
    padded = np.pad(x.detach().to(torch.float64).numpy(), ((0, 0), (0, 0), *frame(arguments)), mode=mode)  # type: ignore[call-overload]
    unfolded = F.unfold(
        torch.from_numpy(padded),
        arguments["kernel_size"],
        dilation=arguments["dilation"],
        stride=arguments["stride"],
    )
    g = arguments["groups"]
    R, S = arguments["kernel_size"]
    return unfolded.reshape(N * g, C // g * R * S, -1).numpy()


def geometries(C: int, H: int, W: int) -> Iterator[Arguments]:
    """Every combination of arguments under test that Conv2d accepts for images of C x H x W."""
    for kernel_size in ((1, 1), (3, 3), (3, 5), (2, 2)):
        for stride in ((1, 1), (2, 2), (2, 1)):
            for padding in ((0, 0), (1, 1), (2, 1), "same", "valid"):
                for dilation in ((1, 1), (2, 2), (1, 2)):
                    if padding == "same" and stride != (1, 1):
                        continue
                    for groups in (1, 2, C):
                        for padding_mode in NUMPY_PADDING:
                            arguments = {
                                "kernel_size": kernel_size,
                                "stride": stride,
                                "padding": padding,
                                "dilation": dilation,
                                "groups": groups,
                                "padding_mode": padding_mode,
                            }
                            sides = zip((H, W), frame(arguments), kernel_size, dilation, strict=True)
                            if all(side + sum(pad) > d * (k - 1) for side, pad, k, d in sides):
                                yield arguments


def cross_approximation(D: Matrix, eps: float, stop: str) -> tuple[Matrix, Matrix, list[Pair]]:
    """Textbook ACA of one matrix: rows and columns of the residual are made from D and the crosses so far.

    Returns
    -------
    tuple
        U (m x r), V (r x n) and the pivots (row, column). With ``stop="estimate"`` the size of the last cross is
        compared with the norm of their sum; with ``stop="residual"`` the residual is formed.
    """
    m, n = D.shape
    U, V = np.zeros((m, 0)), np.zeros((0, n))
    pivots: list[Pair] = []
    free = np.ones(m, dtype=bool)
    i = 0
    while len(pivots) < min(m, n):
        row = D[i] - U[i] @ V
        if not row.any():
            alive = [k for k in range(m) if free[k] and (D[k] - U[k] @ V).any()]
            if not alive:
                break
            i = alive[0]
            row = D[i] - U[i] @ V
        j = int(np.abs(row).argmax())
        u, v = D[:, j] - U @ V[:, j], row / row[j]
        U, V = np.column_stack([U, u]), np.vstack([V, v])
        pivots.append((i, j))
        free[i] = False
        approximation = U @ V
        if stop == "estimate" and np.linalg.norm(u) * np.linalg.norm(v) <= eps * np.linalg.norm(approximation):
            break
        if stop == "residual" and np.linalg.norm(D - approximation) <= eps * np.linalg.norm(D):
            break
        if not free.any():
            break
        i = int(np.where(free, np.abs(u), -1).argmax())
    return U, V, pivots


class Allocations(TorchDispatchMode):
    """Watches every operation: the shapes that it gives, the largest storage behind any of them, and the bytes of each
    storage that was behind none of its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        self.largest = 0
        self.fresh: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, Tensor)}
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.shapes.append(tuple(tensor.shape))
                storage = tensor.untyped_storage()
                self.largest = max(self.largest, storage.nbytes())
                if storage.data_ptr() not in given:
                    self.fresh.append(storage.nbytes())
        return out
