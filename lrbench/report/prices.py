"""Does it pay: each cell's accuracy beside the peak memory and the time of its steps, and the cells that none beats.

All are against the plain model, which is a point of its own: nothing changed, at the price 1. One cell beats another
where its accuracy and its price are at least as good, and one of them is better.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lrbench.report.entries import Comparison
from lrbench.report.listings import CELL, Listing, name_cell
from lrbench.report.summaries import MARGIN, compare_accuracy, measure_peaks, measure_times, plain_mask
from lrbench.report.tables import Study
from lrbench.report.verdicts import Verdict, judge_accuracy, judge_peak, judge_time
from lrbench.report.wording import MISSING, join, number, plural, signed

__all__ = ["KINDS", "Price", "judge_prices", "list_prices", "plain_stands", "price_cells", "unbeaten"]


@dataclass(frozen=True)
class Price:
    """What a cell gives and takes.

    Attributes
    ----------
    comparison
        Its accuracy beside the plain model's, with a mean difference.
    peak, time
        Peak memory and time of a step over the plain model's; None where they were not measured.
    lowers_peak, saves_time
        Whether they are lower beyond what processes and rounds differ by.
    free
        Whether the interval of its accuracy says that it costs nothing.
    """

    comparison: Comparison
    peak: float | None
    time: float | None
    lowers_peak: bool
    saves_time: bool
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
    """Join accuracies with peaks and times, of the cells that have an accuracy to compare and one of the others."""
    plain = plain_mask(study)
    peaks = {(peak.cell.mask, peak.cell.label): peak for peak in measure_peaks(study)}
    times = {(timing.cell.mask, timing.cell.label): timing for timing in measure_times(study)}
    prices = []
    for comparison in compare_accuracy(study):
        key = comparison.cell.mask, comparison.cell.label
        peak, time = peaks.get(key), times.get(key)
        if comparison.mean is None or (peak is None and time is None):
            continue
        prices.append(
            Price(
                comparison,
                peak=None if peak is None else peak.ratio,
                time=None if time is None else time.ratio.middle,
                lowers_peak=peak is not None and judge_peak(peak).tone == "good",
                saves_time=time is not None and judge_time(time).tone == "good",
                free=judge_accuracy(comparison, plain).tone == "good",
            )
        )
    return prices


def unbeaten(prices: Sequence[Price], kind: Kind) -> list[Price]:
    """Return the cells that neither another cell nor the plain model beats, by rising price."""
    priced = sorted(_priced(prices, kind), key=lambda pair: (pair[0], -pair[1].points))
    found: list[Price] = []
    most = -float("inf")
    for price, cell in priced:
        if cell.points > most and not (price >= 1 and cell.points <= 0):
            found.append(cell)
            most = cell.points
    return found


def plain_stands(best: Sequence[Price], kind: Kind) -> bool:
    """Tell whether the plain model is beaten by none, given the cells of which that is true."""
    return not any(price <= 1 and cell.points >= 0 for price, cell in _priced(best, kind))


def _priced(prices: Sequence[Price], kind: Kind) -> list[tuple[float, Price]]:
    return [(price, cell) for cell in prices if (price := kind.price(cell)) is not None]


def judge_prices(study: Study) -> list[Verdict]:
    """Say in a sentence for each price whether anything pays."""
    prices = price_cells(study)
    return [_judge(prices, kind) for kind in KINDS if _priced(prices, kind)]


def _judge(prices: Sequence[Price], kind: Kind) -> Verdict:
    priced = _priced(prices, kind)
    lower = [(price, cell) for price, cell in priced if kind.is_lower(cell)]
    free = [(price, cell) for price, cell in lower if cell.free]
    said = f"Accuracy against the {kind.title}: "
    if lower:
        said += (
            f"{len(lower)} of {plural(len(priced), 'cell')} {'has' if len(lower) == 1 else 'have'} {kind.lower} than "
            f"the plain model, and {len(free) or 'none'} of them {'is' if len(free) < 2 else 'are'} shown to cost no "
            f"accuracy (a 90 % interval within ±{MARGIN:g} point, or above zero). "
        )
    else:
        said += f"none of {plural(len(priced), 'cell')} has {kind.lower} than the plain model. "
    best = unbeaten(prices, kind)
    names = [f"{_name(cell)} ({number(kind.price(cell))}×, {signed(cell.points)})" for cell in best]
    names += ["the plain model"] if plain_stands(best, kind) else []
    if free:
        tone, outcome, shown = "good", f"{kind.lower}, shown to cost no accuracy", min(free, key=_by_price)
    elif lower:
        tone, outcome, shown = "open", f"{kind.lower}, not shown to cost no accuracy", min(lower, key=_by_price)
    else:
        tone, outcome, shown = "bad", f"no cell has {kind.lower}, the nearest", min(priced, key=_by_price)
    price, cell = shown
    name = cell.comparison.cell
    said += f"Beaten by none: {join(names)}."
    return Verdict("Does it pay", tone, outcome, name.label, name.mask, f"{number(price)}×", said)


def _by_price(pair: tuple[float, Price]) -> float:
    return pair[0]


def _name(price: Price) -> str:
    return f"{price.comparison.cell.label}, mask {price.comparison.cell.mask}"


def list_prices(study: Study) -> Listing:
    """List accuracy, peak and time of every cell side by side, the lowest peak first."""
    prices = price_cells(study)
    best = [unbeaten(prices, kind) for kind in KINDS]
    rows = []
    for price in sorted(prices, key=lambda p: (p.peak is None, p.peak or 0.0, p.time or 0.0)):
        comparison = price.comparison
        has_interval = comparison.low is not None and comparison.high is not None
        won = [word for word, cells in zip(("peak", "time"), best, strict=True) if price in cells]
        rows.append(
            (
                *name_cell(comparison.cell),
                signed(comparison.mean),
                f"{signed(comparison.low, 2)} to {signed(comparison.high, 2)}" if has_interval else MISSING,
                number(price.peak),
                number(price.time),
                join(won) or MISSING,
            )
        )
    return Listing(
        caption="What accuracy costs: differences to the plain model's in points, peaks and step times over its own",
        columns=(*CELL, "difference", "90 % interval", "peak ratio", "time ratio", "beaten by none in"),
        rows=tuple(rows),
        numeric=frozenset(range(4, 8)),
        note="Beaten by none: no other cell, nor the plain model, has as good an accuracy at as low a price, and one "
        "of them better. Means decide; where intervals overlap, chance may have.",
    )
