import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lrbench.measure import memory
from lrbench.measure.memory import PeakUnavailableError, measure_peak

MIB = 1 << 20
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc/self/clear_refs")


def allocate(argument):
    """Make a step that takes and gives back a known number of bytes; before it, ``held`` bytes are resident."""
    held = torch.ones(argument.get("held", 0), dtype=torch.uint8)
    size = argument["size"]

    def with_torch():
        first = torch.ones(size // 2, dtype=torch.uint8)
        return first, torch.ones(size // 2, dtype=torch.uint8), held

    def with_numpy():
        return np.ones(size, np.uint8)

    return {"torch": with_torch, "numpy": with_numpy}[argument["library"]]


def fail(argument):
    raise RuntimeError("no such step")


@linux
@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_a_known_allocation_is_found_within_three_percent(library):
    peaks = measure_peak("test_memory:allocate", {"size": 64 * MIB, "library": library}, processes=2)
    assert len(peaks) == 2
    assert peaks == pytest.approx([64 * MIB] * 2, rel=0.03)


@linux
def test_what_was_there_before_the_step_does_not_count_nor_does_this_processs_own_peak():
    ballast = np.ones(300 * MIB, np.uint8)
    argument = {"size": 32 * MIB, "held": 128 * MIB, "library": "torch"}
    assert measure_peak("test_memory:allocate", argument) == pytest.approx([32 * MIB], rel=0.05)
    del ballast


@linux
def test_a_process_that_fails_or_hangs_is_reported_with_its_reason():
    with pytest.raises(PeakUnavailableError, match="no such step"):
        measure_peak("test_memory:fail", {})
    with pytest.raises(PeakUnavailableError, match="longer than"):
        measure_peak("test_memory:fail", {}, timeout=0.01)


def test_without_the_systems_help_nothing_is_made_up(monkeypatch):
    monkeypatch.setattr(memory.Path, "exists", lambda self: False)
    with pytest.raises(PeakUnavailableError, match="clear_refs"):
        measure_peak("test_memory:allocate", {})


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """The measuring process imports this file by its name."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    assert sys.executable
