"""Compressing beside what people would use instead: ratios of medians, of what is measured in one process.

``python -m benchmarks.speed [--records FILE] [--out DIR]`` prints the table, and writes it with every single time into
DIR. It wants the machine to itself.

Each kind of call is timed once a round, on images that it has not been timed on before, in an order that is drawn anew:
no kind always follows the same other. Before each kind's turn the process rests a little, for threads that another
library has just used still wait for work, at full speed; then come calls that are not timed, on images of their own,
until all threads are at work again, each on a core of its own; and then the one that is. Every baseline runs at its own
fastest number of threads and memory format, which is tried out first. The whole is measured twice: with an allocator
that returns what is freed, and with one that keeps it.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg.interpolative
import torch
import torch.nn.functional as F
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

import lrbench
from benchmarks.inputs import LAYERS, inputs_met, trained_network
from lrbench.datasets import load_dataset, to_float
from lrbench.environment import environment
from lrbench.measure.memory import allocator_environment

BATCH = 500
EPS = 0.1
DEEPER = ("288x256", "576x64")
RESTS = 0.1
"""Seconds between two timed calls."""
WARMS = 0.05
"""Seconds, at least, of calls that are not timed: threads that rested may share one core for as long as 0.02."""
TOGETHER = 4
"""Calls that are timed together of what takes little: more of them for the same rests."""

Call = Callable[[Tensor], object]
"""Takes images (N, C, H, W)."""


class Kind(NamedTuple):
    """One thing that is timed: what to call, on how many of a batch's images, and with how many threads.

    ``calls`` are timed together, on one batch after the other, where not all take the same, or each takes little.
    """

    call: Call
    images: int
    threads: int
    calls: int = 1


class Promise(NamedTuple):
    """``over`` / ``under`` is to be at most, or at least, ``bound``."""

    over: str
    under: str
    sign: str
    bound: float


class Allocator(NamedTuple):
    """How glibc treats what is freed: what that means, and from how many bytes on it is given back."""

    meaning: str
    threshold: int


RETURNED = Allocator("A large result lies in pages that are new to the process, and each is paid for.", 128 << 10)
KEPT = Allocator("A result lies where the one before lay.", 4_000_000_000)
ALLOCATORS = {"Freed memory is returned": RETURNED, "Freed memory is kept": KEPT}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, help="CIFAR-10 records (binary) to measure on; the photographs without")
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each kind (default 15)")
    parser.add_argument("--out", type=Path, help="folder for speed.md and speed.json")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.into is not None:
        options.into.write_text(json.dumps(_measure(options.records, options.rounds)), encoding="utf-8")
        return
    threads = torch.get_num_threads()
    *_, name = images_of(options.records)
    lines = [
        "# Compressing, beside what people would use instead",
        "",
        f"Images: {name}. {threads} threads. Times are medians of {options.rounds} rounds, [quartiles], from images to",
        "packed and checked factors; of layer 1, at eps "
        f"{EPS:g}, our own and F.unfold are called for {TOGETHER} batches in a",
        "round. Threads are torch's; a ratio is one of medians, its quartiles are of the ratios round by round. What",
        "results are written to decides much, and by default differs from process to process: all is measured in",
        "either extreme, in a process of its own.",
        "",
    ]
    results: dict[str, Any] = {"images": name, "threads": threads, "environment": environment()}
    given = ["--rounds", str(options.rounds), *(["--records", str(options.records)] if options.records else [])]
    for title, allocator in ALLOCATORS.items():
        measured = json.loads(run_apart("benchmarks.speed", given, allocator))
        lines += [f"## {title}", "", allocator.meaning, "", *measured["lines"]]
        results[title] = measured["seconds"]
    print("\n".join(lines))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "speed.md").write_text("\n".join(lines), encoding="utf-8")
        (options.out / "speed.json").write_text(json.dumps(results, indent=1), encoding="utf-8")


def run_apart(module: str, arguments: Sequence[str], allocator: Allocator) -> str:
    """What a module writes to the file of its ``--into``, run in a process of its own that frees memory like that."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "measured")
        command = [sys.executable, "-m", module, *arguments, "--into", str(path)]
        subprocess.run(command, env=allocator_environment(allocator.threshold), check=True)
        return path.read_text(encoding="utf-8")


