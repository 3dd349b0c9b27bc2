"""Verdicts: what the runs show, in words, each number from the records and each denominator named.

Nothing here flatters. A saving is only called one against what it was measured against, a difference in accuracy only
where its interval says so, and what one seed or a failed measurement cannot tell is said to be untold.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lrbench.report.contrasts import Contrast, are_equal, compare_cells, judge_contrast
from lrbench.report.entries import Comparison, Held, Kept, Peak, Size, Timing
from lrbench.report.summaries import (
    LEVEL,
    MARGIN,
    compare_accuracy,
    measure_held,
    measure_peaks,
    measure_sizes,
    measure_times,
    plain_mask,
    plain_runs,
    tolerances,
)
from lrbench.report.tables import Study, finished
from lrbench.report.wording import NO_BREAK, count, join, number, percent, plural, relative_error, signed, span, times
from lrbench.store import is_finished

__all__ = ["Verdict", "headlines", "judge"]

PHOTOS = (
    "The data are photos: patches of two photographs that scikit-learn ships. They try the instrument; "
    "no finding rests on them."
)


@dataclass(frozen=True)
class Verdict:
    """One judgement.

    Attributes
    ----------
    topic
        ``Comparisons``, ``Does it pay``, ``Accuracy``, ``Tolerance``, ``Size``, ``Step time``, ``Memory held``,
        ``Peak memory``, ``Failed runs`` or ``Not measured``.
    tone
        ``good``, ``bad``, ``open`` (cannot be told) or ``note``.
    outcome
        The judgement in a few words, the same for all that share it.
    subject, where
        What is judged, and under which mask or in which layer.
    key
        The number that decided, with its unit.
    text
        The judgement as a sentence, with its numbers; empty where a table has it.
    """

    topic: str
    tone: str
    outcome: str
    subject: str
    where: str
    key: str
    text: str


@dataclass(frozen=True)
class Headline:
    """All subjects of one topic that share an outcome."""

    topic: str
    tone: str
    outcome: str
    subjects: tuple[str, ...]


def judge(study: Study) -> list[Verdict]:
    """Judge what a study measured, failed at, or left unmeasured, each thing by itself."""
    mask = plain_mask(study)
    return [
        *(_judge_comparison(contrast) for contrast in compare_cells(study)),
        *_judge_plain(study, mask),
        *_judge_accuracies(compare_accuracy(study), mask),
        *(judge_tolerance(kept) for kept in tolerances(study)),
        *judge_sizes(measure_sizes(study)),
        *(judge_time(timing) for timing in measure_times(study)),
        *(verdict for held in measure_held(study) for verdict in judge_held(held)),
        *(judge_peak(peak) for peak in measure_peaks(study)),
        *judge_failures(study),
        *judge_gaps(study),
    ]


def headlines(verdicts: Iterable[Verdict]) -> list[Headline]:
    """Gather verdicts by topic and outcome: ``costs accuracy: aca-estimate (101010: −8.4 points)``."""
    gathered: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for verdict in verdicts:
        subjects = gathered.setdefault((verdict.topic, verdict.tone, verdict.outcome), {})
        subjects.setdefault(verdict.subject, []).append(_keyed(verdict))
    return [
        Headline(*key, tuple(_with_places(subject, places) for subject, places in subjects.items()))
        for key, subjects in gathered.items()
    ]


def _keyed(verdict: Verdict) -> str:
    words = f"{verdict.where}: {verdict.key}" if verdict.where and verdict.key else verdict.where or verdict.key
    return words.replace(" ", NO_BREAK) if verdict.where else words


def _with_places(subject: str, places: Sequence[str]) -> str:
    named = [place for place in dict.fromkeys(places) if place]
    return f"{subject} ({', '.join(named)})" if named else subject


def _judge_comparison(contrast: Contrast) -> Verdict:
    """Judge a comparison that was written down; its table holds the sentence."""
    outcome = judge_contrast(contrast)
    tones = {"worse": "bad", "better": "good"}
    tone = "bad" if contrast.odd else "good" if outcome.startswith("no difference") else tones.get(outcome, "open")
    interim = f", {plural(len(contrast.missing), 'seed')} to come" if contrast.missing and contrast.differences else ""
    key = "" if contrast.mean is None else f"{signed(contrast.mean)} points{interim}"
    return Verdict("Comparisons", tone, outcome, contrast.name, "", key, "")


def _judge_plain(study: Study, mask: str) -> list[Verdict]:
    runs = plain_runs(study)
    if runs.empty:
        text = f"No run of the plain model ({mask}) finished with an accuracy, so nothing can be compared with it."
        return [Verdict("Accuracy", "open", "no plain model to compare with", "every mask", "", "", text)]
    by_seed = [
        f"seed {int(seed)}: {percent(float(accuracy))}"
        for seed, accuracy in zip(runs["seed"], runs["accuracy_as_trained"], strict=True)
    ]
    mean = percent(float(runs["accuracy_as_trained"].mean()))
    text = f"The plain model ({mask}) reaches {mean} ({', '.join(by_seed)})."
    odd = runs[runs["outcome"].isin(["chance", "diverged"])]
    if odd.empty:
        return [Verdict("Accuracy", "note", "plain model", mask, "", mean, text)]
    seeds = _seeds([int(seed) for seed in odd["seed"]])
    text += f" It did not learn on {seeds}: there a comparison says nothing about compression."
    return [Verdict("Accuracy", "open", "the plain model itself did not learn", mask, seeds, mean, text)]


def _judge_accuracies(comparisons: Sequence[Comparison], plain: str) -> list[Verdict]:
    """Judge each cell's accuracy by itself, and say so where they are so many that chance alone would stand out."""
    verdicts = [judge_accuracy(comparison, plain) for comparison in comparisons]
    intervals = sum(1 for c in comparisons if c.low is not None and c.high is not None and c.low < c.high)
    expected = (1 - LEVEL) * intervals
    if expected >= 1:
        text = (
            f"Each of these {intervals} intervals is for itself: if nothing made a difference, about "
            f"{number(expected, 1)} of them would leave out zero all the same. Only the comparisons that a preset "
            "names are adjusted for their number."
        )
        outcome = "each interval is for itself, not adjusted for their number"
        verdicts.append(Verdict("Accuracy", "note", outcome, plural(intervals, "interval"), "", "", text))
    return verdicts


