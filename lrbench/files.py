"""Files that are whole or not there: a crash or a full disk leaves the old one, and damage does not go unnoticed."""

import hashlib
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

__all__ = [
    "DamagedFileError",
    "UnwritableError",
    "read_sealed",
    "remove_parts",
    "set_aside",
    "write_atomically",
    "write_sealed",
]

_SEAL = b"lrbench sha256:%s\n"
_SEAL_BYTES = len(_SEAL % (b"0" * 64))


class UnwritableError(OSError):
    """A file cannot be written, for the disk is full or the folder read-only; what was there before is still there."""

    def __str__(self) -> str:
        return f"{self.filename} cannot be written: {self.strerror}"


class DamagedFileError(ValueError):
    """A file is not what was written; the message says what speaks against it."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old file or the new one, never a part.

    Raises
    ------
    UnwritableError
        If it cannot be written; the old file, if there was one, stays.
    """
    # A name of a file may hold what is no UTF-8: Python reads it as a lone surrogate, which is written as \udcXX.
    _write(path, [content.encode(errors="backslashreplace") if isinstance(content, str) else content])


def write_sealed(path: Path, content: bytes | memoryview) -> None:
    """Write bytes like :func:`write_atomically`, behind a line with their SHA-256."""
    _write(path, [_SEAL % hashlib.sha256(content).hexdigest().encode(), content])


def read_sealed(path: Path) -> memoryview:
    """Read what :func:`write_sealed` wrote.

    Raises
    ------
    DamagedFileError
        If the content is not that of the checksum, or there is none.
    """
    content = memoryview(path.read_bytes())
    seal, payload = bytes(content[:_SEAL_BYTES]), content[_SEAL_BYTES:]
    if not re.fullmatch(re.escape(_SEAL) % b"[0-9a-f]{64}", seal):
        raise DamagedFileError("it does not begin with a checksum")
    if seal != _SEAL % hashlib.sha256(payload).hexdigest().encode():
        raise DamagedFileError("its content does not have its checksum")
    return payload


def set_aside(path: Path, suffix: str) -> Path:
    """Rename a file to one that nothing reads, ``NAME.SUFFIX`` or ``NAME.SUFFIX.2``, and return the new path."""
    aside, number = path.with_name(f"{path.name}.{suffix}"), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.{suffix}.{number}")
    return path.rename(aside)


def remove_parts(folder: Path) -> None:
    """Remove what writers left in a folder that were killed; nobody may be writing there."""
    for part in folder.glob("*.part"):
        part.unlink(missing_ok=True)


def _write(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UnwritableError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):  # on a read-only disk there is none, and asking fails
            part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Let a renaming outlast a power failure, too, where the system can."""
    with suppress(OSError):  # not every file system can, nor Windows
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
