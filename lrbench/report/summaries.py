"""What a study's runs say together: accuracy differences, sizes, errors, step times and peaks, one object per cell.

A cell is a mask with a compressor (and its version), an eps and a path, or a policy. Only runs of one study, that is
of one setting, meet here, and within it only runs of one cell are summarised together; accuracy is compared seed by
seed.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from lrbench import paper
from lrbench.report.entries import Cell, Comparison, Gradients, Held, Kept, Peak, Size, Spread, Timing
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

MARGIN = 1.0
"""Points of accuracy within which an interval must lie for "costs nothing"."""

PAPER_SHAPE = (27, 1024)

_CELL = ("mask", "label", "name", "condition", "compressor", "eps", "path")
_HELD = ("id", "held_bytes", "plain_held_bytes", "lean_freed_bytes", "freed_bytes", "claimed_bytes", "hidden_bytes",
         "formula_bytes", "batch_size", "train_size")  # fmt: skip
_SIZE = ("layer", "index", "m", "n", "groups", "blocks", "layer_compressor", "layer_eps", "layer_path", "rank_mean",
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
    reference = plain_runs(study).set_index("seed")
    columns = ("status", "outcome", "seed", "accuracy_as_trained", "accuracy_exact", "test_size")
    return [_comparison(cell, runs, reference) for cell, runs in _cells(study.runs[~study.runs["plain"]], columns)]


def _comparison(cell: Cell, runs: pd.DataFrame, reference: pd.DataFrame) -> Comparison:
    done = runs[(runs["status"] == "finished") & runs["accuracy_as_trained"].notna()]
    accuracy = {int(seed): float(value) for seed, value in zip(done["seed"], done["accuracy_as_trained"], strict=True)}
    pairs = {seed: value for seed, value in accuracy.items() if seed in reference.index}
    differences = {s: 100 * (value - float(reference["accuracy_as_trained"][s])) for s, value in pairs.items()}
    low, high = paired_interval(list(differences.values()))
    sizes = done["test_size"].dropna()
    return Comparison(
        cell=cell,
        accuracy=_mean(done["accuracy_as_trained"]),
        exact=_mean(done["accuracy_exact"]),
        differences=differences,
        mean=float(np.mean(list(differences.values()))) if differences else None,
        low=low,
        high=high,
        runs=int((runs["status"] == "finished").sum()),
        diverged=_seeds(runs[runs["outcome"] == "diverged"]),
        chance=_seeds(runs[runs["outcome"] == "chance"]),
        failed=_seeds(runs[runs["status"] != "finished"]),
        unpaired=tuple(seed for seed in accuracy if seed not in pairs),
        plain_chance=tuple(s for s in pairs if reference["outcome"].fillna("")[s] in ("chance", "diverged")),
        test_images=int(sizes.iloc[0]) if len(sizes) else None,
    )


def paired_interval(differences: list[float], level: float = 0.9) -> tuple[float | None, float | None]:
    """Return the t interval of a mean of paired differences; with fewer than two there is none."""
    pairs = len(differences)
    if pairs < 2:
        return None, None
    half = float(stats.t.ppf((1 + level) / 2, pairs - 1)) * float(np.std(differences, ddof=1)) / math.sqrt(pairs)
    middle = float(np.mean(differences))
    return middle - half, middle + half


def tolerances(study: Study) -> list[Kept]:
    """Count the violations of every variant that was asked for a tolerance."""
    measured = study.layers[study.layers["layer_eps"].notna() & study.layers["violations"].notna()]
    kept = []
    for (label, compressor, _), rows in measured.groupby(["label", "layer_compressor", "layer_eps"], sort=False):
        eps, by_policy = float(rows["layer_eps"].iloc[0]), rows["policy"].notna().any()
        promises = rows["guarantee"].astype(object).where(rows["guarantee"].notna(), None)
        kept.append(
            Kept(
                label=f"{label} ({compressor}, eps {eps:g})" if by_policy else str(label),
                compressor=str(compressor),
                eps=eps,
                guarantee=promises.iloc[0] if promises.nunique(dropna=False) == 1 else None,
                blocks=int(rows["blocks"].sum()),
                violations=int(rows["violations"].sum()),
                worst=_value(rows["error_max"].max()),
                escalated=_weighted(rows, "share_escalated"),
                stored=_weighted(rows, "share_stored"),
            )
        )
    return kept


@lru_cache(maxsize=1)
def measure_sizes(study: Study) -> list[Size]:
    """Summarise the bytes of every layer of every cell, over the seeds."""
    sizes = []
    for cell, rows in _cells(study.layers, _SIZE):
        for _, layer in rows.groupby("index", sort=True):
            sizes.append(_size(cell, layer))
    return sizes


def first_layer_sizes(study: Study) -> list[Size]:
    """Summarise the first convolution of every variant over masks too: its input is the data, whatever the mask."""
    first = study.layers[study.layers["index"] == 0]
    return [_size(cell_of(rows.iloc[0]), rows) for _, rows in first.groupby("label", sort=False)]


def fits_paper(size: Size) -> bool:
    """Tell a layer whose bytes the paper's may stand beside: the paper's shape, in single precision."""
    if size.index != 0 or (size.m, size.n) != PAPER_SHAPE or size.im2col_bytes is None:
        return False
    return round(size.im2col_bytes) == paper.IM2COL_BYTES


def _size(cell: Cell, rows: pd.DataFrame) -> Size:
    images = float((rows["blocks"] / rows["groups"].fillna(1)).sum())

    def scaled(column: str) -> float | None:
        return _value(rows[column].sum(min_count=len(rows)) / images * IMAGES) if images else None

    promises = rows["guarantee"].dropna()
    saved, held = scaled("saved_bytes"), scaled("held_bytes")
    unrealised, keepers = rows["unrealised"].dropna(), rows["kept_by"].dropna()
    return Size(
        cell=cell,
        method=str(rows["layer_compressor"].iloc[0]),
        eps=_value(rows["layer_eps"].iloc[0]),
        path=_text(rows["layer_path"].iloc[0]),
        layer=str(rows["layer"].iloc[0]),
        index=int(rows["index"].iloc[0]),
        m=int(rows["m"].iloc[0]),
        n=int(rows["n"].iloc[0]),
        runs=len(rows),
        blocks=int(rows["blocks"].sum()),
        rank_mean=_weighted(rows, "rank_mean"),
        break_even_rank=_value(rows["break_even_rank"].iloc[0]),
        im2col_bytes=scaled("im2col_bytes"),
        input_bytes=scaled("input_bytes"),
        factor_bytes=scaled("factor_bytes"),
        cut_im2col=_weighted(rows, "cut_im2col"),
        cut_input=_weighted(rows, "cut_input"),
        error_mean=_weighted(rows, "error_mean"),
        error_max=_value(rows["error_max"].max()),
        violations=int(rows["violations"].sum()) if rows["violations"].notna().all() else None,
        guarantee=str(promises.iloc[0]) if len(promises) else None,
        own=_weighted(rows, "share_own"),
        escalated=_weighted(rows, "share_escalated"),
        stored=_weighted(rows, "share_stored"),
        saved_bytes=saved,
        held_bytes=held,
        freed_bytes=scaled("freed_bytes"),
        claimed_bytes=scaled("claimed_bytes"),
        cut_saved=1 - held / saved if saved and held is not None else None,
        kept_by=join(str(keepers.iloc[0]).split(", ")) if len(keepers) else None,
        unrealised=str(unrealised.iloc[0]) if len(unrealised) else None,
    )


def measure_gradients(study: Study) -> list[Gradients]:
    """Summarise the errors of weight gradients, of the cells whose runs recorded them."""
    columns = ("gradient_error_max", "gradient_cosine_min")
    return [
        Gradients(cell, len(rows), *(float(rows[column].mean()) for column in columns))
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
        means = {key: float(rows[key].mean()) for key in ("held_bytes", "plain_held_bytes", "lean_freed_bytes",
                 "freed_bytes", "claimed_bytes")}  # fmt: skip
        entries.append(
            Held(
                cell=cell,
                runs=len(rows),
                images=_least(rows[["batch_size", "train_size"]].min(axis=1)),
                formula=None if formula.isna().any() else float(formula.mean()),
                held=means["held_bytes"],
                plain=means["plain_held_bytes"],
                lean_freed=means["lean_freed_bytes"],
                freed=means["freed_bytes"],
                claimed=means["claimed_bytes"],
                hidden=float(rows["hidden_bytes"].max()),
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
                runs=len(rows),
                rounds=_least(rows["step_rounds"]),
                wrapped=_spread(rows, "step_wrapped_ms", "q25", "q75"),
                plain=_spread(rows, "step_plain_ms", "q25", "q75"),
                ratio=_spread(rows, "step_ratio", "q25", "q75"),
                lowering=_value(rows["step_lowering_ms"].median()),
                compressing=_value(rows["step_compressing_ms"].median()),
                rest=_value(rows["step_rest_ms"].median()),
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
            runs=len(rows),
            processes=_least(rows["peak_processes"]),
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


def _cells(rows: pd.DataFrame, columns: Iterable[str]) -> Iterator[tuple[Cell, pd.DataFrame]]:
    """Part rows by cell, in their order; of the columns, only those named, for each takes its time in every cell."""
    for _, group in rows[[*_CELL, *columns]].groupby(["mask", "label"], sort=False):
        yield cell_of(group.iloc[0]), group


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


def _mean(column: "pd.Series[Any]") -> float | None:
    return _value(column.mean())


def _least(column: "pd.Series[Any]") -> int | None:
    return None if column.isna().all() else int(column.min())


def _weighted(rows: pd.DataFrame, column: str) -> float | None:
    """Average a column over the blocks behind its rows; missing in one row, missing in all."""
    if rows[column].isna().any() or not rows["blocks"].sum() > 0:
        return None
    return float(np.average(rows[column].astype(float), weights=rows["blocks"].astype(float)))


def _spread(rows: pd.DataFrame, column: str, low: str, high: str) -> Spread:
    middle = float(rows[column].median())
    ends: list[tuple[str, Callable[[Any], Any]]] = [(low, np.nanmin), (high, np.nanmax)]
    bounds = [float(end([middle, *rows[f"{column}_{suffix}"]])) for suffix, end in ends]
    return Spread(middle, *bounds)


def _total(rows: pd.DataFrame, column: str) -> Spread | None:
    return None if rows[column].isna().any() else _spread(rows, column, "min", "max")


def _seeds(rows: pd.DataFrame) -> tuple[int, ...]:
    return tuple(int(seed) for seed in rows["seed"])
