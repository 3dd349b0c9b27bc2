"""One figure of the whole chain: what an error of blocks does to gradients, and what that does to accuracy."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from lrbench.report.facets import Drawing, NothingToDraw, by_layer, legend_name, style_of, why
from lrbench.report.style import INK, MUTED, PAPER, Look, legend, panels, plain_ticks
from lrbench.report.summaries import compare_accuracy, measure_gradients
from lrbench.report.tables import Study

__all__ = ["draw_chain"]

FLOOR = 1e-4
"""Errors are drawn no lower."""


def draw_chain(study: Study) -> Drawing:
    """Draw the error of a layer's blocks against that of its weight's gradient, and that against accuracy."""
    layers = by_layer(study.layers[study.layers[["error_mean", "gradient_error"]].notna().all(axis=1)])
    cells = measure_gradients(study)
    if layers.empty or not cells:
        raise NothingToDraw(why(study, "gradients", "errors of gradients"))
    fig, (left, right) = panels(["layer by layer", "cell by cell"], 2, 3.0)
    style = style_of(study)
    names: dict[str, Look] = {}
    for (compressor, name), rows in layers.groupby(["compressor", "name"], sort=False):
        look = names.setdefault(str(name), style[str(compressor)])
        spots = [rows[column].astype(float).clip(lower=FLOOR) for column in ("error_mean", "gradient_error")]
        left.plot(*spots, look.marker, color=look.colour, mec=PAPER, mew=0.4, ms=5, alpha=0.8, linestyle="")
    low = min(float(layers[column].clip(lower=FLOOR).min()) for column in ("error_mean", "gradient_error"))
    left.plot([0.8 * low, 1], [0.8 * low, 1], color=INK, linestyle="--", linewidth=1)
    left.set(xscale="log", yscale="log", xlabel="mean relative error of a layer's blocks")
    left.set_ylabel("relative error of its weight's gradient")
    plain_ticks(left.xaxis, log=True)
    plain_ticks(left.yaxis, log=True)
    _costs(right, cells, {(c.cell.mask, c.cell.label): c for c in compare_accuracy(study)}, style)
    handles = [look.handle(legend_name(name)) for name, look in names.items()]
    for handle in handles:
        handle.set_linestyle("")
    handles.append(Line2D([], [], color=INK, linestyle="--", linewidth=1, label="as large as the blocks' error"))
    handles.append(Line2D([], [], color=MUTED, linewidth=1.6, label="paired t 90 % interval"))
    legend(fig, handles)
    return fig, (
        "Left: the mean relative error of a layer's blocks, and that of the gradient of its weight, a point for each "
        f"run and compressed layer (not below {FLOOR:g}). Right: the largest such error among all weights of a cell, "
        "mean over seeds, and the accuracy that it costs. Gradients are compared with those of the plain model with "
        "the same weights, on the same batches and with the same dropout, after training."
    )


def _costs(ax: Axes, cells: Any, comparisons: Any, style: Any) -> None:
    ax.axhline(0, color=INK, linestyle="--", linewidth=1)
    for entry in cells:
        comparison = comparisons.get((entry.cell.mask, entry.cell.label))
        if comparison is None or comparison.mean is None:
            continue
        look, x = style[entry.cell.compressor], max(entry.error, FLOOR)
        if comparison.low is not None:
            ax.plot([x, x], [comparison.low, comparison.high], color=look.colour, linewidth=1.6, alpha=0.5)
        ax.plot(x, comparison.mean, look.marker, color=look.colour, mec=PAPER, mew=0.5, ms=6)
        ax.annotate(entry.cell.mask, (x, comparison.mean), (4, 3), textcoords="offset points", fontsize=6, color=MUTED)
    ax.set(xscale="log", xlabel="largest relative error of a weight's gradient")
    ax.set_ylabel("difference in accuracy (points)")
    ax.margins(x=0.15)
    plain_ticks(ax.xaxis, log=True)
