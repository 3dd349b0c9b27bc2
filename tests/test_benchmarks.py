"""The benchmarks measure what the registry holds."""

import sys
from pathlib import Path

import lrbench

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # benchmarks are not installed
from benchmarks.inputs import COMPRESSORS


def test_every_compressor_is_benchmarked() -> None:
    assert lrbench.list_compressors() == COMPRESSORS
