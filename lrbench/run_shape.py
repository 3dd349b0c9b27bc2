"""What a run's file holds, key by key, and where one holds something else.

A file with a right checksum may still be of somebody else's making, or of a later version's. What is described here is
what the report, the joining of folders and the command read without looking; whatever else a file holds is let be.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

__all__ = ["find_strange"]

LARGEST = 1e100
"""Numbers up to which sums and products of a table stay finite."""


class Leaf(NamedTuple):
    """A value of one of some types, within bounds if there are any."""

    kinds: frozenset[type]
    low: float | None = None
    high: float = math.inf


@dataclass(frozen=True)
class Table:
    """An object: the shapes of the keys that are read, and those that must be there.

    Every other key may be absent or null. ``odd`` names what does not go with the rest, each of its kind as it may be.
    """

    leaves: tuple[tuple[Leaf, tuple[str, ...]], ...]
    within: Mapping[str, "Shape"]
    needs: tuple[str, ...]
    odd: Callable[[dict[str, Any]], str | None]


@dataclass(frozen=True)
class Rows:
    """A list of objects of one shape."""

    row: Table


Shape: TypeAlias = Table | Rows | Callable[[Any], bool]


def find_strange(record: Mapping[str, Any]) -> str | None:
    """Say what in a run is not what a run holds, such as ``layers[2].m``; None where all is."""
    status = record.get("status")
    return _find(record, _RUNS[status]) if status in ("finished", "failed") else "status"


def _find(value: Any, table: Table) -> str | None:
    """Find the first place within a value that is strange; it is empty where the value itself is."""
    if not isinstance(value, dict):
        return ""
    get = value.get
    # A folder may hold ten thousand runs, each with hundreds of leaves: nothing is called for one but what it takes.
    for (kinds, low, high), keys in table.leaves:
        for key in keys:
            item = get(key)
            if item is not None and (type(item) not in kinds or (low is not None and not low <= item <= high)):
                return key
    for key in table.needs:
        if get(key) is None:
            return key
    for key, shape in table.within.items():
        item = get(key)
        found = None if item is None else _find_within(item, shape)
        if found is not None:
            return key + found
    return table.odd(value)


def _find_within(value: Any, shape: Shape) -> str | None:
    if isinstance(shape, Table):
        found = _find(value, shape)
        return f".{found}" if found else found
    if not isinstance(shape, Rows):
        return None if shape(value) else ""
    if not isinstance(value, list):
        return ""
    for place, row in enumerate(value):
        found = _find(row, shape.row)
        if found is not None:
            return f"[{place}].{found}" if found else f"[{place}]"
    return None


def _is_mask(value: Any) -> bool:
    return isinstance(value, str) and set(value) <= {"0", "1"}


def _are_numbers(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    try:
        return math.hypot(*value) <= LARGEST  # it takes no other types, and no loop of ours over hundreds of blocks
    except OverflowError:
        return False
    except TypeError:
        return None in value and _are_numbers([item for item in value if item is not None])


def _are_classes(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and set(map(type, value)) <= {int})


def _is_policy(value: Any) -> bool:
    try:
        policy = json.loads(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return _find(policy, _POLICY) is None and all(_find(said, _SAID) is None for said in policy["layers"].values())


def _odd_in_config(config: dict[str, Any]) -> str | None:
    plain = "1" not in config["mask"] and config.get("policy") is None
    return None if plain or config.get("compressor") is not None else "compressor"


def _odd_in_final(final: dict[str, Any]) -> str | None:
    labels, given = final.get("labels"), (final.get("as_trained") or {}).get("predictions", ())
    fit = labels is None or (type(given) is type(labels) and len(given) == len(labels))
    return None if fit else "labels"


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _table(
    leaves: Mapping[Leaf, str],
    within: Mapping[str, Shape] | None = None,
    needs: str = "",
    odd: Callable[[dict[str, Any]], str | None] = lambda table: None,
) -> Table:
    """Make a table of keys that stand in a row."""
    parted = tuple((leaf, tuple(keys.split())) for leaf, keys in leaves.items())
    return Table(parted, within or {}, tuple(needs.split()), odd)


_TEXT = Leaf(frozenset({str}))
_FLAG = Leaf(frozenset({bool}))
_NUMBER = Leaf(frozenset({int, float}), -LARGEST, LARGEST)
_ABOVE_ZERO = Leaf(frozenset({int, float}), 1 / LARGEST, LARGEST)
_SHARE = Leaf(frozenset({int, float}), 0, 1)
_WHOLE = Leaf(frozenset({int}), -(2**63), 2**63 - 1)
_COUNT = Leaf(frozenset({int}), 0, 2**63 - 1)
_SOME = Leaf(frozenset({int}), 1, 2**63 - 1)

_CONFIG = _table(
    {
        _TEXT: "dataset data_sha256 model structure compressor path device",
        _COUNT: "train_size test_size epochs batch_size threads",
        _WHOLE: "seed compressor_version",
        _NUMBER: "learning_rate",
        _ABOVE_ZERO: "eps",
    },
    {"mask": _is_mask, "widths": _are_numbers, "policy": _is_policy},
    "mask seed",
    _odd_in_config,
)
_POLICY = _table({_FLAG: "lean"}, {"layers": _is_table}, "lean layers")
_SAID = _table(
    {_TEXT: "compressor path", _WHOLE: "version", _ABOVE_ZERO: "eps"},
    {"options": _is_table},
    "compressor version options",
)
_EPOCH = _table(
    {_COUNT: "epoch", _NUMBER: "train_loss test_loss seconds", _SHARE: "train_accuracy test_accuracy"}, needs="epoch"
)
_EVALUATION = _table({_NUMBER: "loss", _SHARE: "accuracy"}, {"predictions": _are_classes})
_LAYER = _table(
    {
        _TEXT: "layer guarantee",
        _COUNT: "index rank_min rank_max violations",
        _SOME: "groups images m n blocks",
        _NUMBER: "rank_mean break_even_rank error_mean error_max cut_im2col cut_input im2col_bytes input_bytes "
        "factor_bytes",
        _SHARE: "share_own share_escalated share_stored",
        _ABOVE_ZERO: "eps",
    },
    {"ranks": _are_numbers, "errors": _are_numbers},
    "layer index m blocks input_bytes",
)
_SAVED = _table(
    {
        _TEXT: "layer kept_by reason",
        _NUMBER: "input_bytes saved_bytes held_bytes freed_bytes claimed_bytes",
    },
    needs="layer input_bytes saved_bytes held_bytes freed_bytes claimed_bytes",
)
_GRADIENT = _table({_TEXT: "layer", _NUMBER: "cosine cosine_min error bias"}, needs="layer cosine_min")
_TIMED = _table({_TEXT: "layer", _NUMBER: "lowering_ms compressing_ms"}, needs="layer")
_QUARTILES = _table({_ABOVE_ZERO: "median", _NUMBER: "q25 q75"})
_EXTREMES = _table({_ABOVE_ZERO: "median", _NUMBER: "min max"})
_LEAVES = {
    _TEXT: "reason outcome outcome_detail traceback started finished layers_reason gradients_reason step_reason "
    "peak_reason savings_reason",
    _NUMBER: "seconds",
}
_WITHIN: dict[str, Shape] = {
    "config": _CONFIG,
    "data": _table({}, {"classes": _is_list}),
    "environment": _table({_TEXT: "lrbench commit torch numpy scipy device processor", _FLAG: "dirty"}),
    "epochs": Rows(_EPOCH),
    "final": _table({}, {"as_trained": _EVALUATION, "exact": _EVALUATION, "labels": _are_classes}, odd=_odd_in_final),
    "layers": Rows(_LAYER),
    "gradients": Rows(_GRADIENT),
    "step": _table(
        {_NUMBER: "lowering_ms compressing_ms rest_ms", _COUNT: "rounds"},
        {**dict.fromkeys(("wrapped_ms", "plain_ms", "ratio"), _QUARTILES), "layers": Rows(_TIMED)},
    ),
    "peak": _table(
        {_COUNT: "processes"},
        dict.fromkeys(("wrapped_bytes", "plain_bytes", "wrapped_total_bytes", "plain_total_bytes"), _EXTREMES),
    ),
    "savings": _table(
        {
            _TEXT: "formula_reason",
            _NUMBER: "plain_bytes held_bytes lean_freed_bytes freed_bytes hidden_bytes formula_bytes "
            "plain_formula_bytes",
        },
        {"layers": Rows(_SAVED)},
    ),
}
_RUNS = {
    "finished": _table(_LEAVES, _WITHIN, "config outcome"),
    "failed": _table(_LEAVES, _WITHIN, "config reason"),
}
