"""The runs that a command asks for: compressors x masks x eps x paths x seeds, and policies x seeds, each run once."""

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from lrbench.compressors import compressor_class, get_compressor, list_compressors, named_files
from lrbench.conv import PATHS, compressed_layers, convolutions, masked_layers, wrap
from lrbench.conv import Path as CompressionPath
from lrbench.im2col import Geometry
from lrbench.models import build_on_meta
from lrbench.policy import Policy
from lrbench.training import Config

__all__ = ["Grid", "expand", "expand_all", "load_policies"]


@dataclass(frozen=True)
class Grid:
    """What is varied.

    Attributes
    ----------
    compressors : sequence of str
        Names, or files and classes as in ``./mine.py:Mine``; none where only policies and the plain model run.
    masks : sequence of str or None
        Bits, or layer names and glob patterns joined by commas; None for the paper's three, of as many bits as the
        model has: no layer, the first one, every other one.
    eps : sequence of float
        Requested relative errors, in (0, 1].
    path : sequence of str
        Of ``forward``, ``backward``, ``both``.
    seeds : sequence of int
        Runs of one seed form a pair.
    policies : mapping
        Policies by name, each a cell of its own.
    """

    compressors: Sequence[str]
    masks: Sequence[str] | None
    eps: Sequence[float]
    path: Sequence[CompressionPath]
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


def expand(
    grid: Grid, base: Config, classes: int, image_shape: tuple[int, int, int] = (3, 32, 32)
) -> tuple[list[Config], list[str]]:
    """Give the runs of a grid, without repetitions, and the reasons why some cells fell together or are left out.

    Parameters
    ----------
    grid
        What is varied.
    base
        Everything else; what the grid varies is replaced.
    classes
        Of the data.
    image_shape
        Of its images: (channels, height, width).

    Returns
    -------
    list of Config
        Plain runs first, then mask by mask, then the policies.
    list of str
        A sentence for each kind of cell that makes no sense of its own, or none at all by its compressor's word.

    Raises
    ------
    ValueError, LookupError
        If a name, mask, eps, path, seed or policy is none, or nothing is left to run, before anything runs.
    """
    for asked in grid.compressors:
        for options in [{"eps": eps} for eps in grid.eps] if compressor_class(asked).uses_eps else [{}]:
            get_compressor(asked, **options)
    names = [compressor_class(asked).name for asked in grid.compressors]  # of a file's class, what the file was, too
    unknown = set(grid.path) - set(PATHS)
    if unknown:
        raise ValueError(f"path is {', '.join(sorted(unknown))}: use {', '.join(PATHS)}")
    for seed in grid.seeds:
        if not -(2**63) <= seed < 2**63:
            raise ValueError(f"seed is {seed}: use an integer of 64 bits, up to {2**63 - 1}")
    model = build_on_meta(base.model, base.widths, classes)
    layers, sizes = convolutions(model), _input_sizes(model, base.model, image_shape, classes)
    if not layers:
        raise ValueError(f"{base.model} has no Conv2d, and only these are compressed: name a model that has one")
    count = len(layers)
    asked_masks = ["0" * count, "1".ljust(count, "0"), ("10" * count)[:count]] if grid.masks is None else grid.masks
    masks = list(dict.fromkeys(_bits(model, mask if mask.isdigit() else mask.split(",")) for mask in asked_masks))
    runs: dict[Config, None] = {}
    reasons: dict[str, None] = {}
    for mask in sorted(masks, key=lambda mask: "1" in mask):
        if "1" in mask and not grid.compressors:
            reasons[f"mask {mask} does not run: no compressor is named"] = None
        for name in names if "1" in mask else [None]:
            cls = None if name is None else compressor_class(name)
            if cls is None and len(grid.compressors) * len(grid.eps) * len(grid.path) > 1:
                reasons[f"mask {mask} compresses no layer: it runs once for all compressors, eps and paths"] = None
            if cls is not None and not cls.uses_eps and len(grid.eps) > 1:
                reasons[f"{name} has no tolerance: it runs once for all eps"] = None
            if cls is not None and cls.guarantee == "batch" and base.processes > 1:
                reasons[f"{name} is left out: {_spans_batch(base.processes)}"] = None
                continue
            tolerances = grid.eps if cls is not None and cls.uses_eps else [None]
            paths = grid.path if cls is not None else [None]
            version = None if cls is None else cls.version
            cell = replace(base, mask=mask, compressor=name, compressor_version=version)
            chosen = [layer for layer, bit in zip(layers, mask, strict=True) if bit == "1"]
            for tolerance, way in itertools.product(tolerances, paths):
                against = None if name is None else _speaks_against(name, tolerance, way, chosen, layers, sizes)
                if against is not None:
                    reasons[f"{name} on path {way} is left out for mask {mask}: {against}"] = None
                    continue
                for seed in grid.seeds:
                    runs[replace(cell, eps=tolerance, path=way, seed=seed)] = None
    for name, policy in grid.policies.items():
        cell = _policy_cell(name, policy, model, base)
        spanning = [layer for layer, said in policy.layers.items() if said.make().guarantee == "batch"]
        if spanning and base.processes > 1:
            reasons[f"policy {name} is left out: {_spans_batch(base.processes)} ({', '.join(spanning)})"] = None
            continue
        runs |= {replace(cell, seed=seed): None for seed in grid.seeds}
    if not runs and reasons:
        raise ValueError(f"no run is left: {'; '.join(reasons)}")
    if not runs:
        raise ValueError("there is nothing to run: name a compressor, a policy, or a mask of zeros for the plain model")
    files = named_files()
    return [replace(run, files=files) for run in runs], list(reasons)


