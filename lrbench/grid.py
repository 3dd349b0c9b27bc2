"""The runs that a command asks for: compressors x masks x eps x paths x seeds, and policies x seeds, each run once."""

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from lrbench.compressors import compressor_class, get_compressor, list_compressors
from lrbench.conv import PATHS, compressed_layers, convolutions, masked_layers, wrap
from lrbench.conv import Path as CompressionPath
from lrbench.models import build_model
from lrbench.policy import Policy
from lrbench.training import Config

__all__ = ["Grid", "expand", "load_policies"]


@dataclass(frozen=True)
class Grid:
    """What is varied.

    Attributes
    ----------
    compressors : sequence of str
        Registered names; none of them where only policies and the plain model run.
    masks : sequence of str
        Bits, or layer names and glob patterns joined by commas.
    eps : sequence of float
        Requested relative errors, in (0, 1].
    paths : sequence of str
        Of ``forward``, ``backward``, ``both``.
    seeds : sequence of int
        Runs of one seed form a pair.
    policies : mapping
        Policies by name, each a cell of its own.
    """

    compressors: Sequence[str]
    masks: Sequence[str]
    eps: Sequence[float]
    paths: Sequence[CompressionPath]
    seeds: Sequence[int]
    policies: Mapping[str, Policy] = field(default_factory=dict)


def load_policies(files: Sequence[Path]) -> dict[str, Policy]:
    """Read policies, each named by its file without the suffix.

    Raises
    ------
    ValueError
        If a file cannot be read or holds no policy, or two have one name.
    """
    policies: dict[str, Policy] = {}
    for file in dict.fromkeys(files):
        if file.stem in policies:
            raise ValueError(f"two policies are called {file.stem}: runs are named by it, so rename one of the files")
        policies[file.stem] = Policy.load(file)
    return policies


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
        Plain runs first, then mask by mask, then the policies.
    list of str
        A sentence for each kind of cell that makes no sense of its own.

    Raises
    ------
    ValueError, LookupError
        If a name, mask, eps, path or policy is none, or nothing is left to run, before anything runs.
    """
    for asked, eps in itertools.product(grid.compressors, grid.eps):
        get_compressor(asked, eps=eps)
    unknown = set(grid.paths) - set(PATHS)
    if unknown:
        raise ValueError(f"path is {', '.join(sorted(unknown))}: use {', '.join(PATHS)}")
    with torch.device("meta"):
        model = build_model(base.model, base.widths, classes)
    masks = list(dict.fromkeys(_bits(model, mask if mask.isdigit() else mask.split(",")) for mask in grid.masks))
    runs: dict[Config, None] = {}
    reasons: dict[str, None] = {}
    for mask in sorted(masks, key=lambda mask: "1" in mask):
        if "1" in mask and not grid.compressors:
            reasons[f"mask {mask} does not run: no compressor is named"] = None
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
    for name, policy in grid.policies.items():
        cell = _policy_cell(name, policy, model, base)
        runs |= {replace(cell, seed=seed): None for seed in grid.seeds}
    if not runs:
        raise ValueError("there is nothing to run: name a compressor, a policy, or a mask of zeros for the plain model")
    return list(runs), list(reasons)


def _bits(model: nn.Module, mask: str | Sequence[str]) -> str:
    chosen = masked_layers(model, mask)
    return "".join("1" if name in chosen else "0" for name in convolutions(model))


def _policy_cell(name: str, policy: Policy, model: nn.Module, base: Config) -> Config:
    """The runs of a policy, but for the seed; what is wrong with it is found on a model without numbers."""
    if name in (*list_compressors(), "plain"):
        raise ValueError(f"a policy is called {name}, which is a name that runs have without one: rename its file")
    if not policy.layers and not policy.lean:
        raise ValueError(f"policy {name} changes nothing: give it a table layers.NAME or lean = true")
    try:
        wrapped = compressed_layers(wrap(copy.deepcopy(model), policy))
        identity = policy.identity()
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"policy {name}: {error.args[0] if error.args else error}") from error
    mask = "".join("1" if layer in wrapped else "0" for layer in convolutions(model))
    return replace(base, mask=mask, compressor=name, compressor_version=None, eps=None, path=None, policy=identity)
