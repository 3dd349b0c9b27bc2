"""Training steps with compression beside steps without it: ratios of medians, measured in one process.

``python -m benchmarks.training [--records FILE] [--out DIR]`` prints the table, and writes it with every single time
into DIR. It wants the machine to itself. The network is the paper's, of widths 32, 64 and 128, after one epoch on the
images; every kind of step trains a copy of its own, all with the same optimizer. Each case is measured beside the plain
model, either in the memory format that some steps of both have shown to be faster for it.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import lrbench
from benchmarks.speed import images_of
from lrbench.environment import environment
from lrbench.measure import time as clock
from lrbench.models import paper_cnn
from lrbench.training import training_step

BATCH = 100

LEAST = 12
"""Rounds at least, of those that take several steps."""

CHOOSING = 12
"""Steps by which the memory format is chosen."""

FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


class Case(NamedTuple):
    """A wrapped model: which layers, what with, and what its step may take beside the plain model's, if promised.

    With kept factors the promise is to take less than ``bound``; elsewhere, no more. ``repeats`` times as many
    rounds are measured where the ratio is nearer to its bound, or to one, than the spread of fewer allows to tell.
    """

    mask: str
    compressor: str
    eps: float
    path: Any
    bound: float | None = None
    keeps: bool = False
    repeats: int = 1

    def __str__(self) -> str:
        kept = ", input's factors kept" if self.keeps else ""
        return f"{self.mask}, {self.compressor} {self.eps:g}, {self.path}{kept}"


CASES = (
    Case("100000", "svd", 0.1, "both", 1.05, repeats=5),
    Case("100000", "svd", 0.1, "both", 1.0, keeps=True, repeats=30),
    Case("101010", "warm", 0.1, "both", 1.30),
    Case("101010", "svd", 0.1, "both"),
    Case("101010", "aca", 0.1, "both"),
    Case("101010", "aca-estimate", 0.1, "both"),
    Case("111111", "warm", 0.3, "backward", 1.60),
    Case("111111", "svd", 0.3, "backward"),
    Case("111111", "warm", 0.3, "both", repeats=3),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, help="CIFAR-10 records (binary) to measure on; the photographs without")
    parser.add_argument("--rounds", type=int, default=30, help="timed steps of each kind, or more (default 30)")
    parser.add_argument("--out", type=Path, help="folder for training.md and training.json")
    options = parser.parse_args(arguments)
    images, labels, name = images_of(options.records)
    torch.manual_seed(0)
    model = paper_cnn().train()
    trained = _stepping(model, images, labels)
    for number in range(len(images) // BATCH):
        trained(number)
    lines = [
        "# Training steps beside the plain model's",
        "",
        f"The paper's network, widths 32, 64, 128, batches of {BATCH}, after one epoch on {name}.",
        f"{torch.get_num_threads()} threads. Milliseconds a step are medians; a ratio is one of medians, with a",
        "bootstrap's interval over rounds; quartiles are of the ratios round by round. Either model runs in the memory",
        f"format in which its median of {CHOOSING} steps, taken before, is the shorter. A round of `warm` is of",
        f"{lrbench.get_compressor('warm').period} steps, from one refresh of its basis to the next, and counts with",
        "their mean. With the input's factors kept, a step reads no images.",
        "",
        "| step | rounds | plain, ms | ms | ratio | 90 % | quartiles | bound | |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    results: dict[str, Any] = {"images": name, "environment": environment()}
    for case in CASES:
        wrapped = lrbench.wrap(copy.deepcopy(model), case.mask, case.compressor, case.eps, case.path)
        kept = None
        steps = [_stepping(copy.deepcopy(model), images, labels, layout) for layout in FORMATS.values()]
        for layout in FORMATS.values():
            copied = copy.deepcopy(wrapped)
            kept = lrbench.KeptInput(copied, images) if case.keeps else None
            steps.append(_stepping(copied, images, labels, layout, kept))
        # A basis that is kept from step to step has to be found first: more steps are taken before the clock runs.
        period = clock.period_of(wrapped)
        rounds = case.repeats * (max(options.rounds // period, LEAST) if period > 1 else options.rounds)
        before = np.median(clock.time_steps(steps, -(-CHOOSING // period), warmup=-(-5 // period), period=period), 1)
        faster = [int(before[:2].argmin()), 2 + int(before[2:].argmin())]
        plain, ours = np.asarray(clock.time_steps([steps[kind] for kind in faster], rounds, period=period))
        layouts = [list(FORMATS)[kind % 2] for kind in faster]
        results[str(case)] = {"formats": layouts, "plain": plain.tolist(), "wrapped": ours.tolist()}
        lines.append(_row(case, plain, ours))
        if kept is not None:
            results[str(case)]["kept_bytes"] = kept.nbytes
            note = (
                f"The kept factors of {len(images)} images take {kept.nbytes:,} bytes, the images themselves, as "
                f"float32, {images.nbytes:,}."
            )
    lines += ["", note, ""]
    print("\n".join(lines))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "training.md").write_text("\n".join(lines), encoding="utf-8")
        (options.out / "training.json").write_text(json.dumps(results, indent=1), encoding="utf-8")


def _stepping(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    layout: torch.memory_format = torch.contiguous_format,
    kept: lrbench.KeptInput | None = None,
) -> clock.Step:
    """Steps of a model on one batch after the other."""
    model = model.to(memory_format=layout).train()  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    order = torch.arange(len(images)).split(BATCH)

    def step(number: int) -> None:
        index = order[number % len(order)]
        if kept is None:
            training_step(model, optimizer, images[index].to(memory_format=layout), labels[index])
            return
        with kept.batch(index) as x:
            training_step(model, optimizer, x, labels[index])

    return step


def _ratio_of_medians(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], axis: int = -1) -> Any:
    return np.median(a, axis) / np.median(b, axis)


def _row(case: Case, plain: np.ndarray[Any, Any], wrapped: np.ndarray[Any, Any]) -> str:
    ratio = float(_ratio_of_medians(wrapped, plain))
    drawn = np.random.default_rng(0).integers(len(plain), size=(9999, len(plain)))
    least, most = np.quantile(_ratio_of_medians(wrapped[drawn], plain[drawn]), [0.05, 0.95])
    low, high = np.quantile(wrapped / plain, [0.25, 0.75])
    theirs, ours = 1e3 * np.median(plain), 1e3 * np.median(wrapped)
    verdict, bound = "", "–"
    if case.bound is not None:
        holds = ratio < case.bound if case.keeps else ratio <= case.bound
        verdict, bound = "kept" if holds else "missed", f"{'<' if case.keeps else '≤'} {case.bound:.2f}"
        if least <= case.bound <= most:
            verdict += ", by the median alone"
    measured = f"{len(plain)} | {theirs:.1f} | {ours:.1f} | {ratio:.3f} | {least:.3f} to {most:.3f}"
    return f"| {case} | {measured} | [{low:.3f}, {high:.3f}] | {bound} | {verdict} |"


if __name__ == "__main__":
    main()
