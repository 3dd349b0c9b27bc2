"""Forward and backward through one convolution, native and compressed, on the paper's three shapes."""

import numpy as np
import torch
from torch import nn

import lrbench

from .inputs import COMPRESSORS, LAYERS, layer_inputs, require, rotate

NATIVE = "native"
WIDTHS = {"27x1024": (3, 32), "288x256": (32, 64), "576x64": (64, 128)}


class Convolution:
    """Seconds for a batch of 100 images."""

    params = ([NATIVE, *COMPRESSORS], list(LAYERS), ["both", "backward"])
    param_names = ("compressor", "block", "path")

    def setup_cache(self) -> dict[str, np.ndarray]:
        return layer_inputs()

    def setup(self, inputs: dict[str, np.ndarray], name: str, block: str, path: str) -> None:
        if name == NATIVE and path != self.params[2][0]:
            raise NotImplementedError("the native convolution has no path: it is measured once")
        torch.manual_seed(0)
        self.conv = nn.Conv2d(*WIDTHS[block], 3, padding=1)
        if name != NATIVE:
            require(name, path)
            lrbench.wrap(self.conv, "1", name, path=path)
        self.batches = rotate(inputs[block])
        self.run()

    def run(self) -> None:
        self.conv.zero_grad()
        x = next(self.batches)
        x.requires_grad_(x.shape[1] != 3)  # nobody asks for the gradient of the images
        out = self.conv(x)
        out.backward(torch.ones_like(out))
        x.grad = None

    def time_forward_backward(self, inputs: dict[str, np.ndarray], name: str, block: str, path: str) -> None:
        self.run()
