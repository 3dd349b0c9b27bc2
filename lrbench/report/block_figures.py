"""Figures of what compression does to blocks: errors, ranks, cuts and bytes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lrbench import paper
from lrbench.report.facets import (
    PANELS,
    Drawing,
    Facet,
    NothingToDraw,
    bounded,
    by_layer,
    by_name,
    first_of,
    legend_name,
    part,
    part_cells,
    shape_of,
    style_of,
    why,
)
from lrbench.report.style import BAD, GRID, INK, MUTED, PAPER, Look, label_outer, legend, panels, plain_ticks
from lrbench.report.summaries import first_layer_sizes, fits_paper
from lrbench.report.tables import Study
from lrbench.report.wording import count, join, number, plain_text, shape

__all__ = ["draw_bytes", "draw_cuts", "draw_error", "draw_ranks"]

FLOOR = 1e-3
"""Errors are drawn no lower than this share of eps."""

MANY = 3
"""Layers up to which panels of cuts stand side by side."""

CROWDED = 8
"""Layers above which their names are turned, for want of room."""

POINTS = 60
"""Blocks drawn as points for one compressor and layer."""


def draw_error(study: Study) -> Drawing:
    """Draw requested against achieved relative error per block, one panel per layer and condition."""
    blocks = by_layer(study.blocks[study.blocks["error"].notna() & study.blocks["layer_eps"].notna()])
    if blocks.empty:
        raise NothingToDraw(why(study, "layers", "errors of blocks"))
    facets, left_out = bounded(part(blocks, "layer", "index"))
    fig, axes, names = _strips(study, facets, 0.44)
    style, violations = style_of(study), _violations(study)
    for ax, facet in zip(axes, facets, strict=True):
        eps = float(facet.rows["eps"].iloc[0])
        rows = facet.rows.assign(drawn=facet.rows["error"].clip(lower=eps * FLOOR))
        ax.set_xscale("log")
        _boxes(ax, rows, "drawn", names, style)
        top = max(1.0, 1.3 * float(rows["drawn"].max()))
        low = min(0.7 * float(rows["drawn"].min()), eps / 4)
        ax.set_xlim(low, top)
        ax.axvspan(eps, top, color=BAD, alpha=0.07, linewidth=0)
        ax.axvline(eps, color=INK, linewidth=1, linestyle="--")
        counts = violations.get((facet.condition, facet.value), {})
        for name, errors in by_name(rows):
            y = names.index(name)
            _points(ax, y, errors["drawn"].to_numpy(float), eps, style[str(errors["compressor"].iloc[0])])
            broken, of = counts.get(name, (0, 0))
            words = f"{count(broken)} of {count(of)} above" if of else "not counted"
            _remark(ax, y, words, loud=broken > 0, left=eps * eps > top * low)
        plain_ticks(ax.xaxis, log=True)
    label_outer(axes, _columns(facets), "relative error of a block")
    line = Line2D([], [], color=INK, linewidth=1, linestyle="--", label="eps, as requested")
    cross = Line2D([], [], color=BAD, marker="x", linestyle="", label="block above eps")
    legend(fig, [line, cross, Patch(facecolor=BAD, alpha=0.14, label="tolerance broken")])
    return fig, (
        "Relative error achieved per block, ‖D − D̂‖ / ‖D‖, against the eps requested. Boxes hold the middle half of "
        f"the blocks, whiskers reach the extremes; up to {POINTS} blocks of a row are drawn, evenly spaced in order. "
        "Blocks of all masks and seeds with the layer are shown together; the counts are the runs' own, over all their "
        f"blocks. Errors below eps/1000, zero among them, are drawn at eps/1000.{_thinned(study)}{left_out}"
    )


def draw_ranks(study: Study) -> Drawing:
    """Draw ranks per block by layer and compressor, with the rank above which factors outgrow the input."""
    blocks = study.blocks[study.blocks["rank"].notna() & (study.blocks["layer_compressor"] != "none")]
    if blocks.empty:
        raise NothingToDraw(why(study, "layers", "ranks of blocks"))
    facets, left_out = bounded(part(blocks, "layer", "index"))
    fig, axes, names = _strips(study, facets, 0.36)
    style, means = style_of(study), _mean_ranks(study)
    for ax, facet in zip(axes, facets, strict=True):
        _boxes(ax, facet.rows, "rank", names, style)
        row, largest = first_of(study, facet.value), float(facet.rows["rank"].max())
        even = {}
        if pd.notna(row["break_even_rank"]):
            even["input"] = ("--", float(row["break_even_rank"]))
        if pd.notna(row["n"]):
            m, n = float(row["m"]), float(row["n"])
            even["im2col"] = (":", m * n / (m + n))
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.set_xlim(0, 1.08 * max([1.0, largest, *(rank for _, rank in even.values() if rank <= 1.5 * largest)]))
        for line, rank in even.values():
            ax.axvline(rank, color=INK, linewidth=1, linestyle=line)
        for name, ranks in by_name(facet.rows):
            y = names.index(name)
            look = style[str(ranks["compressor"].iloc[0])]
            mean = means.get((facet.condition, facet.value), {}).get(name, float(ranks["rank"].mean()))
            ax.plot(mean, y, look.marker, color=look.colour, mec=PAPER, mew=0.7, ms=6, zorder=5)
            _remark(ax, y, f"mean {number(mean, 1)}", boxed=True)
        ax.set_xlabel(
            "\n".join(["rank of a block", *(f"even with {of}: {number(r, 1)}" for of, (_, r) in even.items())])
        )
    dashed = Line2D([], [], color=INK, linewidth=1, linestyle="--", label="break-even with the input, C·H·W / (m + n)")
    dotted = Line2D([], [], color=INK, linewidth=1, linestyle=":", label="break-even with im2col, m·n / (m + n)")
    legend(fig, [dashed, dotted], 2)
    return fig, (
        "Ranks per block, of all masks and seeds with the layer; boxes hold the middle half, whiskers reach the "
        "extremes. Markers are means over all blocks that the runs met, of which they keep some. To the right of the "
        "dashed line the factors are larger than the input that PyTorch keeps, to the right of the dotted line larger "
        "than im2col. A line far beyond the ranks is only named "
        f"under its panel.{_thinned(study)}{left_out}"
    )


def draw_cuts(study: Study) -> Drawing:
    """Draw cuts by layer and compressor against im2col, the input and what is saved, one marker per run."""
    known = study.layers[["cut_im2col", "cut_input"]].notna().all(axis=1)
    layers = study.layers[known & (study.layers["layer_compressor"] != "none")]
    if layers.empty:
        raise NothingToDraw(why(study, "layers", "bytes of factors"))
    columns = (("cut_im2col", "im2col"), ("cut_input", "the input"), ("cut_saved", "what is saved"))
    facets, left_out = bounded(part(layers, "setting"), PANELS // len(columns))
    jobs = [(facet, *column) for facet in facets for column in columns]
    most = max(facet.rows["layer"].nunique() for facet in facets)
    many, crowded = most > MANY, most > CROWDED
    titles = [facet.title(f"against {of}") for facet, _, of in jobs]
    fig, axes = panels(titles, 1 if many else 3, 2.9 if crowded else 1.9 if many else 2.7)
    style = style_of(study)
    names: dict[str, Look] = {}
    hollow_drawn = dense_drawn = False
    for ax, (facet, column, of) in zip(axes, jobs, strict=True):
        rows = facet.rows.sort_values("index", kind="stable")
        places = list(dict.fromkeys(rows["layer"]))
        groups = by_name(rows)
        grey = _unsaved(rows, places) if column == "cut_saved" else {}
        for turn, (name, mine) in enumerate(groups):
            look = names.setdefault(name, style[str(mine["compressor"].iloc[0])])
            shift = 0.7 * ((turn + 0.5) / len(groups) - 0.5)
            x = np.array([places.index(layer) + shift for layer in mine["layer"]])
            dense = (mine["share_stored"].astype(float) > 0.5).to_numpy()
            cuts = mine[column].astype(float).to_numpy()
            ax.plot(
                x[~dense], cuts[~dense], look.marker, color=look.colour, alpha=0.75, ms=6, linestyle="",
                mec=PAPER, mew=0.4,
            )  # fmt: skip
            ax.plot(x[dense], cuts[dense], look.marker, color=look.colour, ms=6, linestyle="", mfc=PAPER, mew=1.1)
            dense_drawn = dense_drawn or bool(dense.any())
            if column == "cut_saved":
                unsaved = (mine["saved_bytes"] == 0) & ~mine["layer"].isin(list(grey))
                nothing = [spot for spot, hollow in zip(x, unsaved, strict=True) if hollow]
                hollow_drawn = hollow_drawn or bool(nothing)
                ax.plot(nothing, [0.0] * len(nothing), look.marker, color=PAPER, mec=MUTED, mew=0.9, ms=5, zorder=4)
        drawn = rows[column].dropna()
        low, high = (float(drawn.min()), float(drawn.max())) if len(drawn) else (0.0, 0.0)
        room = 0.18 * max(high - min(low, 0.0), 0.1)
        low, high = min(low, 0.0) - room, max(high, 0.0) + room
        ax.axhspan(low, 0, color=BAD, alpha=0.07, linewidth=0)
        ax.axhline(0, color=INK, linewidth=1)
        _mark_unsaved(ax, grey, places, turned=crowded or not many)
        if len(grey) == len(places):
            ax.yaxis.set_ticks([])
        else:
            start = next(spot for spot, layer in enumerate(places) if layer not in grey) / len(places)
            ax.text(start + 0.01, 0.02, "no saving below zero", transform=ax.transAxes, fontsize=7, color=BAD)
        between = ", " if crowded else "\n"
        shown = [f"{plain_text(layer, 20 if crowded else 12)}{between}{shape_of(study, layer)}" for layer in places]
        ax.set_xticks(range(len(places)), shown, rotation=90 if crowded else 0)
        ax.set(xlim=(-0.5, len(places) - 0.5), ylim=(low, high))
        cut = "held / saved" if column == "cut_saved" else f"factors / {of.removeprefix('the ')}"
        ax.set_ylabel(f"cut: 1 − {cut}")
        ax.grid(False, axis="x")
        if crowded or not many:
            ax.tick_params(axis="x", labelsize=6.5)
        if len(grey) < len(places):
            plain_ticks(ax.yaxis)
    markers = [look.handle(legend_name(name)) for name, look in names.items()]
    for marker in markers:
        marker.set_linestyle("")
    if hollow_drawn:
        markers.append(Line2D([], [], color=PAPER, marker="o", mec=MUTED, ms=5, linestyle="", label="nothing to save"))
    if dense_drawn:
        outlined = Line2D([], [], color=INK, marker="o", mfc=PAPER, ms=6, mew=1.1, linestyle="")
        outlined.set_label("more than half of the blocks stored as they are")
        markers.append(outlined)
    legend(fig, markers, 3 if dense_drawn else 5)
    return fig, (
        "Bytes cut by the factors, one marker per run: against im2col; against the layer's input, which is what "
        "PyTorch's own convolution keeps; and, of what the layer holds by the ledger, against what it saves of the "
        "input and nobody else keeps. A layer whose input is kept by another module or by the caller, too, has nothing "
        "to save: its factors come on top. The scales differ. The compressor none keeps im2col itself and is left out."
        + left_out
    )


def _unsaved(rows: pd.DataFrame, places: list[str]) -> dict[str, str]:
    """Say of the layers of which nothing is saved under any compressor, or nothing is known, which it is."""
    words = {}
    for layer in places:
        mine = rows[rows["layer"] == layer]
        if mine["saved_bytes"].isna().all():
            words[layer] = "not measured"
        elif (mine["saved_bytes"].dropna() == 0).all():
            holders = set(mine["kept_by"].dropna())
            by = f":\n{plain_text(join(sorted(map(str, holders))), 16)} keeps it" if holders else ""
            words[layer] = f"nothing to save{by}"
    return words


def _mark_unsaved(ax: Axes, words: dict[str, str], places: list[str], turned: bool) -> None:
    """Grey out such layers."""
    for layer, text in words.items():
        x = places.index(layer)
        ax.axvspan(x - 0.5, x + 0.5, color=GRID, linewidth=0, zorder=2.1)
        ax.text(x, 0.5, text, transform=ax.get_xaxis_transform(), ha="center", va="center", fontsize=7, color=INK,
                rotation=90 if turned else 0, bbox={"facecolor": GRID, "edgecolor": "none", "pad": 1.5})  # fmt: skip


def draw_bytes(study: Study) -> Drawing:
    """Draw the first layer's bytes for 100 images: im2col, the input, and every compressor's factors."""
    sizes = [size for size in first_layer_sizes(study) if size.factor_bytes and size.method != "none"]
    if not sizes:
        raise NothingToDraw(why(study, "layers", "bytes of the first layer"))
    style = style_of(study)
    facets, left_out = bounded(part_cells(sizes, lambda size: size.cell, masks=False))
    bars: list[list[tuple[str, float, str]]] = []
    for facet in facets:
        first = facet.rows[0]
        known = (("im2col", first.im2col_bytes, MUTED), ("input", first.input_bytes, MUTED))
        rows = [(what, float(value), colour) for what, value, colour in known if value]
        rows += [(s.cell.name, s.factor_bytes, style[s.cell.compressor].colour) for s in facet.rows]
        if first.cell.eps == paper.EPS and fits_paper(first):
            rows.append(("the paper's U and V", paper.FACTOR_BYTES, INK))
        bars.append(rows)
    titles = [facet.title(f"{sizes[0].layer}, {shape(sizes[0].m, sizes[0].n)}") for facet in facets]
    fig, axes = panels(titles, 1, 0.26 * max(len(rows) for rows in bars) + 0.55)
    for ax, rows in zip(axes, bars, strict=True):
        widest = max(value for _, value, _ in rows) / 1e6
        for y, (what, value, colour) in enumerate(rows):
            ax.barh(y, value / 1e6, 0.6, color=colour, alpha=0.8, linewidth=0)
            ax.text(value / 1e6 + 0.01 * widest, y, count(value), va="center", fontsize=7,
                    bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.6})  # fmt: skip
            if what == "input":
                ax.axvline(value / 1e6, color=INK, linestyle="--", linewidth=1, zorder=0.9)
        ax.set_yticks(range(len(rows)), [plain_text(what, 24) for what, _, _ in rows])
        ax.set(ylim=(len(rows) - 0.5, -0.5), xlim=(0, 1.13 * widest), xlabel="million bytes for a batch of 100 images")
        ax.grid(False, axis="y")
    dashed = Line2D(
        [], [], color=INK, linestyle="--", linewidth=1, label="the input: what PyTorch's own convolution keeps"
    )
    legend(fig, [dashed])
    holders = {size.kept_by for size in sizes if size.saved_bytes == 0} - {None}
    kept = "".join(
        f" The input is kept by {holder}, too: compressing it frees nothing." for holder in sorted(map(str, holders))
    )
    return fig, (
        "Bytes of the first convolution's im2col, of its input and of the factors, scaled to a batch of 100 images, "
        "over all masks and seeds that compress it." + kept + left_out
    )


def _thinned(study: Study) -> str:
    return f" Of every {study.thinning} blocks one is drawn." if study.thinning > 1 else ""


def _strips(study: Study, facets: Sequence[Facet], step: float) -> tuple[Figure, list[Axes], list[str]]:
    """Lay out a panel per layer and condition, ``step`` inches to a row; the rows are the same compressors in all."""
    names = [name for name, _ in by_name(pd.concat([facet.rows for facet in facets]))]
    titles = [facet.title(f"{plain_text(facet.value, 24)}, {shape_of(study, facet.value)}") for facet in facets]
    fig, axes = panels(titles, _columns(facets), step * len(names) + 0.75)
    for spot, ax in enumerate(axes):
        first = spot % _columns(facets) == 0
        ax.set_yticks(range(len(names)), [legend_name(name) for name in names] if first else [""] * len(names))
    return fig, axes, names


def _columns(facets: Sequence[Facet]) -> int:
    """Choose two or three panels to a row, whichever leaves fewer empty."""
    return 3 if len(facets) % 3 == 0 or len(facets) > 4 else 2


def _boxes(ax: Axes, rows: pd.DataFrame, column: str, names: list[str], style: dict[str, Look]) -> None:
    """Draw one box per compressor."""
    present = {name: style[str(mine["compressor"].iloc[0])].colour for name, mine in by_name(rows)}
    ticks, labels = ax.get_yticks(), [label.get_text() for label in ax.get_yticklabels()]
    sns.boxplot(
        x=rows[column].astype(float), y=rows["name"].astype(str), order=names, hue=rows["name"].astype(str),
        palette=present, legend=False, ax=ax, whis=(0, 100), width=0.34, linewidth=0.9, saturation=1, linecolor=INK,
        boxprops={"alpha": 0.55},
    )  # fmt: skip
    ax.set_yticks(ticks, labels)
    ax.set_ylim(len(names) - 0.5, -0.6)
    ax.set(xlabel="", ylabel="")
    ax.grid(False, axis="y")
    for name in (name for name in names if name not in present):
        _remark(ax, names.index(name), "no blocks here")


def _points(ax: Axes, y: int, errors: "np.ndarray[Any, Any]", eps: float, look: Look) -> None:
    """Draw some blocks, evenly spaced in order, those above eps as crosses."""
    ordered = np.sort(errors)
    chosen = ordered[np.unique(np.linspace(0, len(ordered) - 1, min(POINTS, len(ordered))).round().astype(int))]
    heights = y + 0.31 + 0.16 * (np.arange(len(chosen)) * 0.618 % 1 - 0.5)
    above = chosen > eps * (1 + 1e-6)  # the errors are stored with six digits
    ax.plot(chosen[~above], heights[~above], look.marker, color=look.colour, ms=2, alpha=0.6, mew=0)
    ax.plot(chosen[above], heights[above], "x", color=BAD, ms=3, mew=0.8, alpha=0.8)


def _remark(ax: Axes, y: int, words: str, loud: bool = False, boxed: bool = False, left: bool = False) -> None:
    """Write at one end of a row, above its box."""
    ax.text(0.01 if left else 0.99, y - 0.34, words, transform=ax.get_yaxis_transform(),
            ha="left" if left else "right", va="center", fontsize=6.8,
            color=BAD if loud else MUTED, fontweight="bold" if loud else "normal",
            bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 0.6} if boxed else None)  # fmt: skip


def _violations(study: Study) -> dict[tuple[str, str], dict[str, tuple[int, int]]]:
    """Count violations and blocks by condition and layer, and by compressor, as the runs counted them, over all."""
    found = {}
    for facet in part(by_layer(study.layers[study.layers["violations"].notna()]), "layer"):
        totals = facet.rows.groupby("name")[["violations", "blocks"]].sum()
        found[facet.condition, facet.value] = {
            str(name): (int(broken), int(of)) for name, broken, of in totals.itertuples()
        }
    return found


def _mean_ranks(study: Study) -> dict[tuple[str, str], dict[str, float]]:
    """Mean ranks by condition and layer, and by compressor, over all blocks that the runs met."""
    found = {}
    for facet in part(by_layer(study.layers[study.layers["rank_mean"].notna()]), "layer"):
        found[facet.condition, facet.value] = {
            str(name): float(np.average(rows["rank_mean"].astype(float), weights=rows["blocks"].astype(float)))
            for name, rows in facet.rows.groupby("name")
        }
    return found
