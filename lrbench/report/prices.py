"""Does it pay: each cell's accuracy beside the peak memory and the time of its steps, and the cells that none beats.

All are against the plain model, which is a point of its own: nothing changed, at the price 1. One cell beats another
where its accuracy and its price are at least as good, and one of them is better. What did not learn beats nothing, and
cells are compared over the seeds that all of them have.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lrbench.report.entries import Comparison
from lrbench.report.listings import CELL, Listing, name_cell
from lrbench.report.summaries import (
    MARGIN,
    compare_accuracy,
    measure_peaks,
    measure_times,
    paired_interval,
    plain_mask,
)
from lrbench.report.tables import Study
from lrbench.report.verdicts import Verdict, judge_accuracy, judge_peak, judge_time
from lrbench.report.wording import MISSING, join, plural, signed, times

__all__ = ["KINDS", "Kind", "Price", "judge_prices", "list_prices", "plain_stands", "price_cells", "unbeaten"]


@dataclass(frozen=True)
class Price:
    """What a cell gives and takes.

    Attributes
    ----------
    comparison
        Its accuracy beside the plain model's, over the seeds that all priced cells share.
    peak, time
        Peak memory and time of a step over the plain model's; None where they were not measured.
    lowers_peak, saves_time
        Whether they are lower beyond what processes and rounds differ by.
    learnt
        Whether all of its runs did, and the plain ones that they are compared with.
    free
        Whether the interval of its accuracy says that it costs nothing.
    """

    comparison: Comparison
    peak: float | None
    time: float | None
    lowers_peak: bool
    saves_time: bool
    learnt: bool
    free: bool

    @property
    def points(self) -> float:
        """Mean difference in accuracy, in points."""
        assert self.comparison.mean is not None
        return self.comparison.mean


@dataclass(frozen=True)
class Kind:
    """One price: its words, and where a :class:`Price` has it."""

    title: str
    lower: str
    price: Callable[[Price], float | None]
    is_lower: Callable[[Price], bool]


KINDS = (
    Kind("peak memory of a step", "a lower peak", lambda p: p.peak, lambda p: p.lowers_peak),
    Kind("time of a step", "a shorter step", lambda p: p.time, lambda p: p.saves_time),
)


def price_cells(study: Study) -> list[Price]:
    """Join accuracies with peaks and times, of the cells that have an accuracy to compare and one of the others.

    Where no seed is common to all of them, there are none: what other seeds gave is not to be ranked.
    """
    plain = plain_mask(study)
    peaks = {(peak.cell.mask, peak.cell.label): peak for peak in measure_peaks(study)}
    times = {(timing.cell.mask, timing.cell.label): timing for timing in measure_times(study)}
    priced = [
        comparison
        for comparison in compare_accuracy(study)
        if comparison.differences and (_key(comparison) in peaks or _key(comparison) in times)
    ]
    shared = set.intersection(*(set(comparison.differences) for comparison in priced)) if priced else set()
    prices = []
    for whole in priced if shared else ():
        peak, time = peaks.get(_key(whole)), times.get(_key(whole))
        comparison = _over(whole, shared)
        verdict = judge_accuracy(comparison, plain)
        prices.append(
            Price(
                comparison,
                peak=None if peak is None else peak.ratio,
                time=None if time is None else time.ratio.middle,
                lowers_peak=peak is not None and judge_peak(peak).tone == "good",
                saves_time=time is not None and judge_time(time).tone == "good",
                learnt=not (comparison.diverged or comparison.chance or comparison.plain_chance),
                free=verdict.tone == "good" and comparison.high is not None and comparison.high >= 0,
            )
        )
    return prices


def _key(comparison: Comparison) -> tuple[str, str]:
    return comparison.cell.mask, comparison.cell.label


def _over(comparison: Comparison, seeds: set[int]) -> Comparison:
    """Restrict a comparison to some of its seeds."""
    differences = {seed: value for seed, value in comparison.differences.items() if seed in seeds}
    low, high = paired_interval(list(differences.values()))
    return replace(
        comparison, differences=differences, mean=float(np.mean([*differences.values()])), low=low, high=high
    )


def unbeaten(prices: Sequence[Price], kind: Kind) -> list[Price]:
    """Return the cells that neither another cell nor the plain model beats, by rising price; equal ones stay."""
    known = [(price, cell.points, cell) for price, cell in priced_by(prices, kind) if cell.learnt]
    spots = [*((price, points) for price, points, _ in known), (1.0, 0.0)]
    best = [
        (price, points, place)
        for place, (price, points, _) in enumerate(known)
        if not any(x <= price and y >= points and (x, y) != (price, points) for x, y in spots)
    ]
    return [known[place][2] for *_, place in sorted(best)]


def plain_stands(best: Sequence[Price], kind: Kind) -> bool:
    """Tell whether the plain model is beaten by none, given the cells of which that is true."""
    spots = [(price, cell.points) for price, cell in priced_by(best, kind)]
    return not any(x <= 1 and y >= 0 and (x, y) != (1, 0) for x, y in spots)


def priced_by(prices: Sequence[Price], kind: Kind) -> list[tuple[float, Price]]:
    """Return the cells of which a price is known, with it."""
    return [(price, cell) for cell in prices if (price := kind.price(cell)) is not None]


def judge_prices(study: Study) -> list[Verdict]:
    """Say in a sentence for each price whether anything pays."""
    prices = price_cells(study)
    return [_judge(priced_by(prices, kind), kind) for kind in KINDS if priced_by(prices, kind)]


def _judge(priced: Sequence[tuple[float, Price]], kind: Kind) -> Verdict:
    learnt = [pair for pair in priced if pair[1].learnt]
    lower = [pair for pair in learnt if kind.is_lower(pair[1])]
    free = [pair for pair in lower if pair[1].free]
    tone, outcome, shown = "bad", f"no cell has {kind.lower}, the nearest", min(priced, key=lambda pair: pair[0])
    said = f"no cell has {kind.lower} than the plain model"
    if lower:
        said = (
            f"cells with {kind.lower} than the plain model: {len(lower)} of {len(priced)}; of these shown to cost "
            f"nothing (a 90 % interval within ±{MARGIN:g} point, or above zero): {len(free) or 'none'}"
        )
        if free:
            tone, outcome, shown = "good", f"{kind.lower} at no cost in accuracy", min(free, key=lambda pair: pair[0])
        else:
            tone, outcome = "open", f"{kind.lower} at a cost in accuracy, or at one that cannot be told"
            shown = max(lower, key=lambda pair: pair[1].points)
    elif any(price < 1 for price, _ in learnt):
        tone, outcome = "open", f"whether any cell has {kind.lower} cannot be told, the nearest"
        said = f"whether any cell has {kind.lower} than the plain model cannot be told"
    best = unbeaten([cell for _, cell in priced], kind)
    names = [f"{_name(cell)} ({times(kind.price(cell))}×, {signed(cell.points)})" for cell in best]
    names += ["the plain model"] if plain_stands(best, kind) else []
    odd = [_name(cell) for _, cell in priced if not cell.learnt]
    text = f"Accuracy against the {kind.title}: {said}. Beaten by none: {join(names)}."
    if odd:
        text += f" Left out, for it did not learn, or the plain model did not: {join(odd)}."
    price, cell = shown
    key = f"{times(price)}×, {signed(cell.points)} points"
    return Verdict("Does it pay", tone, outcome, cell.comparison.cell.label, cell.comparison.cell.mask, key, text)


def _name(price: Price) -> str:
    return f"{price.comparison.cell.label}, mask {price.comparison.cell.mask}"


def list_prices(study: Study) -> Listing:
    """List accuracy, peak and time of every cell side by side, the lowest peak first."""
    prices = price_cells(study)
    best = [unbeaten(prices, kind) for kind in KINDS]
    rows = []
    for price in sorted(prices, key=lambda p: (p.peak is None, p.peak or 0.0, p.time or 0.0)):
        comparison = price.comparison
        interval = comparison.interval
        won = [word for word, cells in zip(("peak", "time"), best, strict=True) if price in cells]
        rows.append(
            (
                *name_cell(comparison.cell),
                signed(comparison.mean),
                MISSING if interval is None else f"{signed(interval[0], 2)} to {signed(interval[1], 2)}",
                times(price.peak),
                times(price.time),
                (join(won) or MISSING) if price.learnt else "did not learn",
            )
        )
    seeds = sorted({seed for price in prices for seed in price.comparison.differences})
    return Listing(
        caption="What accuracy costs: differences to the plain model's in points, peaks and step times over its own",
        columns=(*CELL, "difference", "90 % interval", "peak ratio", "time ratio", "beaten by none in"),
        rows=tuple(rows),
        numeric=frozenset(range(4, 8)),
        note="Beaten by none: no other cell, nor the plain model, has as good an accuracy at as low a price, and one "
        "of them better. Means decide; where intervals overlap, chance may have. Accuracies are over "
        f"{plural(len(seeds), 'seed')}, {join([str(seed) for seed in seeds])}: all that these cells share.",
    )
