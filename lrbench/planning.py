"""What compression can bring in each convolution of a model, before anything is computed.

All of it follows from shapes, and from what a pass on the meta device keeps: see :mod:`lrbench.saved`.
"""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from torch import nn

from lrbench.conv import convolutions
from lrbench.im2col import Geometry, break_even_rank
from lrbench.models import build_on_meta
from lrbench.saved import Call, PlanError, Storage, Trace, trace_saved

__all__ = ["plan_model"]


def plan_model(model: nn.Module | str, input_shape: Sequence[int]) -> pd.DataFrame:
    """Say of each convolution what its blocks take, what their compression would free, and up to which rank it pays.

    The model's forward pass is run in training mode on the meta device: nothing is computed, nothing of the model's or
    the batch's size is allocated, and the model is left as it is.

    Parameters
    ----------
    model : torch.nn.Module or str
        A model on any device, or a name that :func:`lrbench.models.build_model` takes.
    input_shape : sequence of int
        Of a batch, (N, C, H, W).

    Returns
    -------
    pandas.DataFrame
        A row for each call of a convolution, in the order of a mask's bits: a module that is used twice has two rows
        and one bit, one that is never called has a row of missing values.

        - bit, layer, call (from 1; 0 if never called), geometry in short.
        - m, n, blocks (N·groups), out_channels K.
        - im2col_bytes, input_bytes (of x); kept_bytes (what autograd keeps for the convolution besides its weight: the
          storage of x, or of its padded copy, each once); freed_bytes (what of it nobody else keeps).
        - aliased (bool: somebody else keeps what the convolution keeps), holders (their names).
        - rank_im2col, rank_input, rank_saved: the break-even ranks, at which U and V of r·(m + n) numbers are as large
          as im2col, as x, as what would be freed. rank_unaliased: the same for what would be freed if each ReLU among
          the holders kept a bit for each number of its output, and each convolution among them were compressed, too;
          an input that k calls keep counts as 1/k of it for each.
        - dense_flops of W·D, 2·K·m·n for each image; flops_per_rank of (W·U)·V, 2·K·(m + n) for each image and rank;
          rank_flops, at which the two meet. What compressing takes is not in it.
        - pays ("as it is", "alias removed", "never"), max_rank (the largest rank that pays, 0 for never; any rank where
          the weight is frozen: a wrapped layer on path backward then keeps nothing of its input), verdict in words.

        ``attrs["totals"]`` holds bytes of all convolutions together, each storage once: im2col, input, kept, freed (by
        compressing all of them, as it is), unaliased (the same, were ReLUs to keep bits), and model (all that the pass
        keeps, parameters and buffers left out).

    Raises
    ------
    PlanError
        If there is no such model, the shape is none, the forward pass fails, or there is no convolution.
    """
    shape = tuple(input_shape)
    if len(shape) != 4 or not all(isinstance(size, int) and size >= 1 for size in shape):
        raise PlanError(f"the input's shape is {shape}: give four positive whole numbers, (N, C, H, W)")
    if isinstance(model, str):
        try:
            model = build_on_meta(model, None, 10)
        except ValueError as error:
            raise PlanError(str(error)) from error
    layers = convolutions(model)
    if not layers:
        raise PlanError("the model has no torch.nn.Conv2d: there is nothing to plan")
    trace = trace_saved(model, shape)
    rows = []
    for bit, (name, conv) in enumerate(layers.items()):
        calls = [call for call in trace.calls if call.layer == name]
        rows += [_row(bit, number, call, conv, trace.batch) for number, call in enumerate(calls, start=1)]
        if not calls:
            rows.append(_uncalled(bit, name, conv))
    table = pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)
    table.attrs["totals"] = _totals(table, trace)
    return table


