"""The figures of one study, written as PNG and SVG; each is drawn from its tables or skipped with a reason."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from lrbench.files import write_atomically
from lrbench.report.block_figures import draw_bytes, draw_cuts, draw_error, draw_ranks
from lrbench.report.contrast_figure import draw_contrasts
from lrbench.report.cost_figures import draw_accuracy, draw_differences, draw_memory, draw_time
from lrbench.report.effect_figure import draw_effects
from lrbench.report.facets import Drawing, NothingToDraw
from lrbench.report.gradient_figure import draw_chain
from lrbench.report.price_figure import draw_prices
from lrbench.report.style import RC
from lrbench.report.tables import Study

__all__ = ["NAMES", "Picture", "draw_figures"]


@dataclass(frozen=True)
class Picture:
    """A figure as the page takes it: its SVG, or the reason why there is none."""

    name: str
    title: str
    caption: str
    svg: str | None
    reason: str | None


def draw_figures(study: Study, folder: Path, suffix: str = "") -> dict[str, Picture]:
    """Draw every figure of a study into ``folder`` as PNG and SVG; ``suffix`` goes behind each name."""
    pictures = {}
    for name, (title, draw) in _FIGURES.items():
        with mpl.rc_context(RC):
            try:
                fig, caption = draw(study)
            except NothingToDraw as gap:
                pictures[name] = Picture(name, title, "", None, str(gap))
                continue
            svg = _save(fig, folder / f"{name}{suffix}")
        pictures[name] = Picture(name, title, caption, svg, None)
    return pictures


def _save(fig: Figure, path: Path) -> str:
    # By the canvases themselves: `Figure.savefig` goes through all that is drawn once more, twice, to lay it out.
    png, svg = io.BytesIO(), io.StringIO()
    fig.set_dpi(mpl.rcParams["savefig.dpi"])
    FigureCanvasAgg(fig).print_png(png)
    fig.set_layout_engine("none")  # it is laid out now, and that takes longer than drawing
    FigureCanvasSVG(fig).print_svg(svg, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    write_atomically(path.with_suffix(".png"), png.getvalue())
    write_atomically(path.with_suffix(".svg"), svg.getvalue())
    return svg.getvalue()


_FIGURES: dict[str, tuple[str, Callable[[Study], Drawing]]] = {
    "contrasts": ("What the experiment was run for", draw_contrasts),
    "effects": ("What each layer does", draw_effects),
    "prices": ("What accuracy costs", draw_prices),
    "accuracy": ("Accuracy by epoch", draw_accuracy),
    "differences": ("Accuracy against the plain model", draw_differences),
    "error": ("Requested and achieved error", draw_error),
    "chain": ("From blocks to gradients to accuracy", draw_chain),
    "ranks": ("Ranks", draw_ranks),
    "cuts": ("Cuts by layer", draw_cuts),
    "bytes": ("Bytes of the first layer", draw_bytes),
    "time": ("Time of a training step", draw_time),
    "memory": ("Peak memory of a training step", draw_memory),
}
NAMES = tuple(_FIGURES)
