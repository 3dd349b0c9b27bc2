"""The tables that the page and the summary show: every cell already text, every cut beside its denominator."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lrbench import paper
from lrbench.report.contrasts import LEVEL, RESAMPLES, compare_cells, judge_contrast
from lrbench.report.effects import estimate_effects
from lrbench.report.entries import Cell, Peak, Size, Spread
from lrbench.report.summaries import (
    IMAGES,
    compare_accuracy,
    fits_paper,
    measure_held,
    measure_peaks,
    measure_sizes,
    measure_times,
    plain_mask,
    plain_runs,
)
from lrbench.report.tables import Study
from lrbench.report.verdicts import judge_accuracy, judge_held, judge_peak, judge_time
from lrbench.report.wording import (
    MISSING,
    NO_BREAK,
    count,
    general,
    join,
    number,
    percent,
    plural,
    relative_error,
    signed,
    span,
)
from lrbench.store import Record

__all__ = [
    "Listing",
    "list_accuracy",
    "list_bytes",
    "list_commands",
    "list_contrasts",
    "list_effects",
    "list_gradients",
    "list_held",
    "list_origins",
    "list_peaks",
    "list_policies",
    "list_runs",
    "list_times",
]

_CELL = ("mask", "compressor", "eps", "path")
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


def list_accuracy(study: Study) -> Listing:
    """List last-epoch test accuracies and their paired differences."""
    rows = []
    plain = plain_runs(study)
    if len(plain):
        means = (percent(float(plain[f"accuracy_{mode}"].mean())) for mode in ("as_trained", "exact"))
        rows.append((plain_mask(study), "plain model", *[MISSING] * 2, *means, *[MISSING] * 3, "the reference"))
    for comparison in compare_accuracy(study):
        has_interval = comparison.low is not None and comparison.high is not None
        interval = f"{signed(comparison.low, 2)} to {signed(comparison.high, 2)}" if has_interval else MISSING
        by_seed = ", ".join(
            f"{seed}:{NO_BREAK}{signed(value)}" for seed, value in sorted(comparison.differences.items())
        )
        rows.append(
            (
                *_cell(comparison.cell),
                percent(comparison.accuracy),
                percent(comparison.exact),
                signed(comparison.mean),
                interval,
                by_seed or MISSING,
                judge_accuracy(comparison, plain_mask(study)).outcome,
            )
        )
    return Listing(
        caption="Last-epoch test accuracy, and its difference to the plain model's in points",
        columns=(*_CELL, "as trained", "exact", "difference", "90 % interval", "by seed", "verdict"),
        rows=tuple(rows),
        numeric=frozenset({4, 5, 6, 7}),
        prose=frozenset({8, 9}),
        note="Means over seeds. “As trained” evaluates with the approximation where the path has it, “exact” without "
        "any. Differences are as trained and paired by seed; the interval is Student's t. Each interval stands for "
        "itself: of ten, one is expected to miss.",
    )


def list_contrasts(study: Study) -> Listing:
    """List the comparisons that the presets wrote down, made or not."""
    rows = []
    for contrast in compare_cells(study):
        intervals = [None if contrast.low is None else (contrast.low, contrast.high), contrast.images]
        by_seed = ", ".join(f"{seed}:{NO_BREAK}{signed(value)}" for seed, value in contrast.differences.items())
        rows.append(
            (
                contrast.name,
                contrast.cell,
                contrast.against,
                signed(contrast.mean),
                *(MISSING if ends is None else f"{signed(ends[0], 2)} to {signed(ends[1], 2)}" for ends in intervals),
                MISSING if contrast.p is None else number(contrast.p, 3),
                by_seed or MISSING,
                judge_contrast(contrast),
            )
        )
    level = f"{100 * LEVEL:g} %"
    columns = (f"{level} over seeds", f"{level} over seeds and images", "p (Holm)", "by seed", "verdict")
    return Listing(
        caption="The comparisons that the experiment was run for, in points of last-epoch test accuracy",
        columns=("comparison", "cell", "against", "difference", *columns),
        rows=tuple(rows),
        numeric=frozenset({3, 4, 5, 6}),
        prose=frozenset({0, 7, 8}),
        note="Written down before the runs, in the preset. As trained, paired by seed. Over seeds: Student's t. Over "
        f"seeds and images: both drawn again, {count(RESAMPLES)} times, from the stored predictions. p: of the paired "
        "t test, adjusted for the number of comparisons. The verdict is that of the interval over seeds.",
    )


def list_effects(study: Study) -> Listing:
    """List main effects and pairs of every variant with masks enough to tell them apart."""
    rows, notes = [], []
    for effects in estimate_effects(study):
        for effect in sorted((*effects.main, *effects.pairs), key=lambda effect: effect.points):
            clear = "holds 0" if effect.low <= 0 <= effect.high else "costs" if effect.high < 0 else "gains"
            interval = f"{signed(effect.low, 2)} to {signed(effect.high, 2)}"
            rows.append((effects.cell.label, effect.name, signed(effect.points, 2), interval, clear))
        notes.append(
            f"{effects.cell.label}: {plural(effects.masks, 'mask')}, {plural(effects.seeds, 'seed')}, "
            f"{effects.freedom} degrees of freedom, residual {number(effects.noise)} points."
        )
    return Listing(
        caption="Effects of compressing each layer, and of pairs of layers beyond the sum, in points of accuracy",
        columns=("compressor", "layer or pair", "effect", f"{100 * LEVEL:g} % interval", "verdict"),
        rows=tuple(rows),
        numeric=frozenset({2, 3}),
        note=" ".join(
            ["Least squares, a block for each seed; intervals hold for all effects of a kind at once.", *notes]
        ),
    )


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
        f"{size.layer}, {size.m} × {size.n}",
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
            *_cell(timing.cell),
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
        columns=(*_CELL, *columns, "runs × rounds", "verdict"),
        rows=rows,
        numeric=frozenset(range(4, 10)),
        note="Medians, with quartiles in brackets; of several runs the median of medians and the widest quartiles.",
    )


def list_gradients(study: Study) -> Listing:
    """List what compression did to the gradient of each compressed layer's weight, means over seeds."""
    columns = ["error_mean", "gradient_cosine", "gradient_cosine_min", "gradient_error", "gradient_bias"]
    measured = study.layers[study.layers["gradient_error"].notna()]
    rows = []
    for (_, layer, mask, _), group in measured.groupby(["index", "layer", "mask", "label"], sort=False):
        first = group.iloc[0]
        eps, path = general(first["layer_eps"]), str(first["layer_path"])
        figures = [number(group[column].astype(float).mean(), 4) for column in columns]
        rows.append((str(layer), str(mask), str(first["name"]), eps, path, *figures, str(len(group))))
    return Listing(
        caption="What compression does to the gradient of a layer's weight",
        columns=("layer", *_CELL, "mean block error", "cosine", "least cosine", "error", "bias", "runs"),
        rows=tuple(sorted(rows, key=lambda row: row[:2])),
        numeric=frozenset(range(5, 11)),
        note="Against the plain model with the same weights, on the same batches and with the same dropout, after "
        "training. Error is ‖ĝ − g‖ / ‖g‖ over the batches together; bias is ‖Σ(ĝ − g)‖ / ‖Σ g‖, what does not average "
        "out over them. Where layers in front are approximated in the forward pass, their errors are in it, too.",
    )


