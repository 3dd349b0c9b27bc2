"""One results folder of several: a grid may be split over commands and machines, each with a folder of its own."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrbench.lock import locked
from lrbench.store import Record, is_finished, prepare_folder, read_runs, run_path, write_run

__all__ = ["JoinError", "join_folders"]


class JoinError(ValueError):
    """Folders cannot be joined; the message says why. Nothing was written."""


def join_folders(folders: Sequence[Path], out: Path) -> None:
    """Bring the runs of some folders together in one, beside what it holds already.

    A run that is in more than one folder is taken from the first, or from where it finished, if the numbers are the
    same but for times and memory: cells such as the plain model belong to every part of a grid.

    Raises
    ------
    JoinError
        If a folder is not there, a file holds no intact run of this version's layout, or one run has two results.
    ResultsFolderError
        If ``out`` cannot be written, or another command writes into it.
    """
    taken: dict[str, tuple[Path, Record]] = {}
    for folder in dict.fromkeys([*([out] if (out / "runs").is_dir() else []), *folders]):
        for record in _read_all(folder):
            path = run_path(folder, record["id"])
            if record["id"] not in taken:
                taken[record["id"]] = path, record
                continue
            first, other = taken[record["id"]]
            if is_finished(record) and is_finished(other):
                _compare(first, other, path, record)
            elif is_finished(record):
                taken[record["id"]] = path, record
    prepare_folder(out)
    with locked(out):
        for path, record in taken.values():
            if path != run_path(out, record["id"]):
                write_run(out, record)


def _read_all(folder: Path) -> list[Record]:
    if not (folder / "runs").is_dir():
        raise JoinError(f"{folder} is no results folder: it has no folder runs")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        try:
            return read_runs(folder)
        except UserWarning as warning:
            raise JoinError(f"nothing is joined, for {warning}: remove the file, or do its run again") from warning


def _compare(first: Path, one: Record, second: Path, other: Record) -> None:
    ours, theirs = _numbers(one), _numbers(other)
    different = [key for key in ours if ours[key] != theirs[key]]
    if different:
        raise JoinError(
            f"{first} and {second} are one run with two results (they differ in {' and '.join(different)}): "
            "remove the one that you do not trust"
        )


def _numbers(record: Record) -> dict[str, Any]:
    """What the same run must give wherever it is done."""
    epochs = [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in record["epochs"]]
    return {"epochs": epochs} | {key: record.get(key) for key in ("outcome", "final", "layers", "gradients")}
