"""The results folder: one JSON file for each run, the only source of truth.

``DIR/runs/<id>.json`` holds one finished or failed run. The name is a hash of the run's configuration, so the same
command finds what it has done already; a checksum over all that the file says tells it from a damaged one. Everything
else in the folder is derived from these files.
"""

import gc
import hashlib
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrbench.files import DamagedFileError, remove_parts, set_aside, write_atomically
from lrbench.run_shape import find_strange

__all__ = [
    "SCHEMA",
    "Contents",
    "OtherLayoutError",
    "Record",
    "ResultsFolderError",
    "is_finished",
    "prepare_folder",
    "read_folder",
    "read_runs",
    "recover_folder",
    "run_id",
    "run_path",
    "write_run",
]

SCHEMA = 2
"""Version of a run file's layout."""

Record = dict[str, Any]


class ResultsFolderError(OSError):
    """The results folder cannot be created, written or used."""


class OtherLayoutError(ResultsFolderError):
    """The results folder holds runs of another version's layout."""


@dataclass(frozen=True)
class Contents:
    """What a folder's run files hold.

    Attributes
    ----------
    records : list of dict
        The intact runs, sorted by id.
    damaged : dict
        What speaks against each file that holds no intact run.
    other : dict
        The layout of each file that is of another version.
    """

    records: list[Record] = field(default_factory=list)
    damaged: dict[Path, str] = field(default_factory=dict)
    other: dict[Path, int] = field(default_factory=dict)

    @property
    def left_out(self) -> dict[Path, str]:
        """Every file that holds no run to report, with the reason."""
        return self.damaged | {path: f"it is of layout {layout}, not {SCHEMA}" for path, layout in self.other.items()}


def run_id(config: Mapping[str, Any]) -> str:
    """Hash a run's configuration to the 16 hexadecimal digits that name its file."""
    return _digest(config)[:16]


def checksum(record: Mapping[str, Any]) -> str:
    """Hash all that a record says, however its file is laid out, but the checksum itself."""
    return f"sha256:{_digest({key: value for key, value in record.items() if key != 'checksum'})}"


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_CANONICAL.encode(content).encode()).hexdigest()


# What was read from JSON has no circles to look for.
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, check_circular=False)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the collector from walking, again and again, over thousands of runs that are all kept."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


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


def recover_folder(folder: Path) -> list[str]:
    """Make a folder ready to be gone on with: remove unfinished files, set damaged runs aside; say what was set aside.

    Only who holds the folder's lock may do this.

    Raises
    ------
    OtherLayoutError
        If it holds runs of another version's layout: they and new ones would not be one set of results.
    """
    contents = read_folder(folder)
    if contents.other:
        path, layout = next(iter(contents.other.items()))
        raise OtherLayoutError(
            f"{folder} holds {len(contents.other)} runs of layout {layout}, such as {path.name}, and this version of "
            f"lrbench writes layout {SCHEMA}: name another folder with --out"
        )
    for place in (folder, *(folder / name for name in ("runs", "checkpoints", "figures"))):
        remove_parts(place)
    return [
        f"{path} is damaged ({reason}): it is kept as {set_aside(path, 'corrupt').name}, and its run is done again"
        for path, reason in contents.damaged.items()
    ]


def run_path(folder: Path, name: str) -> Path:
    """Where the run of that id is, or would be."""
    return folder / "runs" / f"{name}.json"


def replaced_path(folder: Path, name: str) -> Path:
    """Where an earlier run of that id is kept, which nothing reads, until another one of the same has finished."""
    path = run_path(folder, name)
    return path.with_name(f"{path.name}.replaced")


def write_run(folder: Path, record: Record) -> Path:
    """Write one run's record atomically and return its path; NaN and infinity are refused, they are not JSON."""
    path = run_path(folder, record["id"])
    sealed = {"schema": record["schema"], "checksum": checksum(record)} | record
    write_atomically(path, json.dumps(sealed, indent=1, allow_nan=False) + "\n")
    if is_finished(record):
        replaced_path(folder, record["id"]).unlink(missing_ok=True)
    return path


def read_folder(folder: Path) -> Contents:
    """Read every run of a folder; nothing is locked or changed, so that it may be read while runs are written."""
    contents = Contents()
    with _uncollected():
        for path in sorted((folder / "runs").glob("*.json")):
            try:
                record = _read_run(path)
            except FileNotFoundError:  # a damaged one has just been set aside
                continue
            except DamagedFileError as error:
                contents.damaged[path] = str(error)
                continue
            if record["schema"] == SCHEMA:
                contents.records.append(record)
            else:
                contents.other[path] = record["schema"]
    return contents


def read_runs(folder: Path) -> list[Record]:
    """Read every run of a folder, sorted by id; a file that holds no intact run is named in a warning and left out."""
    contents = read_folder(folder)
    for path, reason in contents.left_out.items():
        warnings.warn(f"{path} is left out: {reason}", stacklevel=2)
    return contents.records


def _read_run(path: Path) -> Record:
    """Read a run that is intact, or one of another layout, of which no more is known."""
    try:
        record = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"it is no JSON: {error}") from error
    if not isinstance(record, dict) or type(record.get("schema")) is not int:
        raise DamagedFileError("it is no run")
    try:
        intact = record.pop("checksum", None) == checksum(record | {"schema": SCHEMA})
        named = run_id(record.get("config", {}))
    except (ValueError, RecursionError) as error:  # NaN, which is no JSON, or too deep
        raise DamagedFileError(f"it is no JSON: {error}") from error
    if record["schema"] != SCHEMA and not intact:  # otherwise only the number is damaged
        return record
    if record["schema"] != SCHEMA or not intact:
        raise DamagedFileError("its content does not have its checksum")
    if not record.get("id") == path.stem == named:
        raise DamagedFileError("its name is not that of its configuration")
    strange = find_strange(record)
    if strange is not None:
        raise DamagedFileError(f"{strange} is not what a run holds")
    return record


def is_finished(record: Record) -> bool:
    """Tell a finished run, diverged ones among them, from one that failed."""
    return bool(record["status"] == "finished")
