"""What a command line asks of the ablation: its options, the preset behind them, and what all runs have in common."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lrbench.names import DATASETS, MODELS
from lrbench.presets import AXES, list_presets, load_preset
from lrbench.shell import add_loudness, make_parser

# What takes torch is imported where it is first needed: the command line answers at once.
if TYPE_CHECKING:
    from lrbench.datasets import Dataset
    from lrbench.training import Config

__all__ = ["base_config", "read_request"]

SAYS = "Run a grid into a results folder; the same command again does what is missing."
EXAMPLES = """\
lrbench ablate
lrbench ablate --preset paper --data-dir DIR --out my/paper
lrbench ablate --compressors svd aca --masks 000000 101010 --out DIR
lrbench ablate --compressors --masks 000000 --policies tuned.toml"""
OF_ONE_MODEL = ("widths", "masks")
"""What a preset says of its network alone; others have widths of their own, and another number of bits."""


def read_request(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line: what it does not say, the preset does.

    Returns
    -------
    argparse.Namespace
        The options by name; ``grids``, the axes of each grid; and ``planned``, the preset's policies as tables.
    """
    parser = make_parser("ablate", SAYS, EXAMPLES)
    add = parser.add_argument
    add(
        "--preset",
        metavar="NAME",
        choices=list_presets(),
        help="what the rest defaults to: " + ", ".join(list_presets()),
    )
    add("--dataset", choices=DATASETS)
    add("--data-dir", type=Path, metavar="DIR", help="of CIFAR-10; else $LRBENCH_DATA, or downloaded")
    add("--train-size", type=int, metavar="N", help="how many training images")
    add("--test-size", type=int, metavar="N", help="how many test images")
    add("--model", metavar="NAME", help=f"{', '.join(MODELS)}, MODULE:NAME")
    add("--widths", type=int, nargs="+", metavar="W", help="of a model named here")
    add("--epochs", type=int, metavar="N")
    add("--batch-size", type=int, metavar="N")
    add("--learning-rate", type=float, default=1e-3, metavar="RATE", help="of Adam (0.001)")
    add(
        "--compressors",
        nargs="*",
        metavar="NAME",
        help="or ./FILE.py:CLASS; no name: policies alone",
    )
    add("--masks", nargs="+", metavar="MASK", help="such as 101010, conv1,conv3 or 'layer2.*'")
    add("--eps", type=float, nargs="+", metavar="EPS", help="requested relative errors, in (0, 1]")
    add("--path", nargs="+", metavar="PATH", help="forward, backward or both")
    add("--seeds", type=int, nargs="+", metavar="SEED")
    add(
        "--policies",
        type=Path,
        nargs="+",
        metavar="FILE",
        default=[],
        help="TOML files: each is one more cell",
    )
    add("--device", default="cpu", help="cpu, cuda, cuda:1 (cpu)")
    add("--threads", type=int, metavar="N", help="in a run's id (the preset's; cores / jobs)")
    add("--timed-steps", type=int, metavar="N", help="training steps to time; 0 for none")
    add("--peak-processes", type=int, metavar="N", help="processes to measure memory in; 0 for none")
    add("--out", type=Path, metavar="DIR", help="the results folder (results/PRESET)")
    add(
        "--jobs",
        type=int,
        default=1,
        metavar="K",
        help="runs at once, a process each (1); 0: in this one",
    )
    cluster = parser.add_mutually_exclusive_group()
    cluster.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="tcp://HOST:PORT of Dask's, in place of --jobs",
    )
    cluster.add_argument("--scheduler-file", type=Path, metavar="FILE", help="the same, by Dask's file")
    add("--run-timeout", type=float, metavar="SECONDS", help="end a run that takes longer (no limit)")
    add("--retry-failed", action="store_true", help="try runs again that failed")
    add("--force", action="store_true", help="do all runs again; old ones are kept until then")
    add("--dry-run", action="store_true", help="list the runs, and which are done")
    add_loudness(parser)
    options = parser.parse_args(arguments)
    if options.preset is None:
        options.preset = "cifar10" if options.dataset == "cifar10" else "demo"
    preset = load_preset(options.preset)
    model = preset.options.get("model", "paper")
    as_planned = options.model in (None, model)
    if options.model is None:
        options.model = model
    for name, value in preset.options.items():
        if getattr(options, name) is None and (as_planned or name not in OF_ONE_MODEL):
            setattr(options, name, value)
    # An axis that is given, or said by the preset for all its grids, is that of every grid.
    options.grids = [
        {axis: given if (given := getattr(options, axis)) is not None else grid.get(axis) for axis in AXES}
        for grid in preset.grids
    ]
    options.planned = preset.policies if as_planned else {}
    if not as_planned:
        options.grids = [{**grid, "masks": options.masks} for grid in options.grids]
    if options.out is None:
        options.out = Path("results") / options.preset
    return options


def base_config(options: argparse.Namespace, data: Dataset) -> Config:
    """Give what the runs of a request share: no cell of the grid, and seed 0.

    What the options leave open is settled in them: ``threads``, and ``jobs`` under torchrun.

    Raises
    ------
    ValueError
        If something that was asked for cannot be done with these data, or here.
    """
    import torch

    from lrbench import distributed
    from lrbench.foreign import is_foreign, structure_of
    from lrbench.models import build_on_meta, own_widths
    from lrbench.training import Config

    if distributed.count() > 1:
        if options.jobs > 1 or options.scheduler or options.scheduler_file:
            raise ValueError("several runs at a time were asked for under torchrun, which does one in all processes")
        options.jobs = 0
    if options.threads is None:
        options.threads = max(1, torch.get_num_threads() // max(1, options.jobs))
    sizes = {}
    for part, images in (("train", data.train_images), ("test", data.test_images)):
        asked = getattr(options, f"{part}_size")
        sizes[part] = len(images) if asked is None else asked
        if not 1 <= sizes[part] <= len(images):
            raise ValueError(f"--{part}-size is {sizes[part]}: {data.name} has 1 to {len(images)} such images")
    from_one, from_zero = ("epochs", "batch_size", "threads"), ("timed_steps", "peak_processes", "jobs")
    for name, least in (*((name, 1) for name in from_one), *((name, 0) for name in from_zero)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(options, name)}: use at least {least}")
    if options.run_timeout is not None and not (0 < options.run_timeout < math.inf and options.jobs):
        raise ValueError(
            f"--run-timeout is {options.run_timeout:g}: use a positive number of seconds"
            if options.jobs
            else "--run-timeout goes with --jobs of at least 1: only a process of its own can be ended"
        )
    if not 0 < options.learning_rate < math.inf:
        raise ValueError(f"--learning-rate is {options.learning_rate}: use a positive number")
    try:
        if not (options.scheduler or options.scheduler_file):  # else it is a device of the workers
            torch.empty(1, device=options.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device is {options.device}: torch cannot use it here ({reason})") from error
    widths = tuple(options.widths or own_widths(options.model))
    structure = None
    if is_foreign(options.model):
        structure = structure_of(build_on_meta(options.model, widths, len(data.classes)))
    return Config(
        dataset=data.name,
        data_sha256=data.sha256,
        train_size=sizes["train"],
        test_size=sizes["test"],
        model=options.model,
        widths=widths,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=0,
        mask="",
        compressor=None,
        compressor_version=None,
        eps=None,
        path=None,
        device=options.device,
        threads=options.threads,
        processes=distributed.count(),
        structure=structure,
    )
