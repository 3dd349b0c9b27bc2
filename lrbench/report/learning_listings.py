"""The tables of what compression did to learning: accuracy, planned comparisons, effects of masks, gradients."""

from lrbench.presets import load_preset
from lrbench.report.contrasts import RESAMPLES, compare_cells, judge_contrast
from lrbench.report.effects import estimate_effects
from lrbench.report.entries import Cell, Size
from lrbench.report.groups import average, part
from lrbench.report.listings import CELL, Listing, name_cell
from lrbench.report.summaries import LEVEL, compare_accuracy, measure_sizes, plain_mask, plain_runs
from lrbench.report.tables import Study
from lrbench.report.verdicts import judge_accuracy
from lrbench.report.wording import MISSING, NO_BREAK, count, general, join, number, percent, plural, probability, signed

__all__ = ["list_accuracy", "list_compared", "list_contrasts", "list_effects", "list_gradients"]


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
                *name_cell(comparison.cell),
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
        columns=(*CELL, "as trained", "exact", "difference", "90 % interval", "by seed", "verdict"),
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
                probability(contrast.p),
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
        note=" ".join(
            [
                *_when_written(study),
                "As trained, paired by seed. Over seeds: Student's t. Over seeds and images: both drawn again, "
                f"{count(RESAMPLES)} times, from the stored predictions. p: of the paired t test, adjusted for all the "
                "comparisons of a preset (Holm). The verdict is that of the interval over seeds; worse or better is "
                "said only where p says so, too.",
            ]
        ),
    )


def _when_written(study: Study) -> list[str]:
    """When each preset wrote its comparisons down, and which of the seeds that it plans are not there."""
    sentences, contrasts = [], compare_cells(study)
    for name, changed in dict.fromkeys((contrast.preset, contrast.changed) for contrast in contrasts):
        if changed:
            sentences.append(f"Those of preset {name}, run with other settings than the preset's: {join(changed)}.")
            continue
        written = load_preset(name).written
        told = f"{written}, so what they find is exploratory" if written else "before the runs"
        sentences.append(f"Those of preset {name} were written down {told}.")
        waiting: dict[tuple[int, ...], list[str]] = {}
        for contrast in contrasts:
            if contrast.preset == name and contrast.missing:
                waiting.setdefault(contrast.missing, []).append(contrast.name)
        for seeds, names in waiting.items():
            label = f"seed{'s' if len(seeds) > 1 else ''} {join([str(seed) for seed in seeds])}"
            planned = sum(contrast.preset == name for contrast in contrasts)
            which = "each" if len(names) == planned else join([f"“{each}”" for each in names])
            sentences.append(f"Planned, and not there yet: {label} of {which}.")
    return sentences


def list_compared(study: Study) -> Listing:
    """List what the cells are that comparisons are made of: ranks and errors by layer, means over seeds."""
    rows: dict[Cell, list[Size]] = {}
    for size in measure_sizes(study) if compare_cells(study) else ():
        rows.setdefault(size.cell, []).append(size)
    accuracies = {comparison.cell: comparison.accuracy for comparison in compare_accuracy(study)}
    return Listing(
        caption="What the compared cells do to each layer",
        columns=(*CELL, "as trained", "layers", "mean rank", "mean error", "bytes / input"),
        rows=tuple(
            (
                *name_cell(cell),
                percent(accuracies.get(cell)),
                ", ".join(size.layer for size in sizes),
                ", ".join(number(size.rank_mean, 1) for size in sizes),
                ", ".join(number(size.error_mean, 3) for size in sizes),
                ", ".join(MISSING if size.cut_input is None else number(1 - size.cut_input) for size in sizes),
            )
            for cell, sizes in rows.items()
        ),
        numeric=frozenset({4}),
        note="Means over blocks and seeds, each seed's of the network that it trained: cells that are asked for the "
        "same ranks, or the same errors, may have others in theirs.",
    )


def list_effects(study: Study) -> Listing:
    """List main effects and pairs of every variant with masks enough to tell them apart."""
    rows, notes = [], []
    for effects in estimate_effects(study):
        for effect in sorted((*effects.main, *effects.pairs), key=lambda effect: effect.points):
            clear = "holds 0" if effect.low <= 0 <= effect.high else "costs" if effect.high < 0 else "gains"
            interval = f"{signed(effect.low, 2)} to {signed(effect.high, 2)}"
            points, p = signed(effect.points, 2), probability(effect.p)
            rows.append((effects.cell.label, effect.name, points, interval, p, clear))
        notes.append(
            f"{effects.cell.label}: {plural(effects.masks, 'mask')}, {plural(effects.seeds, 'seed')}, "
            f"{effects.freedom} degrees of freedom, residual {number(effects.noise)} points."
            + (
                f" Left out, for they gave no accuracy: {join(effects.left_out)}; what they cost is in no effect."
                if effects.left_out
                else ""
            )
        )
    return Listing(
        caption="Effects of compressing each layer, and of pairs of layers beyond the sum, in points of accuracy",
        columns=("compressor", "layer or pair", "effect", f"{100 * LEVEL:g} % interval", "p (Holm)", "verdict"),
        rows=tuple(rows),
        numeric=frozenset({2, 3, 4}),
        note=" ".join(
            [
                "Least squares, a block for each seed; intervals hold for all effects of a kind at once (Bonferroni). "
                "They speak for these seeds: how a layer's effect varies with the seed is part of the residual.",
                *notes,
            ]
        ),
    )


def list_gradients(study: Study) -> Listing:
    """List what compression did to the gradient of each compressed layer's weight, means over seeds."""
    columns = ["error_mean", "gradient_cosine", "gradient_cosine_min", "gradient_error", "gradient_bias"]
    measured = study.layers[study.layers["gradient_error"].notna()]
    rows = []
    for group in part(measured, ("index", "layer", "mask", "label"), ("name", "layer_eps", "layer_path", *columns)):
        layer, mask, name, eps, path = (group[key][0] for key in ("layer", "mask", "name", "layer_eps", "layer_path"))
        figures = [number(average(group[column]), 4) for column in columns]
        rows.append((layer, mask, name, general(eps), path or MISSING, *figures, str(len(group["mask"]))))
    return Listing(
        caption="What compression does to the gradient of a layer's weight",
        columns=("layer", *CELL, "mean block error", "cosine", "least cosine", "error", "bias", "runs"),
        rows=tuple(sorted(rows, key=lambda row: row[:2])),
        numeric=frozenset(range(5, 11)),
        note="Against the plain model with the same weights, on the same batches and with the same dropout, after "
        "training. Error is ‖ĝ − g‖ / ‖g‖ over the batches together; bias is ‖Σ(ĝ − g)‖ / ‖Σ g‖, what does not average "
        "out over them. Where layers in front are approximated in the forward pass, their errors are in it, too.",
    )
