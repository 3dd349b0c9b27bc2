"""Training steps with compression beside steps without it: ratios of medians, side by side in each of some processes.

``python -m benchmarks.training [--records FILE] [--out DIR]`` prints the table, and writes it with every single time
into DIR. It wants the machine to itself. The network is the paper's, of widths 32, 64 and 128, after one epoch on the
images; every kind of step trains a copy of its own, all with the same optimizer. Each case is measured beside the plain
model, either in the memory format that some steps of both have shown to be faster for it. Where memory happens to lie
differs from process to process, and moves a ratio by more than the rounds of one process tell: each case is measured
anew in several, one after the other, and the spread is that between them.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from tqdm import tqdm

import lrbench
from benchmarks.inputs import BATCH, trained_network
from benchmarks.speed import images_of
from lrbench.environment import environment
from lrbench.files import write_atomically
from lrbench.measure import time as clock
from lrbench.training import training_step

LEAST = 4
"""Rounds of a process at least, of those that take several steps."""

CHOOSING = 6
"""Steps by which the memory format is chosen."""

FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


class Case(NamedTuple):
    """A wrapped model: which layers, what with, and what its step may take beside the plain model's, if promised.

    With kept factors the promise is to take less than ``bound``; elsewhere, no more. ``repeats`` times as many
    processes measure it where the ratio is nearer to its bound than fewer allow to tell.
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
    Case("100000", "svd", 0.1, "both", 1.05, repeats=2),
    Case("100000", "svd", 0.1, "both", 1.0, keeps=True, repeats=4),
    Case("101010", "warm", 0.1, "both", 1.30),
    Case("101010", "svd", 0.1, "both"),
    Case("101010", "aca", 0.1, "both"),
    Case("101010", "aca-estimate", 0.1, "both"),
    Case("111111", "warm", 0.3, "backward", 1.60),
    Case("111111", "svd", 0.3, "backward"),
    Case("111111", "warm", 0.3, "both"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, help="CIFAR-10 records (binary) to measure on; the photographs without")
    parser.add_argument("--processes", type=int, default=5, help="that measure a case, or more (default 5)")
    parser.add_argument("--rounds", type=int, default=12, help="timed steps of a kind in each (default 12)")
    parser.add_argument("--out", type=Path, help="folder for training.md and training.json")
    options = parser.parse_args(arguments)
    if options.processes < 2:
        parser.error(f"--processes is {options.processes}: the spread is that between processes, and takes two or more")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    images, labels, name = images_of(options.records)
    model = trained_network(images, labels)
    period = lrbench.get_compressor("warm").period
    lines = [
        "# Training steps beside the plain model's",
        "",
        f"The paper's network, widths 32, 64, 128, batches of {BATCH}, after one epoch on {name}.",
        f"{torch.get_num_threads()} threads. Processes, one after the other, take both kinds of step in turn, in",
        f"{options.rounds} rounds. What one tells are medians over its rounds, and their ratio; here are geometric",
        "means over processes, with Student's interval, and the least and the largest ratio. Either model runs in the",
        f"memory format in which its median of {CHOOSING} steps, taken before, is shorter. A round of `warm` is of",
        f"{period} steps, from one refresh of its basis to the next, and counts with their mean; there are {LEAST} at",
        "least. With the input's factors kept, a step reads no images.",
        "",
        "| step | processes | plain, ms | ms | ratio | 90 % | least, most | bound | |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    results: dict[str, Any] = {"images": name, "environment": environment()}
    notes = []
    alone = ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1)
    with alone, tqdm(total=options.processes * sum(case.repeats for case in CASES)) as progress:
        for case in CASES:
            results[str(case)] = measured = []
            for _ in range(options.processes * case.repeats):
                measured.append(alone.submit(_measure, case, model, options.records, options.rounds).result())
                progress.update()
            lines.append(_row(case, measured))
            progress.write(lines[-1])
            if case.keeps:
                notes.append(
                    f"The kept factors of {len(images)} images take {measured[0]['kept_bytes']:,} bytes, the images "
                    f"themselves, as float32, {images.nbytes:,}."
                )
            if options.out is not None:  # at once: what is measured stays, whatever becomes of the rest
                text = "\n".join([*lines, "", *notes, ""])
                write_atomically(options.out / "training.md", text)
                write_atomically(options.out / "training.json", json.dumps(results, indent=1))


def _measure(case: Case, model: nn.Module, records: Path | None, rounds: int) -> dict[str, Any]:
    """Seconds of every round, of the plain model's steps and of the case's, as this process takes them."""
    images, labels, _ = images_of(records)
    torch.manual_seed(0)
    wrapped = lrbench.wrap(copy.deepcopy(model), case.mask, case.compressor, case.eps, case.path)
    kept = None
    steps = [_stepping(copy.deepcopy(model), images, labels, layout) for layout in FORMATS.values()]
    for layout in FORMATS.values():
        copied = copy.deepcopy(wrapped)
        kept = lrbench.KeptInput(copied, images) if case.keeps else None
        steps.append(_stepping(copied, images, labels, layout, kept))
    # A basis that is kept from step to step has to be found first: more steps are taken before the clock runs.
    period = clock.period_of(wrapped)
    rounds = max(rounds // period, LEAST) if period > 1 else rounds
    before = np.median(clock.time_steps(steps, -(-CHOOSING // period), warmup=-(-3 // period), period=period), 1)
    faster = [int(before[:2].argmin()), 2 + int(before[2:].argmin())]
    plain, ours = clock.time_steps([steps[kind] for kind in faster], rounds, period=period)
    formats = [list(FORMATS)[kind % 2] for kind in faster]
    sizes = {} if kept is None else {"kept_bytes": kept.nbytes}
    return {"formats": formats, "plain": plain, "wrapped": ours, **sizes}


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


def _row(case: Case, measured: Sequence[dict[str, Any]]) -> str:
    """A case's row of the table, of what each process measured."""
    theirs, ours = (np.array([np.median(each[kind]) for each in measured]) for kind in ("plain", "wrapped"))
    ratios = ours / theirs
    ratio, logs = stats.gmean(ratios), np.log(ratios)
    least, most = np.exp(stats.t.interval(0.9, len(logs) - 1, logs.mean(), stats.sem(logs)))
    verdict, bound = "", "–"
    if case.bound is not None:
        holds = ratio < case.bound if case.keeps else ratio <= case.bound
        verdict, bound = "kept" if holds else "missed", f"{'<' if case.keeps else '≤'} {case.bound:.2f}"
        if least <= case.bound <= most:
            verdict += ", by the mean alone"
    taken = f"{len(measured)} | {1e3 * stats.gmean(theirs):.1f} | {1e3 * stats.gmean(ours):.1f}"
    spread = f"{least:.3f} to {most:.3f} | [{ratios.min():.3f}, {ratios.max():.3f}]"
    return f"| {case} | {taken} | {ratio:.3f} | {spread} | {bound} | {verdict} |"


if __name__ == "__main__":
    main()
