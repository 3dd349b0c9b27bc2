"""The registry of compressors: one file each, one class in it.

A new compressor is a class that derives from :class:`Compressor` and is registered under a name::

    @lrbench.register("mine")
    class Mine(lrbench.Compressor): ...

A file in this folder is found by itself. Packages of others may list their class in the entry-point group
``lrbench.compressors`` instead. Wherever a name is taken, so is a file and a class in it, ``./mine.py:Mine``: see
:mod:`lrbench.compressors.from_file`. Beyond what is installed, no code runs but that of files that are named so.
"""

import difflib
import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

from lrbench.compressors import from_file
from lrbench.compressors.base import Compressor, Guarantee, NonFiniteBlockError, UnknownCompressorError

__all__ = [
    "Compressor",
    "Guarantee",
    "NonFiniteBlockError",
    "UnknownCompressorError",
    "compressor_class",
    "get_compressor",
    "list_compressors",
    "named_files",
    "register",
]

_classes: dict[str, type[Compressor]] = {}
_Class = TypeVar("_Class", bound=type[Compressor])


def register(name: str) -> Callable[[_Class], _Class]:
    """Register a class derived from :class:`Compressor` under ``name``, as a decorator.

    Raises
    ------
    TypeError
        If the class does not derive from Compressor, or promises something unknown.
    ValueError
        If another class has the name.
    """

    def add(cls: _Class) -> _Class:
        if not (inspect.isclass(cls) and issubclass(cls, Compressor)):
            raise TypeError(f"{cls!r} cannot be registered as {name!r}: derive it from lrbench.Compressor")
        if cls.guarantee not in ("block", "batch", None):
            raise TypeError(f"guarantee of {name!r} is {cls.guarantee!r}: use 'block', 'batch' or None")
        other = _classes.get(name)
        if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"the name {name!r} belongs to {other.__module__}.{other.__qualname__}: choose another")
        cls.name = name
        _classes[name] = cls
        return cls

    return add


def list_compressors(pattern: str = "*") -> list[str]:
    """Names of the registered compressors that match a pattern such as ``*aca*``, sorted."""
    _load()
    return sorted(name for name in _classes if fnmatchcase(name, pattern))


def compressor_class(name: str) -> type[Compressor]:
    """The class that is registered under ``name``, or that a file holds, named as in ``./mine.py:Mine``.

    Raises
    ------
    UnknownCompressorError
        If there is none; the message gives the nearest names.
    TypeError, ValueError
        If what a file holds is no compressor, or the file cannot be run.
    """
    _load()
    if from_file.is_place(name):
        return _of_file(name)
    if name not in _classes:
        near = difflib.get_close_matches(name, _classes, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(sorted(_classes))}"
        raise UnknownCompressorError(f"there is no compressor {name!r}: {hint}")
    return _classes[name]


def get_compressor(name: str, **options: Any) -> Compressor:
    """Make a compressor, such as ``get_compressor("svd", eps=0.1)``.

    Raises
    ------
    UnknownCompressorError
        If there is no such compressor.
    TypeError, ValueError
        If it does not take these options.
    """
    cls = compressor_class(name)
    known = inspect.signature(cls).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(f"compressor {name!r} does not take {', '.join(unknown)}: it takes {', '.join(known)}")
    return cls(**options)


def named_files() -> tuple[str, ...]:
    """Files and classes that were named in this process, as ``/path/mine.py:Mine``.

    Another process that is given them, by :func:`compressor_class`, knows their names, such as ``Mine@1a2b3c4d``, too.
    """
    return tuple(place for cls in _classes.values() if (place := from_file.place_of(cls)) is not None)


def _of_file(place: str) -> type[Compressor]:
    """The class of a file, registered by its own name and what the file was: other code is another compressor."""
    registered = dict(_classes)
    try:
        cls = from_file.load(place)
    finally:
        # Names that a file registers say nothing of its code, and would stand in the way of its next version.
        _classes.clear()
        _classes.update(registered)
    return register(from_file.name_of(cls))(cls)


@cache
def _load() -> None:
    """Import every file of this folder, and the plug-ins, once."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    for entry in entry_points(group="lrbench.compressors"):
        try:
            cls = entry.load()
        except Exception as error:
            warnings.warn(f"the compressor {entry.name!r} of {entry.value} cannot be loaded: {error}", stacklevel=3)
            continue
        if _classes.get(entry.name) is not cls:
            register(entry.name)(cls)
