"""What compression does to the inputs of a model's layers: ranks, errors, bytes."""

import copy
import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lrbench.conv import compressed_layers, convolutions
from lrbench.factors import Origin
from lrbench.im2col import Geometry, Im2col, break_even_rank
from lrbench.measure.error import relative_error, violations

__all__ = ["measure_layers"]

SAMPLE = 500
"""Blocks of each layer whose rank and error are listed one by one."""


@torch.no_grad()
def measure_layers(model: nn.Module, batches: Iterable[Tensor], seed: int = 0) -> list[dict[str, Any]]:
    """Compress what a wrapped model's layers meet in training mode, and compare.

    Parameters
    ----------
    model : torch.nn.Module
        Wrapped. It is left as it was.
    batches : iterable of Tensor
        Inputs of the model.
    seed : int
        Of dropout.

    Returns
    -------
    list of dict
        For each wrapped layer, input side first: layer, index (the bit's place in a mask), groups, images (of all
        batches), m, n, blocks (of all calls), guarantee, eps; rank_mean, rank_min, rank_max, None where ranks do not
        apply; break_even_rank (against the layer's input; None, as n, where the calls differ in it); error_mean,
        error_max, violations (blocks with an error above eps, None where eps is ignored); share_own, share_escalated,
        share_stored; im2col_bytes, input_bytes, factor_bytes (all that is held, offsets included), cut_im2col,
        cut_input; ranks (None likewise) and errors of the first blocks, one by one.
    """
    model = copy.deepcopy(model).train()  # running statistics, a compressor's state and hooks are the copy's
    layers = compressed_layers(model)
    met: dict[str, dict[str, list[Any]]] = {name: defaultdict(list) for name in layers}
    for name, layer in layers.items():
        compressor = copy.deepcopy(layer.compressor)  # the layer's own compresses the same block once more

        def observe(
            conv: nn.Module, inputs: tuple[Tensor, ...], name: str = name, compressor: Any = compressor
        ) -> None:
            x = inputs[0]
            blocks = Im2col.of(x, Geometry.of(layers[name].conv))
            compressed = compressor.compress(blocks)
            seen = met[name]
            seen["shape"].append(blocks.shape)
            seen["input"].append(x.nbytes)
            seen["element"].append(x.itemsize)
            seen["held"].append(compressed.nbytes)
            if compressed.ranks is not None:
                seen["ranks"].append(compressed.ranks.cpu())
            seen["errors"].append(relative_error(blocks, compressed).cpu())
            seen["origins"].append(compressed.origin.cpu())

        layer.conv.register_forward_pre_hook(observe)
    device, images = next(model.parameters()).device, 0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for batch in batches:
            model(batch)
            images += len(batch)
    places = list(convolutions(model))
    return [
        _summary(name, places.index(name), layer.conv.groups, images, layer.compressor, met[name])
        for name, layer in layers.items()
        if met[name]["shape"]  # one that the model does not call has met nothing
    ]


def _summary(
    name: str, index: int, groups: int, images: int, compressor: Any, seen: dict[str, list[Any]]
) -> dict[str, Any]:
    calls = list(zip(seen["shape"], seen["input"], seen["element"], strict=True))
    m = seen["shape"][0][1]
    errors, origins = torch.cat(seen["errors"]), torch.cat(seen["origins"])
    ranks = torch.cat(seen["ranks"]) if seen["ranks"] else None
    im2col = sum(shape.numel() * element for shape, _, element in calls)
    held, inputs = sum(seen["held"]), sum(seen["input"])
    shares = {origin: (origins == int(origin)).double().mean().item() for origin in Origin}
    return {
        "layer": name,
        "index": index,
        "groups": groups,
        "images": images,
        "m": m,
        "n": _common(shape[2] for shape, _, _ in calls),
        "blocks": len(errors),
        "guarantee": compressor.guarantee,
        "eps": compressor.eps if compressor.uses_eps else None,
        "rank_mean": None if ranks is None else ranks.double().mean().item(),
        "rank_min": None if ranks is None else int(ranks.min()),
        "rank_max": None if ranks is None else int(ranks.max()),
        "break_even_rank": _common(break_even_rank(m, s[2], nbytes / e / s[0]) for s, nbytes, e in calls),
        "error_mean": _finite(errors.mean().item()),
        "error_max": _finite(errors.max().item()),
        "violations": violations(errors, compressor.eps) if compressor.uses_eps else None,
        "share_own": shares[Origin.OWN],
        "share_escalated": shares[Origin.ESCALATED],
        "share_stored": shares[Origin.STORED],
        "im2col_bytes": im2col,
        "input_bytes": inputs,
        "factor_bytes": held,
        "cut_im2col": 1 - held / im2col,
        "cut_input": 1 - held / inputs,
        "ranks": None if ranks is None else ranks[:SAMPLE].tolist(),
        "errors": [_finite(float(f"{error:.6g}")) for error in errors[:SAMPLE].tolist()],
    }


def _common(values: Iterable[Any]) -> Any:
    """The one value that there is; None if there are several."""
    different = set(values)
    return different.pop() if len(different) == 1 else None


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
