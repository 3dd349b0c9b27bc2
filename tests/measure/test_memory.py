import sys
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from torch import nn

import lrbench
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

    def with_numba():
        return _filled(size)

    def in_pieces():
        return [torch.ones(MIB, dtype=torch.uint8) for _ in range(size // MIB)]

    return {"torch": with_torch, "pieces": in_pieces, "numpy": with_numpy, "numba": with_numba}[argument["library"]]


@numba.njit
def _filled(size):
    return np.ones(size, np.uint8)


def convolve(argument):
    """Make a step of one convolution whose workspaces are known."""

    class Copying(nn.Conv2d):
        def _conv_forward(self, x, weight, bias):
            return _Copies.apply(x, weight, argument["forward"], argument["backward"])

    model = nn.Sequential(nn.Conv2d(1, 1, 1), Copying(1, 1, 1))
    x = torch.ones(1, 1, 64, 64)
    return lambda: model(x).sum().backward(), model


class _Copies(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, forward, backward):
        ctx.backward_bytes = backward
        torch.ones(forward, dtype=torch.uint8)
        return x * weight

    @staticmethod
    def backward(ctx, grad):
        torch.ones(ctx.backward_bytes, dtype=torch.uint8)
        return grad, grad.sum().view(1, 1, 1, 1), None, None


def fail(argument):
    raise RuntimeError("no such step")


@linux
@pytest.mark.parametrize("library", ["torch", "numpy", "numba"])
def test_a_known_allocation_is_found_within_three_percent(library):
    peaks = measure_peak("test_memory:allocate", {"size": 64 * MIB, "library": library}, processes=2)
    assert [peak.added for peak in peaks] == pytest.approx([64 * MIB] * 2, rel=0.03)
    assert all(peak.total > 64 * MIB + 50 * MIB for peak in peaks)  # the interpreter and torch are there, too


@linux
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MALLOC_TOP_PAD_", str(256 * MIB)),
        ("GLIBC_TUNABLES", f"glibc.rtld.optional_static_tls=512:glibc.malloc.top_pad={256 * MIB}"),
    ],
)
def test_an_allocator_that_was_told_to_keep_memory_does_not_hide_it(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    (peak,) = measure_peak("test_memory:allocate", {"size": 64 * MIB, "library": "pieces"}, processes=1)
    assert peak.added == pytest.approx(64 * MIB, rel=0.03)


@linux
def test_what_was_there_before_the_step_does_not_count_nor_does_this_processs_own_peak():
    ballast = np.ones(300 * MIB, np.uint8)
    argument = {"size": 32 * MIB, "held": 128 * MIB, "library": "torch"}
    (peak,) = measure_peak("test_memory:allocate", argument, processes=1)
    assert peak.added == pytest.approx(32 * MIB, rel=0.03)
    del ballast


@linux
def test_each_convolutions_workspace_is_found_forward_and_backward():
    argument = {"forward": 48 * MIB, "backward": 32 * MIB}
    (peak,) = measure_peak("test_memory:convolve", argument, processes=1)
    forward, backward = peak.workspaces["1"]
    assert forward == pytest.approx(48 * MIB, rel=0.03)
    assert backward == pytest.approx(32 * MIB, rel=0.03)
    assert max(peak.workspaces["0"]) < MIB


@linux
def test_processes_side_by_side_find_what_they_find_alone():
    argument = {"size": 32 * MIB, "library": "torch"}
    peaks = measure_peak("test_memory:allocate", argument, processes=3, at_once=3)
    assert [peak.added for peak in peaks] == pytest.approx([32 * MIB] * 3, rel=0.03)


@linux
def test_the_model_is_left_without_hooks():
    model = lrbench.wrap(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "1", "svd", 0.1)
    x = torch.rand(2, 3, 8, 8)
    found = memory.workspaces_of(lambda: model(x).sum().backward(), model)
    assert set(found) == {"0"}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


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
