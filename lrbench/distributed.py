"""One run over several processes: which of them this one is, and how they go on, or end, together.

Started by ``torchrun``, every process computes the gradient of its share of each batch, and all take the mean. Process
0 leads: it announces each run to the others, and evaluates, measures and writes alone, while they wait. Without
``torchrun`` there is one process, 0 of 1: nothing is started, and nothing exchanged.

An error within :func:`together` or :func:`by_first` is one of all processes: each raises it, and the next run may
begin. Any other error, or the death of a process, leaves the others waiting: they break off, and say why.
"""

import os
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = [
    "NOTES",
    "DeviceError",
    "ProcessesError",
    "announced",
    "by_first",
    "count",
    "first",
    "gathered",
    "launched",
    "leading",
    "processes",
    "rank",
    "reason",
    "replica",
    "share",
    "together",
    "totals",
]

_P = ParamSpec("_P")
_T = TypeVar("_T")

NOTES = (
    "a step takes the mean gradient of processes x batch_size images, weighted by images where a batch is smaller",
    "dropout has a stream of its own in each process",
    "batch normalization takes the images of each process alone, and the running statistics are those of process 0",
    "a basis that a compressor finds for a batch, or keeps from step to step, is one for each process",
    "layers, step, peak and savings are measured in process 0 alone, on batch_size images, with nothing exchanged",
)
"""What differs from a run of one process: part of the record of a run of several."""

PATIENCE = timedelta(days=7)
"""How long the others wait for process 0 to evaluate and measure; one that dies is known by its closed connection."""

LOST = "another process ended, for a reason that its own output may tell, and this one cannot go on without it"

_LAUNCHER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class ProcessesError(RuntimeError):
    """The processes cannot go on together; the message says why."""


class DeviceError(ValueError):
    """A process finds no GPU of its own."""


@dataclass
class _Group:
    """One process among the others.

    Attributes
    ----------
    rank, count : int
        Which it is, and of how many.
    store : torch.distributed.Store
        Where a process that fails says why.
    agreed : BaseException or None
        The last error that all processes know of.
    broken : str or None
        Why they cannot go on.
    ending : bool
        Whether this process was asked to end.
    """

    rank: int
    count: int
    store: dist.Store
    agreed: BaseException | None = None
    broken: str | None = None
    ending: bool = False


_group: _Group | None = None


def launched() -> int:
    """How many processes ``torchrun`` started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _LAUNCHER) else 1


def rank() -> int:
    """Which process this is, from 0."""
    return 0 if _group is None else _group.rank


def count() -> int:
    """How many processes there are."""
    return 1 if _group is None else _group.count


def first() -> bool:
    """Whether this process leads."""
    return rank() == 0


@contextmanager
def processes(device: str = "cpu") -> Iterator[None]:
    """Connect the processes that ``torchrun`` started, and part from them at the end; alone, do nothing.

    Parameters
    ----------
    device
        ``cpu``, or ``cuda``: each process then computes on a GPU of its own, that of its local rank.

    Raises
    ------
    DeviceError
        If a process finds no GPU of its own.
    """
    global _group
    if launched() == 1:
        yield
        return
    backend = _backend(device)
    store, own, size = next(dist.rendezvous("env://", timeout=PATIENCE))
    dist.init_process_group(
        backend, store=dist.PrefixStore("group", store), rank=own, world_size=size, timeout=PATIENCE
    )
    _group = group = _Group(own, size, dist.PrefixStore("lrbench", store))

    def asked_to_end(*_: object) -> None:
        # Said at the next exchange: the launcher asks this of those, too, who have yet to record that another died.
        group.ending = True

    before = signal.signal(signal.SIGTERM, asked_to_end)
    try:
        yield
    except Exception as error:
        if own and error is not group.agreed:
            reason(error)
        raise
    finally:
        if own == 0 and group.broken is None:
            with suppress(ProcessesError):
                _announce(None)
        _group = None
        signal.signal(signal.SIGTERM, before)
        dist.destroy_process_group()


@contextmanager
def leading(task: object) -> Iterator[None]:
    """Announce a task to the other processes, which :func:`announced` gives it to, and do one's part of it within."""
    if _group is None or _group.rank:
        yield
        return
    _announce(task)
    try:
        yield
    except BaseException as error:
        _group.broken = _group.broken or type(error).__name__  # the others are amid the task, and wait for no other
        raise


def announced() -> Iterator[Any]:
    """The tasks that process 0 announces, one after the other, to its end."""
    while (task := _announce(None)) is not None:
        yield task


def by_first(work: Callable[_P, _T], *arguments: _P.args, **options: _P.kwargs) -> _T:
    """Do something in process 0 alone, while the others wait; give its result, or raise its error, in all."""
    if _group is None:
        return work(*arguments, **options)
    box: list[Any] = [None]
    with together():
        if first():
            box = [work(*arguments, **options)]
    _exchange(dist.broadcast_object_list, box)
    result: _T = box[0]
    return result


