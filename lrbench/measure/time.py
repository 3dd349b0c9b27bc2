"""How long a training step takes, beside the plain model's, and where the time goes."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from lrbench.conv import compressed_layers
from lrbench.im2col import Im2col

__all__ = ["period_of", "quartiles", "split_steps", "time_steps"]

Step = Callable[[int], object]
"""Does one training step; the argument is its number, so that steps of one kind see one batch after the other."""


def period_of(model: nn.Module) -> int:
    """Steps after which the work of a model's compressors repeats: a median over single ones would hide the rare."""
    return math.lcm(*(layer.compressor.period for layer in compressed_layers(model).values()))


def time_steps(
    steps: Sequence[Step], rounds: int, warmup: int = 2, device: str = "cpu", period: int = 1
) -> list[list[float]]:
    """Time several kinds of step side by side.

    Each round takes one step of each kind, or a period of them, in an order that is turned from round to round, so that
    a machine whose speed drifts treats all alike.

    Parameters
    ----------
    steps : sequence of callable
        Each does one step.
    rounds : int
        Timed rounds.
    warmup : int
        Rounds before those.
    device : str
        Where the steps compute: what is queued there is waited for.
    period : int
        Steps that are timed together: see :func:`period_of`.

    Returns
    -------
    list of list of float
        Seconds a step, for each kind and round.
    """
    seconds: list[list[float]] = [[] for _ in steps]
    for number in range(warmup + rounds):
        for offset in range(len(steps)):
            kind = (number + offset) % len(steps)
            start = _now(device)
            for step in range(period * number, period * (number + 1)):
                steps[kind](step)
            if number >= warmup:
                seconds[kind].append((_now(device) - start) / period)
    return seconds


def split_steps(model: nn.Module, step: Step, rounds: int, device: str = "cpu") -> dict[str, Any]:
    """Split the time of a wrapped model's step into lowering, compressing and the rest.

    Lowering is the copying of pixels into blocks, or strips of them, by :class:`lrbench.Im2col`; compressing is the
    rest of what ``Compressor.compress`` takes, with the pixels that a compiled kernel reads for itself.

    Returns
    -------
    dict
        Medians over the rounds, of means over a period of steps, in milliseconds: lowering_ms, compressing_ms, rest_ms,
        and layers, a list of dict with layer, lowering_ms and compressing_ms.
    """
    step(0)
    period = period_of(model)
    names = list(compressed_layers(model))
    measured: dict[tuple[str, str], list[float]] = defaultdict(list)
    for number in range(rounds):
        with _clocks(model, device) as spent:
            start = _now(device)
            for k in range(period):
                step(1 + period * number + k)
            total = _now(device) - start
        for name in names:
            measured["lowering", name].append(spent["lowering", name])
            measured["compressing", name].append(spent["compress", name] - spent["lowering", name])
        lowering = sum(seconds for (what, _), seconds in spent.items() if what == "lowering")
        compressing = sum(measured["compressing", name][-1] for name in names)
        measured["lowering", ""].append(lowering)
        measured["compressing", ""].append(compressing)
        measured["rest", ""].append(total - lowering - compressing)
    median = {key: 1e3 / period * float(np.median(values)) for key, values in measured.items()}
    return {
        **{f"{part}_ms": median[part, ""] for part in ("lowering", "compressing", "rest")},
        "layers": [
            {
                "layer": name,
                "lowering_ms": median["lowering", name],
                "compressing_ms": median["compressing", name],
            }
            for name in names
        ],
    }


def quartiles(values: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """Median and quartiles, times a scale: median, q25, q75."""
    low, middle, high = np.quantile(np.asarray(values) * scale, [0.25, 0.5, 0.75])
    return {"median": float(middle), "q25": float(low), "q75": float(high)}


@contextmanager
def _clocks(model: nn.Module, device: str) -> Iterator[dict[tuple[str, str], float]]:
    """Put clocks on every layer's compressor, and on the one function that lowers."""
    spent: dict[tuple[str, str], float] = defaultdict(float)
    current = [""]  # the layer that is being compressed
    lower = Im2col._lower
    layers = compressed_layers(model)

    def timed_lower(windows: Tensor, into: Tensor) -> Tensor:
        start = _now(device)
        out: Tensor = lower(windows, into)
        spent["lowering", current[0]] += _now(device) - start
        return out

    def timed_compress(name: str, compress: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            current[0] = name
            start = _now(device)
            try:
                return compress(*args, **options)
            finally:
                spent["compress", name] += _now(device) - start
                current[0] = ""

        return timed

    with ExitStack() as clocks:
        clocks.enter_context(patch.object(Im2col, "_lower", staticmethod(timed_lower)))
        for name, layer in layers.items():
            timed = timed_compress(name, layer.compressor.compress)
            clocks.enter_context(patch.object(layer.compressor, "compress", timed))
        yield spent


def _now(device: str) -> float:
    if device != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
