"""The comparisons that an experiment was run for, as its preset wrote them down: cell against cell, seed by seed.

An interval over seeds says what other seeds would give on these test images; one over seeds and images together, what
other seeds and other images of the same kind would.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lrbench.presets import PlannedComparison, Preset, list_presets, load_preset
from lrbench.report.summaries import LEVEL, MARGIN, paired_interval
from lrbench.report.tables import Study
from lrbench.report.wording import join, plural
from lrbench.store import Record

__all__ = ["Contrast", "are_equal", "compare_cells", "holm", "judge_contrast", "presets_of", "two_way_interval"]

RESAMPLES = 4000

_CELL = ("mask", "compressor", "eps", "path")


@dataclass(frozen=True)
class Contrast:
    """One comparison that was written down.

    Attributes
    ----------
    name, preset : str
        As the preset has them.
    cell, against : str
        What is compared with what, in words.
    differences : dict of int to float
        By seed, in points of last-epoch test accuracy as trained; empty where no seed has both runs.
    mean, low, high : float or None
        Mean difference and its paired t 90 % interval; None with fewer than two seeds.
    images : tuple of float, or None
        The 90 % interval over seeds and test images, by a two-way bootstrap of the stored predictions; None where they,
        or the labels, are not in the records.
    p : float or None
        Of the paired t test, adjusted for all comparisons of the preset (Holm 1979), those that wait for runs included;
        None with fewer than two seeds, or where all differ alike.
    among : int
        How many these are.
    changed : tuple of str
        Settings in which the runs differ from the preset's: then it is not what was written down.
    missing : tuple of int
        Seeds that the preset plans, and that have not both runs.
    odd : str
        Which runs did not learn or failed, so that the rest are not all that there is to say; empty if none.
    gap : str
        Why there is no difference; empty where there is one.
    """

    name: str
    preset: str
    cell: str
    against: str
    differences: dict[int, float]
    mean: float | None
    low: float | None
    high: float | None
    images: tuple[float, float] | None
    p: float | None
    among: int
    changed: tuple[str, ...]
    missing: tuple[int, ...]
    odd: str
    gap: str


def presets_of(study: Study) -> list[tuple[Preset, tuple[str, ...]]]:
    """The presets that a study's runs are of, each with the settings in which they differ from it."""
    named = dict.fromkeys(str((record.get("environment") or {}).get("preset")) for record in study.records)
    presets = [load_preset(name) for name in named if name in list_presets()]
    return [(preset, preset.changed(study.records[0]["config"])) for preset in presets]


@lru_cache(maxsize=1)
def compare_cells(study: Study) -> list[Contrast]:
    """Make every comparison that the presets of a study's runs wrote down; those without runs are left empty.

    Runs of other settings than their preset's were not planned by it: of its comparisons only those are made then whose
    cells were run.
    """
    contrasts: list[Contrast] = []
    for preset, changed in presets_of(study):
        if changed:
            preset = replace(preset, comparisons=_run(study, preset), options={**preset.options, "seeds": ()})
        found = [_contrast(study, preset, comparison, changed) for comparison in preset.comparisons]
        adjusted = holm([_p_value(list(contrast.differences.values())) for contrast in found])
        contrasts += [replace(contrast, p=p) for contrast, p in zip(found, adjusted, strict=True)]
    return contrasts


def judge_contrast(contrast: Contrast) -> str:
    """Say what a comparison shows, in a few words: by its interval over seeds, and worse or better by p, too.

    What did not learn comes first: the differences of those that did would flatter.
    """
    if contrast.odd:
        return contrast.odd
    if contrast.mean is None:
        return contrast.gap
    if contrast.low is None or contrast.high is None:
        return "one seed gives no interval"
    seeds = plural(len(contrast.differences), "seed")
    if are_equal(contrast.differences.values()):
        return f"{seeds} with equal differences cannot warrant an interval of no width"
    if -MARGIN <= contrast.low and contrast.high <= MARGIN:
        return f"no difference of {MARGIN:g} point or more"
    if contrast.low <= 0 <= contrast.high:
        return f"cannot be told from these {seeds}"
    outcome = "worse" if contrast.high < 0 else "better"
    if contrast.p is not None and contrast.p > 1 - LEVEL:
        return f"{outcome} by itself, not as one of {contrast.among} comparisons"
    return outcome


def are_equal(differences: Iterable[float]) -> bool:
    """Tell whether differences of accuracies, in points, are equal but for rounding."""
    return bool(np.ptp(list(differences)) < 1e-9)


def two_way_interval(
    right: NDArray[Any], level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Interval of a mean over seeds and images, both drawn again (Owen 2007, the pigeonhole bootstrap).

    So few seeds are no sample to read quantiles off. One seed less than there are is drawn each time, with which the
    variance of their mean comes out right (Rao and Wu 1988). What the variance is beyond that of the seeds alone comes
    of the images, of which there are many: Student's reach for the one and the normal law's for the other are added in
    squares, so that the interval holds that over seeds. That is conservative: what neither the seed nor the image
    explains counts three times in such a variance (Owen 2007), so the interval covers at least ``level``.

    Parameters
    ----------
    right : ndarray
        (seeds, images), the difference of two runs on each image: -1, 0 or 1; at least two seeds.
    level : float
        Coverage, in (0, 1).
    resamples, seed : int
        How many draws, and of which generator.

    Returns
    -------
    tuple of float
        Low and high, in points.
    """
    draw = np.random.default_rng(seed)
    seeds, images = right.shape
    # Images with the same column count alike: how often each column is drawn is all that matters.
    columns, counts = np.unique(right, axis=1, return_counts=True)
    by_seed = draw.multinomial(seeds - 1, np.full(seeds, 1 / seeds), resamples)
    by_column = draw.multinomial(images, counts / images, resamples)
    means = np.einsum("rs,sc,rc->r", by_seed, columns.astype(float), by_column, optimize=True)
    both = float(np.var(100 * means / ((seeds - 1) * images)))
    alone = float(np.var(100 * right.mean(1), ddof=1)) / seeds
    tail = (1 + level) / 2
    student, normal = float(stats.t.ppf(tail, seeds - 1)), float(stats.norm.ppf(tail))
    middle, reach = 100 * float(right.mean()), (student**2 * alone + normal**2 * max(0.0, both - alone)) ** 0.5
    return middle - reach, middle + reach


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p-values for their number, step by step (Holm 1979); None, one that is to come, stays None and counts."""
    order = sorted((p, k) for k, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for step, (p, k) in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - step) * p))
        adjusted[k] = highest
    return adjusted


