"""Shared by all tests."""

import gc
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import _lru_cache_wrapper
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# A shell starts what runs in its background deaf to interrupts, and so would be the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Test processes run side by side: threads that wait for a busy core make them many times slower.
torch.set_num_threads(1)

# What hypothesis draws is the same at every commit, until a test or what it draws from is changed.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

# The locks that keep runs on one machine apart are in the temporary folder: tests neither wait for other runs of their
# user nor hold them up, nor do those of one test process those of another.
_folder = Path(tempfile.gettempdir()) / f"lrbench-tests-{os.getuid()}{os.environ.get('PYTEST_XDIST_WORKER', '')}"
_folder.mkdir(exist_ok=True)
os.environ["TMPDIR"] = tempfile.tempdir = str(_folder)


@pytest.fixture
def registry_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let nothing stay behind of the compressors that a test registers, or takes from files."""
    import lrbench.compressors

    lrbench.list_compressors()
    monkeypatch.setattr(lrbench.compressors, "_classes", dict(lrbench.compressors._classes))
    yield
    for name in [name for name in sys.modules if name.startswith("lrbench_file_")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def young_heap() -> Iterator[None]:
    """Leave all objects that are there out of the collector's walks: ledgers look at each of a million otherwise."""
    gc.collect()
    for thing in gc.get_objects():
        # Tensors that are remembered must be met as old ones: they are made anew.
        if type(thing) is _lru_cache_wrapper:
            given = getattr(thing.__wrapped__, "__annotations__", {}).get("return")
            if given in (torch.Tensor, "Tensor"):
                thing.cache_clear()
    gc.freeze()
    yield
    gc.unfreeze()
