"""How much memory a step takes at its peak, beyond what was there before it: measured in processes of their own.

``python -m lrbench.measure.memory MODULE:FUNCTION ARGUMENT`` prints that as JSON. The function, given the JSON
argument, makes everything that is there before a step (model, optimizer, batch) and returns the step; or the step and
the model, to have each convolution's transient workspace as well.

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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Peak", "PeakUnavailableError", "allocator_environment", "measure_peak", "peak_of", "workspaces_of"]

Step = Callable[[], object]


class PeakUnavailableError(RuntimeError):
    """The peak cannot be measured here."""


@dataclass(frozen=True)
class Peak:
    """What one process found.

    Attributes
    ----------
    added : int
        Bytes at the peak of the step beyond what was there just before it.
    total : int
        Bytes of the whole process at that peak; on CUDA, of the device's allocations.
    workspaces : dict
        For each convolution, by name: bytes at the peak of its forward pass, and of its backward pass, beyond what was
        there before or after that pass, whichever is more. Empty where they were not asked for.
    """

    added: int
    total: int
    workspaces: dict[str, tuple[int, int]] = field(default_factory=dict)


def measure_peak(
    target: str, argument: dict[str, Any], processes: int = 5, timeout: float = 600, at_once: int = 1
) -> list[Peak]:
    """Measure the peak memory of a step in fresh processes.

    Parameters
    ----------
    target : str
        ``package.module:function``: makes a step from ``argument``.
    argument : dict
        Anything that JSON holds; its ``device``, if there is one, says where the step computes.
    processes : int
        How many times, each in a process of its own.
    timeout : float
        Seconds that one process may take.
    at_once : int
        Processes that run side by side: their memory is their own, only their time is not.

    Returns
    -------
    list of Peak
        A value for each process.

    Raises
    ------
    PeakUnavailableError
        If the system does not offer the measurement, or a process fails.
    """
    on_cpu = argument.get("device", "cpu") == "cpu"
    if on_cpu and not Path("/proc/self/clear_refs").exists():
        raise PeakUnavailableError("the peak cannot be reset without /proc/self/clear_refs (Linux)")
    environment = allocator_environment(64 << 10)
    command = [sys.executable, "-m", "lrbench.measure.memory", target, json.dumps(argument)]

    def once(_: int) -> Peak:
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise PeakUnavailableError(f"the measuring process took longer than {timeout:g} s") from error
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise PeakUnavailableError(f"the measuring process failed: {lines[-1]}")
        found = json.loads(done.stdout.splitlines()[-1])  # whatever else was printed came before
        return Peak(found["added"], found["total"], {k: (a, b) for k, (a, b) in found["workspaces"].items()})

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(once, range(processes)))


def allocator_environment(threshold: int | None) -> dict[str, str]:
    """Give this process's environment, in which glibc's allocator is told when to give memory back, and nothing else.

    Parameters
    ----------
    threshold : int or None
        Bytes: what is no smaller is taken from the system by itself and given back when it is freed, as is so much
        free memory at the heap's end. A number beyond all that is used lets the process keep everything; None is
        glibc's own choice, which follows what the process frees.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    # Other tunables stay: there are machines where torch cannot be loaded without them.
    tunables = [text for text in kept.pop("GLIBC_TUNABLES", "").split(":") if not text.startswith("glibc.malloc.")]
    told = {"GLIBC_TUNABLES": ":".join(tunables)} if any(tunables) else {}
    names = () if threshold is None else ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    return {**kept, **told, **dict.fromkeys(names, str(threshold))}


def peak_of(step: Step, device: str = "cpu") -> Peak:
    """Measure the peak of one step of this process."""
    gc.collect()
    with _high_water(device) as water:
        step()
    return Peak(water["peak"] - water["before"], water["peak"])


def workspaces_of(step: Step, model: nn.Module, device: str = "cpu") -> dict[str, tuple[int, int]]:
    """What each convolution of a model takes in a step, and gives back before it ends: forward and backward, in bytes.

    Parameters
    ----------
    step
        Runs the model forward and backward once.
    model : torch.nn.Module
        Wrapped or plain.
    device : str
        Where it computes.
    """
    found: dict[str, list[int]] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            found[name] = [0, 0]
            handles += _watch_layer(module, found[name], device)
    try:
        step()
    finally:
        for handle in handles:
            handle.remove()
    return {name: (forward, backward) for name, (forward, backward) in found.items()}


def _watch_layer(module: nn.Conv2d, found: list[int], device: str) -> list[Any]:
    """Measure a layer's passes one by one."""
    waters: list[Any] = []

    def begin(*_: Any) -> None:
        waters.append(_high_water(device))
        waters.append(waters[-1].__enter__())

    def end(which: int) -> None:
        water, manager = waters.pop(), waters.pop()
        manager.__exit__(None, None, None)
        found[which] = max(found[which], water["peak"] - max(water["before"], water["after"]))

    def leave(module: nn.Module, inputs: Any, output: Tensor) -> None:
        end(0)
        node = output.grad_fn
        while node is not None and "View" in type(node).__name__:
            node = node.next_functions[0][0]
        if node is not None:
            node.register_prehook(begin)
            node.register_hook(lambda inputs, outputs: end(1))

    return [module.register_forward_pre_hook(begin), module.register_forward_hook(leave)]


@contextmanager
def _high_water(device: str) -> Iterator[dict[str, int]]:
    """Bytes in use before and after what is done within, and at its peak."""
    water: dict[str, int] = {}
    if device != "cpu":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        water["before"] = torch.cuda.memory_allocated(device)
        yield water
        torch.cuda.synchronize(device)
        water["peak"], water["after"] = torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device)
        return
    Path("/proc/self/clear_refs").write_text("5")
    water["before"] = _status("VmRSS")
    yield water
    water["peak"], water["after"] = _status("VmHWM"), _status("VmRSS")


def _status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) << 10
    raise PeakUnavailableError(f"/proc/self/status has no {key}")


def _main(target: str, argument: str) -> None:
    module, _, function = target.partition(":")
    given = json.loads(argument)
    device = given.get("device", "cpu")
    made = getattr(importlib.import_module(module), function)(given)
    step, model = made if isinstance(made, tuple) else (made, None)
    step()  # kernels are built, and what is allocated once is allocated
    peak = asdict(peak_of(step, device))
    if model is not None:
        peak["workspaces"] = workspaces_of(step, model, device)
    print(json.dumps(peak))


if __name__ == "__main__":
    _main(*sys.argv[1:])
