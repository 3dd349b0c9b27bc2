"""Compile the kernels before the tests run: ``python -m tests.compile_kernels``.

Else every test process, and every process that a test starts, would compile them for itself, side by side.
"""

import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from torch import nn

import lrbench
from lrbench.im2col import Geometry

SHAPES = {"wide": (8, 3, 16, 16), "tall": (8, 16, 8, 8)}
"""Inputs whose blocks have more columns than rows, and more rows than columns."""


def step_all(dtype: torch.dtype) -> None:
    """Train a step with every compressor on blocks of every shape, with outputs in either order in memory."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for size in SHAPES.values():
        x = torch.rand(size, dtype=dtype)
        conv = nn.Conv2d(size[1], 4, 3, padding=1, dtype=dtype)
        for name in lrbench.list_compressors():
            made = lrbench.get_compressor(name, eps=0.1)
            path = "backward" if made.skip(Geometry.of(conv), None, "both") else "both"
            for layout in (torch.contiguous_format, torch.channels_last):
                model = lrbench.wrap(nn.Sequential(conv, nn.ReLU()), "1", made, path=path)
                model(x.to(memory_format=layout)).sum().backward()
                lrbench.unwrap(model)


def main() -> None:
    """Compile for both dtypes, side by side."""
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        list(pool.map(step_all, (torch.float32, torch.float64)))


if __name__ == "__main__":
    main()