def _measure(records: Path | None, rounds: int) -> dict[str, Any]:
    """The tables as lines, and every single time, with this process's allocator."""
    threads = torch.get_num_threads()
    images, labels, _ = images_of(records)
    batches = list(images.split(BATCH))
    tables = [("layer 1, 27x1024", batches, *_first_layer(batches[0], threads))]
    for layer, inputs in _deeper_inputs(images, labels).items():
        parts = list(inputs.split(100))
        tables.append((layer, parts, *_deeper(parts[0], threads)))
    lines, results = [], {}
    for title, parts, kinds, promises in tables:
        seconds = results[title] = measure_kinds(kinds, parts, rounds, threads)
        lines += [f"### {title}", "", *_table(kinds, seconds, promises), ""]
        if "F.unfold" in kinds:
            measured = {name: float(np.median(seconds[name])) for name in ("svd", "aca")}
            lines += _least(batches[0], measured)
    return {"lines": lines, "seconds": results}


def images_of(records: Path | None) -> tuple[Tensor, Tensor, str]:
    """Give images, labels and where they come from."""
    if records is None:
        data = load_dataset("photos")
        return to_float(data.train_images), data.train_labels, "crops of scikit-learn's photographs"
    numbers = torch.from_numpy(np.fromfile(records, np.uint8).reshape(-1, 3073))
    images = to_float(numbers[:, 1:].reshape(-1, 3, 32, 32))
    return images, numbers[:, 0].long(), f"{records.parent.parent.name}/{records.name}"


def _compress(name: str, eps: float = EPS) -> Call:
    compressor = lrbench.get_compressor(name, eps=eps)
    return lambda x: compressor.compress(lrbench.Im2col(x, 3, padding=1))


def _truncated(eps: float) -> Call:
    """Torch's SVD of the lowered batch, cut where the tolerance allows."""

    def call(x: Tensor) -> list[tuple[Tensor, Tensor]]:
        U, S, V = torch.linalg.svd(F.unfold(x, 3, padding=1), full_matrices=False)
        energy = S.square()
        lost = energy.flip(1).cumsum(1).flip(1)
        ranks = (lost > eps**2 * energy.sum(1, keepdim=True)).sum(1).tolist()
        return [(U[i, :, :r] * S[i, :r], V[i, :r]) for i, r in enumerate(ranks)]

    return call


