"""What a training step holds, and its peak, beside the plain model's: formulas, ledgers and fresh processes.

``python -m benchmarks.memory [--records FILE] [--out DIR]`` prints the tables, and writes them, a CSV and a figure into
DIR. The network is the paper's, of widths 32, 64 and 128, after one epoch on the images. Rows are measured one by one;
one that DIR holds already is not measured again, so that the command may be interrupted; each names its commit.
"""

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import torch
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from torch import Tensor, nn
from tqdm import tqdm

import lrbench
from benchmarks.inputs import trained_network
from benchmarks.speed import images_of
from lrbench.checkpointing import checkpointed
from lrbench.environment import environment
from lrbench.files import write_atomically
from lrbench.measure.memory import Peak
from lrbench.measure.savings import measure_savings
from lrbench.measure.steps import measure_step_peaks
from lrbench.report.style import BAD, INK, MUTED, PAPER, RC, panels
from lrbench.report.style import looks as looks_of

BATCHES = (100, 256)
MIB = 2.0**20
MASKS = ("100000", "101010", "111111")
COSINE = 0.99
SEGMENTS = (2, 4, 8)

Make = Callable[[nn.Module], nn.Module]
"""Makes of the trained model, a copy for it alone, what takes the step."""


def rows() -> dict[str, Make]:
    """The rows of the table, by name."""

    def wrapped(mask: str, name: str, eps: float | None, path: Any, lean: bool) -> Make:
        def make(model: nn.Module) -> nn.Module:
            return lrbench.wrap(lrbench.lean(model) if lean else model, mask, name, eps, path)

        return make

    made: dict[str, Make] = {
        "native": lambda model: model,
        "native, channels last": _last,
        "111111, none, both": wrapped("111111", "none", None, "both", False),
    }
    for count in SEGMENTS:
        made[f"checkpointed, {count} segments"] = lambda model, count=count: checkpointed(model, count)
    for lean in (False, True):
        suffix = ", bits" if lean else ""
        if lean:
            made["native, bits"] = lrbench.lean
        for mask in MASKS:
            for eps in (0.1, 0.3):
                made[f"{mask}, svd {eps:g}{suffix}"] = wrapped(mask, "svd", eps, "backward", lean)
    made["111111, quant4, bits"] = wrapped("111111", "quant4", None, "backward", True)
    for label in ("checkpointed, 4 segments", "native, bits", "111111, svd 0.3, bits", "111111, quant4, bits"):
        made[f"{label}, channels last"] = lambda model, make=made[label]: make(_last(model))
    return made


