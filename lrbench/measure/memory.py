"""How much memory a step takes at its peak, beyond what was there before it: measured in a process of its own.

``python -m lrbench.measure.memory MODULE:FUNCTION ARGUMENT`` prints that number of bytes. The function, given the JSON
argument, makes everything that is there before a step (model, optimizer, batch) and returns the step.

On Linux the peak is VmHWM, reset through ``/proc/self/clear_refs`` just before the step; ``ru_maxrss`` cannot be
reset, and a child inherits it. The allocator is told to give freed memory back at once, or the warm-up's memory would
serve the step unseen. On CUDA the caching allocator's own statistics are taken.
"""

import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["PeakUnavailableError", "measure_peak", "peak_of"]

Step = Callable[[], object]


class PeakUnavailableError(RuntimeError):
    """The peak cannot be measured here."""


def measure_peak(target: str, argument: dict[str, Any], processes: int = 1, timeout: float = 600) -> list[int]:
    """Measure the peak memory of a step in fresh processes.

    Parameters
    ----------
    target : str
        ``package.module:function``: makes a step from ``argument``.
    argument : dict
        Anything that JSON holds; its ``device``, if there is one, says where the step computes.
    processes : int
        How many times, each in a process of its own, one after the other.
    timeout : float
        Seconds that one process may take.

    Returns
    -------
    list of int
        Bytes beyond what was resident before the step, a value for each process.

    Raises
    ------
    PeakUnavailableError
        If the system does not offer the measurement, or a process fails.
    """
    on_cpu = argument.get("device", "cpu") == "cpu"
    if on_cpu and not Path("/proc/self/clear_refs").exists():
        raise PeakUnavailableError("the peak cannot be reset without /proc/self/clear_refs (Linux)")
    small = str(64 << 10)
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": small, "MALLOC_TRIM_THRESHOLD_": small}
    command = [sys.executable, "-m", "lrbench.measure.memory", target, json.dumps(argument)]
    peaks = []
    for _ in range(processes):
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise PeakUnavailableError(f"the measuring process took longer than {timeout:g} s") from error
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise PeakUnavailableError(f"the measuring process failed: {lines[-1]}")
        peaks.append(int(done.stdout.split()[-1]))  # whatever else was printed came before
    return peaks


def peak_of(step: Step, device: str = "cpu") -> int:
    """Bytes at the peak of one step of this process, beyond what was there just before it."""
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - allocated
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) << 10
    raise PeakUnavailableError(f"/proc/self/status has no {key}")


def _main(target: str, argument: str) -> None:
    module, _, function = target.partition(":")
    given = json.loads(argument)
    step: Step = getattr(importlib.import_module(module), function)(given)
    step()  # kernels are built, and what is allocated once is allocated
    print(peak_of(step, given.get("device", "cpu")))


if __name__ == "__main__":
    _main(*sys.argv[1:])