def expand_all(
    grids: Sequence[Grid], base: Config, classes: int, image_shape: tuple[int, int, int] = (3, 32, 32)
) -> tuple[list[Config], list[str]]:
    """Give the runs of several grids, each once, seed by seed, so that what is done first is complete pairs.

    Parameters, exceptions and what is given are those of :func:`expand`.
    """
    parts = [expand(grid, base, classes, image_shape) for grid in grids]
    runs = dict.fromkeys(run for part, _ in parts for run in part)
    reasons = dict.fromkeys(reason for _, part in parts for reason in part)
    return sorted(runs, key=lambda run: (run.seed, not run.plain)), list(reasons)


def _bits(model: nn.Module, mask: str | Sequence[str]) -> str:
    chosen = masked_layers(model, mask)
    return "".join("1" if name in chosen else "0" for name in convolutions(model))


def _policy_cell(name: str, policy: Policy, model: nn.Module, base: Config) -> Config:
    """The runs of a policy, but for the seed; what is wrong with it is found on a model without numbers."""
    if name in (*list_compressors(), "plain"):
        raise ValueError(f"a policy is called {name}, which is a name that runs have without one: rename its file")
    if policy == Policy({}):
        raise ValueError(f"policy {name} changes nothing: give it a table layers.NAME, lean = true, or segments")
    try:
        wrapped = compressed_layers(wrap(copy.deepcopy(model), policy))
        identity = policy.identity()
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"policy {name}: {error.args[0] if error.args else error}") from error
    mask = "".join("1" if layer in wrapped else "0" for layer in convolutions(model))
    return replace(base, mask=mask, compressor=name, compressor_version=None, eps=None, path=None, policy=identity)


def _spans_batch(processes: int) -> str:
    return f"its guarantee spans the batch, of which each of {processes} processes has a part"


def _speaks_against(
    name: str,
    eps: float | None,
    path: CompressionPath | None,
    chosen: Sequence[str],
    layers: Mapping[str, nn.Conv2d],
    sizes: Mapping[str, tuple[int, int]],
) -> str | None:
    """What speaks against a cell by the word of its compressor, and in which layers."""
    compressor = get_compressor(name, **({} if eps is None else {"eps": eps}))
    found: dict[str, list[str]] = {}
    for layer in chosen:
        reason = compressor.skip(Geometry.of(layers[layer]), sizes.get(layer), path or "both")
        if reason is not None:
            found.setdefault(reason, []).append(layer)
    parts = [
        reason if len(where) == len(chosen) else f"{reason} ({', '.join(where)})" for reason, where in found.items()
    ]
    return "; ".join(parts) or None


def _input_sizes(
    model: nn.Module, name: str, image_shape: tuple[int, int, int], classes: int
) -> dict[str, tuple[int, int]]:
    """Height and width of what each convolution of a model on the meta device meets, from two images."""
    sizes: dict[str, tuple[int, int]] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, inputs, name=name: sizes.update({name: (inputs[0].shape[-2], inputs[0].shape[-1])})
        )
        for name, layer in convolutions(model).items()
    ]
    try:
        with torch.no_grad():
            scores = model(torch.empty(2, *image_shape, device="meta"))
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise ValueError(f"{name} fails for images of shape {image_shape} ({reason}): name another model") from error
    finally:
        for hook in hooks:
            hook.remove()
    shape = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
    if shape != (2, classes):
        raise ValueError(
            f"{name} gives {shape} for 2 images of {classes} classes: it must give a score for each class, and is told "
            "their number by a parameter classes or num_classes"
        )
    return sizes
