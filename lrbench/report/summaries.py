"""What a study's runs say together: accuracy differences, sizes, errors, step times and peaks, one object per cell.

A cell is a mask with a compressor (and its version), an eps and a path, or a policy. Only runs of one study, that is
of one setting, meet here, and within it only runs of one cell are summarised together; accuracy is compared seed by
seed.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from lrbench import paper
from lrbench.report.entries import Cell, Comparison, Gradients, Held, Kept, Peak, Size, Spread, Timing
from lrbench.report.groups import Columns, average, first, greatest, least, median, part, part_columns, weighted
from lrbench.report.tables import Study, finished
from lrbench.report.wording import join

__all__ = [
    "cell_of",
    "compare_accuracy",
    "first_layer_sizes",
    "fits_paper",
    "measure_gradients",
    "measure_held",
    "measure_peaks",
    "measure_sizes",
    "measure_times",
    "paired_interval",
    "plain_mask",
    "plain_runs",
    "tolerances",
]

IMAGES = 100
"""Batch to which bytes are scaled, the paper's."""

LEVEL = 0.9
"""Of every interval of accuracy."""

MARGIN = 1.0
"""Points of accuracy within which an interval must lie for "costs nothing"."""

PAPER_SHAPE = (27, 1024)

_CELL = ("mask", "label", "name", "condition", "compressor", "eps", "path")
_HELD = ("id", "held_bytes", "plain_held_bytes", "lean_freed_bytes", "freed_bytes", "claimed_bytes", "hidden_bytes",
         "formula_bytes", "batch_size", "train_size")  # fmt: skip
_SIZE = ("layer", "index", "m", "n", "images", "blocks", "layer_compressor", "layer_eps", "layer_path", "rank_mean",
         "break_even_rank", "im2col_bytes", "input_bytes", "factor_bytes", "cut_im2col", "cut_input", "error_mean",
         "error_max", "violations", "guarantee", "share_own", "share_escalated", "share_stored", "saved_bytes",
         "held_bytes", "freed_bytes", "claimed_bytes", "kept_by", "unrealised")  # fmt: skip


def plain_runs(study: Study) -> pd.DataFrame:
    """Return the plain model's finished runs that have an accuracy, one row per seed."""
    runs = finished(study)
    return runs[runs["plain"] & runs["accuracy_as_trained"].notna()]


def plain_mask(study: Study) -> str:
    """Return the mask of the plain model, as the study's masks write it."""
    return "0" * len(str(study.runs["mask"].iloc[0]))


@lru_cache(maxsize=1)
def compare_accuracy(study: Study) -> list[Comparison]:
    """Compare every masked cell with the plain model of the same seed."""
    plain = plain_runs(study)
    reference = {
        int(seed): (float(accuracy), outcome in ("chance", "diverged"))
        for seed, accuracy, outcome in zip(
            plain["seed"], plain["accuracy_as_trained"], plain["outcome"].fillna(""), strict=True
        )
    }
    columns = ("status", "outcome", "seed", "accuracy_as_trained", "accuracy_exact", "test_size")
    return [_comparison(cell, runs, reference) for cell, runs in _cells(study.runs[~study.runs["plain"]], columns)]


def _comparison(cell: Cell, runs: Columns, reference: Mapping[int, tuple[float, bool]]) -> Comparison:
    """Compare a cell with the plain model's accuracies, each with whether it is none to compare with."""
    ended = runs["status"] == "finished"
    done = {name: column[ended & ~np.isnan(runs["accuracy_as_trained"])] for name, column in runs.items()}
    accuracy = dict(zip(_seeds(done["seed"]), done["accuracy_as_trained"].tolist(), strict=True))
    pairs = {seed: value for seed, value in accuracy.items() if seed in reference}
    differences = {seed: 100 * (value - reference[seed][0]) for seed, value in pairs.items()}
    low, high = paired_interval(list(differences.values()))
    return Comparison(
        cell=cell,
        accuracy=_value(average(done["accuracy_as_trained"])),
        exact=_value(average(done["accuracy_exact"])),
        differences=differences,
        mean=float(np.mean(list(differences.values()))) if differences else None,
        low=low,
        high=high,
        runs=int(ended.sum()),
        diverged=_seeds(runs["seed"][runs["outcome"] == "diverged"]),
        chance=_seeds(runs["seed"][runs["outcome"] == "chance"]),
        failed=_seeds(runs["seed"][~ended]),
        unpaired=tuple(seed for seed in accuracy if seed not in pairs),
        plain_chance=tuple(seed for seed in pairs if reference[seed][1]),
        test_images=_whole(first(done["test_size"])),
    )


