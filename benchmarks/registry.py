"""Every compressor beside every other, on the blocks of the paper's three shapes: rank, error, bytes and time.

``python -m benchmarks.registry [--records FILE] [--out DIR]`` prints the table, and writes it, every single time and
two figures into DIR. It wants the machine to itself. The network is the paper's, of widths 32, 64 and 128, after one
epoch on the images; its layers 1, 3 and 5 are looked at in training mode, and compute exactly. ``--plot-only`` makes
text and figures again from DIR's registry.csv and registry.json.

Quality is measured on the batches in their order, by one instance, so that a method with a state meets what it would
meet in training. Time is measured as in ``benchmarks.speed``: once a round, on images that the call before did not see,
and of several calls together where one takes little.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.lines import Line2D
from torch import Tensor
from tqdm import tqdm

import lrbench
from benchmarks.inputs import BATCH, LAYERS, inputs_met, trained_network
from benchmarks.speed import Kind, begin, fastest, images_of, measure_kinds
from lrbench.environment import environment
from lrbench.factors import Origin
from lrbench.files import write_atomically
from lrbench.measure.error import violations
from lrbench.measure.savings import saved_inputs
from lrbench.report.labels import name_points
from lrbench.report.style import GRID, INK, MUTED, PAPER, RC, legend, looks, panels, plain_ticks

TOLERANCES = (0.3, 0.1)
QUALITY = 5
"""Batches that ranks, errors and bytes are measured on."""
TIMED = 10
"""Batches that calls rotate over."""
TOGETHER = 0.01
"""Seconds of calls that are timed together where one takes less: a thread that waits for a core waits for 0.004."""
MOST = TIMED - 2
"""Calls that are timed together at most: one batch is for trying out, and one for the calls before."""
EXACT = ("input", "none")
"""What keeps the input, or im2col, as it is."""
SAME = 1e-3
"""By how much of themselves bytes may differ and still count as the same."""
TITLES = {shape: f"{layer[:4]} {layer[4:]}, {shape.replace('x', ' × ')}" for shape, layer in LAYERS.items()}
KINDS = {
    "block": "certified, every block within eps",
    "batch": "the batch within eps",
    "none": "no promise, whatever eps",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, help="CIFAR-10 records (binary) to measure on; the photographs without")
    parser.add_argument("--compressors", nargs="+", default=lrbench.list_compressors(), help="names (all)")
    parser.add_argument("--rounds", type=int, default=9, help="timed calls of each kind (default 9)")
    parser.add_argument("--out", type=Path, help="folder for registry.md, .csv, .json and the figures")
    parser.add_argument("--plot-only", action="store_true", help="make text and figures of DIR again; measure nothing")
    options = parser.parse_args(arguments)
    if options.plot_only:
        if options.out is None:
            parser.error("--plot-only needs --out, the folder that holds registry.csv and registry.json")
        table = pd.read_csv(options.out / "registry.csv", keep_default_na=False, na_values=[""])
        facts = json.loads((options.out / "registry.json").read_text(encoding="utf-8"))
    else:
        table, facts = _measure(options)
    text = _markdown(table, facts)
    print(text)
    if options.out is None:
        return
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.plot_only:
        write_atomically(options.out / "registry.csv", table.to_csv(index=False))
        write_atomically(options.out / "registry.json", json.dumps(facts, indent=1))
    write_atomically(options.out / "registry.md", text)
    draw_frontier(table, options.out / "frontier.png")
    draw_gap(table, options.out / "gap.png")


def _measure(options: argparse.Namespace) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Give a row for each layer, tolerance and compressor, and the facts of the measurement."""
    images, labels, name = images_of(options.records)
    threads = torch.get_num_threads()
    model = trained_network(images, labels)
    held = saved_inputs(model, images[:BATCH].clone(), labels[:BATCH].clone())
    rows: list[dict[str, Any]] = []
    times: dict[str, Any] = {}
    for shape, inputs in inputs_met(model, images.split(BATCH)[:TIMED]).items():
        kinds = {"F.unfold": fastest([lambda x: F.unfold(x, 3, padding=1)], inputs[0], threads)}
        singular = [torch.linalg.svdvals(lrbench.Im2col(x.double(), 3, padding=1).dense()) for x in inputs[:QUALITY]]
        cells = [(name, eps) for eps in TOLERANCES for name in options.compressors]
        for name_, eps in tqdm(cells, desc=shape, unit="cell", disable=None):
            compressor = lrbench.get_compressor(name_, eps=eps)
            if compressor.skip(lrbench.Geometry.parse(3, padding=1), inputs[0].shape[-2:], "backward") is not None:
                continue
            saved = held[LAYERS[shape]]
            rows.append({"layer": LAYERS[shape], "shape": shape, **_quality(compressor, eps, inputs, singular, saved)})
            if compressor.uses_eps or eps == TOLERANCES[0]:  # else its time is the same
                key = _key(compressor.uses_eps, name_, eps)
                kinds[key] = Kind(_call(name_, eps), BATCH, threads, compressor.period)
        kinds = {key: kind._replace(calls=_calls(kind, inputs[0])) for key, kind in kinds.items()}
        print(f"{shape}: timing {len(kinds)} kinds", file=sys.stderr)
        times[shape] = measure_kinds(kinds, inputs, options.rounds, threads)
    table = pd.DataFrame(rows)
    for where, row in table.iterrows():
        taken = np.array(times[row["shape"]][_key(row["uses_eps"], row["compressor"], row["eps"])])
        unfold = np.array(times[row["shape"]]["F.unfold"])
        table.loc[where, ["ms", "unfold_ms"]] = [1e3 * BATCH * np.median(t) for t in (taken, unfold)]
        quartiles = np.quantile(taken / unfold, [0.25, 0.75])
        table.loc[where, ["time", "time_low", "time_high"]] = [np.median(taken) / np.median(unfold), *quartiles]
    facts = {"images": name, "threads": threads, "rounds": options.rounds, "environment": environment()}
    return table, {**facts, "kept_by": {LAYERS[s]: held[LAYERS[s]][1] for s in LAYERS}, "seconds": times}


