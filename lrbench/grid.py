"""The runs that a command asks for: compressors x masks x eps x paths x seeds, each run once."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from lrbench.compressors import compressor_class, get_compressor
from lrbench.conv import PATHS, convolutions, masked_layers
from lrbench.conv import Path as CompressionPath
from lrbench.models import build_model
from lrbench.training import Config

__all__ = ["Grid", "expand"]


@dataclass(frozen=True)
class Grid:
    """What is varied.

    Attributes
    ----------
    compressors : sequence of str
        Registered names.
    masks : sequence of str or None
        Bits, or layer names and glob patterns joined by commas; None for the paper's three, of as many bits as the
        model has: no layer, the first one, every other one.
    eps : sequence of float
        Requested relative errors, in (0, 1].
    paths : sequence of str
        Of ``forward``, ``backward``, ``both``.
    seeds : sequence of int
        Runs of one seed form a pair.
    """

    compressors: Sequence[str]
    masks: Sequence[str] | None
    eps: Sequence[float]
    paths: Sequence[CompressionPath]
    seeds: Sequence[int]


def expand(grid: Grid, base: Config, classes: int) -> tuple[list[Config], list[str]]:
    """Give the runs of a grid, without repetitions, and the reasons why some cells fell together.

    Parameters
    ----------
    grid
        What is varied.
    base
        Everything else; what the grid varies is replaced.
    classes
        Of the data.

    Returns
    -------
    list of Config
        Plain runs first, then mask by mask.
    list of str
        A sentence for each kind of cell that makes no sense of its own.

    Raises
    ------
    ValueError, LookupError
        If a name, mask, eps or path is none, before anything runs.
    """
    for asked, eps in itertools.product(grid.compressors, grid.eps):
        get_compressor(asked, eps=eps)
    unknown = set(grid.paths) - set(PATHS)
    if unknown:
        raise ValueError(f"path is {', '.join(sorted(unknown))}: use {', '.join(PATHS)}")
    with torch.device("meta"):
        model = build_model(base.model, base.widths, classes)
    layers = list(convolutions(model))

    def bits(mask: str) -> str:
        chosen = masked_layers(model, mask if mask.isdigit() else mask.split(","))
        return "".join("1" if name in chosen else "0" for name in layers)

    count = len(layers)
    asked_masks = grid.masks or ["0" * count, "1".ljust(count, "0"), ("10" * count)[:count]]
    masks = list(dict.fromkeys(map(bits, asked_masks)))
    runs: dict[Config, None] = {}
    reasons: dict[str, None] = {}
    for mask in sorted(masks, key=lambda mask: "1" in mask):
        for name in grid.compressors if "1" in mask else [None]:
            cls = None if name is None else compressor_class(name)
            if cls is None and len(grid.compressors) * len(grid.eps) * len(grid.paths) > 1:
                reasons[f"mask {mask} compresses no layer: it runs once for all compressors, eps and paths"] = None
            if cls is not None and not cls.uses_eps and len(grid.eps) > 1:
                reasons[f"{name} has no tolerance: it runs once for all eps"] = None
            tolerances = grid.eps if cls is not None and cls.uses_eps else [None]
            paths = grid.paths if cls is not None else [None]
            version = None if cls is None else cls.version
            cell = replace(base, mask=mask, compressor=name, compressor_version=version)
            for tolerance, way, seed in itertools.product(tolerances, paths, grid.seeds):
                runs[replace(cell, eps=tolerance, path=way, seed=seed)] = None
    return list(runs), list(reasons)
