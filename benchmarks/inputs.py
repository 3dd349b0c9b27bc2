"""What the benchmarks work on: the embedded photographs, and what the paper's network makes of them.

Batches are rotated, because a result that is remembered is no result: no two calls in a row see the same images.
"""

from collections.abc import Iterable, Sequence
from itertools import cycle

import numpy as np
import torch
from torch import Tensor, nn

import lrbench
from lrbench.datasets import load_dataset, to_float
from lrbench.models import paper_cnn
from lrbench.training import training_step

__all__ = [
    *("BATCH", "COMPRESSORS", "LAYERS", "batches", "inputs_met", "layer_inputs"),
    *("require", "rotate", "trained_network"),
]

BATCH = 100
BATCHES = 4
COMPRESSORS = [
    *("aca", "aca-estimate", "aca-full", "aca-svd", "bf16", "cpqr", "dct", "gram", "hosvd"),
    *("id", "input", "none", "pool", "qr-svd", "quant2", "quant4", "quant8", "randqb"),
    *("rproj", "rsvd", "shared", "svd", "svd-same-error", "svd-same-rank", "topk", "warm"),
    "svd-rank",
]
"""By name, newer ones last: asv counts places in this list, and another commit's registry would be another list."""
# What other packages register comes behind, where it moves no other's place.
COMPRESSORS += [
    name
    for name in lrbench.list_compressors()
    if not type(lrbench.get_compressor(name)).__module__.startswith("lrbench.")
]
LAYERS = {"27x1024": "conv1", "288x256": "conv3", "576x64": "conv5"}
"""The paper's shapes, m x n, at widths 32, 64, 128, and the layer that each belongs to."""


def require(name: str, path: str | None = None) -> None:
    """Skip what a commit does not have, and a compressor that makes no sense on a path."""
    if name not in lrbench.list_compressors():
        raise NotImplementedError(f"there is no compressor {name!r} at this commit")
    reason = lrbench.get_compressor(name).skip(lrbench.Geometry((3, 3)), None, path) if path else None
    if reason is not None:
        raise NotImplementedError(f"{name} on path {path}: {reason}")


def batches() -> list[tuple[Tensor, Tensor]]:
    """Give batches of images, (100, 3, 32, 32) float32, with their labels."""
    data = load_dataset("photos")
    images, labels = to_float(data.train_images[: BATCH * BATCHES]), data.train_labels[: BATCH * BATCHES]
    return list(zip(images.split(BATCH), labels.split(BATCH), strict=True))


def layer_inputs() -> dict[str, np.ndarray]:
    """Give the inputs of layers 1, 3 and 5 in training mode, (batches, 100, C, H, W), at the initial weights."""
    torch.manual_seed(0)
    seen = inputs_met(paper_cnn().train(), [images for images, _ in batches()])
    return {shape: torch.stack(inputs).numpy() for shape, inputs in seen.items()}


@torch.no_grad()
def inputs_met(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, list[Tensor]]:
    """What layers 1, 3 and 5 of the paper's network meet, batch by batch, in whatever mode it is."""
    seen: dict[str, list[Tensor]] = {shape: [] for shape in LAYERS}
    hooks = [
        model.get_submodule(layer).register_forward_pre_hook(
            lambda module, inputs, shape=shape: seen[shape].append(inputs[0].contiguous().clone())
        )
        for shape, layer in LAYERS.items()
    ]
    for x in batches:
        model(x)
    for hook in hooks:
        hook.remove()
    return seen


def rotate(arrays: np.ndarray) -> "cycle[Tensor]":
    """Give the batches one after the other, for ever."""
    return cycle([torch.from_numpy(array) for array in arrays])


def trained_network(images: Tensor, labels: Tensor, widths: Sequence[int] = (32, 64, 128)) -> nn.Module:
    """The paper's network after one epoch on images (N, 3, 32, 32), in batches of 100."""
    torch.manual_seed(0)
    model = paper_cnn(widths).train()
    optimizer = torch.optim.Adam(model.parameters())
    for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        training_step(model, optimizer, x, y)
    return model
