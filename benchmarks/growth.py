"""How the time to compress grows with the number of images, their side, the channels and 1/eps.

``python -m benchmarks.growth [--out DIR]`` writes growth.csv (every single time), growth.md (the exponents) and
growth.png into DIR; with ``--plot-only`` it draws growth.csv again. It wants the machine to itself.

One of the four grows, the others stay; a call has as many images as make all calls of a sweep about equally long, so
that what a call costs by itself does not look like growth. What is freed is kept for the next call, or it would depend
on the size of a result whether that lies in new memory, which takes time. Every call is timed on images that its
compressor has not seen before; the order of the compressors turns from round to round, and before each turn the process
rests, and makes calls that are not timed.
"""

import argparse
import io
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray
from scipy import stats
from sklearn.datasets import load_sample_image
from torch import Tensor

import lrbench
from lrbench.datasets import PHOTOS, to_float
from lrbench.environment import environment
from lrbench.report.style import MUTED, PAPER, RC, legend, looks, panels, plain_ticks
from lrbench.report.wording import MINUS

from .speed import EPS, KEPT, begin, run_apart

COMPRESSORS = ("svd", "rsvd", "aca", "aca-estimate")
QUARTILES = np.array([0.25, 0.5, 0.75])
TEXT, TOP = 0.075, 0.95
"""Height of a line of text, and of the highest one, as parts of a panel's height."""


class Sweep(NamedTuple):
    """One quantity that grows: its values, and the images (N, C, H, W) and the tolerance that belong to each."""

    title: str
    label: str
    values: tuple[int, ...]
    images: Callable[[int, np.random.Generator], Tensor]
    eps: Callable[[int], float] = lambda _: EPS
    unit: str = "an image"


class Fit(NamedTuple):
    """Time = ``scale`` · value ** ``exponent`` from ``start`` to ``stop``; ``margin`` is half a 95 % interval."""

    scale: float
    exponent: float
    margin: float
    start: float
    stop: float

    def __str__(self) -> str:
        return f"{self.exponent:.2f} ± {self.margin:.2f}".replace("-", MINUS)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each kind (default 5)")
    parser.add_argument("--out", type=Path, default=Path("results/speed"), help="results folder (results/speed)")
    parser.add_argument("--plot-only", action="store_true", help="draw growth.csv again; measure nothing")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.into is not None:
        _measure(options.rounds).to_csv(options.into, index=False)
        return
    if options.plot_only:
        draw(pd.read_csv(options.out / "growth.csv"), options.out / "growth.png")
        return
    options.out.mkdir(parents=True, exist_ok=True)
    table = pd.read_csv(io.StringIO(run_apart("benchmarks.growth", ["--rounds", str(options.rounds)], KEPT)))
    table.to_csv(options.out / "growth.csv", index=False)
    text = _markdown(table)
    print(text)
    (options.out / "growth.md").write_text(text, encoding="utf-8")
    draw(table, options.out / "growth.png")


@cache
def _photographs() -> list[NDArray[np.uint8]]:
    return [load_sample_image(f"{photo}.jpg") for photo in PHOTOS]


def _crops(count: int, side: int, draw: np.random.Generator) -> Tensor:
    """Crops of both photographs at random places, (count, 3, side, side), scaled to [0, 1]."""
    crops = np.empty((count, 3, side, side), np.uint8)
    for crop in crops:
        windows = np.lib.stride_tricks.sliding_window_view(_photographs()[draw.integers(2)], (side, side), (0, 1))
        crop[:] = windows[draw.integers(windows.shape[0]), draw.integers(windows.shape[1])]
    return to_float(torch.from_numpy(crops))


