"""The registry of compressors: one file each, one class in it.

A new compressor is a class that derives from :class:`Compressor` and is registered under a name::

    @lrbench.register("mine")
    class Mine(lrbench.Compressor): ...

A file in this folder is found by itself. Packages of others may list their class in the entry-point group
``lrbench.compressors`` instead.
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

from lrbench.compressors.base import Compressor, Guarantee, NonFiniteBlockError

__all__ = [
    "Compressor",
    "Guarantee",
    "NonFiniteBlockError",
    "UnknownCompressorError",
    "compressor_class",
    "get_compressor",
    "list_compressors",
    "register",
]

_classes: dict[str, type[Compressor]] = {}
_Class = TypeVar("_Class", bound=type[Compressor])


class UnknownCompressorError(LookupError):
    """No compressor has that name."""


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
    """The class that is registered under ``name``.

    Raises
    ------
    UnknownCompressorError
        If there is none; the message gives the nearest names.
    """
    _load()
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
