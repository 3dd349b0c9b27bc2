"""One command at a time in a results folder: a second one is refused, and told who has it."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lrbench.files import write_atomically
from lrbench.store import ResultsFolderError

__all__ = ["FolderInUseError", "locked"]


class FolderInUseError(ResultsFolderError):
    """Another command writes into the results folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a results folder while the context lasts.

    The system's lock on ``.lock`` falls when its process ends, however that ends. On file systems that are shared by
    several machines it may not reach beyond one of them, so the holder is named in ``.holder``, too, and one of another
    machine is believed to live until a person removes the file.

    Raises
    ------
    FolderInUseError
        If another command holds the folder, or may do so on another machine; the message names its host and process.
    """
    lock = FileLock(folder / ".lock")
    holder = folder / ".holder"
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        who = _words(_read(holder))
        raise FolderInUseError(f"{folder} is in use by {who}: wait for it, or name another with --out") from error
    except (OSError, NotImplementedError) as error:
        raise ResultsFolderError(f"{folder} cannot be locked ({error}): name another one with --out") from error
    try:
        if not _claim(holder):
            raise FolderInUseError(
                f"{folder} is in use by {_words(_read(holder))}, as far as can be told from here: if that process has "
                f"ended, remove {holder} and start again"
            )
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)
    finally:
        lock.release()


def _claim(holder: Path) -> bool:
    """Name this process as the holder, if none of another machine is named, nor comes in between."""
    host = socket.gethostname()
    named = _read(holder)
    if named is not None and named["host"] != host:
        return False
    holder.unlink(missing_ok=True)  # of a command that was killed on this machine, or of nobody
    mine = _self()
    part = holder.with_name(f"{holder.name}.{host}.{os.getpid()}.part")
    try:
        write_atomically(part, json.dumps(mine, indent=1) + "\n")
        try:
            holder.hardlink_to(part)  # fails where there is one, on every machine, and is never seen half written
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            part.replace(holder)
    finally:
        with suppress(OSError):  # on a disk that became read-only
            part.unlink(missing_ok=True)
    return _read(holder) == {key: str(value) for key, value in mine.items()}


def _self() -> dict[str, Any]:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "process": os.getpid(), "since": since}


def _read(holder: Path) -> dict[str, Any] | None:
    """Say who holds the folder; None if the file is not there, or is none of ours."""
    try:
        named = json.loads(holder.read_text(encoding="utf-8"))
        return {key: str(named[key]) for key in ("host", "process", "since")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _words(named: dict[str, Any] | None) -> str:
    if named is None:
        return "another command"
    return f"process {named['process']} on {named['host']}, since {named['since']}"
