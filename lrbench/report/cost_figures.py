"""Figures of what a cell costs beside the plain model: accuracy by epoch, step time, peak memory."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lrbench.report.entries import Peak, Timing
from lrbench.report.facets import (
    Drawing,
    Facet,
    NothingToDraw,
    bounded,
    by_name,
    legend_name,
    part,
    part_cells,
    style_of,
    why,
)
from lrbench.report.style import BAD, INK, MUTED, PAPER, Look, label_outer, legend, panels
from lrbench.report.summaries import MARGIN, compare_accuracy, measure_peaks, measure_times, plain_mask
from lrbench.report.tables import Study
from lrbench.report.wording import number, times

__all__ = ["draw_accuracy", "draw_differences", "draw_memory", "draw_time"]

SEEDS = 20
"""Seeds of a cell that are drawn one by one."""

_DASHED = (0, (4, 2))
_PARTS = (("lowering", 0.45, "/////"), ("compressing", 0.95, ""), ("rest of the step", 0.28, ""))


def draw_accuracy(study: Study) -> Drawing:
    """Draw test accuracy by epoch, one panel per mask and condition, the plain model in each."""
    epochs = study.epochs[study.epochs["test_accuracy"].notna()]
    if epochs.empty:
        raise NothingToDraw("no run recorded a test accuracy by epoch")
    epochs = epochs.assign(percent=100 * epochs["test_accuracy"].astype(float))
    diverged = set(study.runs["id"][study.runs["outcome"] == "diverged"])
    plain, masked = epochs[epochs["plain"]], epochs[~epochs["plain"]]
    facets, left_out = bounded(part(masked, "mask") or [Facet(masked, plain_mask(study), "", "")])
    titles = [facet.title(f"mask {facet.value}") for facet in facets]
    fig, axes = panels(titles, 3, 2.2, sharex=True, sharey=True)
    style = style_of(study)
    names: dict[str, Look] = {}
    for ax, facet in zip(axes, facets, strict=True):
        _curves(ax, plain, INK, "", _DASHED)
        for name, rows in by_name(facet.rows):
            look = names.setdefault(name, style[str(rows["compressor"].iloc[0])])
            _curves(ax, rows, look.colour, look.marker, look.line)
            ends = rows[rows["id"].isin(diverged)].groupby("id").tail(1)
            ax.plot(ends["epoch"].astype(int), ends["percent"], "x", color=BAD, ms=7, mew=1.4, zorder=6)
    axes[0].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    classes = study.runs["classes"].dropna()
    chance = 100 / float(classes.iloc[0]) if len(classes) else 0.0
    if float(epochs["percent"].min()) < 1.5 * chance:
        for ax in axes:
            ax.axhline(chance, color=MUTED, linewidth=1, linestyle=":")
    label_outer(axes, 3, "epoch", "test accuracy (%)")
    handles = [look.handle(legend_name(name)) for name, look in names.items()]
    if len(plain):
        handles.insert(0, Line2D([], [], color=INK, linestyle=_DASHED, label=f"plain model ({plain_mask(study)})"))
    if float(epochs["percent"].min()) < 1.5 * chance:
        handles.append(Line2D([], [], color=MUTED, linewidth=1, linestyle=":", label=f"chance ({number(chance, 0)} %)"))
    if diverged:
        handles.append(Line2D([], [], color=BAD, marker="x", ms=7, mew=1.4, linestyle="", label="diverged after this"))
    legend(fig, handles)
    seeds = epochs.groupby(["mask", "label"])["seed"].nunique().max()
    some = f", the first {SEEDS} of a cell" if seeds > SEEDS else ""
    thin = f" Thin lines are seeds{some}, thick ones their mean." if seeds > 1 else ""
    return fig, f"Test accuracy by epoch, as trained: the approximation acts where the path says.{thin}{left_out}"


def _curves(ax: Axes, rows: pd.DataFrame, colour: str, marker: str, line: Any) -> None:
    """Draw each seed thin and their mean thick, as far as every seed goes: a mean of the survivors would flatter."""
    if rows.empty:
        return
    seeds = rows.pivot_table(index="epoch", columns="seed", values="percent")
    if seeds.shape[1] > 1:
        # One line with gaps: hundreds of lines take their time.
        thin = seeds.iloc[:, :SEEDS].reindex([*seeds.index, None])
        ax.plot(
            np.tile(thin.index.to_numpy(float), thin.shape[1]), thin.to_numpy().T.ravel(), color=colour, linewidth=0.5,
            alpha=0.5,
        )  # fmt: skip
    complete = seeds.dropna()
    sns.lineplot(
        x=complete.index.astype(int), y=complete.mean(axis=1), ax=ax, color=colour, linestyle=line, errorbar=None,
        marker=marker or None, markevery=max(1, len(complete) // 8), markeredgecolor=PAPER, markeredgewidth=0.4,
    )  # fmt: skip


def draw_differences(study: Study) -> Drawing:
    """Draw each cell's accuracy minus the plain model's, seed by seed, with the paired interval."""
    comparisons = [comparison for comparison in compare_accuracy(study) if comparison.differences]
    if not comparisons:
        raise NothingToDraw("no masked run has a plain run of the same seed to compare with")
    facets, left_out = bounded(part_cells(comparisons, lambda comparison: comparison.cell))
    rows = max(len(facet.rows) for facet in facets)
    titles = [facet.title(f"mask {facet.value}") for facet in facets]
    fig, axes = panels(titles, 2, 0.27 * rows + 0.6, sharex=True)
    style = style_of(study)
    for ax, facet in zip(axes, facets, strict=True):
        ax.axvspan(-MARGIN, MARGIN, color=MUTED, alpha=0.14, linewidth=0)
        ax.axvline(0, color=INK, linestyle="--", linewidth=1)
        bars, seeds = [], []
        for y, comparison in enumerate(facet.rows):
            look = style[comparison.cell.compressor]
            if comparison.low is not None and comparison.high is not None:
                bars.append((y, comparison.low, comparison.high, look.colour))
            ax.plot(comparison.mean, y, look.marker, color=look.colour, mec=PAPER, mew=0.6, ms=7, zorder=4)
            seeds += [(difference, y) for difference in comparison.differences.values()]
        if bars:
            heights, lows, highs, colours = zip(*bars, strict=True)
            # As a list: two colours in a tuple would be taken for one.
            ax.hlines(heights, lows, highs, colors=list(colours), linewidth=2.4, alpha=0.6, zorder=2)
        ax.plot(*zip(*seeds, strict=True), "o", color=INK, ms=2.2, mew=0, zorder=5)
        ax.set_yticks(range(len(facet.rows)), [legend_name(comparison.cell.name) for comparison in facet.rows])
        ax.set_ylim(rows - 0.5, -0.6)
        ax.grid(False, axis="y")
    label_outer(axes, 2, "difference in accuracy (points)")
    seed = Line2D([], [], color=INK, marker="o", ms=2.2, mew=0, linestyle="", label="seed")
    mean = Line2D([], [], color=MUTED, marker="o", ms=7, mec=PAPER, linewidth=2.4, label="mean, paired t 90 % interval")
    band = Patch(facecolor=MUTED, alpha=0.2, label=f"±{MARGIN:g} point")
    with_interval = any(comparison.low is not None for comparison in comparisons)
    legend(fig, [seed, mean, band] if with_interval else [seed, band])
    return fig, (
        "Last-epoch test accuracy, as trained, minus that of the plain model with the same seed. Only an interval that "
        f"lies within the grey band costs nothing; one seed has no interval.{left_out}"
    )


def draw_time(study: Study) -> Drawing:
    """Draw the step time of every cell in three parts, beside the plain model's."""
    timings = measure_times(study)
    if not timings:
        raise NothingToDraw(why(study, "step", "step times"))

    def bar(ax: Axes, y: int, timing: Timing, colour: str) -> None:
        parts = [timing.lowering or 0.0, timing.compressing or 0.0, timing.rest or 0.0]
        if sum(parts) == 0:
            parts = [0.0, 0.0, 1.0]
        left = 0.0
        for share, (_, alpha, hatch) in zip(parts, _PARTS, strict=True):
            width = timing.wrapped.middle * share / sum(parts)
            ax.barh(y, width, 0.56, left=left, color=colour, alpha=alpha, hatch=hatch, ec=PAPER, linewidth=0.5)
            left += width

    fig, left_out = _beside_plain(
        study, timings, bar, "time of one training step (ms)", 1.0, lambda timing: timing.ratio.middle
    )
    parts = [Patch(facecolor=MUTED, alpha=alpha, hatch=hatch, ec=PAPER, label=label) for label, alpha, hatch in _PARTS]
    plain = Line2D([], [], color=INK, linestyle="--", linewidth=1, label="plain model")
    legend(fig, [*parts, plain, Line2D([], [], color=INK, linewidth=1, label="quartiles")], 5)
    return fig, (
        "Time of one training step: medians, with quartiles as a line through the bar's end. The dashed line at "
        "a bar is the plain model's step, timed in the same rounds; the number is the median ratio to it. A bar is as "
        "long as the median step; its parts are in the proportions of the split, which is measured on its own. "
        f"Pixels that a compiled kernel reads for itself count as compressing.{left_out}"
    )


