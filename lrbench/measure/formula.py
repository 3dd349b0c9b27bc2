"""What a training step should hold, from shapes and ranks alone: the arithmetic that a ledger is compared with.

Published savings are such formulas. This one knows what PyTorch's modules keep for their backward pass, and counts a
tensor once that several of them keep; the shapes come from a forward pass on the meta device, which holds no numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrbench.bit_modules import lean_modules
from lrbench.checkpointing import segments_of
from lrbench.conv import compressed_layers, plain_copy
from lrbench.im2col import Geometry

__all__ = ["Ranks", "UnknownModuleError", "factor_bytes", "held_by_formula"]


class UnknownModuleError(LookupError):
    """There is no formula for what a module keeps."""


@dataclass(frozen=True)
class Ranks:
    """What a low-rank compressor said of one batch of a layer's input.

    Attributes
    ----------
    shape : tuple of int
        (N, m, n).
    ranks : list of int
        Of each block that has factors.
    stored : int
        Blocks that are kept as they are.
    numbers : int
        That such a block takes.
    itemsize, stored_itemsize : int
        Bytes of a number of U and V, and of a stored block.
    shared : bool
        Whether the blocks have their columns in common.
    """

    shape: tuple[int, int, int]
    ranks: Sequence[int]
    stored: int
    numbers: int
    itemsize: int
    stored_itemsize: int
    shared: bool = False


def factor_bytes(said: Ranks) -> int:
    """Bytes of U and V, of what is stored, and of the tables that say where each block begins."""
    N, m, n = said.shape
    columns = max(said.ranks, default=0) if said.shared else sum(said.ranks)
    factors = (columns * m + sum(said.ranks) * n) * said.itemsize
    stored = said.stored * said.numbers * said.stored_itemsize
    tables = 8 * (N + 1) + N + 8 * said.stored + (8 * N if said.shared else 0)
    return factors + stored + tables


def held_by_formula(model: nn.Module, batch: Tensor, kept: dict[str, int]) -> dict[str, int]:
    """Bytes that each module keeps for the backward pass.

    Parameters
    ----------
    model : torch.nn.Module
        Wrapped, lean or plain, in training mode; made of modules that the formula knows, whose inputs and outputs are
        single tensors.
    batch : Tensor
        Its input. Only shape and dtype matter.
    kept : dict
        Bytes that each wrapped layer keeps in place of its input, by name; where the path is ``forward`` it keeps that.

    Returns
    -------
    dict
        Bytes by module name, of modules that keep something; what several keep counts for the first of them. The
        batch itself is the caller's and not counted.

    Raises
    ------
    UnknownModuleError
        If a module takes part in the graph of which the formula knows nothing.
    """
    if any(map(segments_of, model.modules())):
        raise UnknownModuleError("there is no formula for what checkpointing keeps: most of it is computed again")
    meta = plain_copy(model).to("meta")
    lean, wrapped = lean_modules(model), compressed_layers(model)
    met: list[Tensor] = []  # alive meanwhile, or another tensor would take the place of one
    x = torch.empty_like(batch, device="meta")
    counted = {x.untyped_storage()._cdata}
    out: dict[str, int] = {}

    def count(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, Tensor) or not output.requires_grad:
            return
        source = inputs[0]
        met.extend((source, output))
        if name in kept and wrapped[name].path != "forward":
            out[name] = kept[name]  # of all its calls
            return
        rules = (rule for cls, rule in _RULES.items() if isinstance(module, cls))
        rule = _of_weight if name in wrapped else next(rules, None)
        if rule is None:
            raise UnknownModuleError(f"there is no formula for what a {type(module).__name__} ({name}) keeps")
        tensors, extra = rule(module, source, output, name in lean)
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in counted:
                counted.add(storage._cdata)
                extra += tensor.numel() * tensor.itemsize
        if extra:
            out[name] = out.get(name, 0) + extra

    for name, module in meta.named_modules():
        if not any(True for _ in module.children()):
            module.register_forward_hook(lambda module, inputs, output, name=name: count(name, module, inputs, output))
    meta(x)
    return out


_Rule = Callable[[Any, Tensor, Tensor, bool], tuple[list[Tensor], int]]
"""Given module, input, output and whether it is lean: the tensors that it keeps, and other bytes."""


def _of_weight(module: Any, x: Tensor, out: Tensor, lean: bool) -> tuple[list[Tensor], int]:
    return ([x] if module.weight.requires_grad else []), 0


def _convolution(module: nn.Conv2d, x: Tensor, out: Tensor, lean: bool) -> tuple[list[Tensor], int]:
    # Of a frozen weight, too; and in place of its input a padded copy, where padding is not the convolution's own.
    left, right, top, bottom = Geometry.of(module).padding
    own = module.padding_mode == "zeros"
    tall, wide = (bottom - top, right - left) if own else (top + bottom, left + right)
    if own and not tall and not wide:
        return [x], 0
    H, W = x.shape[-2:]
    padded = x.numel() // (H * W) * (H + tall) * (W + wide) * x.itemsize
    return [x] if module.padding_mode in ("reflect", "replicate") and x.requires_grad else [], padded


def _relu(module: nn.ReLU, x: Tensor, out: Tensor, lean: bool) -> tuple[list[Tensor], int]:
    return ([], -(-out.numel() // 8)) if lean else ([out], 0)


def _dropout(module: nn.Dropout, x: Tensor, out: Tensor, lean: bool) -> tuple[list[Tensor], int]:
    if not module.training or not 0 < module.p < 1:
        return [], 0
    # What works in place stays plain in a lean model.
    return [], -(-out.numel() // 8) if lean and not module.inplace else out.numel() * out.itemsize


def _max_pool(module: nn.MaxPool2d, x: Tensor, out: Tensor, lean: bool) -> tuple[list[Tensor], int]:
    if not lean:
        return [x], 8 * out.numel()
    sides = module.kernel_size if isinstance(module.kernel_size, tuple | list) else (module.kernel_size,) * 2
    bits = next((bits for bits in (1, 2, 4, 8) if sides[0] * sides[1] <= 2**bits), 32)
    return [], -(-out.numel() * bits // 8)


def _batch_norm(module: nn.BatchNorm2d, x: Tensor, out: Tensor, lean: bool) -> tuple[list[Tensor], int]:
    return [x], 2 * module.num_features * x.itemsize if module.training else 0


def _average(module: nn.AdaptiveAvgPool2d, x: Tensor, out: Tensor, lean: bool) -> tuple[list[Tensor], int]:
    return ([] if out.shape[-2:] == (1, 1) else [x]), 0


def _nothing(module: nn.Module, x: Tensor, out: Tensor, lean: bool) -> tuple[list[Tensor], int]:
    return [], 0


_RULES: dict[type[nn.Module], _Rule] = {
    nn.Conv2d: _convolution,
    nn.Linear: _of_weight,
    nn.ReLU: _relu,
    nn.Dropout: _dropout,
    nn.MaxPool2d: _max_pool,
    nn.BatchNorm2d: _batch_norm,
    nn.AdaptiveAvgPool2d: _average,
    nn.Flatten: _nothing,
    nn.Identity: _nothing,
}
