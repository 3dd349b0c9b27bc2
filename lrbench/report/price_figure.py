"""Accuracy over what a step costs: the cells that none beats are joined and named."""

from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lrbench.report.facets import Drawing, NothingToDraw
from lrbench.report.labels import name_points
from lrbench.report.prices import KINDS, Price, plain_stands, price_cells, unbeaten
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
    kinds = [kind for kind in KINDS if any(kind.price(cell) is not None for cell in prices)]
    if len(prices) < 2:
        raise NothingToDraw("")
    colour = looks(["svd"])["svd"].colour
    fig, axes = panels([f"accuracy and {kind.title}" for kind in kinds], 1, 3.4)
    everything = len(prices) <= NAMED
    masks = {price.comparison.cell.mask for price in prices if price.comparison.cell.condition != BY_POLICY}
    drawn = []
    for ax, kind in zip(axes, kinds, strict=True):
        cells = [(price, cell) for cell in prices if (price := kind.price(cell)) is not None]
        best = unbeaten(prices, kind)
        ax.axhspan(-MARGIN, MARGIN, color=MUTED, alpha=0.14, linewidth=0)
        bars = [(x, c.comparison.low, c.comparison.high) for x, c in cells]
        spans = [(x, low, high) for x, low, high in bars if low is not None and high is not None]
        if spans:
            ax.vlines(*zip(*spans, strict=True), color=MUTED, linewidth=1, alpha=0.4, zorder=1.5)
        front = [(x, c.points) for x, c in cells if c in best]
        front = sorted([*front, (1.0, 0.0)] if plain_stands(best, kind) else front)
        steps = [front[0]] if front else []
        for x, y in front[1:]:
            steps += [(x, steps[-1][1]), (x, y)]
        ax.plot(*zip(*steps, strict=True), color=colour, linewidth=1.2, zorder=2)
        for x, cell in cells:
            face = colour if cell in best else PAPER
            ax.plot(x, cell.points, "o", mfc=face, mec=colour if cell in best else MUTED, ms=5, mew=1, zorder=3)
        ax.plot(1, 0, "D", color=INK, ms=5.5, zorder=3)
        spread = max(x for x, _ in cells) / min(x for x, _ in cells)
        ax.set(xscale="log" if spread > LINEAR else "linear", xlabel=f"{kind.title} over the plain model's")
        ax.set_ylabel("difference in accuracy (points)")
        ax.margins(0.1, 0.1)
        plain_ticks(ax.xaxis, log=spread > LINEAR)
        names = [(x, c.points, _name(c, len(masks) > 1)) for x, c in cells if everything or c in best]
        drawn.append((ax, names, spans, steps))
    handles = [
        Line2D([], [], color=INK, marker="D", ms=5.5, linestyle="", label="plain model"),
        Line2D([], [], color=colour, marker="o", ms=5, linewidth=1.2, label="beaten by none"),
        Line2D([], [], color=MUTED, marker="o", mfc=PAPER, ms=5, linestyle="", label="beaten"),
        Patch(facecolor=MUTED, alpha=0.2, label=f"±{MARGIN:g} point"),
    ]
    if any(spans for _, _, spans, _ in drawn):
        handles.insert(3, Line2D([], [], color=MUTED, linewidth=1, alpha=0.6, label="paired t 90 % interval"))
    legend(fig, handles, 5)
    for ax, names, spans, steps in drawn:
        name_points(ax, [(1.0, 0.0, "plain model"), *names], spans, steps)
    whole = "" if everything else f" Of {count(len(prices))} cells those that none beats are named."
    return fig, (
        "Mean difference in last-epoch test accuracy to the plain model with the same seed, over the price of a step. "
        "Up and left is better. A cell is beaten where another, or the plain model, is as good in both and better in "
        f"one; means decide, and where intervals overlap chance may have.{whole}"
    )


def _name(price: Price, several: bool) -> str:
    cell = price.comparison.cell
    return plain_text(f"{cell.label}, {cell.mask}" if several and cell.condition != BY_POLICY else cell.label, 40)