def draw_memory(study: Study) -> Drawing:
    """Draw the peak memory of a step in every cell beside the plain model's."""
    peaks = measure_peaks(study)
    if not peaks:
        raise NothingToDraw(why(study, "peak", "peak memory"))

    def bar(ax: Axes, y: int, peak: Peak, colour: str) -> None:
        ax.barh(y, peak.wrapped.middle / 2**20, 0.56, color=colour, alpha=0.75, linewidth=0)

    fig, left_out = _beside_plain(
        study, peaks, bar, "peak memory of a training step (MiB)", 2.0**20, lambda peak: peak.ratio
    )
    plain = Line2D([], [], color=INK, linestyle="--", linewidth=1, label="plain model")
    legend(fig, [plain, Line2D([], [], color=INK, linewidth=1, label="smallest to largest")])
    return fig, (
        "Peak memory of a training step: median over processes, with a line through the bar's end from the smallest to "
        f"the largest. The dashed line at a bar is the plain model's peak; the number is the ratio to it.{left_out}"
    )


def _beside_plain(
    study: Study,
    entries: Sequence[Any],
    bar: Callable[[Axes, int, Any, str], None],
    label: str,
    unit: float,
    ratio: Callable[[Any], float],
) -> tuple[Figure, str]:
    """Draw a bar per entry, a panel per mask and condition, with the plain model's own measurement at each bar."""
    facets, left_out = bounded(part_cells(entries, lambda entry: entry.cell))
    rows = max(len(facet.rows) for facet in facets)
    titles = [facet.title(f"mask {facet.value}") for facet in facets]
    fig, axes = panels(titles, 2, 0.3 * rows + 0.7, sharex=True)
    style = style_of(study)
    widest = max(max(entry.wrapped.high, entry.plain.high) / unit for entry in entries)
    for ax, facet in zip(axes, facets, strict=True):
        for y, entry in enumerate(facet.rows):
            bar(ax, y, entry, style[entry.cell.compressor].colour)
            end = max(entry.wrapped.high, entry.plain.middle) / unit
            ax.text(end + 0.015 * widest, y, f"{times(ratio(entry))}×", va="center", fontsize=7)
        places = np.arange(len(facet.rows))
        ends = [(entry.wrapped.low / unit, entry.wrapped.high / unit) for entry in facet.rows]
        ax.hlines(places, *zip(*ends, strict=True), color=INK, linewidth=1, zorder=2)
        plain = [entry.plain.middle / unit for entry in facet.rows]
        ax.vlines(plain, places - 0.5, places + 0.5, color=INK, linestyle="--", linewidth=1, zorder=2)
        ax.set_yticks(places, [legend_name(entry.cell.name) for entry in facet.rows])
        ax.set_ylim(rows - 0.5, -0.6)
        ax.set_xlim(0, 1.17 * widest)
        ax.grid(False, axis="y")
    label_outer(axes, 2, label)
    return fig, left_out