_COLUMNS = {
    "bit": "int64",
    "layer": "object",
    "call": "int64",
    "geometry": "object",
    **dict.fromkeys(("m", "n", "blocks", "out_channels"), "Int64"),
    **dict.fromkeys(("im2col_bytes", "input_bytes", "kept_bytes", "freed_bytes"), "Int64"),
    "aliased": "bool",
    "holders": "object",
    **dict.fromkeys(("rank_im2col", "rank_input", "rank_saved", "rank_unaliased"), "float64"),
    **dict.fromkeys(("dense_flops", "flops_per_rank"), "Int64"),
    "rank_flops": "float64",
    "pays": "object",
    "max_rank": "int64",
    "verdict": "object",
}


def _row(bit: int, number: int, call: Call, conv: nn.Conv2d, batch: Storage) -> dict[str, Any]:
    N, C, H, W = call.in_shape
    g = call.geometry
    high, wide = g.output_size((H, W))
    m, n, blocks = C // g.groups * g.kernel_size[0] * g.kernel_size[1], high * wide, N * g.groups
    freed = sum(s.nbytes for s in call.kept if _free(s, call, batch))
    unaliased = sum(_share(s, batch, call.itemsize) for s in call.kept)
    holders = list(dict.fromkeys(name for s in call.kept for name in _holders(s, call, batch)))

    def even(nbytes: float) -> float:
        return break_even_rank(m, n, nbytes / call.itemsize / blocks)  # type: ignore[arg-type]

    row = {
        "bit": bit,
        "layer": call.layer,
        "call": number,
        "geometry": _in_short(g, C, call.out_channels),
        "m": m,
        "n": n,
        "blocks": blocks,
        "out_channels": call.out_channels,
        "im2col_bytes": blocks * m * n * call.itemsize,
        "input_bytes": call.input_bytes,
        "kept_bytes": sum(s.nbytes for s in call.kept),
        "freed_bytes": freed,
        "aliased": bool(holders),
        "holders": ", ".join(holders),
        "rank_im2col": m * n / (m + n),
        "rank_input": even(call.input_bytes),
        "rank_saved": even(freed),
        "rank_unaliased": even(unaliased),
        "dense_flops": 2 * N * call.out_channels * m * n,
        "flops_per_rank": 2 * N * call.out_channels * (m + n),
        "rank_flops": m * n / (m + n),
    }
    return {**row, **_verdict(row, call, conv, batch)}


def _uncalled(bit: int, name: str, conv: nn.Conv2d) -> dict[str, Any]:
    own = _own_forward(conv)
    return {
        "bit": bit,
        "layer": name,
        "call": 0,
        "geometry": _in_short(Geometry.of(conv), conv.in_channels, conv.out_channels),
        "aliased": False,
        "holders": "",
        "pays": "never",
        "max_rank": 0,
        "verdict": f"never: a {type(conv).__name__} with a forward of its own" if own else "never: it is not called",
    }


def _verdict(row: dict[str, Any], call: Call, conv: nn.Conv2d, batch: Storage) -> dict[str, Any]:
    """Whether compression can pay, and up to which rank."""
    m, n, evens = row["m"], row["n"], (row["rank_saved"], row["rank_unaliased"])
    # On path backward a wrapped layer keeps nothing for a frozen weight, whatever the rank.
    exact = "at no error on path backward (frozen weight)" if call.frozen else ""
    as_it_is, unaliased = (min(m, n) * (e > 0) if call.frozen else _largest_rank(e, m, n) for e in evens)
    pays, rank = "never", 0
    if _own_forward(conv):
        verdict = f"never: a {type(conv).__name__} with a forward of its own"
    elif not call.kept:
        verdict = "never: nothing is kept for it"
    elif as_it_is:
        pays, rank, verdict = "as it is", as_it_is, exact or f"up to rank {as_it_is}"
    elif unaliased:
        others = [k for s in call.kept for k in s.keepers if k.call is not call]
        bits = _listed(k.name for k in others if k.call is None)
        beside = _listed(k.name for k in others if k.call is not None)
        needed = [f"{bits} kept bits" if bits else "", f"{beside} were compressed, too" if beside else ""]
        verdict = f"only if {' and '.join(filter(None, needed))}: {exact or f'up to rank {unaliased}'}"
        pays, rank = "alias removed", unaliased
    elif row["rank_unaliased"] > 0 or not row["aliased"]:
        verdict = "never: not even at rank 1"
    elif batch in call.kept:
        verdict = "never: the caller's batch"
    else:
        kept = _listed(k.name for s in call.kept for k in s.keepers if k.call is None and not k.relu)
        verdict = f"never: kept by {kept}, too"
    return {"pays": pays, "max_rank": rank, "verdict": verdict}


