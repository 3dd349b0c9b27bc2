"""A number of each of eight matrices, in registers: with it a kernel for one matrix is a kernel for eight.

No operation but those that tell of all lanes crosses them, and none may be put in another order.
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic, lower_builtin, models, register_model, type_callable

__all__ = [
    "LANES",
    "any_less",
    "choose",
    "every",
    "highest",
    "interleave",
    "load",
    "lowest",
    "magnitude",
    "root",
    "store",
]

LANES = 8
"""So many matrices at a time."""


class _Lanes(types.Type):
    """A number of each matrix."""

    def __init__(self) -> None:
        super().__init__(f"Lanes({LANES} matrices)")


_Typed = tuple[Any, Callable[..., Any]]

_operation: Callable[[Callable[..., _Typed]], Any] = intrinsic
"""Decorates a function that tells how a call of it is typed, and gives what generates its code."""

_lanes = _Lanes()
_VECTOR = ir.VectorType(ir.DoubleType(), LANES)


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: _Lanes) -> None:
        super().__init__(manager, kind, _VECTOR)


def _define(operation: Any, name: str) -> None:
    """An arithmetic operation, of which a sum takes a product in where the processor does that."""

    @type_callable(operation)
    def typed(context: Any) -> Any:
        def kind(a: Any, b: Any) -> Any:
            return _lanes if a == b == _lanes else None

        return kind

    @lower_builtin(operation, _Lanes, _Lanes)
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return getattr(builder, name)(*arguments, flags=("contract",))


_define(operator.add, "fadd")
_define(operator.sub, "fsub")
_define(operator.mul, "fmul")
_define(operator.truediv, "fdiv")


@_operation
def load(typing: Any, array: Any, i: Any) -> _Typed:
    """Row i of an array, (., LANES), contiguous."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_row(context, builder, array, *arguments), align=8)

    return _lanes(array, types.intp), generate


@_operation
def store(typing: Any, array: Any, i: Any, x: Any) -> _Typed:
    """Write row i of an array, (., LANES), contiguous."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _row(context, builder, array, *arguments[:2]), align=8)
        return context.get_dummy_value()

    return types.none(array, types.intp, x), generate


@_operation
def interleave(typing: Any, array: Any, at: Any, G: Any, i: Any, j: Any) -> _Typed:
    """Write LANES rows of an array, from ``at`` on: the numbers from place j on in row i of each of (count, n, n)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view, index, short = context.make_array(G)(context, builder, arguments[2]), ir.IntType(64), ir.IntType(32)
        last = builder.sub(cgutils.unpack_tuple(builder, view.shape)[0], index(1))
        x = []
        for lane in range(LANES):  # those without a matrix of their own repeat the last one
            b = builder.select(builder.icmp_signed("<", last, index(lane)), last, index(lane))
            place = cgutils.get_item_pointer(context, builder, G, view, [b, *arguments[3:]])
            x.append(builder.load(builder.bitcast(place, _VECTOR.as_pointer()), align=8))
        for step in (4, 2, 1):  # transposes by blocks, and in these by smaller ones
            for k in range(LANES):
                if not k & step:
                    near = [c + LANES - step if c & step else c for c in range(LANES)]
                    far = [c + LANES if c & step else c + step for c in range(LANES)]
                    a, b, kind = x[k], x[k + step], ir.VectorType(short, LANES)
                    x[k] = builder.shuffle_vector(a, b, ir.Constant(kind, near))
                    x[k + step] = builder.shuffle_vector(a, b, ir.Constant(kind, far))
        for lane in range(LANES):
            row = builder.add(arguments[1], index(lane))
            builder.store(x[lane], _row(context, builder, array, arguments[0], row), align=8)
        return context.get_dummy_value()

    return types.none(array, types.intp, G, types.intp, types.intp), generate


@_operation
def every(typing: Any, x: Any) -> _Typed:
    """The same number in every lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        nothing, lane = ir.Constant(_VECTOR, ir.Undefined), ir.IntType(32)
        first = ir.Constant(ir.VectorType(lane, LANES), [0] * LANES)
        return builder.shuffle_vector(builder.insert_element(nothing, *arguments, lane(0)), nothing, first)

    return _lanes(types.float64), generate


@_operation
def choose(typing: Any, a: Any, b: Any, x: Any, y: Any) -> _Typed:
    """What x is where a < b, and y elsewhere."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, b, x, y = arguments
        return builder.select(builder.fcmp_ordered("<", a, b), x, y)

    return _lanes(a, b, x, y), generate


@_operation
def any_less(typing: Any, a: Any, b: Any) -> _Typed:
    """Whether a < b in any lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = ir.IntType(LANES)
        return builder.icmp_unsigned("!=", builder.bitcast(builder.fcmp_ordered("<", *arguments), bits), bits(0))

    return types.boolean(a, b), generate


def _called(name: str, result: Any) -> Any:
    """What LLVM has a name for."""

    @_operation
    def call(typing: Any, x: Any) -> _Typed:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = ir.FunctionType(context.get_value_type(result), [_VECTOR])
            function = builder.module.declare_intrinsic(f"llvm.{name}.v{LANES}f64", (), kind)
            return builder.call(function, arguments)

        return result(x), generate

    return call


root = _called("sqrt", _lanes)
magnitude = _called("fabs", _lanes)
lowest = _called("vector.reduce.fmin", types.float64)
highest = _called("vector.reduce.fmax", types.float64)


def _row(context: Any, builder: Any, kind: Any, array: Any, i: Any) -> Any:
    start = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(start, [builder.mul(i, i.type(LANES))]), _VECTOR.as_pointer())
