"""One figure of the whole chain: what an error of blocks does to gradients, and what that does to accuracy."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from lrbench.report.entries import Comparison, Gradients
from lrbench.report.facets import Drawing, NothingToDraw, by_layer, cell_name, legend_name, style_of, why
from lrbench.report.labels import name_points
from lrbench.report.style import INK, MUTED, PAPER, Look, legend, panels, plain_ticks
from lrbench.report.summaries import compare_accuracy, measure_gradients
from lrbench.report.tables import BY_POLICY, Study

__all__ = ["draw_chain"]

NAMED = 60
"""Cells up to which each has its mask beside it, or its name where all have one mask."""


def draw_chain(study: Study) -> Drawing:
    """Draw the error of a layer's blocks against that of its weight's gradient, and that against accuracy."""
    layers = by_layer(study.layers[(study.layers["error_mean"] > 0) & (study.layers["gradient_error"] > 0)])
    approximated = set(zip(layers["mask"], layers["label"], strict=True))
    cells = [entry for entry in measure_gradients(study) if (entry.cell.mask, entry.cell.label) in approximated]
    if layers.empty or not cells:
        exact = study.layers["gradient_error"].notna().any()
        raise NothingToDraw("nothing was approximated" if exact else why(study, "gradients", "errors of gradients"))
    fig, (left, right) = panels(["layer by layer", "cell by cell"], 2, 3.0)
    style = style_of(study)
    names: dict[str, Look] = {}
    for (compressor, name), rows in layers.groupby(["compressor", "name"], sort=False):
        look = names.setdefault(str(name), style[str(compressor)])
        spots = [rows[column].astype(float) for column in ("error_mean", "gradient_error")]
        left.plot(*spots, look.marker, color=look.colour, mec=PAPER, mew=0.4, ms=5, alpha=0.8, linestyle="")
    ends = [float(find(layers[["error_mean", "gradient_error"]].to_numpy(float))) for find in (np.min, np.max)]
    left.plot(ends, ends, color=INK, linestyle="--", linewidth=1)
    left.set(xscale="log", yscale="log", xlabel="mean relative error of a layer's blocks")
    left.set_ylabel("relative error of its weight's gradient")
    costs = _costs(right, cells, compare_accuracy(study), style)
    for axis in (left.xaxis, left.yaxis, right.xaxis):
        plain_ticks(axis, log=True)
    handles = [look.handle(legend_name(name)) for name, look in names.items()]
    for handle in handles:
        handle.set_linestyle("")
    handles.append(Line2D([], [], color=INK, linestyle="--", linewidth=1, label="as large as the blocks' error"))
    bars = [(x, *c.interval) for x, c in costs if c.interval]
    if bars:
        handles.append(Line2D([], [], color=MUTED, linewidth=1.6, label="paired t 90 % interval"))
    legend(fig, handles)
    named = ""
    if len(cells) <= NAMED:
        one = len({entry.cell.mask for entry in cells if entry.cell.condition != BY_POLICY}) < 2
        named = f", with the cell's {'name' if one else 'mask'}"
        words = [(x, float(c.mean or 0), cell_name(c.cell) if one else c.cell.mask) for x, c in costs]
        name_points(right, words, bars=bars)
    return fig, (
        "Left: the mean relative error of a layer's blocks, and that of the gradient of its weight, a point for each "
        "run and compressed layer. Right: the largest such error among all weights of a cell, mean over seeds, and "
        f"the accuracy that it costs{named}. What approximates nothing is left out. Gradients are "
        "compared with those of the plain model with the same weights, on the same batches and with the same dropout, "
        "after training."
    )


def _costs(
    ax: Axes, cells: Sequence[Gradients], comparisons: Sequence[Comparison], style: Mapping[str, Look]
) -> list[tuple[float, Comparison]]:
    """Draw accuracies over the errors of gradients, and return what was drawn."""
    ax.axhline(0, color=MUTED, linewidth=0.8)
    ax.set(xscale="log", xlabel="largest relative error of a weight's gradient")
    ax.set_ylabel("difference in accuracy (points)")
    ax.margins(x=0.25, y=0.12)
    known = {(comparison.cell.mask, comparison.cell.label): comparison for comparison in comparisons}
    pairs = [(entry.error, known.get((entry.cell.mask, entry.cell.label))) for entry in cells]
    drawn = [(x, comparison) for x, comparison in pairs if np.isfinite(x) and comparison and comparison.differences]
    for compressor in dict.fromkeys(comparison.cell.compressor for _, comparison in drawn):
        look = style[compressor]
        mine = [(x, comparison) for x, comparison in drawn if comparison.cell.compressor == compressor]
        bars = [(x, *c.interval) for x, c in mine if c.interval]
        if bars:
            ax.vlines(*zip(*bars, strict=True), color=look.colour, linewidth=1.6, alpha=0.5)
        spots = zip(*((x, comparison.mean) for x, comparison in mine), strict=True)
        ax.plot(*spots, look.marker, color=look.colour, mec=PAPER, mew=0.5, ms=6)
    return drawn
