"""Training steps with compression beside steps without it: ratios of medians, side by side in each of some processes.

``python -m benchmarks.training [--records FILE] [--out DIR]`` prints the tables, and writes them with every single time
into DIR. It wants the machine to itself. The network is the paper's, of widths 32, 64 and 128, after one epoch on the
images. Each case is measured beside the plain model, either in the memory format that some steps of both have shown to
be faster for it. Where memory happens to lie moves a ratio by more than what is to be told: the two take turns at
training the same parameters with the same optimizer, and each case is measured anew in several processes, one after the
other, of which the spread is told. What an allocator gives back to the system is paid for at the next step: all cases
are measured where it gives nothing back, which makes the plain step faster, and those with a bound by default, too.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from tqdm import tqdm

import lrbench
from benchmarks.inputs import BATCH, trained_network
from benchmarks.speed import KEPT, images_of
from lrbench.environment import environment
from lrbench.files import write_atomically
from lrbench.measure import time as clock
from lrbench.measure.memory import allocator_environment
from lrbench.training import training_step

LEAST = 4
"""Rounds of a process at least, of those that take several steps."""

CHOOSING = 6
"""Steps by which the memory format is chosen."""

FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}

TABLE = (
    "| step | processes | plain, ms | ms | ratio | 90 % | least, most | bound | |",
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
)


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
    Case("100000", "svd", 0.1, "both", 1.05),
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
    parser.add_argument("--rounds", type=int, default=24, help="timed steps of a kind in each (default 24)")
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
        f"{options.rounds} rounds, on the same parameters. What one tells are medians over its rounds, and their",
        "ratio; here are geometric means over processes, with Student's interval, and the least and the largest",
        f"ratio. Either model runs in the memory format in which its median of {CHOOSING} steps, taken before, is",
        f"shorter. A round of `warm` is of {period} steps, from one refresh of its basis to the next, and counts with",
        f"their mean; there are {LEAST} at least. With the input's factors kept, a step reads no images.",
    ]
    results: dict[str, Any] = {"images": name, "environment": environment()}
    notes: list[str] = []
    plans = [(case, options.processes * case.repeats) for case in CASES]
    defaults = [(case, processes) for case, processes in plans if case.bound is not None]
    with tqdm(total=sum(processes for _, processes in [*plans, *defaults])) as progress:
        for title, threshold, chosen in (
            ("Freed memory is kept", KEPT.threshold, plans),
            ("Freed memory is kept or returned as glibc's default has it", None, defaults),
        ):
            variables = allocator_environment(threshold)
            lines += ["", f"## {title}", "", *TABLE]
            results[title] = {}
            for case, processes in chosen:
                results[title][str(case)] = measured = []
                for _ in range(processes):
                    measured.append(_apart(variables, case, model, options.records, options.rounds))
                    progress.update()
                lines.append(_row(case, measured))
                progress.write(lines[-1])
                if case.keeps:
                    theirs = f"The kept factors of {len(images)} images take {measured[0]['kept_bytes']:,} bytes"
                    notes = [f"{theirs}, the images themselves, as float32, {images.nbytes:,}.", ""]
                if options.out is not None:  # at once: what is measured stays, whatever becomes of the rest
                    write_atomically(options.out / "training.md", "\n".join([*lines, "", *notes]))
                    write_atomically(options.out / "training.json", json.dumps(results, indent=1))


def _apart(variables: Mapping[str, str], *arguments: Any) -> dict[str, Any]:
    """What :func:`_measure` gives in a process of its own, which has these environment variables and no others."""
    alone = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    with patch.dict(os.environ, variables, clear=True), alone:
        return alone.submit(_measure, *arguments).result()


def _measure(case: Case, model: nn.Module, records: Path | None, rounds: int) -> dict[str, Any]:
    """Seconds of every round, of the plain model's steps and of the case's, as this process takes them."""
    images, labels, _ = images_of(records)
    torch.manual_seed(0)
    wrapped = lrbench.wrap(copy.deepcopy(model), case.mask, case.compressor, case.eps, case.path)
    kept, plain_steps, our_steps = None, [], []
    for layout in FORMATS.values():
        ours = copy.deepcopy(wrapped).to(memory_format=layout).train()  # type: ignore[call-overload]
        same = {id(tensor): tensor for tensor in (*ours.parameters(), *ours.buffers())}
        optimizer = torch.optim.Adam(ours.parameters(), 1e-3, fused=True)
        kept = lrbench.KeptInput(ours, images) if case.keeps else None
        plain_steps.append(_stepping(lrbench.unwrap(copy.deepcopy(ours, same)), optimizer, images, labels, layout))
        our_steps.append(_stepping(ours, optimizer, images, labels, layout, kept))
    steps = plain_steps + our_steps
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
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    layout: torch.memory_format,
    kept: lrbench.KeptInput | None = None,
) -> clock.Step:
    """Steps of a model on one batch after the other."""
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