def judge_accuracy(comparison: Comparison, plain: str) -> Verdict:
    """Judge what a cell costs in accuracy; ``plain`` is the plain model's mask."""
    tone, outcome = _accuracy_outcome(comparison)
    cell, pairs = comparison.cell, len(comparison.differences)
    sentences = []
    if comparison.mean is not None:
        by_seed = ", ".join(f"seed {seed}: {signed(value)}" for seed, value in sorted(comparison.differences.items()))
        difference = f"{signed(comparison.mean)} points against {plain}"
        if comparison.low is None or comparison.high is None:
            sentences.append(f"{difference} ({by_seed}). One seed gives no interval.")
            sentences += _binomial(comparison)
        else:
            interval = f"{signed(comparison.low, 2)} to {signed(comparison.high, 2)}"
            sentences.append(
                f"{difference}; paired t 90 % interval {interval}, {plural(pairs, 'seed')} ({by_seed}): {outcome}."
            )
            if are_equal(comparison.differences.values()):
                sentences.append(
                    f"The {pairs} differences are equal; so few seeds cannot warrant an interval of no width."
                )
    elif comparison.accuracy is not None:
        sentences.append(f"{percent(comparison.accuracy)}, with no plain run of the same seed to compare with.")
    for seeds, words in (
        (comparison.diverged, "Diverged"),
        (comparison.chance, "At chance level"),
        (comparison.failed, "Failed"),
        (comparison.unpaired if pairs else (), "No plain run to pair with"),
        (comparison.plain_chance, "The plain model did not learn either"),
    ):
        if seeds:
            sentences.append(f"{words}: {_seeds(seeds)}.")
    text = f"{cell.label}, mask {cell.mask}: {' '.join(sentences) or 'no accuracy was recorded.'}"
    key = "" if comparison.mean is None else f"{signed(comparison.mean)} points"
    return Verdict("Accuracy", tone, outcome, cell.label, cell.mask, key, text)


