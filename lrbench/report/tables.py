"""Tidy tables of a results folder: a row per run, per epoch, per layer, and in memory per block.

Masks, ids, hashes and commits are text even where they look like numbers: `write_table` quotes them and `read_table`
reads them as text, so that ``000000`` stays ``000000``.

All bytes in a row of ``layers.csv`` are those of the row's ``blocks``, which are of all calls of the layer:
``saved_bytes``, ``held_bytes``, ``freed_bytes`` and ``claimed_bytes``, which are measured on one batch, are scaled by
the bytes of the layer's input. Those in ``runs.csv`` are of one batch.
"""

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd

from lrbench.files import write_atomically
from lrbench.store import Record, is_finished

__all__ = [
    "NoRunsError",
    "Study",
    "blocks_table",
    "epochs_table",
    "layers_table",
    "make_studies",
    "read_table",
    "runs_table",
    "write_table",
    "write_tables",
]

BY_POLICY = "as the policy says"
"""The condition of runs whose layers have tolerances and paths of their own."""

BLOCKS = 200_000
"""Blocks of a study whose ranks and errors are drawn."""

ORDER = ("none", "svd", "rsvd", "aca", "aca-estimate")
"""Compressors in the order in which tables and figures show them; others follow by name."""

_CELL = ("mask", "compressor", "compressor_version", "eps", "path", "policy")

_SETTING = {
    "dataset": "{}",
    "train_size": "{} train",
    "test_size": "{} test",
    "model": "{} model",
    "structure": "structure {:.8}",
    "widths": "widths {}",
    "epochs": "epochs {}",
    "batch_size": "batch {}",
    "learning_rate": "lr {}",
    "device": "on {}",
    "threads": "threads {}",
    "data_sha256": "data {:.8}",
}

