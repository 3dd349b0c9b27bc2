"""What compression really frees, layer by layer: the difference of two measured ledgers, beside a formula's claim."""

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrbench.bit_modules import lean_modules
from lrbench.checkpointing import segments_of
from lrbench.conv import CompressedConvolution, compressed_layers, plain_copy, unwrap
from lrbench.factors import Factors
from lrbench.im2col import Geometry, Im2col
from lrbench.measure.formula import Ranks, UnknownModuleError, factor_bytes, held_by_formula
from lrbench.measure.ledger import Entry, Ledger, take_ledger

__all__ = ["measure_savings", "saved_inputs"]


def measure_savings(model: nn.Module, x: Tensor, y: Tensor, seed: int = 0) -> dict[str, Any]:
    """Take the ledgers of a training step of a model as it is, of the same without compression, and of the plain one.

    Parameters
    ----------
    model : torch.nn.Module
        Wrapped, lean, checkpointed, or none of it. It is left as it was.
    x, y : Tensor
        A batch: inputs and class labels, on the model's device.
    seed : int
        Of dropout.

    Returns
    -------
    dict
        plain_bytes, uncompressed_bytes, held_bytes: what the graph and this step leave alive of the plain model, of the
        model without compression, and of the model as it is; lean_freed_bytes and freed_bytes, their differences;
        formula_bytes of the model as it is and plain_formula_bytes, each None where no formula is known, with
        formula_reason; hidden_bytes (alive, though autograd saved them not); layers, a dictionary for each wrapped
        layer, over all its calls: layer, formula_bytes (of what it keeps), held_bytes, input_bytes, saved_bytes (what
        the layer without compression keeps and nobody else does), kept_by (who else keeps an input, or None),
        freed_bytes, claimed_bytes (input minus formula), and reason, where less is freed than claimed.
    """
    ours, codes = _measured(model, x, y, seed)
    bare = _measured(unwrap(copy.deepcopy(model)), x, y, seed)[0] if compressed_layers(model) else ours
    other = bool(lean_modules(model)) or any(map(segments_of, model.modules()))
    plain = _measured(plain_copy(model), x, y, seed)[0] if other else bare
    layers = compressed_layers(model)
    return {
        "plain_bytes": plain.held,
        "uncompressed_bytes": bare.held,
        "held_bytes": ours.held,
        "lean_freed_bytes": plain.held - bare.held,
        "freed_bytes": bare.held - ours.held,
        **_formulas(model, x, codes),
        "hidden_bytes": sum(entry.nbytes for entry in ours.entries if not entry.saved and entry.kind != "state"),
        "layers": [_compare(name, layers, ours, bare, codes[name]) for name in layers if name in codes],
    }


def saved_inputs(model: nn.Module, x: Tensor, y: Tensor, seed: int = 0) -> dict[str, tuple[int, str | None]]:
    """What each convolution of a model keeps of its input that nobody else keeps, were nothing compressed.

    Parameters
    ----------
    model, x, y, seed
        As for :func:`measure_savings`.

    Returns
    -------
    dict
        By layer: bytes, and who else keeps an input, which then counts with 0 bytes.
    """
    ledger, _ = _measured(unwrap(copy.deepcopy(model)), x, y, seed)
    return {name: _alone(name, ledger) for name in ledger.inputs}


