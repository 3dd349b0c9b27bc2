"""The tables of sizes, costs and runs: every cell already text, every cut beside its denominator."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lrbench import paper
from lrbench.report.entries import Cell, Peak, Size, Spread
from lrbench.report.summaries import (
    IMAGES,
    fits_paper,
    measure_held,
    measure_peaks,
    measure_sizes,
    measure_times,
)
from lrbench.report.tables import Study
from lrbench.report.verdicts import judge_held, judge_peak, judge_time
from lrbench.report.wording import (
    MISSING,
    count,
    general,
    join,
    number,
    percent,
    plural,
    relative_error,
    shape,
    span,
    times,
)
from lrbench.store import Record

__all__ = [
    "CELL",
    "Listing",
    "list_bytes",
    "list_commands",
    "list_held",
    "list_origins",
    "list_peaks",
    "list_policies",
    "list_runs",
    "list_times",
    "name_cell",
]

CELL = ("mask", "compressor", "eps", "path")
_BYTE_COLUMNS = (
    "layer",
    "mask",
    "compressor",
    "eps",
    "path",
    "mean rank",
    "factor bytes",
    "cut vs im2col",
    "cut vs input",
    "cut vs saved",
    "im2col bytes",
    "input bytes",
    "saved bytes",
    "freed bytes",
    "break-even rank",
    "mean error",
    "worst error",
    "violations",
    "guarantee",
    "own / escalated / stored",
    "runs",
)


_RUN = ("id", "mask", "plain", "name", "eps", "path", "seed", "status", "reason", "outcome", "outcome_detail",
        "accuracy_as_trained", "accuracy_exact", "seconds")  # fmt: skip


@dataclass(frozen=True)
class Listing:
    """A table of text.

    Columns whose index is in ``numeric`` are set flush right, those in ``prose`` may wrap, and by those in ``choices``
    rows may be chosen.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()
    prose: frozenset[int] = frozenset()
    note: str = ""
    choices: frozenset[int] = frozenset()


def list_bytes(study: Study) -> Listing:
    """List bytes, ranks and true errors of every layer of every cell, beside the paper's where they compare."""
    sizes = sorted(measure_sizes(study), key=lambda size: (size.index, size.cell.mask))
    comparable = [size for size in sizes if fits_paper(size)]
    rows = []
    for size in sizes:
        rows.append(_byte_row(size))
        if comparable and size is comparable[-1]:
            rows.append(_paper_row())
    note = (
        f"Bytes are scaled to a batch of {IMAGES} images. A cut is 1 − factors / denominator, against what is saved "
        "1 − held / saved, by the ledgers; “larger” is larger than that denominator. im2col is the lowered matrix, the "
        "input is what PyTorch's own convolution keeps for the backward pass, and saved is what of that nobody else "
        "keeps: where it is 0, compressing frees nothing, and the cell names who keeps the input. Freed is the "
        "difference of two measured ledgers; a minus sign is memory that compression adds. "
        "Errors are relative and true, in Frobenius norms. Shares of blocks: kept as the compressor's"
        " own, escalated to the SVD, stored as they are."
    )
    if comparable:
        note += (
            " The paper prints its bytes and its cut against im2col; the bytes of its input follow from "
            "100 · 3 · 32 · 32 · 4, and it gives neither ranks nor true errors."
        )
    return Listing(
        caption=f"Bytes, ranks and true errors by layer, for {IMAGES} images",
        columns=_BYTE_COLUMNS,
        rows=tuple(rows),
        numeric=frozenset({*range(5, 18), 19, 20}),
        note=note,
    )


def _byte_row(size: Size) -> tuple[str, ...]:
    shares = (size.own, size.escalated, size.stored)
    violations = MISSING
    if size.violations is not None and size.eps is not None:
        violations = f"{count(size.violations)} of {count(size.blocks)}"
    own = size.cell.compressor == size.method
    return (
        f"{size.layer}, {shape(size.m, size.n)}",
        size.cell.mask,
        size.cell.name if own else f"{size.cell.name}: {size.method}",
        general(size.eps),
        size.path or MISSING,
        number(size.rank_mean),
        count(size.factor_bytes),
        cut_cell(size.cut_im2col),
        cut_cell(size.cut_input),
        _saved_cell(size),
        count(size.im2col_bytes),
        count(size.input_bytes),
        count(size.saved_bytes),
        count(size.freed_bytes),
        number(size.break_even_rank),
        relative_error(size.error_mean, None),
        relative_error(size.error_max, size.eps),
        violations,
        {"block": "every block", "batch": "the batch only"}.get(size.guarantee or "", "not certified"),
        MISSING if None in shares else " / ".join(number(100 * (share or 0.0), 1) for share in shares) + " %",
        count(size.runs),
    )