def _last(model: nn.Module) -> nn.Module:
    """In the memory format that runs train in: native workspaces are smaller, and convolutions quicker."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, help="CIFAR-10 records (binary) to measure on; the photographs without")
    parser.add_argument("--processes", type=int, default=5, help="fresh processes for each peak (default 5)")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="batch sizes (default 100 256)")
    parser.add_argument("--out", type=Path, help="folder for memory.md, .csv, .json, .png and policy.toml")
    options = parser.parse_args(arguments)
    images, labels, name = images_of(options.records)
    model = trained_network(images, labels)
    facts: dict[str, Any] = {
        "images": name,
        "environment": environment(),
        "processes": options.processes,
        "largest": max(options.batches),
    }
    store = _Store(options.out, facts)
    size = max(options.batches)
    spans = [slice(k * size, (k + 1) * size) for k in range(3)]
    cells = [(size, label, make) for size in options.batches[::-1] for label, make in rows().items()]
    try:
        store.fill(
            "tuned", lambda: _tune(model, [(images[s].clone(), labels[s].clone()) for s in spans], options.processes)
        )
        for size, label, make in tqdm(cells, unit="row", disable=None):
            batch = images[:size].clone(), labels[:size].clone()  # a view would hold all images

            def measure(make: Make = make, batch: tuple[Tensor, Tensor] = batch) -> dict[str, Any]:
                return _measure(make(copy.deepcopy(model)), *batch, options.processes)

            store.fill(f"{size}: {label}", measure)
    except KeyboardInterrupt:
        print("interrupted: the table holds the rows that are measured; the same command goes on", file=sys.stderr)
    order = [f"{size}: {label}" for size, label, _ in cells]
    table = _table({key: store.rows[key] for key in order if key in store.rows})
    facts["missing"] = len(table) < len(options.batches) * len(rows())
    text = _markdown(table, store.rows, facts)
    print(text)
    if options.out is not None:
        write_atomically(options.out / "memory.md", text)
        write_atomically(options.out / "memory.csv", table.to_csv(index=False))
        write_atomically(options.out / "policy.toml", store.rows["tuned"]["policy"])
        draw(table, options.out / "memory.png")


class _Store:
    """What is measured already, in ``memory.json``: of other images it is begun anew."""

    def __init__(self, folder: Path | None, facts: dict[str, Any]) -> None:
        self.file = None if folder is None else folder / "memory.json"
        self.facts, self.rows = facts, {}
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            if self.file.exists():
                held = json.loads(self.file.read_text(encoding="utf-8"))
                if held["images"] == facts["images"] and held["processes"] == facts["processes"]:
                    self.rows = held["rows"]

    def fill(self, key: str, measure: Callable[[], Any]) -> Any:
        """Measure a row that is missing, and keep it."""
        if key not in self.rows:
            self.rows[key] = {**measure(), "commit": self.facts["environment"]["commit"]}
            if self.file is not None:
                write_atomically(self.file, json.dumps({**self.facts, "rows": self.rows}, indent=1))
        return self.rows[key]


def _measure(model: nn.Module, x: Tensor, y: Tensor, processes: int) -> dict[str, Any]:
    if model.__class__ is nn.Sequential and next(model.parameters()).is_contiguous(memory_format=torch.channels_last):
        x = x.contiguous(memory_format=torch.channels_last)
    savings = measure_savings(model, x, y)
    return {"savings": savings, **_peaks(measure_step_peaks(model, x, y, processes))}


def _peaks(peaks: list[Peak]) -> dict[str, Any]:
    return {
        "added": [peak.added for peak in peaks],
        "total": [peak.total for peak in peaks],
        "workspaces": peaks[0].workspaces,
    }


def _tune(model: nn.Module, batches: list[tuple[Tensor, Tensor]], processes: int) -> dict[str, Any]:
    """Tune on two batches of training images, and measure the gradients on a third."""
    model = _last(copy.deepcopy(model))
    tuned = lrbench.tune(model, batches[0], check=batches[1], cosine=COSINE, processes=processes)
    wrapped = lrbench.wrap(copy.deepcopy(model), tuned.policy)
    return {
        "policy": tuned.policy.to_toml(),
        "gradients": lrbench.gradient_errors(wrapped, model, *batches[2]).to_dict("records"),
        "candidates": tuned.candidates.to_dict("records"),
        "held": {"native": tuned.plain_held, "bits": tuned.lean_held, "tuned": tuned.held},
        "native": _peaks(tuned.plain_peaks),
        "bits": _peaks(tuned.lean_peaks),
        "tuned": _peaks(tuned.peaks),
    }


def _table(rows: dict[str, Any]) -> pd.DataFrame:
    """A row for each batch size and kind of step, in bytes."""
    lines = []
    for key, row in rows.items():
        size, _, label = key.partition(": ")
        if not label:
            continue
        savings, added = row["savings"], row["added"]
        native = statistics.median(rows[f"{size}: native"]["added"])
        lines.append(
            {
                "batch": int(size),
                "step": label,
                "formula_bytes": savings["formula_bytes"],
                "held_bytes": savings["held_bytes"],
                "lean_freed_bytes": savings["lean_freed_bytes"],
                "freed_bytes": savings["freed_bytes"],
                "peak_bytes": statistics.median(added),
                "peak_min": min(added),
                "peak_max": max(added),
                "peak_total_bytes": statistics.median(row["total"]),
                "peak_ratio": statistics.median(added) / native,
                "transient_bytes": statistics.median(added) - savings["held_bytes"],
            }
        )
    return pd.DataFrame(lines).sort_values("batch", kind="stable")


def _markdown(table: pd.DataFrame, rows: dict[str, Any], facts: dict[str, Any]) -> str:
    machine, tuned = facts["environment"], rows["tuned"]
    commits = sorted({str(row["commit"])[:7] for row in rows.values()})
    lines = [
        "# What a training step holds, and its peak",
        "",
        f"The paper's network, widths 32, 64, 128, after one epoch on {facts['images']}.",
        "Path `backward`, but for `none`. All in MiB.",
        f"{machine['processor']}, torch {machine['torch']}; commits {', '.join(commits)}, each row's in memory.json.",
        "",
        "*formula*: from shapes and ranks. *held*: by the ledger, when the forward pass ends. *bits*: ReLU, dropout",
        "and max pooling keep bits; *freed by bits* is what that or computing again alone frees of the plain model's,",
        "*freed* what compression frees beside it: differences of ledgers. *peak*: beyond what was resident",
        f"before the step, median of {facts['processes']} fresh processes, with the extremes. *beyond held*: what the",
        "peak is above what is held: gradients, and the transient workspace of the step.",
        "",
        *(["Rows are missing: the command was interrupted.", ""] if facts["missing"] else []),
        "| batch | step | formula | held | freed by bits | freed | peak | min – max | / native | beyond held | total |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in table.to_dict("records"):
        formula = "–" if pd.isna(row["formula_bytes"]) else f"{row['formula_bytes'] / MIB:.1f}"
        extremes = f"{row['peak_min'] / MIB:.1f} – {row['peak_max'] / MIB:.1f}"
        lines.append(
            f"| {row['batch']} | {row['step']} | {formula} | {row['held_bytes'] / MIB:.1f} "
            f"| {row['lean_freed_bytes'] / MIB:.1f} | {row['freed_bytes'] / MIB:.1f} | {row['peak_bytes'] / MIB:.1f} "
            f"| {extremes} | {row['peak_ratio']:.2f} | {row['transient_bytes'] / MIB:.1f} "
            f"| {row['peak_total_bytes'] / MIB:.0f} |"
        )
    return "\n".join([*lines, "", *_layer_lines(rows, facts["largest"]), *_tuned_lines(tuned, facts["largest"]), ""])


def _layer_lines(rows: dict[str, Any], size: int) -> list[str]:
    """What is claimed, held and freed of each layer, and the workspaces, at the larger batch and eps 0.3."""
    lines = [
        f"## By layer, batch of {size}, `111111`, svd 0.3",
        "",
        "In MiB. *saved*: what the layer keeps of its input without compression, and nobody else does. *workspace*:",
        "the transient peak of the layer's forward and backward pass alone.",
        "",
        "| bits | layer | input | saved | formula | held | freed | workspace, forward | backward | why less is freed |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for suffix in ("", ", bits"):
        row = rows.get(f"{size}: 111111, svd 0.3{suffix}")
        for layer in [] if row is None else row["savings"]["layers"]:
            sizes = [layer[f"{key}_bytes"] / MIB for key in ("input", "saved", "formula", "held", "freed")]
            sizes += [size / MIB for size in row["workspaces"][layer["layer"]]]
            cells = " | ".join(f"{size:.1f}" for size in sizes)
            lines.append(f"| {'yes' if suffix else 'no'} | {layer['layer']} | {cells} | {layer['reason'] or ''} |")
    return [*lines, ""]


def _tuned_lines(tuned: dict[str, Any], size: int) -> list[str]:
    """The tuned policy in words."""
    middle = {kind: statistics.median(tuned[kind]["added"]) for kind in ("native", "bits", "tuned")}
    lines = [
        "## A policy that was found",
        "",
        f"`lrbench.tune(model, batch, check=another, cosine={COSINE})` at batch {size}, the model in channels last:",
        "of each layer a form of its input that keeps the weight's gradient, on both batches; layers that do not lower",
        "the peak are left plain. Gradients are measured on a third batch of training images.",
        "",
        "| | held, MiB | peak, MiB | min – max | peak / native |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    names = {"native": "native", "bits": "bits alone, exact gradients", "tuned": "the policy"}
    for kind, words in names.items():
        added = tuned[kind]["added"]
        lines.append(
            f"| {words} | {tuned['held'][kind] / MIB:.1f} | {middle[kind] / MIB:.1f} "
            f"| {min(added) / MIB:.1f} – {max(added) / MIB:.1f} | {middle[kind] / middle['native']:.2f} |"
        )
    lines += ["", "| layer | cosine | relative error |", "| --- | ---: | ---: |"]
    lines += [f"| {row['layer']} | {row['cosine']:.4f} | {row['error']:.3f} |" for row in tuned["gradients"]]
    return [*lines, "", "```toml", tuned["policy"].rstrip(), "```"]


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw peaks as bars, what is held as marks on them, a panel for each batch size."""
    sizes, present = list(table["batch"].unique()), set(table["step"])
    steps = [label for label in rows() if label in present]  # one line for each, also where a panel lacks it
    colours = looks_of(["svd"])
    with mpl.rc_context(RC):
        fig, axes = panels([f"batch of {size}" for size in sizes], len(sizes), 5.6)
        for ax, size in zip(axes, sizes, strict=True):
            mine = table[table["batch"] == size]
            for row in mine.to_dict("records"):
                y = steps.index(row["step"])
                compressed = any(method in row["step"] for method in ("svd", "quant4"))
                colour = colours["svd"].colour if compressed else MUTED
                ax.barh(y, row["peak_bytes"] / MIB, 0.62, color=colour, alpha=0.8, linewidth=0)
                low, high = (row[key] / MIB for key in ("peak_min", "peak_max"))
                ax.plot([low, high], [y, y], color=INK, linewidth=1.2)
                ax.plot(row["held_bytes"] / MIB, y, "|", color=BAD, ms=8, mew=1.6)
                end = max(high, row["held_bytes"] / MIB)
                ax.text(end, y, f" {row['peak_ratio']:.2f}×", va="center", fontsize=7,
                        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.4})  # fmt: skip
            first = ax is axes[0]
            ax.set_yticks(range(len(steps)), steps if first else [""] * len(steps))
            most = max(mine["peak_max"].max(), mine["held_bytes"].max()) / MIB
            ax.set(xlim=(0, 1.16 * most), ylim=(len(steps) - 0.4, -0.6), xlabel="memory of a training step (MiB)")
            ax.axvline(
                mine.loc[mine["step"] == "native", "peak_bytes"].item() / MIB, color=INK, linestyle="--", linewidth=1
            )
            ax.grid(False, axis="y")
        handles = [
            Patch(color=colours["svd"].colour, alpha=0.8, label="peak, compressed"),
            Patch(color=MUTED, alpha=0.8, label="peak, exact"),
            Line2D([], [], color=BAD, marker="|", linestyle="", ms=8, mew=1.6, label="held after the forward pass"),
            Line2D([], [], color=INK, linestyle="--", linewidth=1, label="peak of the native model"),
        ]
        fig.legend(handles=handles, loc="outside lower center", ncols=4)
        fig.savefig(path)


if __name__ == "__main__":
    main()
