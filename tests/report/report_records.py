"""Synthetic results folders: records as training writes them, with numbers that the tests choose."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from lrbench.store import SCHEMA, Record, prepare_folder, run_id, write_run

SHAPES = {0: (27, 1024, 3 * 32 * 32), 2: (288, 256, 32 * 16 * 16), 4: (576, 64, 64 * 8 * 8)}
RANKS = {"none": 27, "svd": 5.36, "rsvd": 5.4, "aca": 9.95, "aca-estimate": 6.13}
IMAGES = 50


def layer(index: int, compressor: str, eps: float | None, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Make one layer's measurements; float32, one group."""
    m, n, held = SHAPES[index]
    draw = np.random.default_rng([index, seed, *compressor.encode()])
    mean = RANKS.get(compressor, 4.0) * (1 + index)
    ranks = np.clip(draw.normal(mean, 1 + index, IMAGES).round(), 1, min(m, n)).astype(int)
    if eps is None:
        ranks, errors = np.full(IMAGES, min(m, n)), np.zeros(IMAGES)
    elif compressor == "aca-estimate":
        errors = draw.lognormal(np.log(0.22), 0.4, IMAGES).clip(0, 0.66)
    else:
        errors = eps * draw.uniform(0.6, 0.9999, IMAGES)
    factor_bytes = IMAGES * m * n * 4 if eps is None else int(ranks.sum()) * (m + n) * 4
    im2col_bytes, input_bytes = IMAGES * m * n * 4, IMAGES * held * 4
    return {
        "layer": f"features.{2 * index}",
        "index": index,
        "groups": 1,
        "images": IMAGES,
        "m": m,
        "n": n,
        "blocks": IMAGES,
        "rank_mean": float(ranks.mean()),
        "rank_min": int(ranks.min()),
        "rank_max": int(ranks.max()),
        "error_mean": float(errors.mean()),
        "error_max": float(errors.max()),
        "violations": int((errors > (eps or 0)).sum()),
        "share_own": 1.0,
        "share_escalated": 0.0,
        "share_stored": 0.0,
        "im2col_bytes": im2col_bytes,
        "input_bytes": input_bytes,
        "factor_bytes": factor_bytes,
        "cut_im2col": 1 - factor_bytes / im2col_bytes,
        "cut_input": 1 - factor_bytes / input_bytes,
        "break_even_rank": held / (m + n),
        "guarantee": None if compressor == "aca-estimate" else "block",
        "ranks": ranks.tolist(),
        "errors": errors.tolist(),
        **changes,
    }


BATCH = 10
"""Images of the batch whose ledgers are taken."""


