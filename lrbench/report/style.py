"""One look for all figures: a colour, a marker and a line style per compressor, inks that the page can recolour."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from lrbench.report.tables import ORDER, place
from lrbench.report.wording import MINUS, plain_text

__all__ = ["BAD", "GRID", "INK", "MUTED", "PAPER", "RC", "Look", "looks", "panels"]

# Exact values that the page replaces by its own inks; black itself would vanish in the SVG as the default.
INK = "#1c2126"
MUTED = "#656d76"
GRID = "#dfe3e8"
PAPER = "#ffffff"
BAD = "#c0392b"

WIDTH = 7.0
"""Inches: a page of two columns."""

_COLOURS = sns.color_palette("colorblind").as_hex()
_KNOWN = {
    "none": (_COLOURS[7], "X", (0, (1, 1))),
    "svd": (_COLOURS[0], "o", "-"),
    "rsvd": (_COLOURS[2], "s", (0, (5, 1.5))),
    "aca": (_COLOURS[1], "^", (0, (3, 1, 1, 1))),
    "aca-estimate": (_COLOURS[4], "D", (0, (4, 1, 1, 1, 1, 1))),
}
# Nine and seven have no factor in common: 63 names pass before a colour meets the same marker and line again.
_SPARE_COLOURS = [_COLOURS[k] for k in (9, 5, 3, 8, 6, 0, 2, 1, 4)]
_SPARE_MARKS: list[tuple[str, Any]] = [
    ("P", (0, (2, 1))),
    ("v", (0, (6, 1, 1, 1))),
    ("*", (0, (8, 2))),
    ("<", (0, (1, 2))),
    (">", (0, (3, 3))),
    ("p", (0, (6, 1, 1, 1, 1, 1, 1, 1))),
    ("d", (0, (6, 3, 2, 3))),
]

RC: Any = {
    **sns.axes_style("whitegrid"),
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.facecolor": PAPER,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 5,
    "axes.titlesize": 8.5,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.07,
    "figure.facecolor": PAPER,
    "figure.labelsize": 8,
    "font.family": ["DejaVu Sans"],
    "font.size": 8,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "lines.solid_capstyle": "butt",
    "savefig.dpi": 200,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "path",
    "svg.hashsalt": "lrbench",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.bottom": True,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 7.5,
    "xtick.major.size": 3,
    "xtick.major.width": 0.6,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 7.5,
}


@dataclass(frozen=True)
class Look:
    """How one compressor is drawn, in every figure."""

    colour: str
    marker: str
    line: Any

    def handle(self, label: str) -> Line2D:
        """Return its entry in a legend."""
        return Line2D([], [], color=self.colour, marker=self.marker, linestyle=self.line, label=label)


def looks(compressors: Iterable[str]) -> dict[str, Look]:
    """Give every compressor a look of its own: the known ones theirs, the others the spare ones by name."""
    known = {name: Look(*look) for name, look in _KNOWN.items()}
    others = sorted(set(compressors) - set(ORDER), key=place)
    colours, marks = itertools.cycle(_SPARE_COLOURS), itertools.cycle(_SPARE_MARKS)
    return known | {name: Look(colour, *mark) for name, colour, mark in zip(others, colours, marks, strict=False)}


def panels(titles: Sequence[str], columns: int, height: float, **sharing: Any) -> tuple[Figure, list[Axes]]:
    """Lay out one titled panel per title, in rows of ``columns``; ``height`` is a row's, in inches."""
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    fig = Figure(figsize=(WIDTH, height * rows + 0.7), layout="constrained")
    grid = fig.subplots(rows, columns, squeeze=False, **sharing)
    axes = list(grid.flat)
    for ax, title in zip(axes, titles, strict=False):
        ax.set_title("\n".join(plain_text(line, 96 // columns) for line in title.split("\n")))
    for ax in axes[len(titles) :]:
        ax.set_axis_off()
    return fig, axes[: len(titles)]


def label_outer(axes: Sequence[Axes], columns: int, x: str, y: str = "") -> None:
    """Label the panels of a grid at its edges only, the last row's being the lowest of each column."""
    columns = min(columns, len(axes))
    for spot, ax in enumerate(axes):
        lowest = spot + columns >= len(axes)
        ax.set_xlabel(x if lowest else "")
        ax.xaxis.label.set_visible(lowest)
        if ax.get_shared_x_axes().get_siblings(ax) != [ax]:
            ax.tick_params(labelbottom=lowest)
        ax.set_ylabel(y if spot % columns == 0 else "")


def legend(fig: Figure, handles: Sequence[Any], columns: int = 4) -> None:
    """Put one legend under all panels."""
    if handles:
        fig.legend(handles=list(handles), loc="outside lower left", ncols=min(columns, len(handles)))


def plain_ticks(axis: Any, log: bool = False) -> None:
    """Label an axis with plain decimals; a logarithmic one's own labels would be formulas."""
    if log:
        low, high = axis.get_view_interval()
        powers = LogLocator(subs=(1, 2, 5) if high / low < 50 else (1,))
        axis.set_major_locator(MaxNLocator(4) if high / low < 3 else powers)  # or one label would be all
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", MINUS)))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
