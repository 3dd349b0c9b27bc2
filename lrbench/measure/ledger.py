"""What a training step holds when its forward pass ends: every storage once, and who holds it.

Operations are watched as they are dispatched, and the storages that they give or take are remembered by weak reference:
what is alive afterwards is found whether autograd saved it, an attribute of a context hides it, or a closure does. Then
the graph is let go, and what dies with it was the graph's. NumPy arrays and byte strings, which no dispatcher sees, are
found on Python's heap, and told from those that other threads make meanwhile by where they were allocated.
"""

import gc
import tracemalloc
import weakref
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from lrbench.conv import compressed_layers

__all__ = ["Entry", "Ledger", "take_ledger"]

Kind = Literal["graph", "parameter", "buffer", "caller", "kept", "state", "elsewhere", "foreign"]

FOREIGN_BYTES = 1 << 10
"""Buffers that are no tensor's are counted from this size on: Python's heap is full of smaller ones."""


@dataclass(frozen=True)
class Entry:
    """A storage.

    Attributes
    ----------
    kind : str
        ``graph``: made in the forward pass, and gone with the graph. ``parameter``, ``buffer``, ``kept`` (factors that
        were given) and ``caller`` (all else that was there before): saved for the backward pass, but not freed with it.
        ``state``: what a compressor carries to the next call. ``elsewhere``: made in the forward pass, and alive though
        the graph is gone. ``foreign``: a NumPy array or a byte string that the forward pass left.
    nbytes : int
        Of the whole storage, however small the part of it that is used.
    holders : tuple of str
        Names of the modules that saved it for the backward pass, in the order in which they did; "" is the model itself
        or what comes after it.
    maker : str
        Name of the module in which it was made, or first met; for foreign buffers the file and the line.
    saved : bool
        Whether autograd saved it; if not, somebody hides it in an attribute, a closure or the like.
    shapes : tuple of tuple of int
        Of the tensors that were saved.
    """

    kind: Kind
    nbytes: int
    holders: tuple[str, ...]
    maker: str
    saved: bool
    shapes: tuple[tuple[int, ...], ...] = ()


@dataclass
class Ledger:
    """All that a forward pass leaves.

    Attributes
    ----------
    entries : list of Entry
        The largest first.
    inputs : dict
        For each convolution, by name, and each of its calls: the bytes of its input, and the entry of its storage,
        which may be larger, if that is alive.
    """

    entries: list[Entry]
    inputs: dict[str, list[tuple[int, Entry | None]]] = field(default_factory=dict)

    def total(self, *kinds: Kind) -> int:
        """Bytes of all entries of some kinds; of ``graph`` if none is named."""
        return sum(entry.nbytes for entry in self.entries if entry.kind in (kinds or ("graph",)))

    @property
    def held(self) -> int:
        """Bytes that are there because of this forward pass: those of the graph, and those that outlive it."""
        return self.total("graph", "state", "elsewhere", "foreign")

    def of(self, name: str) -> list[Entry]:
        """The entries that a module holds: it saved them, or it made what nobody saved."""
        return [
            entry
            for entry in self.entries
            if entry.kind != "foreign" and (name in entry.holders if entry.saved else entry.maker == name)
        ]


def take_ledger(model: nn.Module, forward: Callable[[], Tensor]) -> Ledger:
    """Run a forward pass, and list every storage that is alive when it ends.

    Parameters
    ----------
    model : torch.nn.Module
        Wrapped or plain. It is left as it was, but for what a forward pass does to it.
    forward
        Runs the forward pass and returns the loss, such as ``lambda: F.cross_entropy(model(x), y)``. Tensors that are
        there before it is called are the caller's.

    Returns
    -------
    Ledger
    """
    gc.collect()
    before = _tensors()
    owners = _owners(model)
    # Where nobody traces yet, what is older has no trace: a walk over all objects, which takes a second, is saved.
    foreign = {id(buffer): buffer for buffer in _foreign()} if tracemalloc.is_tracing() else {}
    watch = _Watch({tensor.untyped_storage()._cdata for tensor in before})
    del before
    with _traced():
        with (
            _watched(model, watch),
            torch.autograd.graph.saved_tensors_hooks(watch.saved, lambda tensor: tensor),
            watch,
        ):
            loss = _forward(forward)
        gc.collect()
        watch.forget(loss)
        alive = [seen for seen in watch.storages.values() if not seen.storage.expired()]
        new_foreign = _left(foreign, alive)
    sizes = {id(seen): seen.nbytes for seen in alive}
    del loss
    gc.collect()
    owners |= _states(model)
    entries = {}
    for seen in alive:
        kind = _kind(seen, owners)
        if kind is not None:
            names = tuple(dict.fromkeys(seen.holders))
            entries[id(seen)] = Entry(
                kind, sizes[id(seen)], names, seen.maker, bool(names), tuple(dict.fromkeys(seen.shapes))
            )
    met = {name: [(size, entries.get(id(seen))) for size, seen in calls] for name, calls in watch.inputs.items()}
    listed = [entry for entry in [*entries.values(), *new_foreign] if entry.nbytes]
    listed.sort(key=lambda entry: -entry.nbytes)
    return Ledger(listed, met)


