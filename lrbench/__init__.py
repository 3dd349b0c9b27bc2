"""lrbench: compressors for what a CNN's convolutions work on, compared and checked.

import lrbench

blocks = lrbench.Im2col(x, kernel_size=3, padding=1)
factors = lrbench.get_compressor("svd", eps=0.1).compress(blocks)
model = lrbench.wrap(model, mask="101010", compressor="svd", eps=0.1, path="both")
"""

from lrbench.blocks import DenseBlocks
from lrbench.compressors import (
    Compressor,
    NonFiniteBlockError,
    UnknownCompressorError,
    get_compressor,
    list_compressors,
    register,
)
from lrbench.conv import compressed_layers, unwrap, wrap
from lrbench.factors import Basis, Factors, LowRank, Origin
from lrbench.im2col import Geometry, Im2col
from lrbench.measure.error import relative_error

__all__ = [
    "Basis",
    "Compressor",
    "DenseBlocks",
    "Factors",
    "Geometry",
    "Im2col",
    "LowRank",
    "NonFiniteBlockError",
    "Origin",
    "UnknownCompressorError",
    "compressed_layers",
    "get_compressor",
    "list_compressors",
    "register",
    "relative_error",
    "unwrap",
    "wrap",
]
__version__ = "0.1.0"
