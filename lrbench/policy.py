"""A policy: which layers of a model are compressed, each by what, how far and where. It is kept as TOML."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lrbench.compressors import Compressor, get_compressor

__all__ = ["LayerPolicy", "Policy"]


@dataclass(frozen=True)
class LayerPolicy:
    """What is done to one layer.

    Attributes
    ----------
    compressor : str
        A registered name, or a file and a class in it, as in ``./mine.py:Mine`` (seen from the working folder).
    eps : float or None
        Requested relative Frobenius error, in (0, 1]; the compressor's default if None.
    path : {"forward", "backward", "both"}
        Where the approximation acts.
    options : dict
        Of the compressor, beside eps.
    """

    compressor: str
    eps: float | None = None
    path: str = "backward"
    options: Mapping[str, Any] = field(default_factory=dict)

    def make(self) -> Compressor:
        """Make the compressor; errors are those of :func:`lrbench.get_compressor`."""
        return get_compressor(self.compressor, **({} if self.eps is None else {"eps": self.eps}), **self.options)


@dataclass(frozen=True)
class Policy:
    """What is done to each layer of a model.

    Attributes
    ----------
    layers : dict
        A :class:`LayerPolicy` by name of the convolution; layers that are not named stay plain.
    lean : bool
        Whether ReLU, dropout and max pooling keep bits: see :func:`lrbench.lean`.
    segments : int
        In how many parts a sequential model is checkpointed: see :func:`lrbench.checkpointing.checkpointed`; 0 for not.
    """

    layers: Mapping[str, LayerPolicy]
    lean: bool = False
    segments: int = 0

    @classmethod
    def from_toml(cls, text: str) -> "Policy":
        """Read a policy.

        Raises
        ------
        ValueError
            If the text is no TOML, or holds something else than a policy. Whether compressors, paths and layers exist
            is checked by :func:`lrbench.wrap`.
        """
        try:
            given = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:  # brackets within brackets, thousands deep
            raise ValueError(f"the policy is no TOML: {error}") from error
        return cls.from_table(given)

    @classmethod
    def from_table(cls, given: Mapping[str, Any]) -> "Policy":
        """Make a policy of what a TOML file, or a table in one, holds; errors are those of :meth:`from_toml`."""
        unknown = sorted(set(given) - {"lean", "segments", "layers"})
        if unknown:
            raise ValueError(f"the policy has {', '.join(unknown)}: it takes lean, segments and tables layers.NAME")
        lean, segments, layers = given.get("lean", False), given.get("segments", 0), given.get("layers", {})
        if not isinstance(lean, bool):
            raise ValueError(f"lean is {lean!r} in the policy: use true or false")
        if isinstance(segments, bool) or not isinstance(segments, int) or segments < 0:
            raise ValueError(f"segments is {segments!r} in the policy: use a whole number, 0 for no checkpointing")
        if not isinstance(layers, dict) or not all(isinstance(entry, dict) for entry in layers.values()):
            raise ValueError("layers in the policy must be tables: [layers.NAME]")
        return cls({name: _layer(name, entry) for name, entry in layers.items()}, lean, segments)

    @classmethod
    def load(cls, path: Path | str) -> "Policy":
        """Read a policy from a file.

        Raises
        ------
        ValueError
            If the file cannot be read, or holds no policy.
        """
        try:
            return cls.from_toml(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"the policy {path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def to_toml(self) -> str:
        """Write a policy such that :meth:`from_toml` gives the same again."""
        lines = [f"lean = {_value(self.lean)}", *([f"segments = {self.segments}"] if self.segments else [])]
        for name, layer in self.layers.items():
            lines += ["", f"[layers.{_value(name)}]", f"compressor = {_value(layer.compressor)}"]
            if layer.eps is not None:
                lines.append(f"eps = {float(layer.eps)!r}")
            lines.append(f"path = {_value(layer.path)}")
            if layer.options:
                pairs = (f"{_value(key)} = {_value(value)}" for key, value in layer.options.items())
                lines.append(f"options = {{ {', '.join(pairs)} }}")
        return "\n".join(lines) + "\n"

    def identity(self) -> str:
        """All that determines what the policy does, the versions of the compressors' algorithms included, as JSON."""
        layers = {}
        for name, layer in self.layers.items():
            made = layer.make()
            known = {"compressor": made.name, "options": dict(layer.options), "version": made.version}
            layers[name] = asdict(layer) | known
        cut = {"segments": self.segments} if self.segments else {}
        return json.dumps({"lean": self.lean, **cut, "layers": layers}, sort_keys=True)

    @classmethod
    def from_identity(cls, text: str) -> "Policy":
        """Read what :meth:`identity` gave."""
        given = json.loads(text)
        for layer in given["layers"].values():
            layer.pop("version")
        layers = {name: LayerPolicy(**layer) for name, layer in given["layers"].items()}
        return cls(layers, given["lean"], given.get("segments", 0))


def _layer(name: str, entry: dict[str, Any]) -> LayerPolicy:
    where = f"layers.{name} of the policy"
    unknown = sorted(set(entry) - {"compressor", "eps", "path", "options"})
    if unknown:
        raise ValueError(f"{where} has {', '.join(unknown)}: it takes compressor, eps, path and options")
    for key, kinds in (("compressor", str), ("path", str), ("options", dict)):
        if key in entry and not isinstance(entry[key], kinds):
            raise ValueError(f"{key} is {entry[key]!r} in {where}: give a {kinds.__name__}")
    if "compressor" not in entry:
        raise ValueError(f"{where} names no compressor: give compressor = NAME")
    eps = entry.get("eps")
    if eps is not None and (isinstance(eps, bool) or not isinstance(eps, int | float)):
        raise ValueError(f"eps is {eps!r} in {where}: it must be a number in (0, 1]")
    if any(isinstance(value, dict | list) for value in entry.get("options", {}).values()):
        raise ValueError(f"options of {where} hold a table or a list: give numbers, strings, true or false")
    return LayerPolicy(**entry)


def _value(value: Any) -> str:
    """A number, string or truth value as TOML writes it."""
    if isinstance(value, float):
        return repr(value)
    # JSON strings are TOML, but for DEL, which TOML wants escaped, and surrogate pairs, which it forbids.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