def _accuracy_outcome(comparison: Comparison) -> tuple[str, str]:
    if comparison.diverged:
        return "bad", "diverged" if len(comparison.diverged) == comparison.runs else "diverged on some seeds"
    if comparison.chance and not comparison.plain_chance:
        return "bad", "at chance level" if len(
            comparison.chance
        ) == comparison.runs else "at chance level on some seeds"
    if comparison.mean is None:
        return "open", "no accuracy recorded" if comparison.accuracy is None else "no plain run of the same seed"
    if comparison.plain_chance:
        return "open", "cannot be told: the plain model did not learn"
    if comparison.low is None or comparison.high is None:
        return "open", "one seed gives no interval"
    if -MARGIN <= comparison.low and comparison.high <= MARGIN:
        crosses = comparison.low <= 0 <= comparison.high
        return "good", "costs nothing" if crosses else "differs by less than a point"
    if comparison.high < 0:
        return "bad", "costs accuracy"
    if comparison.low > 0:
        return "good", "gains accuracy"
    return "open", f"cannot be told from these {len(comparison.differences)} seeds"


def _binomial(comparison: Comparison) -> list[str]:
    accuracy, images = comparison.accuracy, comparison.test_images
    if accuracy is None or not images:
        return []
    error = 100 * math.sqrt(accuracy * (1 - accuracy) / images)
    points = f"{number(error, 1)} points"
    return [f"The {count(images)} test images alone give its accuracy a binomial standard error of {points}."]


def judge_tolerance(kept: Kept) -> Verdict:
    """Judge whether a variant kept the eps that it was asked for."""
    asked = f"eps {kept.eps:g}"
    certified, batch = kept.guarantee == "block", kept.guarantee == "batch"
    promise = {
        "block": "Certified for every block.",
        "batch": "Not certified: its guarantee is for the batch as a whole, not for a block.",
    }.get(kept.guarantee or "", "Not certified.")
    blocks = count(kept.blocks)
    worst = f"worst error {relative_error(kept.worst, kept.eps)}"
    if kept.violations:
        share = percent(kept.violations / kept.blocks, 2 if kept.violations < kept.blocks / 100 else 0)
        verb = "is above" if batch else "broke"
        text = f"{kept.label} {verb} {asked} on {count(kept.violations)} of {blocks} blocks ({share}); {worst}"
        text += f", {number(kept.worst / kept.eps, 1)} times what was asked. " if kept.worst else ". "
        outcome = "broke eps although certified: a defect" if certified else "broke eps, not certified"
        tone = "bad"
        if batch:
            outcome, tone = "some blocks above eps, which is promised for the batch alone", "open"
    else:
        text = f"{kept.label} kept {asked} on all {blocks} blocks; {worst}. "
        outcome, tone = ("kept eps", "good") if certified else ("kept eps here, but not certified", "open")
    text += promise
    for part, words in ((kept.escalated, "escalated to the SVD"), (kept.stored, "stored as they are")):
        if part:
            text += f" {percent(part)} of its blocks were {words}."
    key = f"{count(kept.violations)} of {blocks} blocks above, {worst}"
    return Verdict("Tolerance", tone, outcome, kept.label, "", key, text)


def judge_sizes(sizes: Sequence[Size]) -> list[Verdict]:
    """Judge bytes by variant and layer, against im2col, the input and what is saved, over the masks with the layer."""
    groups: dict[tuple[str, int], list[Size]] = {}
    for size in sizes:
        if size.cut_im2col is not None and size.cut_input is not None:
            groups.setdefault((size.cell.label, size.index), []).append(size)
    return [_judge_layer(label, groups[label, index]) for label, index in sorted(groups, key=lambda key: key[1])]


