"""Accuracy over what a step costs: the cells that none beats are joined and named."""

from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lrbench.report.facets import Drawing, NothingToDraw, cell_name
from lrbench.report.labels import name_points
from lrbench.report.prices import KINDS, Price, plain_stands, price_cells, priced_by, unbeaten
from lrbench.report.style import INK, MUTED, PAPER, legend, looks, panels, plain_ticks
from lrbench.report.summaries import MARGIN
from lrbench.report.tables import BY_POLICY, Study
from lrbench.report.wording import count, plain_text

__all__ = ["draw_prices"]

NAMED = 40
"""Cells up to which all are named; of more, those that none beats."""

LINEAR = 5.0
"""Up to this ratio of the dearest to the cheapest a scale is linear; a logarithmic one would have too few ticks."""


def draw_prices(study: Study) -> Drawing:
    """Draw the difference in accuracy over the ratio of peaks, and over that of times, a point for each cell."""
    prices = price_cells(study)
    kinds = [kind for kind in KINDS if priced_by(prices, kind)]
    if len(prices) < 2:
        raise NothingToDraw("")
    colour = looks(["svd"])["svd"].colour
    fig, axes = panels([f"accuracy and {kind.title}" for kind in kinds], 1, 3.4)
    everything = len(prices) <= NAMED
    masks = {price.comparison.cell.mask for price in prices if price.comparison.cell.condition != BY_POLICY}
    labels = []
    for ax, kind in zip(axes, kinds, strict=True):
        cells = priced_by(prices, kind)
        best = unbeaten(prices, kind)
        ax.axhspan(-MARGIN, MARGIN, color=MUTED, alpha=0.14, linewidth=0)
        bars = [(x, *cell.comparison.interval) for x, cell in cells if cell.comparison.interval]
        if bars:
            ax.vlines(*zip(*bars, strict=True), color=MUTED, linewidth=1, alpha=0.4, zorder=1.5)
        front = [(x, cell.points) for x, cell in cells if cell in best]
        front = sorted([*front, (1.0, 0.0)] if plain_stands(best, kind) else front)
        steps = front[:1]
        for x, y in front[1:]:
            steps += [(x, steps[-1][1]), (x, y)]
        ax.plot(*zip(*steps, strict=True), color=colour, linewidth=1.2, zorder=2)
        beaten = [(x, cell.points) for x, cell in cells if cell not in best]
        for spots, face, edge in ((beaten, PAPER, MUTED), (front, colour, colour)):
            xs, ys = [x for x, _ in spots], [y for _, y in spots]
            ax.plot(xs, ys, "o", mfc=face, mec=edge, ms=5, mew=1, zorder=3)
        ax.plot(1, 0, "D", color=INK, ms=5.5, zorder=3)
        reach = [1.0, *(x for x, _ in cells)]
        log = max(reach) / min(reach) > LINEAR
        ax.set(xscale="log" if log else "linear", xlabel=f"{kind.title} over the plain model's")
        ax.set_ylabel("difference in accuracy (points)")
        ax.margins(0.1, 0.1)
        plain_ticks(ax.xaxis, log=log)
        names = [(x, cell.points, _name(cell, len(masks) > 1)) for x, cell in cells if everything or cell in best]
        labels.append((ax, [(1.0, 0.0, "plain model"), *names], [*beaten, *front], bars, steps))
    handles = [
        Line2D([], [], color=INK, marker="D", ms=5.5, linestyle="", label="plain model"),
        Line2D([], [], color=colour, marker="o", ms=5, linewidth=1.2, label="beaten by none"),
        Line2D([], [], color=MUTED, marker="o", mfc=PAPER, ms=5, linestyle="", label="beaten, or did not learn"),
        Patch(facecolor=MUTED, alpha=0.2, label=f"±{MARGIN:g} point"),
    ]
    if any(bars for *_, bars, _ in labels):
        handles.insert(3, Line2D([], [], color=MUTED, linewidth=1, alpha=0.6, label="paired t 90 % interval"))
    legend(fig, handles, 3)
    for label in labels:
        name_points(*label)
    whole = "" if everything else f" Of {count(len(prices))} cells those that none beats are named."
    return fig, (
        "Mean difference in last-epoch test accuracy to the plain model with the same seed, over the price of a step. "
        "Up and left is better. A cell is beaten where another, or the plain model, is as good in both and better in "
        f"one; means decide, and where intervals overlap chance may have.{whole}"
    )


def _name(price: Price, with_mask: bool) -> str:
    cell = price.comparison.cell
    label = cell_name(cell)
    return f"{label}, {plain_text(cell.mask, 12)}" if with_mask and cell.condition != BY_POLICY else label
