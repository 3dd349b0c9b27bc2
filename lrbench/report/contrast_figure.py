"""The comparisons that an experiment was run for: differences, their intervals, and every seed's own."""

from textwrap import fill

from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lrbench.report.contrasts import compare_cells
from lrbench.report.facets import Drawing, NothingToDraw
from lrbench.report.style import INK, MUTED, PAPER, legend, looks, panels
from lrbench.report.summaries import MARGIN
from lrbench.report.tables import Study
from lrbench.report.wording import plain_text

__all__ = ["draw_contrasts"]


def draw_contrasts(study: Study) -> Drawing:
    """Draw every comparison that could be made, a row each."""
    written = compare_cells(study)
    made = [contrast for contrast in written if contrast.mean is not None]
    if not made:
        raise NothingToDraw("none of the comparisons could be made; the table says why" if written else "")
    colour = looks(["svd"])["svd"].colour
    fig, (ax,) = panels([""], 1, 0.5 * len(made) + 0.5)
    ax.axvspan(-MARGIN, MARGIN, color=MUTED, alpha=0.14, linewidth=0)
    ax.axvline(0, color=INK, linestyle="--", linewidth=1)
    for y, contrast in enumerate(made):
        assert contrast.mean is not None
        if contrast.low is not None and contrast.high is not None:
            ax.plot([contrast.low, contrast.high], [y, y], color=colour, linewidth=3, alpha=0.5)
        if contrast.images is not None:
            ax.plot(contrast.images, [y, y], color=colour, linewidth=1)
            ax.plot(contrast.images, [y, y], "|", color=colour, ms=6)
        ax.plot(contrast.mean, y, "o", color=colour, mec=PAPER, mew=0.6, ms=7, zorder=4)
        seeds = list(contrast.differences.values())
        ax.plot(seeds, [y - 0.26] * len(seeds), "o", color=INK, ms=2.4, mew=0, zorder=5)
    names = [
        f"{fill(plain_text(c.name, 100), 46)}\n{plain_text(c.cell, 40)} − {plain_text(c.against, 40)}" for c in made
    ]
    ax.set_yticks(range(len(made)), names, fontsize=6.8)
    ax.set_ylim(len(made) - 0.5, -0.6)
    ax.grid(False, axis="y")
    ax.set_xlabel("difference in accuracy (points)")
    handles = [Line2D([], [], color=INK, marker="o", ms=2.4, mew=0, linestyle="", label="seed")]
    by_seed = any(contrast.low is not None for contrast in made)
    handles.append(
        Line2D(
            [], [], color=colour, marker="o", ms=7, mec=PAPER, linewidth=3 if by_seed else 0, alpha=0.6,
            label="mean, paired t 90 % over seeds" if by_seed else "mean",
        )
    )  # fmt: skip
    if any(contrast.images is not None for contrast in made):
        handles.append(Line2D([], [], color=colour, marker="|", ms=6, linewidth=1, label="90 % over seeds and images"))
    legend(fig, [*handles, Patch(facecolor=MUTED, alpha=0.2, label=f"±{MARGIN:g} point")], 2)
    one = "" if by_seed else " One seed has no interval."
    return fig, (
        "Differences in last-epoch test accuracy, as trained, between the cells that the preset names, paired by seed. "
        f"Only an interval that lies within the grey band is called no difference.{one}"
    )
