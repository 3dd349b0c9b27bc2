"""lrbench: compressors for what a CNN's convolutions work on, compared and checked.

import lrbench

blocks = lrbench.Im2col(x, kernel_size=3, padding=1)
factors = lrbench.get_compressor("svd", eps=0.1).compress(blocks)
model = lrbench.wrap(model, mask="101010", compressor="svd", eps=0.1, path="both")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrbench.bit_modules import lean, lean_modules, unlean
    from lrbench.blocks import DenseBlocks
    from lrbench.compressed import Compressed
    from lrbench.compressors import (
        Compressor,
        NonFiniteBlockError,
        UnknownCompressorError,
        get_compressor,
        list_compressors,
        register,
    )
    from lrbench.compressors.on_input import InputCompressor
    from lrbench.conv import compressed_layers, unwrap, wrap
    from lrbench.encoded import Code, EncodedInput
    from lrbench.factors import Factors, Origin
    from lrbench.im2col import Geometry, Im2col
    from lrbench.kept import KeptInput
    from lrbench.low_rank import Basis, Crosses, LowRank, SharedBasis
    from lrbench.measure.error import relative_error
    from lrbench.measure.ledger import Ledger, take_ledger
    from lrbench.measure.savings import measure_savings
    from lrbench.planning import plan_model
    from lrbench.policy import LayerPolicy, Policy
    from lrbench.tuning import Tuned, gradient_errors, tune

__all__ = [
    "Basis",
    "Code",
    "Compressed",
    "Compressor",
    "Crosses",
    "DenseBlocks",
    "EncodedInput",
    "Factors",
    "Geometry",
    "Im2col",
    "InputCompressor",
    "KeptInput",
    "LayerPolicy",
    "Ledger",
    "LowRank",
    "NonFiniteBlockError",
    "Origin",
    "Policy",
    "SharedBasis",
    "Tuned",
    "UnknownCompressorError",
    "compressed_layers",
    "get_compressor",
    "gradient_errors",
    "lean",
    "lean_modules",
    "list_compressors",
    "measure_savings",
    "plan_model",
    "register",
    "relative_error",
    "take_ledger",
    "tune",
    "unlean",
    "unwrap",
    "wrap",
]
__version__ = "0.1.0"

_HOMES = (
    "bit_modules",
    "blocks",
    "compressed",
    "compressors",
    "conv",
    "encoded",
    "factors",
    "im2col",
    "kept",
    "low_rank",
    "policy",
    "measure.error",
    "measure.ledger",
    "measure.savings",
    "planning",
    "tuning",
    "compressors.on_input",
)

if not TYPE_CHECKING:  # a checker that saw it would believe in every name

    def __getattr__(name: str) -> Any:
        """Import a name when it is first asked for: torch takes a second, which no help text needs."""
        if name in __all__:
            for home in _HOMES:
                module = importlib.import_module(f"{__name__}.{home}")
                if hasattr(module, name):
                    return globals().setdefault(name, getattr(module, name))
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