def _paper_row() -> tuple[str, ...]:
    return (
        "layer 1, 27 × 1024",
        "100000",
        "the paper's ACA",
        general(paper.EPS),
        "both",
        MISSING,
        count(paper.FACTOR_BYTES),
        cut_cell(1 - paper.FACTOR_BYTES / paper.IM2COL_BYTES),
        cut_cell(1 - paper.FACTOR_BYTES / paper.INPUT_BYTES),
        MISSING,
        count(paper.IM2COL_BYTES),
        count(paper.INPUT_BYTES),
        *[MISSING] * (len(_BYTE_COLUMNS) - 12),
    )


def cut_cell(cut: float | None) -> str:
    """Write a cut for a column that names its denominator; one that saves nothing says so."""
    text = number(cut)
    if cut is None or cut > 0:
        return text
    return f"{text} (no saving)" if text == number(0.0) else f"{text} (larger)"


def _saved_cell(size: Size) -> str:
    """Write the cut against what is saved, or who keeps the input, too."""
    if size.saved_bytes is None:
        return "not measured"
    if size.saved_bytes == 0:
        return "nothing to save" + (f" ({size.kept_by})" if size.kept_by else "")
    return cut_cell(size.cut_saved)


def list_times(study: Study) -> Listing:
    """List the time of a training step beside the plain model's."""
    rows = tuple(
        (
            *name_cell(timing.cell),
            _spread(timing.wrapped, 1),
            _spread(timing.plain, 1),
            _spread(timing.ratio, 2),
            *(number(part, 1) for part in (timing.lowering, timing.compressing, timing.rest)),
            f"{timing.runs} × {count(timing.rounds)}",
            judge_time(timing).outcome,
        )
        for timing in measure_times(study)
    )
    columns = ("step (ms)", "plain step (ms)", "ratio to plain", "lowering (ms)", "compressing (ms)", "rest (ms)")
    return Listing(
        caption="Time of one training step, in milliseconds, and its ratio to the plain model's",
        columns=(*CELL, *columns, "runs × rounds", "verdict"),
        rows=rows,
        numeric=frozenset(range(4, 10)),
        note="Medians, with quartiles in brackets; of several runs the median of medians and the widest quartiles.",
    )


def list_held(study: Study) -> Listing:
    """List what a training step holds, by formula and by ledger, and its peak, beside the plain model's."""
    peaks = {(peak.cell.mask, peak.cell.label): peak for peak in measure_peaks(study)}
    rows, references, entries = [], measure_held(study, plain=True), measure_held(study)
    for plain in references:
        held = (count(plain.formula), count(plain.held), *[MISSING] * 3)
        rows.append((plain.cell.mask, "plain model", *[MISSING] * 2, *held, *[MISSING] * 2, "the reference"))
    for entry in entries:
        verdicts = join([verdict.outcome for verdict in judge_held(entry)])
        figures = (
            count(entry.formula),
            count(entry.held),
            number(entry.held / entry.plain) if entry.plain else MISSING,
            count(entry.freed),
            count(entry.lean_freed),
        )
        rows.append((*name_cell(entry.cell), *figures, *_peak_cells(peaks.pop(_key(entry.cell), None)), verdicts))
    for peak in peaks.values():
        rows.append((*name_cell(peak.cell), *[MISSING] * 5, *_peak_cells(peak), "not measured what it holds"))
    images = {entry.images for entry in (*references, *entries)} - {None}
    batch = f", for a batch of {join([str(size) for size in sorted(filter(None, images))])} images" if images else ""
    columns = ("by formula", "held", "ratio to plain", "freed by compression", "freed by keeping bits")
    return Listing(
        caption=f"What one training step holds{batch}, in bytes",
        columns=(*CELL, *columns, "peak added", "peak ratio to plain", "verdict"),
        rows=tuple(rows),
        numeric=frozenset(range(4, 11)),
        prose=frozenset({11}),
        note="Held is what the graph leaves alive when the forward pass ends, every storage once, found by a ledger; "
        "the formula is arithmetic from shapes and ranks. Freed is the difference of two ledgers: to the model without "
        "compression, and from that to the plain model; a minus sign is memory added. Means over seeds. The peak is "
        "what a whole step adds to the process, and includes what lives only for a moment.",
    )


def _peak_cells(peak: Peak | None) -> tuple[str, str]:
    return (MISSING, MISSING) if peak is None else (count(peak.wrapped.middle), times(peak.ratio))


def _key(cell: Cell) -> tuple[str, str]:
    return cell.mask, cell.label


