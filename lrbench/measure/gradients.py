"""How far a model's weight gradients are from the exact ones: direction, size of the error, and what stays of it."""

import copy
import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["compare_gradients", "gradient_errors", "measure_gradients"]


def measure_gradients(
    model: nn.Module, exact: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], seed: int = 0
) -> list[dict[str, Any]]:
    """Compare the weight gradients of a model with those of another, batch by batch and with the same dropout.

    Parameters
    ----------
    model, exact : torch.nn.Module
        Of the same structure and weights; they are left as they were.
    batches : iterable of tuple of Tensor
        Inputs and class labels, at least one batch.
    seed : int
        Of dropout: batch k takes ``seed + k``, in both models.

    Returns
    -------
    list of dict
        For each module with a weight of two dimensions or more: layer; cosine and cosine_min, the mean and the least
        over the batches of the cosine between both gradients ĝ and g; error, the root of Σ‖ĝ − g‖² / Σ‖g‖²; bias,
        ‖Σ(ĝ − g)‖ / ‖Σ g‖: what of the error does not average out over the batches. Where their gradients agree, the
        bias of an unbiased method falls with their number, and that of another does not. Where g is zero, cosine is 1
        and the others 0 if ĝ is zero, too; otherwise 0 and infinite.
    """
    # One copy for all batches: what a compressor draws, or learns, goes on from batch to batch, as in training.
    model, exact = copy.deepcopy(model).train(), copy.deepcopy(exact).train()
    seen: dict[str, dict[str, Any]] = {}
    for k, (x, y) in enumerate(batches):
        ours, theirs = (_gradients(each, x, y, seed + k) for each in (model, exact))
        for name, g in theirs.items():
            row = seen.setdefault(name, defaultdict(float) | {"cosines": []})
            wrong, right = ours[name].double() - g.double(), g.double()
            row["cosines"].append(compare_gradients(ours[name], g)["cosine"])
            row["wrong"] += float(wrong.square().sum())
            row["right"] += float(right.square().sum())
            row["wrong_sum"] = row["wrong_sum"] + wrong
            row["right_sum"] = row["right_sum"] + right
    return [
        {
            "layer": name,
            "cosine": sum(row["cosines"]) / len(row["cosines"]),
            "cosine_min": min(row["cosines"]),
            "error": _ratio(math.sqrt(row["wrong"]), math.sqrt(row["right"])),
            "bias": _ratio(float(row["wrong_sum"].norm()), float(row["right_sum"].norm())),
        }
        for name, row in seen.items()
    ]


def gradient_errors(model: nn.Module, exact: nn.Module, x: Tensor, y: Tensor, seed: int = 0) -> pd.DataFrame:
    """Compare the weight gradients of a model with those of another, on one batch and with the same dropout.

    Parameters
    ----------
    model, exact : torch.nn.Module
        Of the same structure; they are left as they were.
    x, y : Tensor
        Inputs and class labels.
    seed : int
        Of dropout.

    Returns
    -------
    pandas.DataFrame
        A row for each module with a weight of two dimensions or more: layer, cosine, error (relative norm of the
        difference).
    """
    rows = measure_gradients(model, exact, [(x, y)], seed)
    return pd.DataFrame([{key: row[key] for key in ("layer", "cosine", "error")} for row in rows])


def compare_gradients(ours: Tensor, exact: Tensor) -> dict[str, float]:
    """Cosine between two gradients of any shape, and the norm of their difference over that of the exact one."""
    a, b = ours.double().flatten(), exact.double().flatten()
    size = float(b.norm())
    if size == 0:
        return {"cosine": 0.0 if bool(a.any()) else 1.0, "error": _ratio(float(a.norm()), 0.0)}
    return {"cosine": float(a @ b) / max(float(a.norm()) * size, 1e-300), "error": float((a - b).norm()) / size}


def _ratio(over: float, under: float) -> float:
    if under == 0:
        return math.inf if over else 0.0
    return over / under


def _gradients(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> dict[str, Tensor]:
    model.zero_grad()
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        torch.manual_seed(seed)
        F.cross_entropy(model(x), y).backward()
    return {
        name.rpartition(".")[0]: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and parameter.grad is not None
    }
