"""Names beside the points of a figure, each where it covers least of what is there already."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from lrbench.report.style import INK, MUTED

__all__ = ["name_points"]

SIZE = 6.0
"""Of the letters, in typographic points, as all lengths here are."""

MARK = 4.0
"""Half the side of the square that is kept free around a point."""

GAPS = (2.0, 9.0, 18.0, 28.0)
"""Between that square and the name; from the second on a line leads to the point."""

_DIRECTIONS = np.array([(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)], dtype=float)
_AWAY = 0.2
"""Square points that may be covered for each point of distance saved."""


def name_points(
    ax: Axes,
    names: Sequence[tuple[float, float, str]],
    marks: Sequence[tuple[float, float]] = (),
    bars: Sequence[tuple[float, float, float]] = (),
    line: Sequence[tuple[float, float]] = (),
) -> None:
    """Write a name beside each point, one after the other, in the first of the places that cost least.

    Parameters
    ----------
    ax
        Panel of a figure that is otherwise complete: its layout and its limits are settled here.
    names
        Points in data coordinates, each with its name.
    marks
        Points without a name, which names are to leave free, too.
    bars
        Vertical lines of which the same is true: x, low, high.
    line
        Corners of a line of which the same is true.
    """
    if not names:
        return
    fig = ax.figure
    assert isinstance(fig, Figure)
    notes = [_note(ax, *name) for name in names]
    for note in notes:
        note.set_in_layout(False)
    fig.draw_without_rendering()
    to_points = 72 / fig.dpi
    frame = np.array(ax.get_window_extent().extents) * to_points
    # As texts: an annotation's extent holds the line that leads to its point.
    sizes = [np.array(Text.get_window_extent(note).size) * to_points for note in notes]

    def place(corners: Sequence[tuple[float, float]]) -> np.ndarray:
        return np.asarray(ax.transData.transform(np.asarray(corners, dtype=float))) * to_points

    spots = place([(x, y) for x, y, _ in names])
    others = place(marks) if marks else spots[:0]
    taken = [np.concatenate([spot - MARK, spot + MARK]) for spot in (*spots, *others)]
    for x, low, high in bars:
        ends = place([(x, low), (x, high)])
        taken.append(np.concatenate([ends[0] - 1, ends[1] + 1]))
    if len(line) > 1:
        for start, end in pairwise(place(line)):
            # In short pieces: the box around a long slant is mostly empty.
            pieces = 1 + int(np.abs(end - start).max() // MARK)
            steps = start + np.linspace(0, 1, pieces + 1)[:, None] * (end - start)
            for one, other in pairwise(steps):
                taken.append(np.concatenate([np.minimum(one, other) - 1, np.maximum(one, other) + 1]))
    for spot, size, note in zip(spots, sizes, notes, strict=True):
        centres = np.concatenate([_DIRECTIONS * (MARK + gap + size / 2) for gap in GAPS])
        boxes = np.concatenate([spot + centres - size / 2, spot + centres + size / 2], axis=1)
        cost = _covered(boxes, np.array(taken)) + 10 * (size.prod() - _covered(boxes, frame[None]))
        cost += _AWAY * np.repeat(GAPS, len(_DIRECTIONS))
        best = int(cost.argmin())
        note.xyann = tuple(centres[best])
        if note.arrow_patch is not None:
            note.arrow_patch.set_visible(best >= len(_DIRECTIONS))
        taken.append(boxes[best])


def _note(ax: Axes, x: float, y: float, name: str) -> Annotation:
    leader = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 2}
    return ax.annotate(
        name, (x, y), (0, 0), textcoords="offset points", fontsize=SIZE, ha="center", va="center", color=INK,
        arrowprops=leader, zorder=4,
    )  # fmt: skip


def _covered(boxes: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Sum, for each box, the areas that it shares with those that are taken; boxes are left, bottom, right, top."""
    low = np.maximum(boxes[:, None, :2], taken[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], taken[None, :, 2:])
    shared: np.ndarray = np.clip(high - low, 0, None).prod(axis=2).sum(axis=1)
    return shared