def list_peaks(study: Study) -> Listing:
    """List the peak memory of a training step beside the plain model's."""
    mib = 2.0**20
    rows = tuple(
        (
            *name_cell(peak.cell),
            _spread(_scaled(peak.wrapped, mib), 1),
            _spread(_scaled(peak.plain, mib), 1),
            times(peak.ratio),
            *(MISSING if s is None else _spread(_scaled(s, mib), 1) for s in (peak.wrapped_total, peak.plain_total)),
            f"{peak.runs} × {count(peak.processes)}",
            judge_peak(peak).outcome,
        )
        for peak in measure_peaks(study)
    )
    return Listing(
        caption="Peak memory that a training step adds, in MiB, and its ratio to the plain model's",
        columns=(
            *CELL,
            "peak (MiB)",
            "plain peak (MiB)",
            "ratio to plain",
            "whole process (MiB)",
            "plain process (MiB)",
            "runs × processes",
            "verdict",
        ),
        rows=rows,
        numeric=frozenset(range(4, 9)),
        note="Medians over processes, with the smallest and the largest in brackets. The whole process, with Python, "
        "PyTorch, the model and the batch, is at its peak in the same step.",
    )


def list_policies(study: Study) -> Listing:
    """List what each policy says of each layer."""
    rows: dict[tuple[str, ...], None] = {}
    for name, text in zip(study.runs["name"], study.runs["policy"], strict=True):
        if pd.isna(text):
            continue
        policy = json.loads(text)
        bits = ("no", "yes")[policy["lean"]]
        for layer, said in policy["layers"].items() or [(MISSING, {})]:
            options = ", ".join(f"{key} {value}" for key, value in said.get("options", {}).items())
            method = f"{said['compressor']} v{said['version']}" if said else MISSING
            eps, path = general(said.get("eps")), said.get("path") or MISSING
            rows[str(name), bits, layer, method, eps, path, options or MISSING] = None
    return Listing(
        caption="What the policies say",
        columns=("policy", "keeps bits", "layer", "compressor", "eps", "path", "options"),
        rows=tuple(rows),
        note="Keeping bits changes every ReLU, dropout and max pooling. Without an eps it is the compressor's default.",
    )


def list_runs(study: Study) -> Listing:
    """List every run, finished and failed."""
    rows = []
    runs = study.runs[list(_RUN)]
    for run in runs.astype(object).where(runs.notna(), None).to_dict("records"):
        remarks = (run["reason"], run["outcome_detail"])
        rows.append(
            (
                str(run["mask"]),
                "plain model" if run["plain"] else str(run["name"]),
                general(run["eps"]),
                run["path"] or MISSING,
                str(run["seed"]),
                run["outcome"] or run["status"],
                percent(run["accuracy_as_trained"]),
                percent(run["accuracy_exact"]),
                number(run["seconds"], 1),
                "; ".join(str(remark) for remark in remarks if remark) or MISSING,
                str(run["id"]),
            )
        )
    return Listing(
        caption="Every run",
        columns=(*CELL, "seed", "outcome", "as trained", "exact", "seconds", "remark", "id"),
        rows=tuple(rows),
        numeric=frozenset({4, 6, 7, 8}),
        prose=frozenset({9}),
        choices=frozenset(range(6)),
    )


def list_origins(records: Sequence[Record]) -> list[Listing]:
    """List the data and the environment that the runs name, with the number of runs where they differ."""
    environments = [record.get("environment") or {} for record in records]
    return [
        _facts("Data", [record.get("data") or {} for record in records]),
        _facts("Environment", [{k: v for k, v in facts.items() if k != "command"} for facts in environments]),
    ]


def list_commands(records: Sequence[Record]) -> dict[str, str]:
    """List the commands that gave the runs, as they were given, each with how many it gave."""
    commands = Counter(str((record.get("environment") or {}).get("command") or "") for record in records)
    return {command: plural(amount, "run") for command, amount in commands.items() if command.strip()}


def _facts(caption: str, dictionaries: Sequence[dict[str, Any]]) -> Listing:
    names = list(dict.fromkeys(name for facts in dictionaries for name in facts))
    rows = []
    for name in names:
        values = Counter(_fact(facts.get(name)) for facts in dictionaries)
        text = "; ".join(f"{value} ({plural(amount, 'run')})" for value, amount in values.items())
        rows.append((name, text if len(values) > 1 else next(iter(values))))
    return Listing(caption, ("what", "value"), tuple(rows))


def _fact(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(part) for part in value)
    if value is None:
        return "not recorded"
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def name_cell(cell: Cell) -> tuple[str, str, str, str]:
    """Name a cell in the columns ``CELL``."""
    return cell.mask, cell.name, general(cell.eps), cell.path or MISSING


def _spread(spread: Spread, digits: int) -> str:
    middle, around = number(spread.middle, digits), span(spread.low, spread.high, digits)
    return middle if around == middle else f"{middle} [{around}]"


def _scaled(spread: Spread, unit: float) -> Spread:
    return Spread(spread.middle / unit, spread.low / unit, spread.high / unit)