def savings(layers: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """Make the ledgers of a step that compresses some layers: the caller keeps the first one's input, too."""
    rows = []
    for measured in layers:
        held, whole = (measured[key] * BATCH // IMAGES for key in ("factor_bytes", "input_bytes"))
        kept = measured["index"] == 0
        rows.append(
            {
                "layer": measured["layer"],
                "formula_bytes": held,
                "held_bytes": held,
                "input_bytes": whole,
                "saved_bytes": 0 if kept else whole,
                "kept_by": "the caller" if kept else None,
                "freed_bytes": -held if kept else whole - held,
                "claimed_bytes": whole - held,
                "reason": "its input is kept by the caller, too" if kept and whole > held else None,
            }
        )
    freed = sum(row["freed_bytes"] for row in rows)
    return {
        "plain_bytes": 10_000_000,
        "uncompressed_bytes": 10_000_000,
        "held_bytes": 10_000_000 - freed,
        "lean_freed_bytes": 0,
        "freed_bytes": freed,
        "formula_bytes": 9_999_000 - freed,
        "plain_formula_bytes": 9_999_000,
        "formula_reason": None,
        "hidden_bytes": 0,
        "layers": rows,
        **changes,
    }


def gradient(layer: str, compressor: str) -> dict[str, Any]:
    """Make the comparison of one weight's gradient with the exact one."""
    error = {"none": 0.0, "aca-estimate": 0.4}.get(compressor, 0.1)
    return {"layer": layer, "cosine": 1 - error / 10, "cosine_min": 1 - error / 5, "error": error, "bias": error / 2}


def make_record(
    mask: str = "100000",
    compressor: str | None = "svd",
    seed: int = 0,
    accuracy: float | None = 0.5,
    eps: float | None = 0.1,
    path: str | None = "both",
    config: dict[str, Any] | None = None,
    **changes: Any,
) -> Record:
    """Make a finished run's record; ``changes`` replace its fields, ``config`` those of its configuration."""
    plain = "1" not in mask
    compressor, path = (None, None) if plain else (compressor, path)
    eps = None if compressor in (None, "none") else eps
    full = {
        "dataset": "cifar10",
        "data_sha256": "0123456789abcdef" * 4,
        "train_size": 1000,
        "test_size": 500,
        "model": "paper",
        "widths": [32, 64, 128],
        "epochs": 4,
        "batch_size": 100,
        "learning_rate": 0.001,
        "seed": seed,
        "threads": 2,
        "mask": mask,
        "compressor": compressor,
        "compressor_version": None if plain else 1,
        "eps": eps,
        "path": path,
    } | (config or {})
    final = 0.1 if accuracy is None else accuracy
    slow = {"none": 1.4, "svd": 4.1, "rsvd": 3.2, "aca": 2.2, "aca-estimate": 1.9}.get(compressor or "", 1.0)
    on = [index for index, bit in enumerate(mask) if bit == "1"]
    record = {
        "schema": SCHEMA,
        "id": run_id(full),
        "status": "finished",
        "reason": None,
        "traceback": None,
        "config": full,
        "data": {
            "name": full["dataset"],
            "source": "the official binary archive",
            "sha256": full["data_sha256"],
            "train": full["train_size"],
            "test": full["test_size"],
            "classes": [f"class {number}" for number in range(10)],
        },
        "environment": {
            "lrbench": "0.1.0",
            "commit": "1234567",
            "dirty": False,
            "command": "python -m lrbench.ablate",
            "python": "3.11.7",
            "torch": "2.13.0+cpu",
            "numpy": "2.3.0",
            "scipy": "1.17.1",
            "platform": "Linux-6.1",
            "processor": "AMD EPYC",
            "device": "cpu",
            "threads": 2,
        },
        "started": "2026-11-24T04:00:00+00:00",
        "finished": "2026-11-24T04:00:12+00:00",
        "seconds": 12.3,
        "outcome": "trained",
        "outcome_detail": None,
        "epochs": [
            {
                "epoch": epoch,
                "train_loss": 2.3 - 0.2 * epoch,
                "train_accuracy": 0.1 + (final - 0.1) * epoch / full["epochs"],
                "test_loss": 2.3 - 0.15 * epoch,
                "test_accuracy": 0.1 + (final - 0.1) * (epoch / full["epochs"]) ** 0.5,
                "seconds": 3.0,
            }
            for epoch in range(1, full["epochs"] + 1)
        ],
        "final": {
            "as_trained": {"loss": 1.4, "accuracy": final, "predictions": "0123456789" * 50},
            "exact": {"loss": 1.4, "accuracy": final, "predictions": "0123456789" * 50},
        },
        "layers": [layer(index, str(compressor), eps, seed) for index in on if index in SHAPES],
        "layers_reason": None,
        "gradients": [gradient(f"features.{2 * index}", str(compressor)) for index in on],
        "gradients_reason": None,
        "step": None if plain else _step(40.0, slow, [f"features.{2 * index}" for index in on]),
        "step_reason": None,
        "peak": None
        if plain
        else {
            "wrapped_bytes": {"median": 5.3e8, "min": 5.2e8, "max": 5.4e8},
            "plain_bytes": {"median": 5.0e8, "min": 4.9e8, "max": 5.1e8},
            "wrapped_total_bytes": {"median": 9.3e8, "min": 9.2e8, "max": 9.4e8},
            "plain_total_bytes": {"median": 9.0e8, "min": 8.9e8, "max": 9.1e8},
            "processes": 3,
        },
        "peak_reason": None,
        "savings_reason": None,
    } | changes
    return {"savings": savings(record["layers"] or [])} | record


def make_policy_record(
    name: str, layers: dict[str, dict[str, Any]], lean: bool = False, seed: int = 0, **changes: Any
) -> Record:
    """Make the record of a run whose layers, by name, a policy treats."""
    policy = {"lean": lean, "layers": {k: {"options": {}, "version": 1, **said} for k, said in layers.items()}}
    names = [f"features.{2 * index}" for index in range(6)]
    mask = "".join("1" if place in layers else "0" for place in names)
    measured = [
        layer(names.index(place), said["compressor"], said["eps"], seed) | {"eps": said["eps"]}
        for place, said in layers.items()
    ]
    own = {"compressor": name, "compressor_version": None, "policy": json.dumps(policy, sort_keys=True)}
    peak = make_record()["peak"]
    changed = {"layers": measured, "step": _step(40.0, 2.0, list(layers)), "peak": peak} | changes
    return make_record(mask, name, seed, eps=None, path=None, config=own, **changed)


def older(record: Record) -> Record:
    """Make a record what it was before savings and totals were measured."""
    kept = {key: value for key, value in record.items() if not key.startswith("savings")}
    if kept["peak"] is not None:
        kept["peak"] = {key: value for key, value in kept["peak"].items() if "total" not in key}
    return kept


def make_failure(reason: str = "out of memory", **cell: Any) -> Record:
    """Make a failed run's record, which holds no measurement."""
    record = make_record(**cell)
    kept = ("schema", "id", "config", "data", "environment", "started", "finished", "seconds")
    return {key: record[key] for key in kept} | {"status": "failed", "reason": reason, "traceback": "Traceback ..."}


def spread(middle: float, width: float) -> dict[str, float]:
    """Make a median with quartiles."""
    return {"median": middle, "q25": middle - width, "q75": middle + width}


def _step(plain: float, ratio: float, layers: list[str]) -> dict[str, Any]:
    wrapped, lowering = plain * ratio, 2.0 * len(layers)
    compressing = max(0.0, wrapped - plain - lowering)
    share = max(1, len(layers))
    parts = {"lowering_ms": lowering / share, "compressing_ms": compressing / share}
    return {
        "wrapped_ms": spread(wrapped, 2.0),
        "plain_ms": spread(plain, 1.0),
        "ratio": spread(ratio, 0.05),
        "lowering_ms": lowering,
        "compressing_ms": compressing,
        "rest_ms": wrapped - lowering - compressing,
        "rounds": 10,
        "layers": [{"layer": name, **parts} for name in layers],
    }


def realistic_records() -> list[Record]:
    """Make the grid of a small ablation: three masks, five compressors, two seeds."""
    accuracies = {"none": 0.475, "svd": 0.474, "rsvd": 0.476, "aca": 0.469, "aca-estimate": 0.40}
    records = [make_record("000000", seed=seed, accuracy=0.472 + 0.01 * seed) for seed in (0, 1)]
    for mask in ("100000", "101010"):
        for place, (compressor, accuracy) in enumerate(accuracies.items()):
            for seed in (0, 1):
                there = accuracy + 0.01 * seed + 0.002 * place * seed - 0.01 * (mask == "101010")
                records.append(make_record(mask, compressor, seed, there))
    return records


def write_folder(folder: Path, records: list[Record]) -> Path:
    """Write records into a results folder."""
    prepare_folder(folder)
    for record in records:
        write_run(folder, record)
    return folder