def list_held(study: Study) -> Listing:
    """List what a training step holds, by formula and by ledger, and its peak, beside the plain model's."""
    peaks = {(peak.cell.mask, peak.cell.label): peak for peak in measure_peaks(study)}
    rows = []
    for plain in measure_held(study, plain=True):
        held = (count(plain.formula), count(plain.held), *[MISSING] * 3)
        rows.append((plain.cell.mask, "plain model", *[MISSING] * 2, *held, *[MISSING] * 2, "the reference"))
    for entry in measure_held(study):
        verdicts = join([verdict.outcome for verdict in judge_held(entry)])
        figures = (
            count(entry.formula),
            count(entry.held),
            number(entry.held / entry.plain) if entry.plain else MISSING,
            count(entry.freed),
            count(entry.lean_freed),
        )
        rows.append((*_cell(entry.cell), *figures, *_peak_cells(peaks.pop(_key(entry.cell), None)), verdicts))
    for peak in peaks.values():
        rows.append((*_cell(peak.cell), *[MISSING] * 5, *_peak_cells(peak), "not measured what it holds"))
    images = {entry.images for plain in (True, False) for entry in measure_held(study, plain)} - {None}
    batch = f", for a batch of {join([str(size) for size in sorted(filter(None, images))])} images" if images else ""
    columns = ("by formula", "held", "ratio to plain", "freed by compression", "freed by keeping bits")
    return Listing(
        caption=f"What one training step holds{batch}, in bytes",
        columns=(*_CELL, *columns, "peak added", "peak ratio to plain", "verdict"),
        rows=tuple(rows),
        numeric=frozenset(range(4, 11)),
        prose=frozenset({11}),
        note="Held is what the graph leaves alive when the forward pass ends, every storage once, found by a ledger; "
        "the formula is arithmetic from shapes and ranks. Freed is the difference of two ledgers: to the model without "
        "compression, and from that to the plain model; a minus sign is memory added. Means over seeds. The peak is "
        "what a whole step adds to the process, and includes what lives only for a moment.",
    )


def _peak_cells(peak: Peak | None) -> tuple[str, str]:
    return (MISSING, MISSING) if peak is None else (count(peak.wrapped.middle), number(peak.ratio))


def _key(cell: Cell) -> tuple[str, str]:
    return cell.mask, cell.label


def list_peaks(study: Study) -> Listing:
    """List the peak memory of a training step beside the plain model's."""
    mib = 2.0**20
    rows = tuple(
        (
            *_cell(peak.cell),
            _spread(_scaled(peak.wrapped, mib), 1),
            _spread(_scaled(peak.plain, mib), 1),
            number(peak.ratio),
            *(MISSING if s is None else _spread(_scaled(s, mib), 1) for s in (peak.wrapped_total, peak.plain_total)),
            f"{peak.runs} × {count(peak.processes)}",
            judge_peak(peak).outcome,
        )
        for peak in measure_peaks(study)
    )
    return Listing(
        caption="Peak memory that a training step adds, in MiB, and its ratio to the plain model's",
        columns=(
            *_CELL,
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
    for run in study.runs.astype(object).where(study.runs.notna(), None).to_dict("records"):
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
        columns=(*_CELL, "seed", "outcome", "as trained", "exact", "seconds", "remark", "id"),
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


def _cell(cell: Cell) -> tuple[str, str, str, str]:
    return cell.mask, cell.name, general(cell.eps), cell.path or MISSING


def _spread(spread: Spread, digits: int) -> str:
    middle, around = number(spread.middle, digits), span(spread.low, spread.high, digits)
    return middle if around == middle else f"{middle} [{around}]"


def _scaled(spread: Spread, unit: float) -> Spread:
    return Spread(spread.middle / unit, spread.low / unit, spread.high / unit)