def _largest_rank(even: float, m: int, n: int) -> int:
    """The largest rank of which the factors are smaller than what they free; above m·n numbers none are kept."""
    return max(0, min(math.ceil(even) - 1, m * n // (m + n)))


def _free(storage: Storage, call: Call, batch: Storage) -> bool:
    """Whether nobody but this call keeps it."""
    return storage is not batch and all(keeper.call is call for keeper in storage.keepers)


def _share(storage: Storage, batch: Storage, itemsize: int) -> float:
    """Bytes that would be freed for each call that keeps it if ReLUs kept bits and convolutions were compressed."""
    if storage is batch or not all(keeper.call is not None or keeper.relu for keeper in storage.keepers):
        return 0
    bits = sum(keeper.relu and keeper.call is None for keeper in storage.keepers) * storage.nbytes / (8 * itemsize)
    calls = {id(keeper.call) for keeper in storage.keepers if keeper.call is not None}
    return (storage.nbytes - bits) / len(calls)


def _holders(storage: Storage, call: Call, batch: Storage) -> list[str]:
    """Who else keeps it."""
    return ["the caller's batch"] * (storage is batch) + [k.name for k in storage.keepers if k.call is not call]


def _own_forward(conv: nn.Conv2d) -> bool:
    """Whether :func:`lrbench.wrap` refuses it."""
    cls = type(conv)
    return cls.forward is not nn.Conv2d.forward or cls._conv_forward is not nn.Conv2d._conv_forward


def _in_short(g: Geometry, channels: int, out_channels: int) -> str:
    """A geometry in a few characters: channels, kernel, then what is not usual."""

    def pair(values: Sequence[int]) -> str:
        return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))

    left, right, top, bottom = g.padding
    frame = (top, left) if (top, left) == (bottom, right) else (top, bottom, left, right)
    parts = [f"{channels}→{out_channels} {g.kernel_size[0]}x{g.kernel_size[1]}"]
    parts += [f"s{pair(g.stride)}"] if g.stride != (1, 1) else []
    parts += [f"p{pair(frame)}"] if any(frame) else []
    parts += [f"d{pair(g.dilation)}"] if g.dilation != (1, 1) else []
    parts += [f"g{g.groups}"] if g.groups > 1 else []
    parts += [g.padding_mode] if g.padding_mode != "zeros" and any(frame) else []
    return " ".join(parts)


def _listed(names: Any) -> str:
    """Names, each once, in words."""
    return " and ".join(dict.fromkeys(names))


def _totals(table: pd.DataFrame, trace: Trace) -> dict[str, int]:
    calls = trace.calls
    inputs = {id(call.input): call.input.nbytes for call in calls}
    kept = {id(s): s for call in calls for s in call.kept}
    together = [s for s in kept.values() if s is not trace.batch and all(k.call is not None for k in s.keepers)]
    shares = [_share(s, trace.batch, call.itemsize) for call in calls for s in call.kept]
    return {
        "im2col": int(table["im2col_bytes"].sum()),
        "input": sum(inputs.values()),
        "kept": sum(s.nbytes for s in kept.values()),
        "freed": sum(s.nbytes for s in together),
        "unaliased": round(sum(shares)),
        "model": sum(s.nbytes for s in trace.storages if s.keepers),
    }