def _first_layer(batch: Tensor, threads: int) -> tuple[dict[str, Kind], list[Promise]]:
    D = F.unfold(batch, 3, padding=1)

    def lowrank(q: int) -> Call:
        return lambda x: torch.svd_lowrank(F.unfold(x, 3, padding=1), q=q, niter=1)

    def worst(q: int) -> float:
        U, S, V = torch.svd_lowrank(D, q=q, niter=1)
        return float(((D - (U * S[:, None]) @ V.mT).norm(dim=(1, 2)) / D.norm(dim=(1, 2))).max())

    q = next(q for q in range(4, 28) if worst(q) <= EPS)

    rank = int(lrbench.get_compressor("svd", eps=EPS).compress(D).ranks.max())  # for want of a tolerance

    def by_sklearn(x: Tensor) -> list[Any]:
        return [randomized_svd(d, n_components=rank, random_state=0) for d in F.unfold(x, 3, padding=1).numpy()]

    def by_scipy(x: Tensor) -> list[Any]:
        blocks = F.unfold(x, 3, padding=1).double().numpy()
        return [scipy.linalg.interpolative.svd(d, EPS) for d in blocks]

    few = 50
    ours = ("svd", "rsvd", "aca", "aca-estimate")
    kinds = {name: Kind(_compress(name), len(batch), threads, TOGETHER) for name in ours}
    kinds |= {
        "F.unfold": fastest(
            [
                lambda x: F.unfold(x, 3, padding=1),
                lambda x: F.unfold(x.contiguous(memory_format=torch.channels_last), 3, padding=1),
            ],
            batch,
            threads,
        )._replace(calls=TOGETHER),
        "torch.linalg.svd, truncated": fastest([_truncated(EPS)], batch, threads),
        f"torch.svd_lowrank, q={q}, niter=1": fastest([lowrank(q)], batch, threads),
        f"sklearn randomized_svd, rank {rank}": fastest([by_sklearn], batch[:few], threads),
        "scipy interpolative": fastest([by_scipy], batch[:few], threads),
    }
    return kinds, [
        Promise("svd", "F.unfold", "≤", 0.5),
        Promise("torch.linalg.svd, truncated", "svd", "≥", 20),
        Promise(f"torch.svd_lowrank, q={q}, niter=1", "svd", "≥", 8),
        Promise("aca", "F.unfold", "≤", 0.7),
        Promise("aca-estimate", "F.unfold", "≤", 0.4),
        Promise(f"sklearn randomized_svd, rank {rank}", "rsvd", "≥", 30),
        Promise("scipy interpolative", "rsvd", "≥", 30),
    ]


def _deeper(batch: Tensor, threads: int) -> tuple[dict[str, Kind], list[Promise]]:
    kinds, promises = {}, []
    for eps, bound in ((0.3, 8), (0.1, 3)):
        ours, theirs = f"svd at {eps:g}", f"torch.linalg.svd, truncated at {eps:g}"
        kinds[ours] = Kind(_compress("svd", eps), len(batch), threads)
        kinds[theirs] = fastest([_truncated(eps)], batch, threads)
        promises.append(Promise(theirs, ours, "≥", bound))
    return kinds, promises