@contextmanager
def together() -> Iterator[None]:
    """Let each process do something on its own; where one fails, all raise its error.

    Raises
    ------
    KeyboardInterrupt
        If a process was asked to end.
    """
    if _group is None:
        yield
        return
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    state = torch.tensor([error is not None, _group.ending], dtype=torch.int64)
    _exchange(dist.all_reduce, state, dist.ReduceOp.MAX, because=error)
    failed, ending = state.tolist()
    if failed:
        found = gathered(None if error is None else _portable(error))
        source, met = next((k, other) for k, other in enumerate(found) if other is not None)
        if error is None or source != rank():
            error = met
        error.add_note(f"in process {source} of {count()}")
        _group.agreed = error
        raise error
    if ending:
        raise KeyboardInterrupt


def reason(error: Exception) -> str:
    """Put an error into words; where the other processes do not know of it, tell them, and part from them."""
    words = f"{type(error).__name__}: {error}"
    if _group is None:
        return words
    if error is _group.agreed:
        return f"{words} ({'; '.join(error.__notes__)})"
    # Gloo's errors are RuntimeErrors that name the line of its source.
    if isinstance(error, dist.DistError) or "/gloo/" in words:
        return _part(_group, LOST)
    return _part(_group, f"process {_group.rank} of {_group.count}: {words}")


def totals(*numbers: float) -> tuple[float, ...]:
    """The sums of some numbers over all processes, the same in each."""
    if _group is None:
        return numbers
    sums = torch.tensor(numbers, dtype=torch.float64)
    _exchange(dist.all_reduce, sums)
    return tuple(sums.tolist())


def gathered(value: _T) -> list[_T]:
    """A value of each process."""
    if _group is None:
        return [value]
    found: list[Any] = [None] * _group.count
    _exchange(dist.all_gather_object, found, value)
    return found


def share(batch: Tensor) -> tuple[Tensor, int]:
    """The part of a batch's indices that is this process's, and how many of them count.

    Parts differ by one index at most. Where there is none for a process it gets one that counts nothing, for all take
    part in every step.
    """
    part = batch[rank() :: count()]
    return (part, len(part)) if len(part) else (batch[:1], 0)


@contextmanager
def replica(model: nn.Module) -> Iterator[nn.Module]:
    """Give a model whose backward pass gives the mean gradient of all processes; alone, the model itself."""
    if _group is None:
        yield model
        return
    joined = _Replica(model)
    try:
        yield joined
    finally:
        # An error keeps its frames, and they keep what they called. Were the replica's reducer the last that holds the
        # group, it would wait for the group's threads with the interpreter's lock held, and they for that lock.
        vars(joined).clear()


class _Replica(DistributedDataParallel):
    """As torch has it, but what fails in the forward pass of one process fails in all, before they wait for it."""

    def forward(self, *inputs: Any, **options: Any) -> Any:
        with together():
            return super().forward(*inputs, **options)


def _backend(device: str) -> str:
    if not device.startswith("cuda"):
        return "gloo"
    own, there = int(os.environ.get("LOCAL_RANK", os.environ["RANK"])), torch.cuda.device_count()
    if device != "cuda":
        raise DeviceError(f"device is {device} under torchrun, where each process has a GPU of its own: use cuda")
    if own >= there:
        raise DeviceError(
            f"process {own} of this machine has no GPU, of which there are {there}: start {there} of them"
        )
    torch.cuda.set_device(own)
    return "cpu:gloo,cuda:nccl"


def _announce(task: object) -> Any:
    """Hand on a task from process 0 to the others."""
    box = [task]
    _exchange(dist.broadcast_object_list, box)
    return box[0]


def _exchange(collective: Callable[..., object], *arguments: Any, because: Exception | None = None) -> None:
    """Exchange something with the other processes.

    Raises
    ------
    ProcessesError
        If that cannot be done any more.
    """
    assert _group is not None
    if _group.broken is not None:
        raise ProcessesError(_group.broken) from because
    try:
        collective(*arguments)
    except RuntimeError as error:
        raise ProcessesError(_part(_group, LOST)) from because or error


def _part(group: _Group, why: str) -> str:
    """Break off, and tell the others why, unless one has broken off before: give the first cause."""
    if group.broken is None:
        group.broken = why
        with suppress(RuntimeError):
            group.broken = group.store.compare_set("cause", "", why).decode()
    return group.broken


def _portable(error: Exception) -> Exception:
    """An error as another process may receive it."""
    try:
        copy = pickle.loads(pickle.dumps(error))
        if isinstance(copy, Exception) and str(copy) == str(error):
            return error
    except Exception:
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")