def _judge_layer(label: str, group: Sequence[Size]) -> Verdict:
    im2col = [size.cut_im2col for size in group if size.cut_im2col is not None]
    against_input = [size.cut_input for size in group if size.cut_input is not None]
    layer = group[0].layer
    freed = [size.freed_bytes for size in group if size.freed_bytes is not None]
    if min(against_input) > 0:
        tone, outcome, verdict = _smaller(group, freed)
    elif max(against_input) <= 0 < min(im2col):
        tone, outcome = "bad", "no benefit: smaller than im2col, but larger than the input"
        verdict = "smaller than im2col, but no benefit over what PyTorch keeps"
    elif max(against_input) <= 0:
        tone, outcome = "bad", "no benefit: smaller than neither im2col nor the input"
        verdict = "no benefit, neither over what PyTorch keeps nor over im2col"
    else:
        tone, outcome = "open", "smaller than the input under some masks only"
        verdict = "smaller than the input under some masks only"
    masks = f"mask{'s' if len(group) > 1 else ''} {', '.join(size.cell.mask for size in group)}"
    cuts = f"cut {span(min(im2col), max(im2col))} vs im2col, {cut_words(against_input)}{_against_saved(group)}"
    text = f"{label} in {layer} ({masks}): {cuts}: {verdict}."
    key = f"{span(1 - max(against_input), 1 - min(against_input))}× input"
    return Verdict("Size", tone, outcome, label, layer, key, text)


def _smaller(group: Sequence[Size], freed: Sequence[float]) -> tuple[str, str, str]:
    """Judge factors that are smaller than the input by what that frees: tone, outcome and a clause."""
    words = "smaller than the input that PyTorch keeps"
    if not freed:
        return (
            "open",
            "smaller than the input; what that frees was not measured",
            f"{words}; what that frees was not measured",
        )
    if min(freed) > 0:
        return "good", "smaller than the input, and frees memory", f"{words}, and frees {count_span(freed)} bytes"
    if max(freed) > 0:
        outcome = "smaller than the input, but frees memory under some masks only"
        return "open", outcome, outcome
    outcome = "smaller than the input, but frees nothing"
    reasons = list(dict.fromkeys(_why_nothing(size) for size in group if size.freed_bytes is not None))
    return "bad", outcome, f"{outcome}: {join(reasons)}"


def _why_nothing(size: Size) -> str:
    if size.kept_by is not None:
        return f"{size.kept_by} {'keep' if ' and ' in size.kept_by else 'keeps'} it, too"
    if size.unrealised is not None:
        return size.unrealised
    return f"path {size.path} keeps the input" if size.path == "forward" else "what it holds is no less"


def _against_saved(group: Sequence[Size]) -> str:
    cuts = [size.cut_saved for size in group if size.cut_saved is not None]
    if cuts:
        return f", cut {span(min(cuts), max(cuts))} vs what is saved"
    return ", nothing to save" if any(size.saved_bytes == 0 for size in group) else ""


def count_span(values: Sequence[float]) -> str:
    """Write whole numbers as a range, or as one."""
    return span(min(values), max(values), 0)


def cut_words(cuts: Sequence[float]) -> str:
    """Write cuts against the input; a negative one says by how much the factors are larger."""
    low, high = min(cuts), max(cuts)
    text = f"cut {span(low, high)} vs the input"
    if high < 0:
        text += f" ({span(1 - high, 1 - low)} times its bytes, larger than the input)"
    return text


def judge_time(timing: Timing) -> Verdict:
    """Judge the time of a training step against the plain model's."""
    ratio, cell = timing.ratio, timing.cell
    if ratio.middle >= 1:
        tone, outcome = "bad", "no faster"
    elif ratio.high < 1:
        tone, outcome = "good", "faster"
    else:
        tone, outcome = "open", "no difference that these rounds can tell"
    text = (
        f"{cell.label}, mask {cell.mask}: a step takes {times(ratio.middle)} times the plain model's "
        f"(quartiles {span(ratio.low, ratio.high)}; {number(timing.wrapped.middle, 1)} ms against "
        f"{number(timing.plain.middle, 1)} ms): {outcome}."
    )
    if timing.lowering is not None and timing.compressing is not None:
        text += f" Lowering takes {number(timing.lowering, 1)} ms, compressing {number(timing.compressing, 1)} ms."
    return Verdict("Step time", tone, outcome, cell.label, cell.mask, f"{times(ratio.middle)}×", text)