class _Storage:
    """A storage that was met: a weak reference, and what is known of it."""

    def __init__(self, tensor: Tensor, maker: str, old: bool) -> None:
        storage = tensor.untyped_storage()
        self.storage = StorageWeakRef(storage)
        # The Python object of a storage lives as long as the storage does, and tells its size when it is asked.
        self.object = weakref.ref(storage)
        self.first_nbytes = storage.nbytes()
        self.span = (storage.data_ptr(), storage.nbytes()) if storage.device.type == "cpu" else (0, 0)
        self.maker, self.old = maker, old
        self.holders: list[str] = []
        self.shapes: list[tuple[int, ...]] = []

    @property
    def nbytes(self) -> int:
        """Of a storage that is alive, as large as it is now."""
        storage = self.object()
        return self.first_nbytes if storage is None else storage.nbytes()


class _Watch(TorchDispatchMode):
    """Remembers the storages of all that is dispatched, and what is saved by whom."""

    def __init__(self, before: set[int]) -> None:
        super().__init__()
        self.before = before
        self.storages: dict[int, _Storage] = {}
        self.inputs: dict[str, list[tuple[int, _Storage]]] = {}
        self.stack: list[str] = [""]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _flat((args, kwargs)):
            self.meet(tensor)
        out = func(*args, **(kwargs or {}))
        for tensor in _flat(out):
            self.meet(tensor)
        return out

    def meet(self, tensor: Tensor) -> _Storage | None:
        """Give what is known of a tensor's storage; None where it has none."""
        try:
            key = tensor.untyped_storage()._cdata
        except (NotImplementedError, RuntimeError):  # sparse, or opaque to torch itself
            return None
        seen = self.storages.get(key)
        if seen is None:
            # A weak reference keeps the address of what it refers to from being used again.
            seen = self.storages[key] = _Storage(tensor, self.stack[-1], key in self.before)
        return seen

    def saved(self, tensor: Tensor) -> Tensor:
        """Note that the present module saves a tensor for the backward pass."""
        seen = self.meet(tensor)
        if seen is not None:
            seen.holders.append(self.stack[-1])
            seen.shapes.append(tuple(tensor.shape))
        return tensor.detach()  # an output itself would hold its own graph, which then never ends

    def forget(self, loss: Tensor) -> None:
        """Leave out the loss itself, which is the caller's."""
        seen = self.storages.get(loss.untyped_storage()._cdata)
        if seen is not None and not seen.holders:
            del self.storages[loss.untyped_storage()._cdata]


