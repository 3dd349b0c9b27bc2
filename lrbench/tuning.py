"""A policy found, not guessed: per layer a small form of its input that keeps the weight's gradient good enough.

On path ``backward`` the forward pass is exact, and a layer's gradient depends on nobody's compression but its own: what
each compressor would do to each layer follows from one exact step. What is chosen is then measured as a whole, the
gradients by a real backward pass and the peaks in fresh processes; layers that do not lower the peak are left plain.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrbench.bit_modules import lean as make_lean
from lrbench.conv import convolutions, wrap
from lrbench.im2col import Geometry, Im2col
from lrbench.measure.gradients import compare_gradients, gradient_errors
from lrbench.measure.memory import Peak
from lrbench.measure.savings import measure_savings, saved_inputs
from lrbench.measure.steps import measure_step_peaks
from lrbench.policy import LayerPolicy, Policy

__all__ = ["CANDIDATES", "Tuned", "tune"]

Batch = tuple[Tensor, Tensor]

CANDIDATES: tuple[LayerPolicy, ...] = tuple(
    LayerPolicy(name, eps)
    for name, tolerances in (
        ("svd", (0.5, 0.4, 0.3, 0.2, 0.15, 0.1)),
        ("hosvd", (0.5, 0.3, 0.2, 0.1)),
        ("topk", (0.5, 0.3, 0.2, 0.1)),
        ("quant2", (None,)),
        ("quant4", (None,)),
        ("quant8", (None,)),
        ("bf16", (None,)),
    )
    for eps in tolerances
)
"""What each layer may have, on path ``backward``, unless the caller names something else."""


@dataclass(frozen=True)
class Tuned:
    """What :func:`tune` found.

    Attributes
    ----------
    policy : Policy
        For :func:`lrbench.wrap`; ``policy.to_toml()`` for ``ablate --policies``.
    candidates : pandas.DataFrame
        A row for each layer and candidate: layer, compressor, eps, nbytes, saved_bytes (what the layer keeps without
        compression, and nobody else does), cosine and error of its weight's gradient, chosen. Bytes are those of
        ``batch``, and gradients of two batches the worse.
    gradients : pandas.DataFrame
        A row for each layer with a weight, by a backward pass under the policy: layer, cosine, error.
    plain_held, lean_held, held : int
        Bytes that a step holds when its forward pass ends: of the plain model, with bits in place of numbers, and under
        the policy.
    plain_peaks, lean_peaks, peaks : list of Peak
        Of a training step of each of the three; empty where they were not measured.
    """

    policy: Policy
    candidates: pd.DataFrame
    gradients: pd.DataFrame
    plain_held: int
    lean_held: int
    held: int
    plain_peaks: list[Peak]
    lean_peaks: list[Peak]
    peaks: list[Peak]


def tune(
    model: nn.Module,
    batch: Batch,
    *,
    cosine: float = 0.99,
    error: float = math.inf,
    budget: int | None = None,
    check: Batch | None = None,
    candidates: Sequence[LayerPolicy] = CANDIDATES,
    lean: bool = True,
    processes: int = 5,
    seed: int = 0,
    progress: Callable[[str], object] = lambda text: None,
) -> Tuned:
    """Choose for each convolution how its input is kept, so that memory is least and gradients stay good.

    Parameters
    ----------
    model : torch.nn.Module
        Plain; trained a little, or its ranks mean nothing. It is left as it was.
    batch : tuple of Tensor
        Inputs and class labels, of training data; of the size that is trained with.
    cosine : float
        Least cosine between a layer's weight gradient and the exact one, in [-1, 1].
    error : float
        Largest ‖ĝ − g‖ / ‖g‖ of a layer's weight gradient.
    budget : int, optional
        Bytes that the step may hold when its forward pass ends, by the ledger. With it, ``cosine`` and ``error`` are no
        bounds: the largest error of any layer is made as small as the budget allows.
    check : tuple of Tensor, optional
        Another batch of training data, of any size: the bounds must hold on both, and ``gradients`` are of this one.
    candidates : sequence of LayerPolicy
        What each layer may have, on path ``backward``.
    lean : bool
        Whether ReLU, dropout and max pooling may keep bits: without that, the inputs of convolutions behind them are
        kept by others.
    processes : int
        Fresh processes that measure each peak; 0 to measure none, and to choose by what the ledger counts.
    seed : int
        Of dropout.
    progress
        Called with a line of text at each stage.

    Returns
    -------
    Tuned

    Raises
    ------
    ValueError
        If a candidate is not on path ``backward``, the model is wrapped, has no convolution to choose for, or no choice
        keeps within the budget.
    PeakUnavailableError
        If peaks cannot be measured here: not on Linux, or a class of the model is one of a script or a notebook, which
        other processes do not have. ``processes=0`` does without.
    """
    for candidate in candidates:
        if candidate.path != "backward":
            raise ValueError(f"a candidate is on path {candidate.path!r}: tune chooses among those on path 'backward'")
    x, y = batch
    base = copy.deepcopy(model).train()
    if lean:
        make_lean(base)
    # Where peaks cannot be measured, that is told before the long part.
    plain_peaks = measure_step_peaks(model, x, y, processes) if processes else []
    progress("candidates")
    table = _candidates(base, [batch, *([] if check is None else [check])], candidates, seed)
    bounds, room = _Bounds(cosine, error), math.inf
    if budget is not None:
        room = budget - measure_savings(base, x, y, seed)["held_bytes"]
        bounds = _within_budget(table, room)
    policy = _policy(table, bounds, candidates, lean)
    lean_peaks: list[Peak] = []
    peaks: list[Peak] = []
    if processes:
        lean_peaks = measure_step_peaks(base, x, y, processes)
        policy = _lowest(base, table, bounds, room, candidates, policy, batch, progress)
        peaks = measure_step_peaks(_applied(policy, base), x, y, processes)
    progress(f"gradients with {len(policy.layers)} layers")
    wrapped = _applied(policy, base)
    gradients = gradient_errors(wrapped, base, *(check or batch), seed)
    table["chosen"] = [
        policy.layers.get(layer) is candidates[k] for layer, k in zip(table["layer"], table["candidate"], strict=True)
    ]
    final = measure_savings(wrapped, x, y, seed)
    return Tuned(
        policy=policy,
        candidates=table.drop(columns="candidate"),
        gradients=gradients,
        plain_held=final["plain_bytes"],
        lean_held=final["uncompressed_bytes"],
        held=final["held_bytes"],
        plain_peaks=plain_peaks,
        lean_peaks=lean_peaks,
        peaks=peaks,
    )


@dataclass(frozen=True)
class _Bounds:
    """What a gradient must keep."""

    cosine: float
    error: float

    def allow(self, row: Any) -> bool:
        return bool(row["cosine"] >= self.cosine and row["error"] <= self.error)


def _candidates(
    model: nn.Module, batches: Sequence[Batch], candidates: Sequence[LayerPolicy], seed: int
) -> pd.DataFrame:
    """What each candidate would hold of a layer's input in the first batch, and do to its weight's gradient in any."""
    saved = saved_inputs(model, *batches[0], seed)
    rows = []
    for batch in batches:
        for name, (inputs, grad, conv) in _exact_step(model, *batch, seed).items():
            exact = Geometry.of(conv).grad_weight(grad, inputs, conv.weight.shape)
            for k, candidate in enumerate(candidates):
                rated = _rate(candidate, inputs, grad, conv, exact)
                if rated is not None:
                    named = {"compressor": candidate.compressor, "eps": candidate.eps, "saved_bytes": saved[name][0]}
                    rows.append({"layer": name, "candidate": k, **named, **rated})
    if not rows:
        raise ValueError("no convolution of the model has a weight that is trained and a candidate that fits it")
    worst = {"compressor": "first", "eps": "first", "nbytes": "first", "saved_bytes": "first", "cosine": "min"}
    grouped = pd.DataFrame(rows).groupby(["layer", "candidate"], sort=False)
    return grouped.agg({**worst, "error": "max"}).reset_index()


def _rate(
    candidate: LayerPolicy, inputs: Tensor, grad: Tensor, conv: nn.Conv2d, exact: Tensor
) -> dict[str, float] | None:
    """What a compressor holds of one layer's input, and its weight's gradient; None where it makes no sense."""
    compressor, geometry = candidate.make(), Geometry.of(conv)
    if compressor.skip(geometry, (inputs.shape[2], inputs.shape[3]), "backward") is not None:
        return None
    compressed = compressor.compress(Im2col.of(inputs, geometry))
    N, _, n = compressed.shape
    parts = grad.reshape(N, grad.shape[1] // conv.groups, n).to(compressed.dtype)
    ours = compressed.grad_weight(parts).view(exact.shape)
    return {"nbytes": compressed.nbytes, **compare_gradients(ours, exact)}


def _exact_step(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> dict[str, tuple[Tensor, Tensor, nn.Conv2d]]:
    """Each convolution's input, and the gradient of its output; of one that is called twice the last call's."""
    model = copy.deepcopy(model).train()
    met: dict[str, list[Any]] = {}
    for name, conv in convolutions(model).items():

        def observe(conv: nn.Module, inputs: tuple[Tensor, ...], out: Tensor, name: str = name) -> None:
            if not (out.requires_grad and conv.weight.requires_grad):
                return
            seen = met[name] = [inputs[0].detach().clone(), None, conv]
            out.register_hook(lambda grad: seen.__setitem__(1, grad.detach()))

        conv.register_forward_hook(observe)
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        torch.manual_seed(seed)
        F.cross_entropy(model(x), y).backward()
    return {name: (seen[0], seen[1], seen[2]) for name, seen in met.items() if seen[1] is not None}


def _choose(table: pd.DataFrame, bounds: _Bounds) -> dict[str, int]:
    """The smallest candidate of each layer within the bounds, where it is smaller than what the layer saves."""
    allowed = table[table.apply(bounds.allow, axis=1) & (table["nbytes"] < table["saved_bytes"])]
    best = allowed.loc[allowed.groupby("layer", sort=False)["nbytes"].idxmin()]
    return {str(layer): int(k) for layer, k in zip(best["layer"], best["candidate"], strict=True)}


def _within_budget(table: pd.DataFrame, room: float) -> _Bounds:
    """The tightest bound on the error under which the choice holds at most ``room`` bytes more than no compression."""
    for limit in [0.0, *sorted(table["error"].unique())]:
        within = _Bounds(-1.0, limit)
        chosen = _choose(table, within)
        rows = table[table["candidate"] == table["layer"].map(chosen)]
        if int((rows["nbytes"] - rows["saved_bytes"]).sum()) <= room:
            return within
    least = table.assign(gain=table["saved_bytes"] - table["nbytes"]).groupby("layer")["gain"].max().clip(lower=0).sum()
    raise ValueError(
        f"the budget is {-room:,} bytes below what the step holds uncompressed, and the candidates free at most "
        f"{int(least):,}: raise it, or name smaller candidates"
    )


def _policy(
    table: pd.DataFrame, bounds: _Bounds, candidates: Sequence[LayerPolicy], lean: bool, only: str | None = None
) -> Policy:
    """The smallest candidate of each layer, or the smallest of one method."""
    rows = table if only is None else table[table["compressor"] == only]
    return Policy({name: candidates[k] for name, k in _choose(rows, bounds).items()}, lean)


def _applied(policy: Policy, base: nn.Module) -> nn.Module:
    """A copy of a model under a policy; it keeps bits already, if the policy says so."""
    return wrap(copy.deepcopy(base), replace(policy, lean=False))


def _lowest(
    base: nn.Module,
    table: pd.DataFrame,
    bounds: _Bounds,
    room: float,
    candidates: Sequence[LayerPolicy],
    smallest: Policy,
    batch: Batch,
    progress: Callable[[str], object],
) -> Policy:
    """A policy of a low measured peak, without layers that do not lower it.

    What holds least need not peak lowest: a method may need much memory while it compresses. So policies of one method
    each, and none at all, stand beside the one that holds least. Of the best, layers are left out, those that free
    least first, as long as the peak does not rise; then others are tried, those that free most first, by each method,
    and taken where the peak falls. None holds more than ``room`` bytes beyond what is held without compression.
    """
    gains = (table["saved_bytes"] - table["nbytes"]).set_axis(table.set_index(["layer", "candidate"]).index)

    def fits(policy: Policy) -> bool:
        chosen = [(name, candidates.index(layer)) for name, layer in policy.layers.items()]
        return bool(-gains[chosen].sum() <= room)

    def peak_of(policy: Policy) -> float:
        shown = ", ".join(f"{name} {layer.compressor}" for name, layer in policy.layers.items())
        progress(f"peak of {shown or 'no compression'}")
        (peak,) = measure_step_peaks(_applied(policy, base), *batch, 1)
        return peak.added

    methods = [_policy(table, bounds, candidates, smallest.lean, str(name)) for name in table["compressor"].unique()]
    starts = [replace(smallest, layers={}), smallest, *methods]
    distinct = [policy for k, policy in enumerate(starts) if fits(policy) and policy not in starts[:k]]
    measured = [(peak_of(policy), k, policy) for k, policy in enumerate(distinct)]
    best, _, policy = min(measured, key=lambda found: found[:2])
    freed = gains.groupby(level="layer").max().sort_values()
    for name in [name for name in freed.index if name in policy.layers]:
        fewer = replace(policy, layers={other: entry for other, entry in policy.layers.items() if other != name})
        if fits(fewer) and (peak := peak_of(fewer)) <= best * (1 + SAME):
            policy, best = fewer, min(best, peak)
    for name in [name for name in freed.index[::-1] if name not in policy.layers]:
        more = [replace(policy, layers={**policy.layers, name: m.layers[name]}) for m in methods if name in m.layers]
        peaks = [peak_of(tried) for tried in more]  # each holds less than the policy does: it fits
        if peaks and min(peaks) < best * (1 - SAME):
            best = min(peaks)
            policy = more[peaks.index(best)]
    return policy


SAME = 0.005
"""By how much of itself a peak may differ and still count as the same."""