# column: (type, where the record holds it)
_CONFIG = {
    "dataset": ("string", "config.dataset"),
    "mask": ("string", "config.mask"),
    "compressor": ("string", "config.compressor"),
    "compressor_version": ("Int64", "config.compressor_version"),
    "eps": ("float64", "config.eps"),
    "path": ("string", "config.path"),
    "policy": ("string", "config.policy"),
    "seed": ("Int64", "config.seed"),
}
_RUN = {
    "id": ("string", "id"),
    "status": ("string", "status"),
    "reason": ("string", "reason"),
    "outcome": ("string", "outcome"),
    "outcome_detail": ("string", "outcome_detail"),
    **_CONFIG,
    "data_sha256": ("string", "config.data_sha256"),
    "train_size": ("Int64", "config.train_size"),
    "test_size": ("Int64", "config.test_size"),
    "classes": ("Int64", ""),
    "model": ("string", "config.model"),
    "widths": ("string", ""),
    "epochs": ("Int64", "config.epochs"),
    "batch_size": ("Int64", "config.batch_size"),
    "learning_rate": ("float64", "config.learning_rate"),
    "threads": ("Int64", "config.threads"),
    "loss_as_trained": ("float64", "final.as_trained.loss"),
    "accuracy_as_trained": ("float64", "final.as_trained.accuracy"),
    "loss_exact": ("float64", "final.exact.loss"),
    "accuracy_exact": ("float64", "final.exact.accuracy"),
    "step_wrapped_ms": ("float64", "step.wrapped_ms.median"),
    "step_wrapped_ms_q25": ("float64", "step.wrapped_ms.q25"),
    "step_wrapped_ms_q75": ("float64", "step.wrapped_ms.q75"),
    "step_plain_ms": ("float64", "step.plain_ms.median"),
    "step_plain_ms_q25": ("float64", "step.plain_ms.q25"),
    "step_plain_ms_q75": ("float64", "step.plain_ms.q75"),
    "step_ratio": ("float64", "step.ratio.median"),
    "step_ratio_q25": ("float64", "step.ratio.q25"),
    "step_ratio_q75": ("float64", "step.ratio.q75"),
    "step_lowering_ms": ("float64", "step.lowering_ms"),
    "step_compressing_ms": ("float64", "step.compressing_ms"),
    "step_rest_ms": ("float64", "step.rest_ms"),
    "step_rounds": ("Int64", "step.rounds"),
    "step_reason": ("string", "step_reason"),
    "peak_wrapped_bytes": ("float64", "peak.wrapped_bytes.median"),
    "peak_wrapped_bytes_min": ("float64", "peak.wrapped_bytes.min"),
    "peak_wrapped_bytes_max": ("float64", "peak.wrapped_bytes.max"),
    "peak_plain_bytes": ("float64", "peak.plain_bytes.median"),
    "peak_plain_bytes_min": ("float64", "peak.plain_bytes.min"),
    "peak_plain_bytes_max": ("float64", "peak.plain_bytes.max"),
    "peak_wrapped_total_bytes": ("float64", "peak.wrapped_total_bytes.median"),
    "peak_wrapped_total_bytes_min": ("float64", "peak.wrapped_total_bytes.min"),
    "peak_wrapped_total_bytes_max": ("float64", "peak.wrapped_total_bytes.max"),
    "peak_plain_total_bytes": ("float64", "peak.plain_total_bytes.median"),
    "peak_plain_total_bytes_min": ("float64", "peak.plain_total_bytes.min"),
    "peak_plain_total_bytes_max": ("float64", "peak.plain_total_bytes.max"),
    "peak_processes": ("Int64", "peak.processes"),
    "peak_reason": ("string", "peak_reason"),
    "plain_formula_bytes": ("float64", "savings.plain_formula_bytes"),
    "plain_held_bytes": ("float64", "savings.plain_bytes"),
    "formula_bytes": ("float64", "savings.formula_bytes"),
    "formula_reason": ("string", "savings.formula_reason"),
    "held_bytes": ("float64", "savings.held_bytes"),
    "lean_freed_bytes": ("float64", "savings.lean_freed_bytes"),
    "freed_bytes": ("float64", "savings.freed_bytes"),
    "claimed_bytes": ("float64", ""),
    "hidden_bytes": ("float64", "savings.hidden_bytes"),
    "savings_reason": ("string", "savings_reason"),
    "layers_reason": ("string", "layers_reason"),
    "gradient_error_max": ("float64", ""),
    "gradient_cosine_min": ("float64", ""),
    "gradients_reason": ("string", "gradients_reason"),
    "started": ("string", "started"),
    "finished": ("string", "finished"),
    "seconds": ("float64", "seconds"),
    "commit": ("string", "environment.commit"),
    "dirty": ("boolean", "environment.dirty"),
    "lrbench": ("string", "environment.lrbench"),
    "torch": ("string", "environment.torch"),
    "device": ("string", "environment.device"),
    "processor": ("string", "environment.processor"),
}
_EPOCH = {
    "epoch": "Int64",
    "train_loss": "float64",
    "train_accuracy": "float64",
    "test_loss": "float64",
    "test_accuracy": "float64",
    "seconds": "float64",
}
_LAYER = {
    "layer": "string",
    "index": "Int64",
    "groups": "Int64",
    "m": "Int64",
    "n": "Int64",
    "blocks": "Int64",
    "rank_mean": "float64",
    "rank_min": "Int64",
    "rank_max": "Int64",
    "error_mean": "float64",
    "error_max": "float64",
    "violations": "Int64",
    "guarantee": "string",
    "share_own": "float64",
    "share_escalated": "float64",
    "share_stored": "float64",
    "im2col_bytes": "float64",
    "input_bytes": "float64",
    "factor_bytes": "float64",
    "cut_im2col": "float64",
    "cut_input": "float64",
    "break_even_rank": "float64",
    "layer_compressor": "string",
    "layer_eps": "float64",
    "layer_path": "string",
    "saved_bytes": "float64",
    "held_bytes": "float64",
    "freed_bytes": "float64",
    "claimed_bytes": "float64",
    "cut_saved": "float64",
    "kept_by": "string",
    "unrealised": "string",
    "gradient_cosine": "float64",
    "gradient_cosine_min": "float64",
    "gradient_error": "float64",
    "gradient_bias": "float64",
    "lowering_ms": "float64",
    "compressing_ms": "float64",
}
_SHARED = {"id": "string", "setting": "string"} | {name: kind for name, (kind, _) in _CONFIG.items()}
_RUN_TYPES = {"id": "string", "setting": "string"} | {name: kind for name, (kind, _) in _RUN.items()}
_EPOCH_TYPES = _SHARED | _EPOCH
_LAYER_TYPES = _SHARED | _LAYER
_BLOCK_TYPES = {
    "id": "string",
    "layer": "string",
    "index": "Int64",
    "layer_compressor": "string",
    "layer_eps": "float64",
    "layer_path": "string",
    "rank": "float64",
    "error": "float64",
}
_TYPES = _RUN_TYPES | _EPOCH_TYPES | _LAYER_TYPES
_PATHS = {name: where.split(".") for name, (_, where) in _RUN.items() if where}
_SAVED = ("saved_bytes", "held_bytes", "freed_bytes", "claimed_bytes", "cut_saved", "kept_by", "unrealised")
_NOT_SETTING = {"seed", *_CELL, *_SETTING}