def judge_held(held: Held) -> list[Verdict]:
    """Judge what a step holds beside the plain model's, what was claimed to be freed, and what is hidden."""
    cell, found = held.cell, []

    def add(tone: str, outcome: str, key: str, text: str) -> None:
        text = f"{cell.label}, mask {cell.mask}: {text}."
        found.append(Verdict("Memory held", tone, outcome, cell.label, cell.mask, key, text))

    ratio = f"{times(held.held / held.plain)}×" if held.plain else ""
    less = held.held < held.plain
    parts = [f"compression {_frees(held.freed)}"] if "1" in cell.mask else []
    if held.lean_freed:
        parts.append(f"keeping bits or computing again {_frees(held.lean_freed)}")
    if not parts:
        parts.append("nothing is freed")
    add(
        "good" if less else "bad",
        "holds less than the plain model" if less else "holds no less than the plain model",
        ratio,
        f"a step holds {count(held.held)} bytes, {ratio} the plain model's {count(held.plain)}: {join(parts)}",
    )
    if held.unrealised:
        layers = "; ".join(f"{layer}: {reason}" for layer, reason in held.unrealised.items())
        text = f"by formula compression {_frees(held.claimed)}, for real it {_frees(held.freed)} ({layers})"
        key = f"{count(held.claimed)} bytes claimed, {_frees(held.freed)}"
        add("bad", "frees less than the formula claims", key, text)
    if held.hidden > 0:
        key = f"{count(held.hidden)} bytes"
        add("bad", "hides memory from autograd: a defect", key, f"{key} are alive that autograd did not save")
    return found


def _frees(nbytes: float) -> str:
    return f"frees {count(nbytes)} bytes" if nbytes >= 0 else f"adds {count(-nbytes)} bytes"


def judge_peak(peak: Peak) -> Verdict:
    """Judge peak memory against the plain model's."""
    cell, mib = peak.cell, 2.0**20
    if peak.ratio >= 1:
        tone, outcome = "bad", "no benefit"
    elif peak.wrapped.high < peak.plain.low:
        tone, outcome = "good", "lower peak"
    else:
        tone, outcome = "open", "no difference that these processes can tell"
    text = (
        f"{cell.label}, mask {cell.mask}: peak {number(peak.wrapped.middle / mib, 1)} MiB against "
        f"{number(peak.plain.middle / mib, 1)} MiB for the plain model, {times(peak.ratio)} times: {outcome}."
    )
    return Verdict("Peak memory", tone, outcome, cell.label, cell.mask, f"{times(peak.ratio)}×", text)


def judge_failures(study: Study) -> list[Verdict]:
    """Name every failed run with its reason."""
    verdicts = []
    for record, label in zip(study.records, study.runs["label"], strict=True):
        if not is_finished(record):
            config = record["config"]
            where = f"{config['mask']}, seed {config.get('seed')}"
            text = f"{label}, mask {where}: {str(record.get('reason') or 'no reason was recorded').rstrip('.')}."
            verdicts.append(Verdict("Failed runs", "bad", "failed", str(label), where, "", text))
    return verdicts


def judge_gaps(study: Study) -> list[Verdict]:
    """Say what was not measured, in how many finished masked runs, and why."""
    verdicts = []
    runs = finished(study)
    masked = runs[~runs["plain"]]
    older = {record["id"] for record in study.records if "savings" not in record}
    masked = masked.assign(
        savings_reason=masked["savings_reason"].mask(masked["id"].isin(older), "the run is older than this measurement")
    )
    measured = {
        # A policy may change modules and compress no layer.
        "layers": masked["id"].isin(study.layers["id"]) | ~masked["mask"].str.contains("1"),
        "step": masked["step_wrapped_ms"].notna(),
        "peak": masked["peak_wrapped_bytes"].notna(),
        "savings": masked["held_bytes"].notna(),
    }
    words = {
        "layers": "ranks, errors and bytes",
        "step": "step time",
        "peak": "peak memory",
        "savings": "what a step holds",
    }
    for key, present in measured.items():
        missing = masked[~present]
        reasons = Counter(missing[f"{key}_reason"].fillna("no reason was recorded"))
        for given, amount in reasons.items():
            reason = given.removeprefix("not measured: ").rstrip(".")
            of = plural(len(masked), "masked run")
            text = f"{words[key][0].upper()}{words[key][1:]}: not measured in {count(amount)} of {of}: {reason}."
            verdicts.append(Verdict("Not measured", "open", words[key], plural(amount, "run"), "", "", text))
    return verdicts


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {join([str(seed) for seed in seeds])}"
