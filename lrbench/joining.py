"""One results folder of several: a grid may be split over commands and machines, each with a folder of its own."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lrbench.lock import locked
from lrbench.store import Record, is_finished, prepare_folder, read_folder, run_path, write_run

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
    parts = {folder: _read_all(folder) for folder in dict.fromkeys(folders) if folder != out}
    _merge(parts)  # what cannot be joined is refused before anything is written
    prepare_folder(out)
    with locked(out):  # before that, `out` may gain runs
        for path, record in _merge({out: _read_all(out)} | parts):
            if path != run_path(out, record["id"]):
                write_run(out, record)


def _merge(folders: Mapping[Path, Sequence[Record]]) -> Collection[tuple[Path, Record]]:
    """Choose one of the runs of each id, with where it is."""
    taken: dict[str, tuple[Path, Record]] = {}
    for folder, records in folders.items():
        for record in records:
            path = run_path(folder, record["id"])
            if record["id"] not in taken:
                taken[record["id"]] = path, record
                continue
            first, other = taken[record["id"]]
            if is_finished(record) and is_finished(other):
                _compare(first, other, path, record)
            elif is_finished(record):
                taken[record["id"]] = path, record
    return taken.values()


def _read_all(folder: Path) -> list[Record]:
    if not (folder / "runs").is_dir():
        raise JoinError(f"{folder} is no results folder: it has no folder runs")
    contents = read_folder(folder)
    for path, reason in contents.left_out.items():
        raise JoinError(f"nothing is joined, for {path} is left out: {reason}: remove the file, or do its run again")
    return contents.records


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
    epochs = [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in record.get("epochs") or ()]
    return {"epochs": epochs} | {key: record.get(key) for key in ("outcome", "final", "layers", "gradients")}
