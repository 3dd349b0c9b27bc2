"""Presets: experiments that are written down before they are run, as TOML files of this folder.

A preset holds what the options of ``python -m lrbench.ablate`` default to; grids of cells, each a product of
compressors, masks, tolerances and paths; policies, each a cell of its own; and the comparisons that it is run for, each
of a cell with another, paired by seed. ``extends`` names another preset: what a file does not say is as it is there.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

__all__ = ["AXES", "PlannedComparison", "Preset", "list_presets", "load_preset"]

AXES = ("compressors", "masks", "eps", "path")
"""What a grid varies."""

_SIZES = ("train_size", "test_size")
_SETTINGS = ("dataset", *_SIZES, "model", "widths", "epochs", "batch_size", "learning_rate", "processes")
_UNSAID: Mapping[str, Any] = {
    "train_size": 50_000,
    "test_size": 10_000,
    "model": "paper",
    "learning_rate": 1e-3,
    "processes": 1,
}
"""What holds where a preset does not say it, all images among them: these are of CIFAR-10."""


@dataclass(frozen=True)
class PlannedComparison:
    """A cell and what it is compared with; a cell has a mask and, but for the plain model, compressor, eps and path."""

    name: str
    cell: Mapping[str, Any]
    against: Mapping[str, Any]


@dataclass(frozen=True)
class Preset:
    """An experiment.

    Attributes
    ----------
    name : str
        By which ``--preset`` takes it.
    title, question : str
        What it is about, and what it asks.
    written : str
        When, if not before all runs that it compares; then what it finds is exploratory.
    options : mapping
        Defaults of the command's options, by their names; an axis here holds for every grid.
    grids : sequence of mapping
        The axes of each grid, by name.
    policies : mapping
        Policies by name, as tables that :meth:`lrbench.policy.Policy.from_table` takes.
    comparisons : sequence of PlannedComparison
        What it is run for, beside the comparison of every cell with the plain model; empty if nothing.
    """

    name: str
    title: str
    question: str
    options: Mapping[str, Any]
    written: str = ""
    grids: Sequence[Mapping[str, Sequence[Any]]] = field(default=({},))
    policies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    comparisons: Sequence[PlannedComparison] = ()

    def changed(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Name the settings of a run, in words, that are not the preset's: then it is another experiment's.

        What the grids vary does not count: of these cells some may run and some not. Nor do threads and devices, which
        what a preset asks does not depend on.
        """
        said = {**_UNSAID, **self.options}
        if config.get("dataset") != said["dataset"]:  # how many images are all of them, is not known then
            said = {name: value for name, value in said.items() if name in self.options or name not in _SIZES}
        if config.get("model") != said["model"]:  # which has widths of its own
            said = {name: value for name, value in said.items() if name != "widths"}
        names = (name for name in _SETTINGS if name in said and config.get(name, said[name]) != said[name])
        return tuple(name.replace("_", " ") for name in names)


def list_presets() -> list[str]:
    """Names of all presets, sorted."""
    return sorted(file.name.removesuffix(".toml") for file in files(__name__).iterdir() if file.name.endswith(".toml"))


def load_preset(name: str) -> Preset:
    """Load a preset.

    Raises
    ------
    LookupError
        If there is none of that name.
    """
    if name not in list_presets():
        raise LookupError(f"there is no preset {name!r}: use {', '.join(list_presets())}")
    given = tomllib.loads((files(__name__) / f"{name}.toml").read_text(encoding="utf-8"))
    base = load_preset(given["extends"]) if "extends" in given else Preset(name, "", "", {})
    planned = [PlannedComparison(**each) for each in given.get("comparisons", ())]
    return Preset(
        name=name,
        title=given.get("title", base.title),
        question=given.get("question", base.question).strip(),
        written=given.get("written", ""),
        options={**base.options, **given.get("options", {})},
        grids=given.get("grids", base.grids),
        policies={**base.policies, **given.get("policies", {})},
        comparisons=planned or base.comparisons,
    )