class _Side(NamedTuple):
    """The runs of a cell that have an accuracy, by seed; which have none to speak of; why none has; all seeds run."""

    runs: dict[int, Record]
    odd: str
    gap: str
    seen: frozenset[int]


def _run(study: Study, preset: Preset) -> list[PlannedComparison]:
    """The comparisons of a preset of whose cells both were run."""
    common = _common(preset)
    cells = [(comparison, (comparison.cell, comparison.against)) for comparison in preset.comparisons]
    return [comparison for comparison, both in cells if all(_side(study, dict(each), common).seen for each in both)]


def _contrast(study: Study, preset: Preset, comparison: PlannedComparison, changed: tuple[str, ...]) -> Contrast:
    common = _common(preset)
    cell, against = (_side(study, dict(each), common) for each in (comparison.cell, comparison.against))
    seeds = sorted(set(cell.runs) & set(against.runs))
    differences = {s: 100 * (_accuracy(cell.runs[s]) - _accuracy(against.runs[s])) for s in seeds}
    low, high = paired_interval(list(differences.values()))
    right = [_right(cell.runs[s], against.runs[s]) for s in seeds]
    complete = [row for row in right if row is not None]
    alike = len(complete) == len(right) > 1 and len({len(row) for row in complete}) == 1
    return Contrast(
        name=comparison.name,
        preset=preset.name,
        cell=_words(dict(comparison.cell)),
        against=_words(dict(comparison.against)),
        differences=differences,
        mean=float(np.mean(list(differences.values()))) if differences else None,
        low=low,
        high=high,
        images=two_way_interval(np.stack(complete)) if alike else None,
        p=None,
        among=len(preset.comparisons),
        changed=changed,
        missing=tuple(seed for seed in preset.options.get("seeds", ()) if seed not in cell.seen & against.seen),
        odd=join([each.odd for each in (cell, against) if each.odd]),
        gap="" if seeds else cell.gap or against.gap or "not compared: no seed has both runs",
    )


def _common(preset: Preset) -> dict[str, Any]:
    """Return the eps and the path that a preset has but one of: of these are the cells that name none."""
    found = {}
    for key in ("eps", "path"):
        values = {value for grid in preset.grids for value in grid.get(key, preset.options.get(key, ()))}
        if len(values) == 1:
            found[key] = values.pop()
    return found


def _side(study: Study, cell: dict[str, Any], common: dict[str, Any]) -> _Side:
    runs = study.runs[[*_CELL, "id", "seed", "plain", "label", "status", "outcome", "accuracy_as_trained"]]
    for key in _CELL:
        if key in cell:
            runs = runs[(runs[key] == cell[key]).fillna(False).astype(bool)]
        elif key == "compressor":
            runs = runs[runs["plain"]]
    for key in common.keys() - cell.keys():
        runs = runs[(runs[key].isna() | (runs[key] == common[key])).astype(bool)]
    if runs.empty:
        return _Side({}, "", "not run", frozenset())
    seen = frozenset(int(seed) for seed in runs["seed"])
    lost = {"did not learn": runs["outcome"].isin(["diverged", "chance"]), "failed": runs["status"] == "failed"}
    told = []
    for what, which in lost.items():
        seeds = [str(seed) for seed in sorted(runs["seed"][which])]
        told += [f"{what} on seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"] if seeds else []
    said = f"{_words(cell)} {join(told)}" if told else ""
    runs = runs[(runs["status"] == "finished") & runs["accuracy_as_trained"].notna()]
    if runs.empty:
        return _Side({}, said, f"not compared: {_words(cell)} gave no accuracy", seen)
    labels = list(dict.fromkeys(runs["label"]))
    if len(labels) > 1:
        return _Side({}, "", f"not compared: {_words(cell)} has runs of {' and of '.join(labels)}", seen)
    records = {record["id"]: record for record in study.records}
    return _Side({int(s): records[name] for s, name in zip(runs["seed"], runs["id"], strict=True)}, said, "", seen)


def _words(cell: dict[str, Any]) -> str:
    eps = f" {cell['eps']:g}" if "eps" in cell else ""
    return f"{cell['mask']} {cell.get('compressor', 'plain')}{eps}"


def _accuracy(record: Record) -> float:
    return float(record["final"]["as_trained"]["accuracy"])


def _right(ours: Record, theirs: Record) -> NDArray[np.int8] | None:
    """Whether each image is right in the one run minus whether it is in the other; None where that is not recorded."""
    labels, other = (record["final"].get("labels") for record in (ours, theirs))
    if labels is None or labels != other:
        return None
    truth = np.array(list(labels))
    one, two = (np.array(list(record["final"]["as_trained"]["predictions"])) == truth for record in (ours, theirs))
    return one.astype(np.int8) - two.astype(np.int8)


def _p_value(differences: list[float]) -> float | None:
    if len(differences) < 2 or are_equal(differences):
        return None
    return float(stats.ttest_1samp(differences, 0).pvalue)
