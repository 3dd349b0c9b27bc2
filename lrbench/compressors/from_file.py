"""A compressor from a file: ``./mine.py:Mine`` is the class ``Mine`` of the file ``mine.py``.

The file is run as a module of its own, once for each content. In runs, policies and reports its class is called
``Mine@1a2b3c4d``, by its name and the beginning of the file's SHA-256: changed code is another compressor, whose runs
are done again. What the file imports is not looked at.
"""

import hashlib
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType

from lrbench.compressors.base import Compressor, UnknownCompressorError

__all__ = ["is_place", "load", "name_of", "place_of"]

_PREFIX = "lrbench_file_"
_PLACE = re.compile(r"(?P<file>.+\.py)(:(?P<name>[^:/\\]*))?", re.DOTALL)


def is_place(name: str) -> bool:
    """Whether a name is that of a file, with or without a class in it."""
    return _PLACE.fullmatch(name) is not None


def load(place: str) -> type[Compressor]:
    """Run a file, if it was not run with this content, and give the class.

    Raises
    ------
    UnknownCompressorError
        If there is no such file, or no such class in it.
    TypeError
        If the class is no compressor, or comes from elsewhere.
    ValueError
        If the file cannot be run.
    """
    parts = _PLACE.fullmatch(place)
    if parts is None:
        raise UnknownCompressorError(f"{place!r} names no class of a file: write it as ./mine.py:Mine")
    path, name = Path(parts["file"]).expanduser().resolve(), parts["name"]
    try:
        code = path.read_bytes()
    except OSError as error:
        raise UnknownCompressorError(
            f"there is no compressor {place!r}: {path} cannot be read ({error.strerror})"
        ) from error
    module = _module(path, code)
    theirs = [
        key for key, value in vars(module).items() if _is_compressor(value) and value.__module__ == module.__name__
    ]
    known = f"its compressors are {', '.join(theirs)}" if theirs else "it defines no compressor"
    if not name:
        raise UnknownCompressorError(f"{place!r} names a file and no class of it: write {parts['file']}:CLASS; {known}")
    if not hasattr(module, name):
        raise UnknownCompressorError(f"there is no class {name} in {path}: {known}")
    found = getattr(module, name)
    if not _is_compressor(found):
        raise TypeError(f"{name} of {path} is no compressor: derive it from lrbench.Compressor")
    if found.__module__ != module.__name__:
        raise TypeError(
            f"{name} of {path} is imported from {found.__module__}: name a class that the file defines; {known}"
        )
    return found


def name_of(cls: type[Compressor]) -> str:
    """What a class of a file is called."""
    return f"{_attribute(cls)}@{cls.__module__.removeprefix(_PREFIX)}"


def place_of(cls: type[Compressor]) -> str | None:
    """The file and class that a class was loaded from, or None if it was not loaded from a file that was named."""
    if not cls.__module__.startswith(_PREFIX):
        return None
    return f"{sys.modules[cls.__module__].__file__}:{_attribute(cls)}"


def _attribute(cls: type[Compressor]) -> str:
    """Where a class stands in its module, whatever it calls itself."""
    return next(name for name, value in vars(sys.modules[cls.__module__]).items() if value is cls)


def _module(path: Path, code: bytes) -> ModuleType:
    name = _PREFIX + hashlib.sha256(code).hexdigest()[:8]
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # as dataclasses want it while the file runs, and pickle afterwards
    try:
        exec(compile(code, str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        reason = " ".join(traceback.format_exception_only(error)[-1].split())
        raise ValueError(f"{path}{_line(error, path)} cannot be run: {reason}") from error
    return module


def _line(error: BaseException, path: Path) -> str:
    """Where in the file an error arose."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f", line {error.lineno},"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}," if lines else ""


def _is_compressor(thing: object) -> bool:
    return isinstance(thing, type) and issubclass(thing, Compressor)
