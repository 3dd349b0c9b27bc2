"""The benchmarks measure what the registry holds, and asv takes nothing else for one."""

import importlib
import inspect
import re
import sys
from pathlib import Path

import lrbench

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # benchmarks are not installed
from benchmarks.inputs import COMPRESSORS

TAKEN = re.compile("(time|timeraw|mem|peakmem|track)_")


def test_every_compressor_is_benchmarked() -> None:
    assert lrbench.list_compressors() == sorted(COMPRESSORS)


def test_no_function_of_a_script_is_taken_for_a_benchmark() -> None:
    methods = 0
    for file in (Path(__file__).resolve().parent.parent / "benchmarks").glob("[!_]*.py"):
        for name, value in vars(importlib.import_module(f"benchmarks.{file.stem}")).items():
            # By these names asv finds benchmarks, in a module and in its classes; ours are methods.
            assert not (inspect.isfunction(value) and TAKEN.match(name)), f"{file.name} has {name}"
            methods += inspect.isclass(value) and any(map(TAKEN.match, dir(value)))
    assert methods
