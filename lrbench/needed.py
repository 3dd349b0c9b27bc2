"""The ranks that a model's real activations need: what a plan's break-even ranks are to be held against."""

import copy
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lrbench.compressors import NonFiniteBlockError, get_compressor
from lrbench.conv import convolutions, unwrap
from lrbench.datasets import DatasetError, read_records, to_float
from lrbench.im2col import Geometry, Im2col
from lrbench.saved import PlanError

__all__ = ["load_weights", "needed_ranks", "read_images"]

IMAGES = 100
"""Of a layer's input, at most so many images are compressed."""
WORK = 10**10
"""Multiplications, m·n·min(m, n) for each block, that a layer's Gram matrices may take: fewer images then."""
LEAST = 4


@torch.no_grad()
def needed_ranks(model: nn.Module, images: Tensor, tolerances: Sequence[float], seed: int = 0) -> pd.DataFrame:
    """Compress what a model's convolutions meet in training mode, by the truncated SVD, and count.

    The model computes exactly; no layer sees what another's compression would have made of its input. All images are
    one batch, as batch normalisation wants it; of a layer's input at most 100 images are compressed, and where its
    blocks are large at least 4, drawn by the seed.

    Parameters
    ----------
    model : torch.nn.Module
        On the CPU. It is left as it is, and so is torch's generator.
    images : Tensor
        (N, C, H, W), floating; cast to the dtype of the model's parameters.
    tolerances : sequence of float
        Requested relative errors, in (0, 1].
    seed : int
        Of dropout, and of the images that are drawn.

    Returns
    -------
    pandas.DataFrame
        A row for each call of a convolution, in the order of the pass: layer, call (from 1), images; and for each
        tolerance ``rank_EPS``, the mean rank over blocks, and ``bytes_EPS``, the bytes that the factors hold over those
        of the same images' input.

    Raises
    ------
    PlanError
        If the pass fails for these images, or a layer meets NaN or infinity.
    """
    compressors = {eps: get_compressor("svd", eps=eps) for eps in tolerances}
    model = unwrap(copy.deepcopy(model)).train()
    images = images.to(next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), images.dtype))
    generator = torch.Generator().manual_seed(seed)
    rows: list[dict[str, Any]] = []
    calls: Counter[str] = Counter()

    def observe(name: str, conv: nn.Conv2d, x: Tensor) -> None:
        calls[name] += 1
        x = x if x.ndim == 4 else x.unsqueeze(0)
        _, m, n = Im2col.of(x[:1], Geometry.of(conv)).shape
        most = max(LEAST, min(IMAGES, WORK // (m * n * min(m, n) * conv.groups)))
        chosen = _drawn(x, most, generator)
        blocks = Im2col.of(chosen, Geometry.of(conv))
        row: dict[str, Any] = {"layer": name, "call": calls[name], "images": len(chosen)}
        for eps, compressor in compressors.items():
            try:
                factors = compressor.compress(blocks)
            except NonFiniteBlockError as error:
                raise PlanError(f"layer {name!r} meets NaN or infinity: mend the images or the weights") from error
            assert factors.ranks is not None  # the SVD's
            row[f"rank_{eps:g}"] = factors.ranks.double().mean().item()
            row[f"bytes_{eps:g}"] = factors.nbytes / chosen.nbytes
        rows.append(row)

    for name, conv in convolutions(model).items():
        conv.register_forward_pre_hook(lambda conv, inputs, name=name: observe(name, conv, inputs[0]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model(images)
        except PlanError:
            raise
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise PlanError(f"the model fails for images of shape {tuple(images.shape)} ({reason})") from error
    return pd.DataFrame(rows)


def read_images(path: Path, shape: Sequence[int], seed: int = 0) -> Tensor:
    """Read images to measure on.

    Parameters
    ----------
    path : Path
        A ``.pt`` or ``.npy`` file that holds one floating array (N, C, H, W), taken as it is; or a ``.bin`` file in
        CIFAR's layout, whose pixels are divided by 255.
    shape : sequence of int
        (N, C, H, W) of the batch that is planned: of more than N images, N are drawn.
    seed : int
        By which they are drawn.

    Returns
    -------
    Tensor
        (N or fewer, C, H, W), floating, in the file's order.

    Raises
    ------
    PlanError
        If the file cannot be read, or holds something else.
    """
    if path.suffix not in (".pt", ".npy", ".bin"):
        raise PlanError(f"{path} has the suffix {path.suffix!r}: give images as .pt, .npy or .bin")
    try:
        if path.suffix == ".bin":
            values: Any = read_records(path)[0]
        elif path.suffix == ".npy":
            values = torch.from_numpy(np.load(path, allow_pickle=False))
        else:
            values = torch.load(path, weights_only=True, map_location="cpu")
    except DatasetError as error:
        raise PlanError(str(error)) from error
    except Exception as error:
        raise PlanError(_unreadable(path, error)) from error
    if not isinstance(values, Tensor) or values.ndim != 4 or values.shape[1:] != torch.Size(shape[1:]):
        found = f"an array {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise PlanError(f"{path} holds {found}: give images (N, {', '.join(map(str, shape[1:]))}), as they are planned")
    if path.suffix != ".bin" and not values.dtype.is_floating_point:
        raise PlanError(f"{path} holds {values.dtype}: give floating numbers, as the model takes them")
    if len(values) == 0:
        raise PlanError(f"{path} holds no image: give at least one")
    values = _drawn(values, shape[0], torch.Generator().manual_seed(seed))
    return to_float(values) if path.suffix == ".bin" else values


def load_weights(model: nn.Module, path: Path) -> None:
    """Put a state dictionary, as ``torch.save`` wrote it, into a model.

    Raises
    ------
    PlanError
        If the file cannot be read, holds none, or one of another model.
    """
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise PlanError(_unreadable(path, error)) from error
    if not isinstance(state, dict):
        raise PlanError(f"{path} holds a {type(state).__name__}: give what torch.save(model.state_dict()) wrote")
    try:
        model.load_state_dict(state)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise PlanError(f"{path} does not fit the model ({' '.join(lines)[:300]})") from error


def _drawn(values: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """At most so many of the leading index, in their order."""
    if len(values) <= most:
        return values
    return values[torch.randperm(len(values), generator=generator)[:most].sort().values]


def _unreadable(path: Path, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
    return f"{path} cannot be read ({reason}): name a file that torch.save or numpy.save wrote"
