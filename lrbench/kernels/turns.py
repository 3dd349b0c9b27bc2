"""What threads have to tell one another in the middle of a kernel: which block is whose, and what came of those before.

Where ranks are not known before, each block's factors have their place behind those of all blocks before it. A thread
that takes one block after the other in their order has to wait, before it writes, for no more than what others are
finding out at that moment about blocks that they took earlier.
"""

from typing import Any

from llvmlite import ir
from numba.core import types

from lrbench.kernels.lanes import operation, place
from lrbench.kernels.loops import compiled

__all__ = ["UNKNOWN", "sum_before", "take", "tell"]

UNKNOWN = -1
"""What stands for a number until it is told; what is told is no less than zero."""


@operation
def take(typing: Any, turn: Any) -> Any:
    """The number that ``turn``, (1,) int64, holds; it holds the next one then. No two threads get the same one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first = context.get_constant_generic(builder, types.UniTuple(types.intp, 1), (0,))
        at = place(context, builder, turn, arguments[0], first)
        return builder.atomic_rmw("add", at, ir.IntType(64)(1), "monotonic")

    return types.int64(turn), generate


@operation
def tell(typing: Any, numbers: Any, at: Any, number: Any) -> Any:
    """Write a number into (.,) int64 at ``at``, a tuple, after all that this thread has written before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[2], place(context, builder, numbers, *arguments[:2]), "release", 8)
        return context.get_dummy_value()

    return types.none(numbers, at, types.int64), generate


@operation
def _told(typing: Any, numbers: Any, at: Any) -> Any:
    """The number at ``at``, as far as this thread can know."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(place(context, builder, numbers, *arguments), "acquire", 8)

    return types.int64(numbers, at), generate


@compiled
def sum_before(numbers: Any, start: int, stop: int) -> int:  # pragma: no cover (compiled)
    """The sum of the numbers from ``start`` on, before ``stop``; it waits for those that are not told yet."""
    total = 0
    for k in range(start, stop):
        number = _told(numbers, (k,))
        while number < 0:
            number = _told(numbers, (k,))
        total += number
    return total