def _measured(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> tuple[Ledger, dict[str, int]]:
    """The ledger of a step that is not the first, and what the compressors say in it."""
    model = copy.deepcopy(model).train()  # running statistics and a compressor's state are the copy's
    with _seeded(x.device, seed):
        model(x)  # kernels are built, and what is allocated once is allocated
    codes: dict[str, int] = defaultdict(int)
    observed = copy.deepcopy(model)
    for name, layer in compressed_layers(observed).items():
        layer.conv.register_forward_pre_hook(_observer(name, layer, codes))
    with torch.no_grad(), _seeded(x.device, seed):
        observed(x)
    with _seeded(x.device, seed):
        return take_ledger(model, lambda: F.cross_entropy(model(x), y)), codes


def _observer(name: str, layer: CompressedConvolution, codes: dict[str, int]) -> Any:
    compressor = copy.deepcopy(layer.compressor)  # the layer's own compresses the same block once more
    trained = layer.conv.weight.requires_grad

    def observe(conv: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not trained or layer.path == "forward":  # nothing needs the input, or it is kept as it is
            codes[name] += inputs[0].nbytes if trained else 0
            return
        blocks = Im2col.of(inputs[0], Geometry.of(layer.conv))
        compressed = compressor.compress(blocks)
        N, m, n = blocks.shape
        if not isinstance(compressed, Factors) or compressed.ranks is None:
            # No ranks say it: the shapes of what the method says that it keeps do.
            codes[name] += sum(tensor.numel() * tensor.itemsize for tensor in compressed.tensors())
            return
        own = torch.ones(N, dtype=torch.bool, device=blocks.device)
        own[compressed.kept_index] = False
        said = Ranks(
            shape=(N, m, n),
            ranks=compressed.ranks[own].tolist(),
            stored=len(compressed.kept_index),
            numbers=m * n if compressor.name == "none" else blocks.tensor[0].numel(),
            # Neither need be the layer's: factors may be stored in a half precision, and halves are lifted to float32.
            itemsize=compressed.U.itemsize,
            stored_itemsize=0 if compressed.kept is None else compressed.kept.dtype.itemsize,
            shared=compressed.starts is not None,
        )
        codes[name] += factor_bytes(said)

    return observe


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """The same dropout in every pass, and no trace of it afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _formulas(model: nn.Module, x: Tensor, codes: dict[str, int]) -> dict[str, Any]:
    try:
        ours = sum(held_by_formula(model, x, codes).values())
        plain = sum(held_by_formula(plain_copy(model), x, {}).values())
    except UnknownModuleError as error:
        return {"formula_bytes": None, "plain_formula_bytes": None, "formula_reason": str(error)}
    return {"formula_bytes": ours, "plain_formula_bytes": plain, "formula_reason": None}


def _alone(name: str, ledger: Ledger) -> tuple[int, str | None]:
    """The bytes of a layer's inputs, and of copies of them, that nobody else keeps, and who keeps the others."""
    entries = [entry for _, entry in ledger.inputs[name] if entry is not None]
    # Not a weight that is computed anew, by modules of its own.
    entries += [e for e in _beside(name, ledger) if e.kind == "graph" and e.saved and e.maker == name]
    others = [_others(name, entry) for entry in entries]
    alone = _once(entry for entry, other in zip(entries, others, strict=True) if other is None)
    return alone, ", ".join(dict.fromkeys(filter(None, others))) or None


def _beside(name: str, ledger: Ledger) -> list[Entry]:
    """What a layer holds beside its inputs: codes in their place, or, where it is plain, a padded copy of them."""
    inputs = {id(entry) for _, entry in ledger.inputs[name]}
    return [e for e in ledger.of(name) if e.kind in ("graph", "state", "elsewhere") and id(e) not in inputs]


def _once(entries: Iterable[Entry]) -> int:
    """Bytes of entries, each once."""
    return sum({id(entry): entry.nbytes for entry in entries}.values())


def _others(name: str, entry: Entry) -> str | None:
    """Who keeps a layer's input beside the layer."""
    if entry.kind != "graph":
        return "the caller" if entry.kind == "caller" else f"the model's {entry.kind}"
    others = [holder or "the model" for holder in entry.holders if holder != name]
    if not entry.saved:
        others = [f"something hidden in {entry.maker or 'the model'}"]
    return ", ".join(others) or None


def _compare(
    name: str, layers: dict[str, CompressedConvolution], ours: Ledger, bare: Ledger, formula: int
) -> dict[str, Any]:
    """One layer's row."""
    size = sum(nbytes for nbytes, _ in ours.inputs[name])
    calls = [(now, was) for (_, now), (_, was) in zip(ours.inputs[name], bare.inputs[name], strict=False)]
    # An input that several layers read is freed once: by the first of them.
    firsts = [(now, was) for now, was in calls if was and next((h for h in was.holders if h in layers), name) == name]
    was = _once(was for _, was in firsts if was.kind == "graph")
    still = [now for now, _ in firsts if now is not None and now.kind == "graph"]
    rows = _beside(name, ours)
    held = _once(rows)
    saved, kept_by = _alone(name, bare)
    row = {
        "layer": name,
        "formula_bytes": formula,
        "held_bytes": held + _once(now for now in still if name in now.holders),
        "input_bytes": size,
        "saved_bytes": saved,
        "kept_by": kept_by,
        "freed_bytes": was + _once(_beside(name, bare)) - _once(still) - held,
        "claimed_bytes": size - formula,
    }
    others = [_others(name, entry) for entry in (now or was for now, was in calls) if entry]
    if not saved and not any(was for _, was in calls):
        rest = "without compression its input is not kept, either"
    else:
        rest = f"another {'call of the layer' if len(firsts) == len(calls) else 'layer'} counts its input as freed"
    return {**row, "reason": _reason(name, row, next(filter(None, others), None), rows, rest)}


def _reason(name: str, row: dict[str, Any], others: str | None, rows: list[Entry], rest: str) -> str | None:
    """Why less is freed than the formula claims; None where it is."""
    if row["freed_bytes"] >= row["claimed_bytes"] - 0.01 * row["input_bytes"]:
        return None
    hidden = sum(e.nbytes for e in rows if not e.saved and e.kind != "state")
    if hidden:
        return f"{hidden} bytes are alive that {name} made and autograd did not save"
    if others is not None:
        return f"its input is kept by {others}, too"
    if row["held_bytes"] > 1.01 * row["formula_bytes"]:
        return f"{name} holds {row['held_bytes']} bytes where its factors need {row['formula_bytes']}"
    return rest
