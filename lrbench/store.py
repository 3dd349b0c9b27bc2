"""The results folder: one JSON file for each run, the only source of truth.

``DIR/runs/<id>.json`` holds one finished or failed run. The name is a hash of the run's configuration, so the same
command finds what it has done already. Everything else in the folder is derived from these files.
"""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = [
    "SCHEMA",
    "Record",
    "ResultsFolderError",
    "is_finished",
    "prepare_folder",
    "read_runs",
    "run_id",
    "run_path",
    "write_run",
]

SCHEMA = 1
"""Version of a run file's layout."""

Record = dict[str, Any]


class ResultsFolderError(OSError):
    """The results folder cannot be created or written."""


def run_id(config: Mapping[str, Any]) -> str:
    """Hash a run's configuration to the 16 hexadecimal digits that name its file."""
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def prepare_folder(folder: Path) -> None:
    """Create ``folder`` with its ``runs``, and prove that it can be written before anything is computed.

    Raises
    ------
    ResultsFolderError
        If it cannot; the message names the folder and the reason.
    """
    try:
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder / "runs"):
            pass
    except OSError as error:
        raise ResultsFolderError(
            f"the results folder {folder} cannot be written ({error.strerror}): name another one with --out"
        ) from error


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` so that a reader, or a crash, sees the old file or the new one, never a part."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def run_path(folder: Path, name: str) -> Path:
    """Where the run of that id is, or would be."""
    return folder / "runs" / f"{name}.json"


def write_run(folder: Path, record: Record) -> Path:
    """Write one run's record atomically and return its path; NaN and infinity are refused, they are not JSON."""
    path = run_path(folder, record["id"])
    write_atomically(path, json.dumps(record, indent=1, allow_nan=False) + "\n")
    return path


def read_runs(folder: Path) -> list[Record]:
    """Read every run of a folder, sorted by id; a file that holds no run is named in a warning and left out."""
    records = []
    for path in sorted((folder / "runs").glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            intact = record["schema"] == SCHEMA and record["id"] == path.stem == run_id(record["config"])
        except (ValueError, KeyError, TypeError):
            intact = False
        if intact:
            records.append(record)
        else:
            warnings.warn(f"{path} is not an intact run of layout {SCHEMA} and is left out", stacklevel=2)
    return records


def is_finished(record: Record) -> bool:
    """Tell a finished run, diverged ones among them, from one that failed."""
    return bool(record["status"] == "finished")
