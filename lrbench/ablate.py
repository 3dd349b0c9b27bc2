"""The ablation: a grid of runs into a results folder, and the report on it.

python -m lrbench.ablate                                    the embedded demonstration, in results/demo
python -m lrbench.ablate --preset paper --data-dir DIR --out my/paper     the paper's question, five seeds each
python -m lrbench.ablate --dataset cifar10 --compressors svd aca --masks 000000 101010 --seeds 0 1 --out DIR
python -m lrbench.ablate --compressors --masks 000000 --policies tuned.toml         policies beside the plain model

The same command, given again, does only what is missing.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrbench.request import base_config, read_request
from lrbench.running.termination import Terminated, terminable
from lrbench.shell import is_loud, loudness, progress
from lrbench.store import (
    ResultsFolderError,
    is_finished,
    prepare_folder,
    read_runs,
    recover_folder,
    replaced_path,
    run_id,
    run_path,
    write_run,
)

# What takes torch or draws is imported where it is first needed: the command line answers at once.
if TYPE_CHECKING:
    from lrbench.experiment import Experiment
    from lrbench.running.process import Outcomes
    from lrbench.training import Config

    OnEpoch = Callable[[int, int], None]
    Do = Callable[[list[Config], OnEpoch], Outcomes]

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns
    -------
    int
        Exit status: 0; 1 if a run failed or something could not be written; 2 for a bad request; 130 if interrupted;
        143 if ended by SIGTERM.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = read_request(arguments)
    from lrbench import distributed

    try:
        with terminable(), loudness(options), distributed.processes(options.device):
            if not distributed.first():
                return _follow(options)
            return _ablate(options, shlex.join(["python", "-m", "lrbench.ablate", *arguments]))
    except (_BadRequestError, ResultsFolderError, distributed.DeviceError) as error:
        print(f"lrbench.ablate: {error}", file=sys.stderr)
        return 2
    except distributed.ProcessesError as error:
        print(f"lrbench.ablate: {error}; what is finished is in {options.out}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        again = "the same command without --force" if options.force else "the same command"
        print(f"\ninterrupted: what is finished is in {options.out}; {again} goes on from there", file=sys.stderr)
        return 143 if isinstance(interrupt, Terminated) else 130
    except OSError as error:
        print(f"lrbench.ablate: {error}; what is finished is in {options.out}", file=sys.stderr)
        return 1


class _BadRequestError(Exception):
    """What was asked for cannot be done; the message says why."""


def _ablate(options: argparse.Namespace, command: str) -> int:
    from lrbench.datasets import load_dataset
    from lrbench.experiment import Experiment
    from lrbench.grid import Grid, expand_all, load_policies
    from lrbench.lock import locked
    from lrbench.policy import Policy
    from lrbench.running.machine import Machine

    try:
        if options.dataset == "photos" and options.data_dir is not None:
            raise ValueError(f"--data-dir is {options.data_dir}, but photos need no folder: add --dataset cifar10")
        data = load_dataset(options.dataset, options.data_dir)
        planned = {name: Policy.from_table(table) for name, table in options.planned.items()}
        policies = {**planned, **load_policies(options.policies)}
        grids = [Grid(**axes, seeds=options.seeds, policies=policies) for axes in options.grids]
        C, H, W = data.train_images.shape[1:]
        configs, reasons = expand_all(grids, base_config(options, data), len(data.classes), (C, H, W))
        if not options.dry_run:
            prepare_folder(options.out)
    except (ValueError, LookupError, TypeError, ResultsFolderError) as error:
        raise _BadRequestError(error.args[0] if error.args else error) from error
    if options.dry_run:
        _list_runs(configs, reasons, options.out)
        return 0
    machine, checkpoints = Machine(), options.out / "checkpoints"
    shared = options.timed_steps, options.peak_processes, command, options.preset
    experiment = Experiment(data, checkpoints, *shared, alone=machine.alone)

    def do(configs: list[Config], on_epoch: OnEpoch) -> Outcomes:
        """Do runs in the way that is asked for."""
        from lrbench.running.job import Job, Setting
        from lrbench.running.local import in_processes, in_this_process

        if options.jobs == 0:
            return in_this_process(configs, experiment, machine, on_epoch)
        folder = None if options.data_dir is None else str(options.data_dir.resolve())
        setting = Setting(data.name, folder, str(checkpoints.resolve()), *shared)
        jobs = [Job(setting, config) for config in configs]
        if client is not None:
            from lrbench.running.cluster import on_cluster

            return on_cluster(client, jobs, options.run_timeout)
        return in_processes(jobs, options.jobs, options.run_timeout, on_epoch)

    with locked(options.out), _cluster(options) as client:
        for remark in recover_folder(options.out):
            print(remark, file=sys.stderr)
        for reason in reasons:
            print(reason)
        if options.force:
            _begin_anew(configs, experiment, options.out)
        failed = _run_all(configs, experiment, options.out, do, options.retry_failed)
        for reason in failed:
            print(f"failed: {reason}", file=sys.stderr)
        from lrbench.report import write_report

        print(f"report: {write_report(options.out)}")
    return 1 if failed else 0


def _follow(options: argparse.Namespace) -> int:
    """Take part in the runs that process 0 announces, of several that ``torchrun`` started."""
    from lrbench.datasets import load_dataset
    from lrbench.distributed import announced
    from lrbench.experiment import Experiment
    from lrbench.running.job import check

    experiment = None
    for config in announced():
        try:
            if experiment is None:  # what is to be downloaded, process 0 has downloaded by now
                data = load_dataset(options.dataset, options.data_dir)
                experiment = Experiment(data, options.out / "checkpoints")
            check(config, experiment.data)
        except (ValueError, LookupError) as error:
            raise _BadRequestError(error.args[0] if error.args else error) from error
        experiment.run(config)
    return 0


def _cluster(options: argparse.Namespace) -> Any:
    """Connect to a cluster, if one is named."""
    if options.scheduler is None and options.scheduler_file is None:
        return nullcontext()
    try:
        from lrbench.running.cluster import ClusterError, connect
    except ImportError as error:
        raise _BadRequestError(f"{error}: a cluster takes Dask, pip install '.[dask]' in a checkout") from error
    try:
        return connect(options.scheduler, options.scheduler_file)
    except ClusterError as error:
        raise _BadRequestError(error) from error


def _begin_anew(configs: list[Config], experiment: Experiment, folder: Path) -> None:
    """Make some runs missing, so that they are done again, however often that is interrupted."""
    for config in configs:
        name = run_id(config.to_json())
        path = run_path(folder, name)
        if path.exists():
            path.replace(replaced_path(folder, name))
        experiment.forget(name)


def _run_all(
    configs: list[Config], experiment: Experiment, folder: Path, do: Do, retry_failed: bool = False
) -> list[str]:
    """Do the runs that are missing, and write each as it comes; give the reasons of those that failed, now or before.

    Only this process writes results. A run that failed is not tried again unasked: it may take hours to fail again.
    """
    records = {record["id"]: record for record in read_runs(folder)}
    finished = {name: record for name, record in records.items() if is_finished(record)}
    for name in finished:
        experiment.forget(name)  # left by a command that was killed at its last step
    names = {config: run_id(config.to_json()) for config in configs}
    done = [finished[name] for name in names.values() if name in finished]
    settled = finished if retry_failed else records
    left = [c for c, name in names.items() if name in settled and name not in finished]
    missing = [c for c, name in names.items() if name not in settled]
    if done:
        print(f"{len(done)} of {len(configs)} runs are done already")
    for what, asked in (("step", experiment.rounds), ("peak", experiment.processes), ("savings", experiment.processes)):
        without = sum(record.get(what) is None and record["outcome"] != "diverged" for record in done)
        if asked and without:
            print(f"{without} of them hold no {what} measurement: --force does them again")
    failed = [f"{describe(c)}: {records[names[c]]['reason']} (earlier; --retry-failed tries it again)" for c in left]
    started = time.perf_counter()
    seen = [0] * len(missing)
    with progress(sum(c.epochs for c in missing), "epoch") as bar:
        over = 0

        def on_epoch(place: int, epoch: int) -> None:
            bar.set_description(f"{over}/{len(missing)} {describe(missing[place])}")
            bar.update(epoch - seen[place])
            seen[place] = epoch

        with closing(do(missing, on_epoch)) as outcomes:
            for place, came in outcomes:
                config = missing[place]
                over += 1
                on_epoch(place, config.epochs)
                record = came if isinstance(came, dict) else experiment.failed(config, came.reason, came.seconds)
                try:
                    write_run(folder, record)
                except ValueError as error:  # a number that is none, in what somebody's code measured
                    record = experiment.failed(config, f"its record cannot be written: {error}", record["seconds"])
                    write_run(folder, record)
                said = _headline(record) if is_finished(record) else f"failed: {record['reason']}"
                bar.write(f"{describe(config)}: {said} ({record['seconds']:.0f} s)", file=sys.stdout)
                for line in details(record) if is_loud() else ():
                    bar.write(line, file=sys.stdout)
                if is_finished(record):
                    experiment.forget(record["id"])
                else:
                    failed.append(f"{describe(config)}: {record['reason']}")
    if missing:
        print(f"{len(missing)} runs in {time.perf_counter() - started:.0f} s")
    return failed


def describe(config: Config) -> str:
    """Name a run in a few words."""
    if config.plain:
        return f"{config.mask} plain, seed {config.seed}"
    if config.policy is not None:
        return f"{config.mask} policy {config.compressor}, seed {config.seed}"
    eps = "" if config.eps is None else f" {config.eps:g}"
    return f"{config.mask} {config.compressor}{eps} {config.path}, seed {config.seed}"


def _headline(record: dict[str, Any]) -> str:
    if record["outcome"] == "diverged":
        return f"diverged in {record['outcome_detail']}"
    note = " (chance level)" if record["outcome"] == "chance" else ""
    return f"test accuracy {100 * record['final']['as_trained']['accuracy']:.1f} %{note}"


def details(record: dict[str, Any]) -> list[str]:
    """Say of a run what its epochs gave, what was not measured on it and why, and where it failed."""
    lines = [
        f"  epoch {epoch['epoch']}: train loss {epoch['train_loss']:.4f}, "
        f"test accuracy {100 * epoch['test_accuracy']:.1f} % ({epoch['seconds']:.1f} s)"
        for epoch in record.get("epochs") or []
    ]
    for key in ("layers", "gradients", "step", "peak", "savings"):
        if record.get(f"{key}_reason"):
            lines.append(f"  no {key}: {record[f'{key}_reason']}")
    if record.get("traceback"):
        lines += [f"  {line}" for line in record["traceback"].rstrip().splitlines()]
    return lines


def _list_runs(configs: list[Config], reasons: list[str], folder: Path) -> None:
    done = {record["id"]: record["status"] for record in read_runs(folder)}
    for config in configs:
        name = run_id(config.to_json())
        print(f"{name}  {done.get(name, 'missing'):8}  {describe(config)}")
    for reason in reasons:
        print(reason)
    finished = sum(done.get(run_id(c.to_json())) == "finished" for c in configs)
    print(f"{len(configs)} runs, {finished} finished, in {folder}")


if __name__ == "__main__":
    sys.exit(main())
