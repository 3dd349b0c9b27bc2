"""How figures part a study into panels, so that what must not be mixed is not.

A panel shows one mask or one layer under one condition (eps and path). A run without eps, such as that of ``none``,
stands in every condition of its path.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lrbench.report.entries import Cell
from lrbench.report.style import Look, looks
from lrbench.report.tables import Study, finished, place
from lrbench.report.wording import count, join, plain_text, shape

__all__ = [
    "Drawing",
    "Facet",
    "NothingToDraw",
    "belongs",
    "bounded",
    "by_layer",
    "by_name",
    "cell_name",
    "conditions",
    "part",
    "part_cells",
]

PANELS = 9
"""Panels of one figure; a study may have thousands."""

ROWS = 40
"""Compressors and policies of one panel."""

Drawing = tuple[Figure, str]
"""A figure and its caption."""


class NothingToDraw(Exception):  # noqa: N818 - it reports an absence, not an error
    """A figure's data are missing; the message says which, and why; an empty one, that nobody misses it."""


@dataclass(frozen=True)
class Facet:
    """One panel: its rows, the mask or layer and the condition that they share, and words for its title."""

    rows: Any
    value: str
    condition: str
    qualifier: str

    def title(self, words: str) -> str:
        """Name the panel; the condition is named only where the study has several."""
        words = " ".join(words.split())  # a name from a record may hold line breaks
        return f"{words}\n{self.qualifier}" if self.qualifier else words


def part(rows: pd.DataFrame, column: str, order: str = "") -> list[Facet]:
    """Part rows by condition and by ``column``, in their own order or in that of the column ``order``."""
    cells = rows[["condition", "eps", "path"]].drop_duplicates()
    found = conditions(zip(cells["condition"], cells["eps"], cells["path"], strict=True))
    own = rows.groupby("condition", sort=False).indices
    loose = np.flatnonzero(rows["eps"].isna())
    paths = rows["path"].iloc[loose].astype(str).to_numpy(object)
    facets = []
    for condition in found:
        anywhere = loose[[condition.endswith(f"path {path}") for path in paths]] if len(loose) else loose
        mine = rows.iloc[np.union1d(own.get(condition, loose[:0]), anywhere)]
        if order:
            mine = mine.sort_values(order, kind="stable")
        for value, group in mine.groupby(column, sort=False):
            facets.append(Facet(group, str(value), condition, condition if len(found) > 1 else ""))
    return facets


def part_cells(entries: Sequence[Any], cell_of: Callable[[Any], Cell], masks: bool = True) -> list[Facet]:
    """Part summaries by the condition of their cells, and by mask if told so."""
    cells = [cell_of(entry) for entry in entries]
    found = conditions((cell.condition, cell.eps, cell.path) for cell in cells)
    groups: dict[tuple[str, str], list[Any]] = {}
    for condition in found:
        for entry, cell in zip(entries, cells, strict=True):
            if belongs(cell.condition, cell.eps, cell.path, condition):
                groups.setdefault((condition, cell.mask if masks else ""), []).append(entry)
    return [Facet(rows, mask, name, name if len(found) > 1 else "") for (name, mask), rows in groups.items()]


def bounded(facets: Sequence[Facet], most: int = PANELS) -> tuple[list[Facet], str]:
    """Keep what one figure can hold, the first of the panels and of their rows, and say what it leaves out."""
    shown = [_first_rows(facet) for facet in facets[:most]]
    left_out = []
    if len(facets) > most:
        left_out.append(f"the first {most} of {count(len(facets))} panels")
    widest = max((_length(facet.rows) for facet in facets[:most]), default=0)
    if widest > ROWS:
        left_out.append(f"the first {ROWS} of up to {count(widest)} compressors and policies of a panel")
    return shown, f" Only {join(left_out)} are drawn; the tables hold all." if left_out else ""


def _length(rows: Any) -> int:
    return rows["name"].nunique() if isinstance(rows, pd.DataFrame) else len(rows)


def _first_rows(facet: Facet) -> Facet:
    if _length(facet.rows) <= ROWS:
        return facet
    if not isinstance(facet.rows, pd.DataFrame):
        return replace(facet, rows=facet.rows[:ROWS])
    names = [name for name, _ in by_name(facet.rows)[:ROWS]]
    return replace(facet, rows=facet.rows[facet.rows["name"].isin(names)])


def conditions(cells: Any) -> list[str]:
    """List the conditions of ``(condition, eps, path)``; those without eps only where no other shares their path."""
    known = list(dict.fromkeys((str(name), pd.isna(eps), str(path)) for name, eps, path in cells))
    with_eps = {path for _, without, path in known if not without}
    return list(dict.fromkeys(name for name, without, path in known if not without or path not in with_eps))


def belongs(condition: str, eps: Any, path: Any, to: str) -> bool:
    """Tell whether a run is shown in a condition: its own or, without eps, any of its path."""
    return condition == to or (bool(pd.isna(eps)) and to.endswith(f"path {path}"))


def by_layer(rows: pd.DataFrame) -> pd.DataFrame:
    """Put layers or blocks of policies under the eps and the path that the policy gives their layer."""
    policy = rows["policy"].notna()
    pairs = zip(rows["layer_eps"][policy], rows["layer_path"][policy], strict=True)
    condition = rows["condition"].astype(object)
    condition[policy] = [f"eps {eps:g}, path {path}" for eps, path in pairs]
    return rows.assign(eps=rows["layer_eps"], path=rows["layer_path"], condition=condition)


def by_name(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Part rows by compressor (and version), in the order of tables and figures."""
    groups = [(str(name), group) for name, group in rows.groupby("name", sort=False)]
    return sorted(groups, key=lambda pair: (place(str(pair[1]["compressor"].iloc[0])), pair[0]))


def style_of(study: Study) -> dict[str, Look]:
    """Return the looks of a study's compressors."""
    return looks(study.runs["compressor"].dropna().astype(str))


def legend_name(name: str) -> str:
    """Name a compressor in a figure."""
    return "none (im2col)" if name == "none" else plain_text(name, 22)


def cell_name(cell: Cell) -> str:
    """Name a cell by what varies in the study, its own name shortened where it is long, and no other part."""
    return legend_name(cell.name) + cell.label.removeprefix(cell.name)


@lru_cache(maxsize=64)
def first_of(study: Study, layer: str) -> "pd.Series[Any]":
    """Return the first row of a layer: its shape is the same in all."""
    return study.layers[study.layers["layer"] == layer].iloc[0]


def shape_of(study: Study, layer: str) -> str:
    """Write the shape m × n of a layer's blocks."""
    row = first_of(study, layer)
    return shape(row["m"], None if pd.isna(row["n"]) else row["n"])


def why(study: Study, key: str, what: str) -> str:
    """Say why a figure has no data: the runs' own reasons, or that no run could have had any."""
    runs = finished(study)
    masked = runs[~runs["plain"]]
    if masked.empty:
        return f"no masked run finished, so there are no {what}"
    reasons = [
        str(reason).removeprefix("not measured: ").rstrip(".") for reason in masked[f"{key}_reason"].dropna().unique()
    ]
    amount = (
        "the one masked run did not record" if len(masked) == 1 else f"none of the {len(masked)} masked runs recorded"
    )
    return f"{amount} {what}" + (f": {join(reasons)}" if reasons else "")
