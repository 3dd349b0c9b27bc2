"""From a batch of 100 images to packed factors: time, peak memory, rank, error and cut, for every compressor."""

import numpy as np
import torch

import lrbench

from .inputs import COMPRESSORS, LAYERS, layer_inputs, require, rotate

EPS = 0.1


class _Compression:
    params = (COMPRESSORS, list(LAYERS))
    param_names = ("compressor", "block")

    def setup_cache(self) -> dict[str, np.ndarray]:
        inputs = layer_inputs()
        for name in lrbench.list_compressors():  # kernels are compiled here, not in what is measured
            lrbench.get_compressor(name).compress(torch.rand(2, 4, 5))
        return inputs

    def setup(self, inputs: dict[str, np.ndarray], name: str, block: str) -> None:
        require(name)
        self.compressor = lrbench.get_compressor(name, eps=EPS)
        self.batches = rotate(inputs[block])

    def run(self) -> tuple[lrbench.Im2col, lrbench.Compressed]:
        blocks = lrbench.Im2col(next(self.batches), 3, padding=1)
        return blocks, self.compressor.compress(blocks)


class Time(_Compression):
    """Seconds for a batch."""

    def setup(self, inputs: dict[str, np.ndarray], name: str, block: str) -> None:
        super().setup(inputs, name, block)
        self.run()

    def time_compress(self, inputs: dict[str, np.ndarray], name: str, block: str) -> None:
        self.run()


class Memory(_Compression):
    """Peak memory of the process; what the process takes without compressing is ``peakmem_baseline``."""

    def peakmem_compress(self, inputs: dict[str, np.ndarray], name: str, block: str) -> None:
        self.run()


class Baseline:
    """The interpreter, torch, lrbench and the images: nothing is compressed."""

    params = (list(LAYERS),)
    param_names = ("block",)

    def setup_cache(self) -> dict[str, np.ndarray]:
        return layer_inputs()

    def setup(self, inputs: dict[str, np.ndarray], block: str) -> None:
        self.batches = rotate(inputs[block])

    def peakmem_baseline(self, inputs: dict[str, np.ndarray], block: str) -> None:
        next(self.batches)


class Quality(_Compression):
    """What compression gave."""

    def setup(self, inputs: dict[str, np.ndarray], name: str, block: str) -> None:
        super().setup(inputs, name, block)
        self.blocks, self.compressed = self.run()

    def track_rank(self, inputs: dict[str, np.ndarray], name: str, block: str) -> float:
        ranks = self.compressed.ranks
        return float("nan") if ranks is None else ranks.double().mean().item()

    def track_error(self, inputs: dict[str, np.ndarray], name: str, block: str) -> float:
        return lrbench.relative_error(self.blocks, self.compressed).max().item()

    def track_cut_im2col(self, inputs: dict[str, np.ndarray], name: str, block: str) -> float:
        return 1 - self.compressed.nbytes / (self.blocks.shape.numel() * self.blocks.dtype.itemsize)

    # There is no cut against what autograd saves: whether anybody else keeps the input depends on the model around it.
    def track_cut_input(self, inputs: dict[str, np.ndarray], name: str, block: str) -> float:
        return 1 - self.compressed.nbytes / self.blocks.tensor.nbytes

    track_rank.unit = "mean rank"
    track_error.unit = "largest relative error"
    track_cut_im2col.unit = "1 - factors / im2col"
    track_cut_input.unit = "1 - factors / input"