def paired_interval(differences: list[float]) -> tuple[float | None, float | None]:
    """Return the t interval of a mean of paired differences; with fewer than two there is none."""
    pairs = len(differences)
    if pairs < 2:
        return None, None
    half = float(stats.t.ppf((1 + LEVEL) / 2, pairs - 1)) * float(np.std(differences, ddof=1)) / math.sqrt(pairs)
    middle = float(np.mean(differences))
    return middle - half, middle + half


def tolerances(study: Study) -> list[Kept]:
    """Count the violations of every variant that was asked for a tolerance."""
    measured = study.layers[study.layers["layer_eps"].notna() & study.layers["violations"].notna()]
    columns = ("policy", "guarantee", "blocks", "violations", "error_max", "share_escalated", "share_stored")
    kept = []
    for rows in part(measured, ("label", "layer_compressor", "layer_eps"), columns):
        label, compressor, eps = rows["label"][0], rows["layer_compressor"][0], float(rows["layer_eps"][0])
        by_policy, promises = first(rows["policy"]) is not None, set(rows["guarantee"].tolist())
        kept.append(
            Kept(
                label=f"{label} ({compressor}, eps {eps:g})" if by_policy else str(label),
                compressor=str(compressor),
                eps=eps,
                guarantee=promises.pop() if len(promises) == 1 else None,
                blocks=int(np.nansum(rows["blocks"])),
                violations=int(rows["violations"].sum()),
                worst=_value(greatest(rows["error_max"])),
                escalated=weighted(rows["share_escalated"], rows["blocks"]),
                stored=weighted(rows["share_stored"], rows["blocks"]),
            )
        )
    return kept


@lru_cache(maxsize=1)
def measure_sizes(study: Study) -> list[Size]:
    """Summarise the bytes of every layer of every cell, over the seeds."""
    cells = _cells(study.layers, _SIZE)
    return [_size(cell, layer) for cell, rows in cells for layer in part_columns(rows, rows["index"])]


def first_layer_sizes(study: Study) -> list[Size]:
    """Summarise the first convolution of every variant over masks too: its input is the data, whatever the mask."""
    layers = study.layers[study.layers["index"] == 0]
    return [_size(_first_cell(rows), rows) for rows in part(layers, ("label",), (*_CELL, *_SIZE))]


def fits_paper(size: Size) -> bool:
    """Tell a layer whose bytes the paper's may stand beside: the paper's shape, in single precision."""
    if size.index != 0 or (size.m, size.n) != PAPER_SHAPE or size.im2col_bytes is None:
        return False
    return round(size.im2col_bytes) == paper.IM2COL_BYTES


def _size(cell: Cell, rows: Columns) -> Size:
    blocks, images = rows["blocks"], float(np.nansum(rows["images"]))

    def scaled(column: str) -> float | None:
        return _value(rows[column].sum() / images * IMAGES) if images else None

    saved, held, keepers = scaled("saved_bytes"), scaled("held_bytes"), first(rows["kept_by"])
    return Size(
        cell=cell,
        method=str(rows["layer_compressor"][0]),
        eps=_value(rows["layer_eps"][0]),
        path=rows["layer_path"][0],
        layer=str(rows["layer"][0]),
        index=int(rows["index"][0]),
        m=int(rows["m"][0]),
        n=_whole(rows["n"][0]),
        runs=len(blocks),
        blocks=int(np.nansum(blocks)),
        rank_mean=weighted(rows["rank_mean"], blocks),
        break_even_rank=_value(rows["break_even_rank"][0]),
        im2col_bytes=scaled("im2col_bytes"),
        input_bytes=scaled("input_bytes"),
        factor_bytes=scaled("factor_bytes"),
        cut_im2col=weighted(rows["cut_im2col"], blocks),
        cut_input=weighted(rows["cut_input"], blocks),
        error_mean=weighted(rows["error_mean"], blocks),
        error_max=_value(greatest(rows["error_max"])),
        violations=None if np.isnan(rows["violations"]).any() else int(rows["violations"].sum()),
        guarantee=first(rows["guarantee"]),
        own=weighted(rows["share_own"], blocks),
        escalated=weighted(rows["share_escalated"], blocks),
        stored=weighted(rows["share_stored"], blocks),
        saved_bytes=saved,
        held_bytes=held,
        freed_bytes=scaled("freed_bytes"),
        claimed_bytes=scaled("claimed_bytes"),
        cut_saved=1 - held / saved if saved and held is not None else None,
        kept_by=None if keepers is None else join(keepers.split(", ")),
        unrealised=first(rows["unrealised"]),
    )


def measure_gradients(study: Study) -> list[Gradients]:
    """Summarise the errors of weight gradients, of the cells whose runs recorded them."""
    columns = ("gradient_error_max", "gradient_cosine_min")
    return [
        Gradients(cell, len(rows["mask"]), *(float(rows[column].mean()) for column in columns))
        for cell, rows in _cells(_having(study, *columns), columns)
    ]