def _key(uses_eps: bool, name: str, eps: float) -> str:
    return f"{name} at {eps:g}" if uses_eps else name


def _call(name: str, eps: float) -> Any:
    compressor = lrbench.get_compressor(name, eps=eps)
    return lambda x: compressor.compress(lrbench.Im2col(x, 3, padding=1))


def _calls(kind: Kind, x: Tensor) -> int:
    """How many to time together: a period of them, or for :data:`TOGETHER`, but no more than :data:`MOST`."""
    if kind.calls > 1:
        return kind.calls
    begin(partial(kind.call, x))
    start = time.perf_counter()
    kind.call(x)
    return max(1, min(MOST, round(TOGETHER / (time.perf_counter() - start))))


def _quality(
    compressor: lrbench.Compressor,
    eps: float,
    inputs: Sequence[Tensor],
    singular: Sequence[Tensor],
    saved: tuple[int, str | None],
) -> dict[str, Any]:
    """Ranks beside Eckart and Young's, errors, and bytes for a batch against every denominator."""
    ranks, least, errors, origins, sizes, batch_errors = [], [], [], [], [], []
    for x, values in zip(inputs[:QUALITY], singular, strict=True):
        blocks = lrbench.Im2col(x, 3, padding=1)
        compressed = compressor.compress(blocks)
        error = lrbench.relative_error(blocks, compressed)
        norms = blocks.squared_norm()
        batch_errors.append((float((error.square() * norms).sum() / norms.sum())) ** 0.5)
        energy = values.square()
        lost = energy.flip(1).cumsum(1).flip(1)
        least.append((lost > eps**2 * energy.sum(1, keepdim=True)).sum(1))
        if compressed.ranks is not None:
            ranks.append(compressed.ranks)
        errors.append(error)
        origins.append(compressed.origin)
        sizes.append(compressed.nbytes)
    N, m, n = lrbench.Im2col(inputs[0], 3, padding=1).shape
    bytes_, needed = sum(sizes) / len(sizes), torch.cat(least).double().mean().item()
    against = {"im2col": N * m * n * 4, "input": inputs[0].nbytes, "saved": saved[0]}
    rank = torch.cat(ranks).double().mean().item() if ranks and compressor.low_rank else None
    achieved, origin = torch.cat(errors), torch.cat(origins)
    return {
        "compressor": compressor.name,
        "eps": eps,
        "uses_eps": compressor.uses_eps,
        "guarantee": compressor.guarantee or "none",
        "rank": rank,
        "eckart_young": needed,
        "gap": None if rank is None else rank / needed,
        "error_median": achieved.median().item(),
        "error_max": achieved.max().item(),
        "batch_error": max(batch_errors),
        "above_eps": violations(achieved, eps) / len(achieved),
        "bytes": bytes_,
        **{f"{key}_bytes": value for key, value in against.items()},
        **{f"cut_{key}": 1 - bytes_ / value if value else None for key, value in against.items()},
        **{f"share_{o.name.lower()}": (origin == int(o)).double().mean().item() for o in Origin},
    }