class NoRunsError(LookupError):
    """The folder holds no run that could be reported."""


@dataclass(frozen=True, eq=False)
class Study:
    """The runs of one setting: they differ in mask, compressor, version, eps, path, policy and seed, in nothing else.

    Attributes
    ----------
    setting
        What they share, in words.
    records
        The runs as they were read, in the order of the tables.
    runs, epochs, layers, blocks
        The tidy tables, with four columns more than the files: ``plain`` (nothing is changed), ``name`` (the compressor
        or policy, with its version where the study has several), ``condition`` (eps and path, or that a policy says
        them) and ``label`` (the name with whatever of eps and path varies in this study: it tells apart what must not
        be averaged); ``layers`` has ``images``, too, of which the blocks are.
    thinning
        Of how many blocks ``blocks`` holds one: a large study has more than figures could show.
    """

    setting: str
    records: tuple[Record, ...]
    runs: pd.DataFrame
    epochs: pd.DataFrame
    layers: pd.DataFrame
    blocks: pd.DataFrame
    thinning: int = field(default=1, kw_only=True)


def describe_setting(config: Mapping[str, Any]) -> str:
    """Put into words all of a configuration but its seed and its cell of the grid; equal words, equal setting."""
    parts = [words.format(_flat(config[key])) for key, words in _SETTING.items() if config.get(key) not in (None, [])]
    return ", ".join(parts + [f"{key} {_flat(config[key])}" for key in sorted(config) if key not in _NOT_SETTING])


def runs_table(records: Iterable[Record]) -> pd.DataFrame:
    """Tabulate runs, finished and failed, one row each; predictions and tracebacks stay in the run files."""
    rows = []
    for record in records:
        row = _shared(record) | {name: _dig(record, *path) for name, path in _PATHS.items()}
        row["widths"] = _flat(record["config"].get("widths"))
        row["classes"] = len(_dig(record, "data", "classes") or ()) or None
        claims = [layer["claimed_bytes"] for layer in _dig(record, "savings", "layers") or ()]
        row["claimed_bytes"] = sum(claims) if _dig(record, "savings") else None
        gradients = _dig(record, "gradients") or ()
        errors = [math.inf if g.get("error") is None else g["error"] for g in gradients]  # JSON has no infinity
        row["gradient_error_max"] = max(errors, default=None)
        row["gradient_cosine_min"] = min((g["cosine_min"] for g in gradients), default=None)
        rows.append(row)
    return _frame(rows, _RUN_TYPES)


def epochs_table(records: Iterable[Record]) -> pd.DataFrame:
    """Tabulate training, one row per run and epoch."""
    rows = []
    for record in records:
        shared = _shared(record)
        rows += [epoch | shared for epoch in record.get("epochs") or ()]
    return _frame(rows, _EPOCH_TYPES)