@lru_cache(maxsize=4)
def measure_held(study: Study, plain: bool = False) -> list[Held]:
    """Summarise what a step holds: means over the runs of each cell, or of the plain model."""
    runs = finished(study)
    unrealised: dict[str, dict[str, str]] = {}
    told = study.layers[(study.layers["claimed_bytes"] > 0) & study.layers["unrealised"].notna()]
    for run, layer, reason in zip(told["id"], told["layer"], told["unrealised"], strict=True):
        unrealised.setdefault(str(run), {})[str(layer)] = str(reason)
    entries = []
    for cell, rows in _cells(runs[(runs["plain"] == plain) & runs["held_bytes"].notna()], _HELD):
        formula = rows["formula_bytes"]
        entries.append(
            Held(
                cell=cell,
                runs=len(formula),
                images=_whole(least(np.fmin(rows["batch_size"], rows["train_size"]))),
                formula=None if np.isnan(formula).any() else float(formula.mean()),
                held=average(rows["held_bytes"]),
                plain=average(rows["plain_held_bytes"]),
                lean_freed=average(rows["lean_freed_bytes"]),
                freed=average(rows["freed_bytes"]),
                claimed=average(rows["claimed_bytes"]),
                hidden=greatest(rows["hidden_bytes"]),
                unrealised={k: v for run in rows["id"] for k, v in unrealised.get(str(run), {}).items()},
            )
        )
    return entries


@lru_cache(maxsize=1)
def measure_times(study: Study) -> list[Timing]:
    """Summarise step times: the median of the runs' medians, with the widest of their quartiles."""
    timings = []
    times = [str(name) for name in study.runs if str(name).startswith("step_")]
    for cell, rows in _cells(_having(study, "step_wrapped_ms", "step_plain_ms", "step_ratio"), times):
        timings.append(
            Timing(
                cell=cell,
                runs=len(rows["mask"]),
                rounds=_whole(least(rows["step_rounds"])),
                wrapped=_spread(rows, "step_wrapped_ms", "q25", "q75"),
                plain=_spread(rows, "step_plain_ms", "q25", "q75"),
                ratio=_spread(rows, "step_ratio", "q25", "q75"),
                lowering=_value(median(rows["step_lowering_ms"])),
                compressing=_value(median(rows["step_compressing_ms"])),
                rest=_value(median(rows["step_rest_ms"])),
            )
        )
    return timings


@lru_cache(maxsize=1)
def measure_peaks(study: Study) -> list[Peak]:
    """Summarise peak memory: the median of the runs' medians, with the extremes of all."""
    peaks = [str(name) for name in study.runs if str(name).startswith("peak_")]
    return [
        Peak(
            cell=cell,
            runs=len(rows["mask"]),
            processes=_whole(least(rows["peak_processes"])),
            wrapped=_spread(rows, "peak_wrapped_bytes", "min", "max"),
            plain=_spread(rows, "peak_plain_bytes", "min", "max"),
            wrapped_total=_total(rows, "peak_wrapped_total_bytes"),
            plain_total=_total(rows, "peak_plain_total_bytes"),
        )
        for cell, rows in _cells(_having(study, "peak_wrapped_bytes", "peak_plain_bytes"), peaks)
    ]


def _having(study: Study, *columns: str) -> pd.DataFrame:
    runs = finished(study)
    return runs[~runs["plain"] & runs[list(columns)].notna().all(axis=1)]


def _cells(rows: pd.DataFrame, columns: Iterable[str]) -> Iterator[tuple[Cell, Columns]]:
    """Part rows by cell, in their order."""
    for group in part(rows, ("mask", "label"), (*_CELL, *columns)):
        yield _first_cell(group), group


def _first_cell(rows: Columns) -> Cell:
    return cell_of({name: rows[name][0] for name in _CELL})


def cell_of(row: Any) -> Cell:
    """The cell of a row of a study's tables."""
    return Cell(
        mask=str(row["mask"]),
        label=str(row["label"]),
        name=str(row["name"]),
        condition=str(row["condition"]),
        compressor=str(row["compressor"]),
        eps=_value(row["eps"]),
        path=_text(row["path"]),
    )


def _text(value: Any) -> str | None:
    return None if pd.isna(value) else str(value)


def _value(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def _whole(value: float | None) -> int | None:
    return None if pd.isna(value) else int(value)


def _spread(rows: Columns, column: str, low: str, high: str) -> Spread:
    middle = median(rows[column])
    ends = (least(rows[f"{column}_{low}"]), greatest(rows[f"{column}_{high}"]))
    return Spread(middle, float(np.fmin(middle, ends[0])), float(np.fmax(middle, ends[1])))


def _total(rows: Columns, column: str) -> Spread | None:
    return None if np.isnan(rows[column]).any() else _spread(rows, column, "min", "max")


def _seeds(seeds: NDArray[np.float64]) -> tuple[int, ...]:
    return tuple(int(seed) for seed in seeds)