def _deeper_inputs(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Inputs of layers 3 and 5, in training mode, after one epoch on these images."""
    model = trained_network(images, labels)
    seen = inputs_met(model, images.split(100)[:10])
    return {f"layer {LAYERS[shape][4:]}, {shape}": torch.cat(seen[shape]) for shape in DEEPER}


def fastest(calls: Sequence[Call], batch: Tensor, threads: int) -> Kind:
    """The quickest of some calls, each with one thread and with all."""
    tried = []
    for number in sorted({1, threads}):
        torch.set_num_threads(number)
        for call in calls:
            seconds = []
            for _ in range(3):
                begin(partial(call, batch[:2]))
                start = time.perf_counter()
                call(batch)
                seconds.append(time.perf_counter() - start)
            tried.append((min(seconds), number, call))
    torch.set_num_threads(threads)
    _, number, call = min(tried, key=lambda entry: entry[0])
    return Kind(call, len(batch), number)


def begin(call: Callable[[], object]) -> None:
    """Let what went before come to rest, and threads come to work: the next call may be timed."""
    time.sleep(RESTS)
    end = time.perf_counter() + WARMS
    call()
    while time.perf_counter() < end:
        call()


def measure_kinds(
    kinds: dict[str, Kind], batches: Sequence[Tensor], rounds: int, threads: int
) -> dict[str, list[float]]:
    """Seconds for each image, by kind and round."""
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    names, order = list(kinds), np.random.default_rng(0)
    for kind in kinds.values():
        kind.call(batches[0][:4])
    for number in range(rounds):
        for name in order.permutation(names):
            kind = kinds[name]
            # The first batch was used to try things out.
            places = (1 + (number + k) % (len(batches) - 1) for k in range(kind.calls + 1))
            before, *timed = (batches[place][: kind.images] for place in places)
            torch.set_num_threads(kind.threads)
            begin(partial(kind.call, before))
            start = time.perf_counter()
            for x in timed:
                kind.call(x)
            seconds[name].append((time.perf_counter() - start) / sum(map(len, timed)))
    torch.set_num_threads(threads)
    return seconds


def _table(kinds: dict[str, Kind], seconds: dict[str, list[float]], promises: Sequence[Promise]) -> list[str]:
    lines = ["| what | threads | images | µs an image |", "| --- | ---: | ---: | ---: |"]
    for name, values in seconds.items():
        low, middle, high = 1e6 * np.quantile(values, [0.25, 0.5, 0.75])
        kind = kinds[name]
        lines.append(f"| {name} | {kind.threads} | {kind.images} | {middle:.1f} [{low:.1f}, {high:.1f}] |")
    lines += ["", "| ratio | measured | quartiles | bound | |", "| --- | ---: | ---: | ---: | --- |"]
    for promise in promises:
        over, under = np.asarray(seconds[promise.over]), np.asarray(seconds[promise.under])
        ratio = float(np.median(over) / np.median(under))
        low, high = np.quantile(over / under, [0.25, 0.75])
        kept = ratio <= promise.bound if promise.sign == "≤" else ratio >= promise.bound
        lines.append(
            f"| {promise.over} / {promise.under} | {ratio:.2f} | [{low:.2f}, {high:.2f}] "
            f"| {promise.sign} {promise.bound:g} | {'kept' if kept else 'missed'} |"
        )
    return lines


def _least(batch: Tensor, measured: dict[str, float]) -> list[str]:
    """The times below which svd and aca cannot come on this machine, beside the measured ones, by their names.

    Both are in seconds for each image, on all threads.
    """
    N, C, H, W = batch.shape
    # Of each pair of channels 25 shifts, of one with itself 13, tell the Gram matrix of a 3x3 kernel.
    gram = 2 * H * W * (25 * C * (C - 1) // 2 + 13 * C)
    copied, multiplied = _rates()
    lines = []
    for name, seconds in measured.items():
        factors = lrbench.get_compressor(name, eps=EPS).compress(lrbench.Im2col(batch, 3, padding=1))
        m, n = factors.shape[1:]
        rank = factors.ranks.double()
        if name == "svd":
            left, further = "the eigenproblem", {"the projection": 2 * m * n * rank}
        else:
            # Row p_k of the residual is met by k crosses.
            residual = 2 * n * (m * (rank + 1) - rank * (rank - 1) / 2)
            left = "the search for pivots"
            further = {"the pivot rows, which are V's": n * rank * (rank + 1), "the residual": residual}
        moved = (batch.nbytes + factors.nbytes) / N
        parts = [(f"{moved:,.0f} bytes, read or written once", copied, moved, "GB/s of a copy")]
        for what, flops in [("the Gram matrix", gram), *((what, float(each.mean())) for what, each in further.items())]:
            parts += [(f"{flops:,.0f} flops in float32: {what}", multiplied, flops, "GFLOP/s of torch.mm")]
        lines += [
            f"| least work of {name} for an image | rate | µs |",
            "| --- | ---: | ---: |",
            *(f"| {what} | {rate / 1e9:.1f} {unit} | {1e6 * work / rate:.1f} |" for what, rate, work, unit in parts),
            f"| sum, without {left} | | {1e6 * sum(work / rate for _, rate, work, _ in parts):.1f} |",
            f"| measured | | {1e6 * seconds:.1f} |",
            "",
        ]
    return lines


def _rates() -> tuple[float, float]:
    """Bytes read and written in a second by a copy, and operations by products of float32 matrices."""

    def fastest(call: Callable[[], object]) -> float:
        times = []
        for _ in range(7):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return min(times)

    source = torch.ones(16 << 20)
    target = torch.empty_like(source)
    a, out = torch.rand(1024, 1024), torch.empty(1024, 1024)
    return (
        2 * source.nbytes / fastest(lambda: target.copy_(source)),
        2 * 1024**3 / fastest(lambda: torch.mm(a, a, out=out)),
    )


if __name__ == "__main__":
    main()
