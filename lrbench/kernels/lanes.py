"""Several numbers at a time: vectors that a kernel holds in registers, where it would otherwise go through memory.

The compiler makes such vectors itself of a loop's last level, but there every sum is stored and read again at each turn
of the loop around it, and each start of a short inner loop costs more than its work. A tile of vectors that are summed
over a long loop costs neither.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic, models, register_model

__all__ = [
    "BYTES",
    "add",
    "broadcast",
    "fma",
    "larger",
    "load",
    "operation",
    "peak",
    "place",
    "prefetch",
    "reaches",
    "store",
    "summed",
    "width",
    "zeros",
]

BYTES = 32
"""In a vector: as wide as the registers that most processors have. Where they are narrower, the compiler takes two."""

_Typed = tuple[Any, Callable[..., Any]]

operation: Callable[[Callable[..., _Typed]], Any] = intrinsic
"""Decorates a function that tells how a call of it is typed, and gives what generates its code."""

_FUSED = ("contract", "nsz")


class _Lanes(types.Type):
    """A vector of numbers of one dtype."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self.count = BYTES * 8 // dtype.bitwidth
        super().__init__(f"Lanes({dtype})")


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: _Lanes) -> None:
        number = manager.lookup(kind.dtype).get_value_type()
        super().__init__(manager, kind, ir.VectorType(number, kind.count))


@operation
def width(typing: Any, array: Any) -> _Typed:
    """How many of an array's numbers make a vector."""
    count = _Lanes(array.dtype).count
    return types.intp(array), lambda context, *_: context.get_constant(types.intp, count)


@operation
def zeros(typing: Any, array: Any) -> _Typed:
    """A vector of zeros of an array's dtype."""
    lanes = _Lanes(array.dtype)
    return lanes(array), lambda context, *_: ir.Constant(context.get_value_type(lanes), None)


@operation
def load(typing: Any, array: Any, at: Any) -> _Typed:
    """The numbers of a contiguous array from the place ``at``, a tuple, on."""
    lanes = _Lanes(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _read(builder, _pointer(context, builder, array, lanes, *arguments), array)

    return lanes(array, at), generate


@operation
def broadcast(typing: Any, array: Any, at: Any) -> _Typed:
    """The one number at the place ``at``, a tuple, as often as a vector has room."""
    lanes = _Lanes(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = builder.load(place(context, builder, array, *arguments))
        return _everywhere(builder, number, context.get_value_type(lanes))

    return lanes(array, at), generate


@operation
def fma(typing: Any, total: Any, a: Any, b: Any) -> _Typed:
    """``total`` + a b, in one operation where the processor has it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total, a, b = arguments
        return builder.fadd(total, builder.fmul(a, b, flags=_FUSED), flags=_FUSED)

    return total(total, a, b), generate


@operation
def larger(typing: Any, least: Any, x: Any) -> _Typed:
    """The magnitudes of x, or ``least`` where that is larger."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        least, x = arguments
        name = f"llvm.fabs.v{x.type.count}f{x.type.element.intrinsic_name[1:]}"
        size = builder.call(builder.module.declare_intrinsic(name, (), ir.FunctionType(x.type, [x.type])), [x])
        return builder.select(builder.fcmp_ordered(">", size, least), size, least)

    return least(least, x), generate


@operation
def peak(typing: Any, x: Any) -> _Typed:
    """The largest number of a vector."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (x,) = arguments
        largest, *others = _numbers(builder, x)
        for number in others:
            largest = builder.select(builder.fcmp_ordered(">", number, largest), number, largest)
        return largest

    return x.dtype(x), generate


@operation
def summed(typing: Any, x: Any) -> _Typed:
    """The sum of a vector's numbers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        numbers = _numbers(builder, *arguments)
        while len(numbers) > 1:
            numbers = [builder.fadd(a, b) for a, b in zip(numbers[::2], numbers[1::2], strict=True)]
        return numbers[0]

    return x.dtype(x), generate


@operation
def reaches(typing: Any, x: Any, least: Any) -> _Typed:
    """Whether a number of a vector is as large as ``least``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, least = arguments
        found = builder.fcmp_ordered(">=", x, _everywhere(builder, least, x.type))
        bits = ir.IntType(x.type.count)
        return builder.icmp_unsigned("!=", builder.bitcast(found, bits), bits(0))

    return types.boolean(x, x.dtype), generate


@operation
def prefetch(typing: Any, array: Any, at: Any) -> _Typed:
    """Ask for the memory at the place ``at``, a tuple, and go on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, whole = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, whole, whole, whole])
        ask = builder.module.declare_intrinsic("llvm.prefetch", (byte,), kind)
        pointer = builder.bitcast(place(context, builder, array, *arguments), byte)
        builder.call(ask, [pointer, whole(0), whole(2), whole(1)])
        return context.get_dummy_value()

    return types.none(array, at), generate


@operation
def store(typing: Any, array: Any, at: Any, vector: Any) -> _Typed:
    """Write a vector to a contiguous array, from the place ``at``, a tuple, on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, array, vector, *arguments[:2])
        builder.store(arguments[2], pointer, align=_size(array))
        return context.get_dummy_value()

    return types.none(array, at, vector), generate


@operation
def add(typing: Any, array: Any, at: Any, vector: Any) -> _Typed:
    """Add a vector to a contiguous array's numbers, from the place ``at``, a tuple, on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, array, vector, *arguments[:2])
        builder.store(builder.fadd(_read(builder, pointer, array), arguments[2]), pointer, align=_size(array))
        return context.get_dummy_value()

    return types.none(array, at, vector), generate


def place(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    """Where a number is; nothing is counted from an array's end, which would have to be asked each time."""
    view = context.make_array(kind)(context, builder, array)
    return cgutils.get_item_pointer(context, builder, kind, view, cgutils.unpack_tuple(builder, at))


def _pointer(context: Any, builder: Any, kind: Any, lanes: _Lanes, array: Any, at: Any) -> Any:
    return builder.bitcast(place(context, builder, kind, array, at), context.get_value_type(lanes).as_pointer())


def _numbers(builder: Any, x: Any) -> list[Any]:
    return [builder.extract_element(x, ir.IntType(32)(k)) for k in range(x.type.count)]


def _everywhere(builder: Any, number: Any, kind: Any) -> Any:
    nothing = ir.Constant(kind, ir.Undefined)
    first = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count)
    return builder.shuffle_vector(builder.insert_element(nothing, number, ir.IntType(32)(0)), nothing, first)


def _read(builder: Any, pointer: Any, array: Any) -> Any:
    return builder.load(pointer, align=_size(array))


def _size(array: Any) -> int:
    """Of a number, in bytes: no more can be said of where a vector begins."""
    return int(array.dtype.bitwidth) // 8
