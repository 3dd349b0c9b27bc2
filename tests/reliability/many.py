"""Thousands of runs in one folder: listing, going on and reporting take time in proportion, and less than a minute."""

import contextlib
import io
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from findings import Findings
from report_records import make_failure, make_record, write_folder

import lrbench.ablate as ablate
import lrbench.report
from lrbench.datasets import load_dataset
from lrbench.grid import Grid, expand
from lrbench.request import base_config, read_request
from lrbench.store import Record

BOUND = 60.0
"""Seconds of one core, for each of the three."""

GROWTH = 6.0
"""Of four times the runs, so much more may be taken: 4 if linear, 16 if quadratic."""

SEEDS = 10
METHODS = ("svd", "aca", "aca-estimate", "rsvd", "qr-svd")


def command(folder: Path, count: int) -> list[str]:
    """A command of at least that many runs: cells of ten seeds that differ in mask, compressor, eps and path."""
    cells = -(-count // SEEDS)
    masks = [f"{bits:06b}" for bits in range(63, 0, -2)][: max(1, cells // 60)]
    eps = [f"{0.05 * step:.2f}" for step in range(1, 1 + min(15, max(1, -(-cells // (10 * len(masks))))))]
    arguments = ["--dataset", "photos", "--threads", "1", "--compressors", *METHODS, "--masks", "000000", *masks]
    arguments += ["--eps", *eps, "--path", "both", "backward", "--seeds", *map(str, range(SEEDS))]
    return [*arguments, "--out", str(folder)]


def make_records(arguments: list[str]) -> list[Record]:
    """Make the record of every run of a command; every other one failed, which is said of each."""
    options = read_request(arguments)
    data = load_dataset("photos")
    grid = Grid(options.compressors, options.masks, options.eps, options.path, options.seeds)
    configs, _ = expand(grid, base_config(options, data), len(data.classes))
    cells = [
        {
            "mask": run.mask,
            "compressor": run.compressor,
            "seed": run.seed,
            "accuracy": 0.45 + 0.001 * run.seed,
            "eps": run.eps,
            "path": run.path,
            "config": run.to_json(),
        }
        for run in configs
    ]
    return [make_failure(**cell) if number % 2 else make_record(**cell) for number, cell in enumerate(cells)]


def try_many(count: int, seed: int, base: Path) -> Findings:
    """Measure folders of ``count`` runs and of a quarter."""
    found = Findings("Many runs in one folder")
    seconds: dict[str, list[float]] = {}
    amounts = []
    for part in (count // 4, count):
        folder = base / f"many-{part}"
        arguments = command(folder, part)
        amounts.append(len(write(folder, arguments)))
        for what, act in jobs(folder, arguments).items():
            seconds.setdefault(what, []).append(measured(act))
        shutil.rmtree(folder)
    found.count("runs", amounts[-1])
    for what, (fewer, more) in seconds.items():
        found.measured[f"{what} {amounts[0]:,} and {amounts[1]:,} runs"] = f"{fewer:.1f} s and {more:.1f} s of one core"
        found.expect(more < BOUND, f"{what} {amounts[1]:,} runs took {more:.1f} s")
        growth = more / fewer / (amounts[1] / amounts[0] / 4)
        found.expect(growth < GROWTH, f"{what} four times the runs took {growth:.1f} times as long")
    return found


def write(folder: Path, arguments: list[str]) -> list[Record]:
    """Write the records of a command without waiting for the disk at each."""
    records, fsync = make_records(arguments), os.fsync
    os.fsync = lambda descriptor: None
    try:
        write_folder(folder, records)
    finally:
        os.fsync = fsync
    return records


def jobs(folder: Path, arguments: list[str]) -> dict[str, Callable[[], object]]:
    """The three things that are done with a folder."""

    def resume() -> None:
        report, lrbench.report.write_report = lrbench.report.write_report, lambda folder: folder
        try:
            assert ablate.main(arguments) == 1  # for the runs that failed
        finally:
            lrbench.report.write_report = report

    return {
        "listing": lambda: ablate.main([*arguments, "--dry-run"]),
        "resuming": resume,
        "reporting": lambda: lrbench.report.write_report(folder),
    }


def measured(act: Callable[[], object]) -> float:
    """Seconds of the processor."""
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        act()
    return time.process_time() - start


def calls(act: Callable[[], object]) -> int:
    """Functions called: a measure of work that is the same on every machine."""
    count = 0

    def profile(*_: object) -> None:
        nonlocal count
        count += 1

    sys.setprofile(profile)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            act()
    finally:
        sys.setprofile(None)
    return count