def frontier(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows than which none has fewer bytes in less time, by rising bytes."""
    ordered = rows.sort_values(["bytes", "time"])
    return ordered[ordered["time"] < ordered["time"].cummin().shift(fill_value=np.inf)]


def _markdown(table: pd.DataFrame, facts: dict[str, Any]) -> str:
    machine = facts["environment"]
    lines = [
        "# The registry on real activations",
        "",
        "Inputs of layers 1, 3 and 5 of the paper's network (widths 32, 64, 128), in training mode, after one epoch",
        f"on {facts['images']}; {QUALITY * BATCH} blocks of each, batches of {BATCH}. {machine['processor']},",
        f"{facts['threads']} threads, commit {machine['commit']}, torch {machine['torch']}.",
        "",
        "*rank / EY*: mean rank over the least that any pair of factors needs (Eckart and Young). *above*: share of",
        "the blocks whose true error exceeds eps. *bytes*: all that is held for a batch. *cut*: 1 − bytes /",
        "denominator; – for *saved* where somebody else keeps the input, so that nothing is freed. *time*: from images",
        f"to packed and checked factors, over F.unfold's, ratio of medians of {facts['rounds']} rounds, [quartiles].",
        f"In each a call counts, or the mean of as many, at most {MOST}, as take {1e3 * TOGETHER:g} ms together; of",
        "`warm`, of those from one refresh of its basis to the next. A method without eps is the same at both;",
        "whether its error is below eps is chance.",
        "",
        "## Which wins where",
        "",
        *_words(table, facts),
        "",
    ]
    for shape, title in TITLES.items():
        for eps in TOLERANCES:
            rows = table[(table["shape"] == shape) & (table["eps"] == eps)].sort_values("bytes")
            if rows.empty:
                continue
            lines += [
                f"## {title}, eps {eps:g}",
                "",
                f"Eckart–Young rank {rows['eckart_young'].iloc[0]:.2f}, F.unfold {rows['unfold_ms'].iloc[0]:.1f} ms.",
                "",
                "| compressor | promise | rank / EY | median error | worst | above | bytes | cut vs im2col | vs input "
                "| vs saved | own / escalated / stored | time / F.unfold |",
                "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
                *(_line(row) for row in rows.to_dict("records")),
                "",
            ]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    gap = "–" if pd.isna(row["gap"]) else f"{row['gap']:.2f}"
    saved = "–" if pd.isna(row["cut_saved"]) else f"{row['cut_saved']:.2f}"
    shares = " / ".join(f"{100 * row[f'share_{origin.name.lower()}']:.1f}" for origin in Origin)
    return (
        f"| {row['compressor']} | {row['guarantee']} | {gap} | {row['error_median']:.3f} | {row['error_max']:.3f} "
        f"| {100 * row['above_eps']:.0f} % | {row['bytes']:,.0f} | {row['cut_im2col']:.2f} | {row['cut_input']:.2f} "
        f"| {saved} | {shares} % | {row['time']:.2f} [{row['time_low']:.2f}, {row['time_high']:.2f}] |"
    )


def _words(table: pd.DataFrame, facts: dict[str, Any]) -> list[str]:
    """Say who wins, by layer and tolerance, and against which denominator that pays."""
    lines = []
    for shape, title in TITLES.items():
        for eps in TOLERANCES:
            rows = table[(table["shape"] == shape) & (table["eps"] == eps)]
            certified = rows[(rows["guarantee"] == "block") & ~rows["compressor"].isin(EXACT)]
            if certified.empty:
                continue
            fewest = certified[certified["bytes"] <= certified["bytes"].min() * (1 + SAME)]
            least, quickest = certified.loc[certified["bytes"].idxmin()], certified.loc[certified["time"].idxmin()]
            front = ", ".join(f"`{name}`" for name in frontier(certified)["compressor"])
            lucky = rows[(rows["guarantee"] != "block") & (rows["error_max"] <= eps) & (rows["bytes"] < least["bytes"])]
            lines.append(
                f"- **{title}, eps {eps:g}.** Of the certified that compress, the smallest: {_names(fewest)} "
                f"({_pays(least, facts)}); the quickest: `{quickest['compressor']}` ({quickest['time']:.2f} times "
                f"F.unfold, {quickest['bytes'] / least['bytes']:.2f} times the bytes); beaten by none in both: {front}."
                + (f" Smaller, and within eps here, but by no promise: {_names(lucky)}." if len(lucky) else "")
            )
    return lines


def _names(rows: pd.DataFrame) -> str:
    return ", ".join(f"`{name}`" for name in rows.sort_values("bytes")["compressor"])


def _pays(row: pd.Series, facts: dict[str, Any]) -> str:
    times = row["bytes"] / row["input_bytes"]
    if times >= 1:
        return f"{times:.2f} times the input: no benefit over what PyTorch keeps"
    if row["saved_bytes"] == 0:
        return f"{times:.2f} of the input, but no benefit in training: {facts['kept_by'][row['layer']]} keeps it"
    return f"{times:.2f} of the input, {row['bytes'] / row['saved_bytes']:.2f} of what is saved"


def draw_frontier(table: pd.DataFrame, path: Path) -> None:
    """Draw time over bytes, a panel for each layer and tolerance; the frontier of the certified is a line."""
    cells = [(shape, eps) for shape in TITLES for eps in TOLERANCES]
    styles = {"block": ("o", looks(["svd"])["svd"].colour), "batch": ("D", looks(["aca"])["aca"].colour),
              "none": ("o", MUTED)}  # fmt: skip
    with mpl.rc_context(RC):
        fig, axes = panels([f"{TITLES[shape]}, eps {eps:g}" for shape, eps in cells], 2, 2.55)
        for ax, (shape, eps) in zip(axes, cells, strict=True):
            rows = table[(table["shape"] == shape) & (table["eps"] == eps)]
            rows = rows.assign(size=rows["bytes"] / rows["input_bytes"])
            for kind, (marker, colour) in styles.items():
                mine = rows[rows["guarantee"] == kind]
                face = PAPER if kind == "none" else colour
                ax.plot(mine["size"], mine["time"], marker, ms=4.5, mfc=face, mec=colour, mew=1.1, zorder=3)
            best = frontier(rows[rows["guarantee"] == "block"])
            ax.plot(best["size"], best["time"], color=styles["block"][1], linewidth=1.2, zorder=2)
            ax.axvline(1, color=INK, linestyle="--", linewidth=0.9)
            ax.axhline(1, color=INK, linestyle=":", linewidth=0.9)
            ax.set(xscale="log", yscale="log")
            ax.margins(x=0.22, y=0.12)
            plain_ticks(ax.xaxis, log=True)
            plain_ticks(ax.yaxis, log=True)
            ax.set_xlabel("bytes / the input's" if shape == list(TITLES)[-1] else "")
            ax.set_ylabel("time / F.unfold's" if eps == TOLERANCES[0] else "")
        handles = [
            Line2D([], [], linestyle="", marker=marker, mfc=PAPER if kind == "none" else colour, mec=colour, mew=1.1,
                   label=KINDS[kind])
            for kind, (marker, colour) in styles.items()
        ]  # fmt: skip
        handles += [
            Line2D([], [], color=styles["block"][1], linewidth=1.2, label="frontier of the certified"),
            Line2D([], [], color=INK, linestyle="--", linewidth=0.9, label="as large as the input"),
            Line2D([], [], color=INK, linestyle=":", linewidth=0.9, label="as long as F.unfold"),
        ]
        legend(fig, handles, 3)
        for ax, (shape, eps) in zip(axes, cells, strict=True):
            rows = table[(table["shape"] == shape) & (table["eps"] == eps)]
            _name(ax, rows.assign(size=rows["bytes"] / rows["input_bytes"]))
        fig.savefig(path)


def _name(ax: Any, rows: pd.DataFrame) -> None:
    """Name the points of both frontiers: of the certified, and of the others."""
    certified = rows["guarantee"] == "block"
    line = list(frontier(rows[certified])[["size", "time"]].itertuples(index=False, name=None))
    named = pd.concat([frontier(rows[certified]), frontier(rows[~certified])])
    places = ["size", "time", "compressor"]
    marks = rows.drop(named.index)[["size", "time"]].itertuples(index=False, name=None)
    name_points(ax, list(named[places].itertuples(index=False, name=None)), list(marks), line=line)


def draw_gap(table: pd.DataFrame, path: Path) -> None:
    """Draw the mean rank over Eckart and Young's, of the low-rank methods, a panel for each layer."""
    rows = table[table["gap"].notna() & (table["error_max"] > 0)]  # im2col as it is approximates nothing
    names = list(rows.groupby("compressor")["gap"].max().sort_values().index)
    known = looks(["svd", "aca"])
    colours = {TOLERANCES[0]: known["aca"], TOLERANCES[1]: known["svd"]}
    with mpl.rc_context(RC):
        fig, axes = panels(list(TITLES.values()), 3, 0.19 * len(names) + 0.5)
        for ax, shape in zip(axes, TITLES, strict=True):
            ax.axvline(1, color=INK, linestyle="--", linewidth=0.9)
            for eps, look in colours.items():
                mine = rows[(rows["shape"] == shape) & (rows["eps"] == eps)]
                for row in mine.to_dict("records"):
                    face = look.colour if row["guarantee"] == "block" else PAPER
                    shift = -0.13 if eps == TOLERANCES[0] else 0.13
                    ax.plot(row["gap"], names.index(row["compressor"]) + shift, look.marker, ms=4.5, mfc=face,
                            mec=look.colour, mew=1.1)  # fmt: skip
            ax.set_yticks(range(len(names)), names if ax is axes[0] else [""] * len(names))
            ax.set(ylim=(len(names) - 0.4, -0.6), xscale="log")
            ax.set_xlim(min(0.9, 0.95 * rows["gap"].min()), 1.1 * rows["gap"].max())
            plain_ticks(ax.xaxis, log=True)
            ax.set_xlabel("mean rank / Eckart–Young rank")
            ax.grid(True, axis="y", color=GRID, linewidth=0.4)
        handles = [
            Line2D([], [], linestyle="", marker=look.marker, mfc=look.colour, mec=look.colour, label=f"eps {eps:g}")
            for eps, look in colours.items()
        ]
        handles.append(Line2D([], [], linestyle="", marker="o", mfc=PAPER, mec=MUTED, mew=1.1,
                              label="hollow: no promise for every block"))  # fmt: skip
        handles.append(Line2D([], [], color=INK, linestyle="--", linewidth=0.9, label="the least rank that keeps eps"))
        legend(fig, handles, 4)
        fig.savefig(path)


if __name__ == "__main__":
    main()