def layers_table(records: Iterable[Record]) -> pd.DataFrame:
    """Tabulate what compression did, one row per run and compressed layer."""
    rows = []
    for record in records:
        shared = _shared(record)
        times = {layer["layer"]: layer for layer in _dig(record, "step", "layers") or ()}
        savings = {layer["layer"]: layer for layer in _dig(record, "savings", "layers") or ()}
        gradients = {row["layer"]: row for row in record.get("gradients") or ()}
        for layer in record.get("layers") or ():
            ours = gradients.get(layer["layer"], {})
            found = {f"gradient_{key}": ours.get(key) for key in ("cosine", "cosine_min", "error", "bias")}
            # Older records count blocks alone: they know of one call for each image.
            found["images"] = layer.get("images") or layer["blocks"] / (layer.get("groups") or 1)
            found |= {key: times.get(layer["layer"], {}).get(key) for key in ("lowering_ms", "compressing_ms")}
            rows.append(layer | found | _saved(layer, savings.get(layer["layer"])) | _done(record, layer) | shared)
    return _frame(rows, _LAYER_TYPES | {"images": "float64"})


def blocks_table(records: Iterable[Record], thinning: int = 1) -> pd.DataFrame:
    """Tabulate the ranks and errors that the runs kept, one row per run, layer and block, or every n-th block."""
    rows = []
    for record in records:
        for layer in record.get("layers") or ():
            where = {"id": record["id"], "layer": layer["layer"], "index": layer.get("index"), **_done(record, layer)}
            errors = layer.get("errors") or ()
            ranks = layer.get("ranks") or [None] * len(errors)
            pairs = list(zip(ranks, errors, strict=False))[::thinning]
            rows += [where | {"rank": rank, "error": error} for rank, error in pairs]
    return _frame(rows, _BLOCK_TYPES)


def write_tables(studies: Sequence[Study], folder: Path) -> None:
    """Write the runs, the epochs and the layers of all studies as ``runs.csv``, ``epochs.csv`` and ``layers.csv``."""
    for name, types in (("runs", _RUN_TYPES), ("epochs", _EPOCH_TYPES), ("layers", _LAYER_TYPES)):
        table = pd.concat([getattr(study, name) for study in studies], ignore_index=True)
        write_table(table[list(types)], folder / f"{name}.csv")


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, every text in quotes."""
    buffer = io.StringIO()
    table.to_csv(buffer, index=False, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    write_atomically(path, buffer.getvalue())


def read_table(path: Path | str) -> pd.DataFrame:
    """Read one of the report's CSV files with the types that it was written with: a mask is text, never a number."""
    return pd.read_csv(path, dtype=_TYPES, keep_default_na=False, na_values=[""])