def _features(count: int, channels: int, draw: np.random.Generator) -> Tensor:
    """What a layer behind the first one sees: the same random filters at every call, and a ReLU, 16x16 pixels."""
    filters = torch.randn(96, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    return F.conv2d(_crops(count, 18, draw), filters[:channels]).relu()


SWEEPS = {
    "images": Sweep(
        f"images of 3x32x32, eps {EPS:g}",
        "images in a call",
        (160, 250, 400, 640, 1000, 1600, 2500, 4000, 6400),
        lambda count, draw: _crops(count, 32, draw),
        unit="a call",
    ),
    "side": Sweep(
        f"image side, eps {EPS:g}",
        "side (pixels)",
        (16, 24, 32, 48, 64, 96, 128, 192, 256),
        lambda side, draw: _crops(24 * 256**2 // side**2, side, draw),
    ),
    "channels": Sweep(
        f"channels of 16x16, eps {EPS:g}",
        "channels",
        (3, 4, 6, 9, 12, 18, 24, 36, 48, 72, 96),
        lambda channels, draw: _features(96 * 96 // channels, channels, draw),
    ),
    "1/eps": Sweep(
        "1/eps, images of 3x32x32",
        "1/eps",
        (2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100),
        lambda _, draw: _crops(1200, 32, draw),
        lambda inverse: 1 / inverse,
    ),
}


def _measure(rounds: int) -> pd.DataFrame:
    """Every single time, a row each."""
    draw = np.random.default_rng(0)
    rows = []
    for name, sweep in SWEEPS.items():
        for number in range(-1, rounds):  # the first round only tries things out
            for place, value in enumerate(sweep.values):
                # What comes first is not timed: after a rest everything takes longer.
                before, x = (sweep.images(value, draw) for _ in range(2))
                for offset in range(len(COMPRESSORS)):
                    kind = COMPRESSORS[(number + place + offset) % len(COMPRESSORS)]
                    compressor = lrbench.get_compressor(kind, eps=sweep.eps(value))
                    begin(partial(compressor.compress, lrbench.Im2col(before, 3, padding=1)))
                    start = time.perf_counter()
                    compressor.compress(lrbench.Im2col(x, 3, padding=1))
                    seconds = time.perf_counter() - start
                    if number >= 0:
                        rows.append((name, value, kind, number, len(x), seconds))
    return pd.DataFrame(rows, columns=["sweep", "value", "compressor", "round", "images", "seconds"])


def _curves(table: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Quartiles of each compressor in each sweep, by value: milliseconds of a call, or for each of its images."""
    for key, rows in table.groupby(["sweep", "compressor"], sort=False):
        name, kind = map(str, key)
        each = 1 if SWEEPS[name].unit == "a call" else rows["images"]
        yield name, kind, (1e3 * rows["seconds"] / each).groupby(rows["value"]).quantile(QUARTILES).unstack()


def fit(times: "pd.Series[float]") -> Fit:
    """Fit a power law by least squares between logarithms, over the last decade of values or a little more.

    Parameters
    ----------
    times : Series
        Indexed by values, which rise; at least three in the last decade.
    """
    x, y = times.index.to_numpy(float), times.to_numpy(float)
    first = max(0, int(np.searchsorted(x, x[-1] / 10, side="right")) - 1)
    line = stats.linregress(np.log(x[first:]), np.log(y[first:]))
    margin = stats.t.ppf(0.975, len(x) - first - 2) * line.stderr
    return Fit(float(np.exp(line.intercept)), float(line.slope), float(margin), float(x[first]), float(x[-1]))


def _markdown(table: pd.DataFrame) -> str:
    facts = environment()
    lines = [
        "# How the time to compress grows",
        "",
        f"{facts['processor']}, {torch.get_num_threads()} threads, commit {facts['commit']}, torch {facts['torch']}.",
        "From images to packed factors: 3x3 kernel, padding 1, crops of scikit-learn's photographs; for the channels",
        "seen through random filters and a ReLU. Time ~ value ^ exponent, by least squares between the logarithms of",
        f"values and medians of {table['round'].nunique()} calls, over the last decade; an interval is wide where the",
        "growth is no power. What is freed is kept for the next call.",
        "",
        "| what grows | from | to | compressor | exponent | 95 % interval | ms at the first | ms at the last | of |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, kind, quartiles in _curves(table):
        medians = quartiles[0.5]
        law = fit(medians)
        interval = f"{law.exponent - law.margin:.2f} to {law.exponent + law.margin:.2f}".replace("-", MINUS)
        lines.append(
            f"| {SWEEPS[name].title} | {law.start:g} | {law.stop:g} | {kind} | {law.exponent:.2f} | {interval} "
            f"| {medians[law.start]:.3g} | {medians[law.stop]:.3g} | {SWEEPS[name].unit} |"
        )
    return "\n".join([*lines, ""])


def spread(heights: Sequence[float]) -> NDArray[np.float64]:
    """Move rising heights of texts so that none stands on another one, nor on the heading above."""
    lines = TEXT * np.arange(len(heights))
    return np.minimum(np.maximum.accumulate(heights - lines) + lines, TOP - lines[::-1])


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw medians with quartiles and the fitted lines, a panel for each quantity that grows."""
    style = looks(table["compressor"])
    names = list(table["sweep"].unique())
    with mpl.rc_context(RC):
        fig, panel = panels([SWEEPS[name].title for name in names], 2, 2.5)
        axes = dict(zip(names, panel, strict=True))
        ends: dict[str, list[tuple[float, str, Fit]]] = {name: [] for name in names}
        for name, kind, quartiles in _curves(table):
            look, low, middle, high = style[kind], *(quartiles[q] for q in QUARTILES)
            law = fit(middle)
            x = np.array([law.start, law.stop])
            y = law.scale * x**law.exponent
            axes[name].plot(x, y, color=look.colour, linestyle=look.line)
            axes[name].errorbar(
                middle.index, middle, [middle - low, high - middle], fmt=look.marker, color=look.colour,
                mec=PAPER, mew=0.5, elinewidth=1, capsize=2,
            )  # fmt: skip
            ends[name].append((y[1], kind, law))
        for name, ax in axes.items():
            sweep = SWEEPS[name]
            ax.set(xscale="log", yscale="log", xlabel=sweep.label, ylabel=f"time of {sweep.unit} (ms)")
            ax.set_xticks(sweep.values[::2], [f"{value:g}" for value in sweep.values[::2]])
            ax.xaxis.set_minor_locator(NullLocator())
            plain_ticks(ax.yaxis, log=True)
            ax.text(1.1, 1.03, "exponent", transform=ax.transAxes, color=MUTED)
            to_axes = ax.transData + ax.transAxes.inverted()
            wanted = [to_axes.transform((law.stop, end))[1] for end, _, law in sorted(ends[name])]
            for height, (_, kind, law) in zip(spread(wanted), sorted(ends[name]), strict=True):
                mark = style[kind]
                ax.plot(1.06, height, mark.marker, color=mark.colour, transform=ax.transAxes, clip_on=False)
                ax.text(1.1, height, str(law), transform=ax.transAxes, va="center")
        legend(fig, [style[kind].handle(kind) for kind in table["compressor"].unique()])
        fig.savefig(path)


if __name__ == "__main__":
    main()
