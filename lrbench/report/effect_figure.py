"""Main effects and pairs of a design of masks."""

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from lrbench.report.effects import Effect, estimate_effects
from lrbench.report.facets import Drawing, NothingToDraw
from lrbench.report.style import INK, MUTED, PAPER, legend, looks, panels
from lrbench.report.tables import Study

__all__ = ["draw_effects"]


def draw_effects(study: Study) -> Drawing:
    """Draw the effects of every variant: main effects on the left, pairs on the right."""
    found = estimate_effects(study)
    if not found:
        raise NothingToDraw("")
    titles = [f"{effects.cell.label}: {kind}" for effects in found for kind in ("layers", "pairs of layers")]
    rows = max(len(effects.pairs) for effects in found)
    fig, axes = panels(titles, 2, 0.17 * rows + 0.7, sharex=True)
    colour = looks(["svd"])["svd"].colour
    for effects, left, right in zip(found, axes[::2], axes[1::2], strict=True):
        _rows(left, effects.main, colour)
        _rows(right, effects.pairs, colour)
    for ax in axes[-2:]:
        ax.set_xlabel("effect on accuracy (points)")
    interval = Line2D(
        [], [], color=colour, marker="o", ms=5, mec=PAPER, linewidth=2, label="90 %, all of a kind at once"
    )
    unclear = Line2D([], [], color=MUTED, marker="o", ms=5, mec=PAPER, linewidth=2, label="interval holds 0")
    legend(fig, [interval, unclear])
    return fig, (
        "What compressing a layer does to the accuracy, mean over the masks, and what two layers do together beyond "
        "the sum, by least squares with a block for each seed. Intervals are Student's t from the residual, and hold "
        "for all effects of a kind at once (Bonferroni)."
    )


def _rows(ax: Axes, effects: tuple[Effect, ...], colour: str) -> None:
    ax.axvline(0, color=INK, linestyle="--", linewidth=1)
    for y, effect in enumerate(effects):
        shown = MUTED if effect.low <= 0 <= effect.high else colour
        ax.plot([effect.low, effect.high], [y, y], color=shown, linewidth=2, alpha=0.6)
        ax.plot(effect.points, y, "o", color=shown, mec=PAPER, mew=0.5, ms=5, zorder=4)
    ax.set_yticks(range(len(effects)), [effect.name for effect in effects])
    ax.set_ylim(len(effects) - 0.5, -0.6)
    ax.grid(False, axis="y")