@contextmanager
def _watched(model: nn.Module, watch: _Watch) -> Iterator[None]:
    """Tell the watch which module is at work."""
    handles = []
    for name, module in model.named_modules():

        def enter(module: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
            watch.stack.append(name)
            if isinstance(module, nn.Conv2d) and inputs and isinstance(inputs[0], Tensor):
                seen = watch.meet(inputs[0])
                if seen is not None:
                    watch.inputs.setdefault(name, []).append((inputs[0].nbytes, seen))

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            watch.stack.pop()

        handles.append(module.register_forward_pre_hook(enter, prepend=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _kind(seen: _Storage, owners: dict[int, Kind]) -> Kind | None:
    """What a storage is that was alive when the forward pass ended; None for what the graph has nothing to do with."""
    owner = owners.get(seen.storage.cdata)
    if seen.old:
        return (owner or "caller") if seen.holders else None
    if seen.storage.expired():
        return "graph"
    return owner or "elsewhere"


def _owners(model: nn.Module) -> dict[int, Kind]:
    """Storages that are known by their owner before the forward pass."""
    owners: dict[int, Kind] = {}
    for layer in compressed_layers(model).values():
        if layer.given is not None:
            owners |= dict.fromkeys(_keys(layer.given.compressed.tensors()), "kept")
    owners |= dict.fromkeys(_keys(model.buffers()), "buffer")
    return owners | dict.fromkeys(_keys(model.parameters()), "parameter")


def _states(model: nn.Module) -> dict[int, Kind]:
    """Storages that compressors carry to their next call."""
    states = (layer.compressor.state_dict().values() for layer in compressed_layers(model).values())
    return dict.fromkeys(_keys(value for values in states for value in values if isinstance(value, Tensor)), "state")


def _keys(tensors: Any) -> Iterator[int]:
    return (tensor.untyped_storage()._cdata for tensor in tensors)


def _flat(values: Any) -> Iterator[Tensor]:
    """All tensors in nested containers."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _flat(value)
    elif isinstance(values, dict):
        yield from _flat(list(values.values()))


def _tensors() -> list[Tensor]:
    """All tensors that Python knows of, and that have a storage."""
    found = []
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor) and thing.layout == torch.strided:
            found.append(thing)
            if thing.is_leaf and thing.grad is not None:
                found.append(thing.grad)
    return found


@contextmanager
def _traced() -> Iterator[None]:
    """Have Python remember where memory is allocated."""
    if tracemalloc.is_tracing():  # somebody else does: the number of frames is theirs
        yield
        return
    tracemalloc.start(_FRAMES)
    try:
        yield
    finally:
        tracemalloc.stop()


_FRAMES = 128
"""Of the calls that led to an allocation: enough for a deep model."""


def _forward(forward: Callable[[], Tensor]) -> Tensor:
    """The call that all allocations of a forward pass have in common."""
    return forward()


def _made_at(buffer: Any) -> str | None:
    """File and line where the forward pass allocated a buffer; None if it did not, or it is code that was loaded."""
    trace = tracemalloc.get_object_traceback(buffer)
    if trace is None:
        return None
    files = [frame.filename for frame in trace]
    here = any(frame.filename == __file__ and frame.lineno == _CALL for frame in trace)
    loaded = any(file.startswith("<frozen importlib") or "numba" in Path(file).parts for file in files)
    return f"{Path(files[-1]).name}:{trace[-1].lineno}" if here and not loaded else None


_CALL = _forward.__code__.co_firstlineno + 2
"""The line of that call."""


def _foreign() -> Iterator[Any]:
    """Large buffers on the heap that are no tensor's."""
    met: set[int] = set()
    kinds: dict[type, bool] = {tuple: False, dict: False}
    objects = gc.get_objects()
    for start in range(0, len(objects), _AT_ONCE):
        found = gc.get_referents(*objects[start : start + _AT_ONCE])
        while found:
            untracked = []
            for value in found:
                cls = type(value)
                if cls not in kinds:  # asked of a type, not of the thing: a proxy would import what it stands for
                    kinds[cls] = issubclass(cls, np.ndarray | bytes | bytearray | array)
                if kinds[cls]:
                    buffer = value
                    while isinstance(buffer, np.ndarray) and isinstance(buffer.base, np.ndarray):
                        buffer = buffer.base
                    if _size(buffer) >= FOREIGN_BYTES and id(buffer) not in met:
                        met.add(id(buffer))
                        yield buffer
                elif (cls is tuple or cls is dict) and not gc.is_tracked(value):
                    untracked.append(value)  # the collector passes over containers of what it need not track
            found = gc.get_referents(*untracked)


_AT_ONCE = 1000
"""Objects whose referents are asked for together: one by one, a million lists would be made, and traced."""


def _size(buffer: Any) -> int:
    return buffer.nbytes if isinstance(buffer, np.ndarray) else memoryview(buffer).nbytes


def _left(before: dict[int, Any], alive: list[_Storage]) -> list[Entry]:
    """The foreign buffers that the forward pass made, and that are not the memory of a tensor."""
    spans = [seen.span for seen in alive]
    entries = []
    for buffer in _foreign():
        place = None if id(buffer) in before else _made_at(buffer)
        if place is None:
            continue
        if isinstance(buffer, np.ndarray):
            address = buffer.__array_interface__["data"][0]
            if any(start <= address < start + length for start, length in spans):
                continue
        entries.append(Entry("foreign", _size(buffer), (), place, False))
    return entries