def make_studies(records: Iterable[Record]) -> list[Study]:
    """Sort runs and part them by setting, so that nothing is compared or averaged across settings."""
    ordered = sorted(((describe_setting(record["config"]), record) for record in records), key=_order)
    studies = []
    for setting, pairs in groupby(ordered, key=itemgetter(0)):
        chosen = tuple(record for _, record in pairs)
        names = _names(chosen)
        total = sum(len(layer.get("errors") or ()) for record in chosen for layer in record.get("layers") or ())
        thinning = max(1, -(-total // BLOCKS))
        runs, blocks = runs_table(chosen), blocks_table(chosen, thinning)
        cells = blocks.merge(runs[["id", *_CELL, "seed"]], on="id", how="left")
        tables = (runs, epochs_table(chosen), layers_table(chosen), cells)
        named = (table.merge(names, on="id", how="left") for table in tables)
        studies.append(Study(setting, chosen, *named, thinning=thinning))
    return studies


def is_plain(config: Mapping[str, Any]) -> bool:
    """Tell the plain model, the reference of every comparison; a policy may change it where the mask has no one."""
    return "1" not in config["mask"] and config.get("policy") is None


def place(compressor: str | None) -> tuple[int, str]:
    """Rank a compressor in the order of tables and figures."""
    name = compressor or ""
    return (ORDER.index(name) if name in ORDER else len(ORDER) if name else -1), name


def _names(records: Sequence[Record]) -> pd.DataFrame:
    """Name each run's variant by what varies among these runs."""
    masked = [record["config"] for record in records if not is_plain(record["config"])]
    many_eps = len({config.get("eps") for config in masked} - {None}) > 1
    many_paths = len({config.get("path") for config in masked} - {None}) > 1
    versions: dict[Any, set[Any]] = {}
    for config in masked:
        versions.setdefault(config.get("compressor"), set()).add(_version(config))
    rows = []
    for record in records:
        config = record["config"]
        compressor, eps, path = (config.get(key) for key in ("compressor", "eps", "path"))
        name = "plain" if is_plain(config) else str(compressor)
        if len(versions.get(compressor, ())) > 1:
            name += f" {_version(config)}"
        eps_words = [] if eps is None else [f"eps {eps:g}"]
        path_words = [] if path is None else [f"path {path}"]
        label = ", ".join([name, *(eps_words if many_eps else []), *(path_words if many_paths else [])])
        condition = ", ".join(eps_words + path_words) if config.get("policy") is None else BY_POLICY
        row = {"id": record["id"], "plain": is_plain(config), "name": name, "condition": condition, "label": label}
        rows.append(row)
    return pd.DataFrame(rows).astype({"id": "string"})


def _version(config: Mapping[str, Any]) -> str:
    """What tells two compressors, or two policies, of one name apart."""
    policy = config.get("policy")
    if policy is None:
        return f"v{config.get('compressor_version')}"
    return hashlib.sha256(str(policy).encode()).hexdigest()[:6]


def _done(record: Record, layer: Mapping[str, Any]) -> dict[str, Any]:
    """What was done to one layer: the run's compressor, eps and path, or what its policy says of the layer."""
    config = record["config"]
    keys = ("compressor", "eps", "path")
    if config.get("policy") is None:
        return {f"layer_{key}": config.get(key) for key in keys}
    said = json.loads(config["policy"])["layers"].get(layer["layer"], {})
    # Without a tolerance in the policy it is the compressor's default, which the measurement names.
    return {f"layer_{key}": said.get(key) for key in keys} | {"layer_eps": layer.get("eps")}


def _saved(layer: Mapping[str, Any], savings: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a layer would hold without compression, holds and frees, scaled to the blocks of its other bytes."""
    if savings is None or not savings["input_bytes"]:
        return dict.fromkeys(_SAVED)
    scale = layer["input_bytes"] / savings["input_bytes"]
    row = {key: savings[key] * scale for key in _SAVED[:4]}
    row["cut_saved"] = 1 - row["held_bytes"] / row["saved_bytes"] if row["saved_bytes"] else None
    return row | {"kept_by": savings.get("kept_by"), "unrealised": savings.get("reason")}


def _order(described: tuple[str, Record]) -> tuple[Any, ...]:
    setting, record = described
    config = record["config"]
    cell = (_sortable(config.get(key)) for key in ("compressor_version", "eps", "path", "policy", "seed"))
    mask = config["mask"]
    fewest_first = mask.count("1"), mask.replace("1", " ")  # then from the input side on
    return setting, fewest_first, place(config.get("compressor")), *cell, record["id"]


def _sortable(value: Any) -> tuple[bool, Any]:
    return (False, 0) if value is None else (True, value)


def _shared(record: Record) -> dict[str, Any]:
    config = record["config"]
    cell = {name: config.get(name) for name in _CONFIG}
    return {"id": record["id"], "setting": describe_setting(config)} | cell


def _dig(record: Record, *path: str) -> Any:
    """Follow a path; whatever is absent or null on the way is None."""
    value: Any = record
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _flat(value: Any) -> Any:
    return "-".join(str(part) for part in value) if isinstance(value, list) else value


def _frame(rows: list[dict[str, Any]], types: Mapping[str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(types), dtype=object).astype(dict(types))


def finished(study: Study) -> pd.DataFrame:
    """Return the runs of a study that finished, diverged ones among them."""
    return study.runs[[is_finished(record) for record in study.records]]
