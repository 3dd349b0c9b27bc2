"""What the kernels are made of: vector loops that the compiler turns into wide instructions, and threads over blocks.

Loops run over slices that begin at 0, because only then does the compiler see that no index is negative.
"""

import ctypes
import hashlib
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numba
import torch

from lrbench.kernels.lanes import broadcast, fma, load, prefetch, store, summed, width, zeros

__all__ = [
    "accumulate",
    "ask_for",
    "combine",
    "compiled",
    "correlate",
    "digest",
    "dot",
    "exact",
    "for_parts",
    "inlined",
    "inner",
    "inner_symmetric",
    "subtract",
    "trace",
]


def digest(folder: Path) -> str:
    """Of the source files in a folder."""
    sources = hashlib.sha256()
    for file in sorted(folder.glob("*.py")):
        sources.update(file.read_bytes())
    return sources.hexdigest()


_stamp = digest(Path(__file__).parent)


def _kernel(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    def compile_lazily(function: Callable[..., Any]) -> Any:
        kernel = numba.njit(nogil=True, cache=True, error_model="numpy", **options)(function)
        # What a kernel calls is compiled into it, from whatever file, but Numba would compile it anew only when its own
        # file changes. Its cache is stamped with all of them; a Numba that keeps the stamp elsewhere gets no cache.
        index: Any = getattr(kernel._cache, "_cache_file", None)
        if not hasattr(index, "_source_stamp"):
            return numba.njit(nogil=True, error_model="numpy", **options)(function)
        index._source_stamp = _stamp
        name_by_key(index)
        return kernel

    return compile_lazily


def name_by_key(index: Any) -> None:
    """Let a file of Numba's cache be named by what it is compiled for.

    Numba counts its files. Two processes that compile for different types at once would take the same number, and what
    is found under it later might be the other's.
    """
    save, name = index.save, getattr(index, "_data_name", None)
    if name is None:
        return

    def save_by_key(key: Any, data: Any) -> None:
        told = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        index._data_name = lambda number: f"{told}.{name(number)}"
        save(key, data)

    index.save = save_by_key


compiled = _kernel(fastmath={"reassoc", "contract", "nsz"})
"""Sums may be reordered; infinities and NaN keep their meaning."""

exact = _kernel(fastmath=False)
"""Every operation as it is written, also where a :data:`compiled` kernel calls it: it would inherit the liberties."""

inlined = numba.njit(inline="always", error_model="numpy")
"""A part of a kernel that has a name: it is compiled where it is called, because a short loop is worth no call."""


def for_parts(count: int, work: Callable[[int, int], Any]) -> None:
    """Call ``work(start, stop)`` on parts of ``range(count)``, as many at a time as torch has threads.

    The threads are torch's own where they can be had: after each of its operations these wait for the next one, at full
    speed, and threads of ours would have to share the processor with them.
    """
    threads = torch.get_num_threads()
    # Blocks differ in what they cost: a thread that is done takes the next part.
    parts = min(count, _PARTS * threads if threads > 1 else 1)
    numbers = itertools.count()
    errors: list[BaseException] = []

    def take(_: object = None) -> None:
        try:
            while not errors and (k := next(numbers)) < parts:
                work(k * count // parts, (k + 1) * count // parts)
        except BaseException as error:  # no error may leave a thread that is not Python's
            errors.append(error)

    if min(threads, parts) <= 1:
        take()
    elif (team := _torch_threads()) is not None:
        # All of them, if some have nothing to do: a team of another size would be made anew.
        team(_Routine(take), None, threads, 0)
    else:
        others = [_helpers(threads - 1).submit(take) for _ in range(threads - 1)]
        take()
        for other in others:
            other.result()
    if errors:
        raise errors[0]


_PARTS = 4
"""For each thread: few, because every one allocates its own scratch."""

_Routine = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def _torch_threads() -> Any:
    """``GOMP_parallel(routine, data, threads, flags)`` of the OpenMP runtime that torch has loaded, if there is one."""
    if os.name == "nt" or "backend: OpenMP" not in torch.__config__.parallel_info():
        return None
    found = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    if found is not None:
        found.argtypes, found.restype = (_Routine, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return found


@cache
def _helpers(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="lrbench")


def _begin_anew() -> None:
    """In a forked process, where no thread came along: OpenMP's would be waited for in vain."""
    global _torch_threads
    _torch_threads = cache(lambda: None)
    _helpers.cache_clear()


if hasattr(os, "register_at_fork"):  # where there is one
    os.register_at_fork(after_in_child=_begin_anew)


@compiled
def ask_for(memory: Any, start: int, count: int) -> None:  # pragma: no cover (compiled)
    """Have numbers of a contiguous array, (.,), brought into the cache while other work goes on.

    Factors of many blocks are larger than a cache, and a pass over one block is too short for the processor to foresee
    the next. What is written is asked for as well: a line of memory is read before a part of it is written.
    """
    for t in range(start, min(start + count, len(memory)), 64 // memory.itemsize):
        prefetch(memory, (t,))


@compiled
def dot(a: Any, b: Any) -> float:  # pragma: no cover (compiled)
    """Σ a_t b_t."""
    total = 0.0
    for t in range(len(a)):
        total += a[t] * b[t]
    return total


@compiled
def trace(G: Any) -> float:  # pragma: no cover (compiled)
    """Σ G_ii."""
    total = 0.0
    for i in range(len(G)):
        total += G[i, i]
    return total


@compiled
def inner(rows: Any, count: int, w: Any, out: Any) -> None:  # pragma: no cover (compiled)
    """``out[i]`` = rows_i · w for the first ``count`` rows."""
    i = 0
    while i + 4 <= count:
        r0, r1, r2, r3 = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
        s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
        for t in range(len(w)):
            v = w[t]
            s0 += v * r0[t]
            s1 += v * r1[t]
            s2 += v * r2[t]
            s3 += v * r3[t]
        out[i], out[i + 1], out[i + 2], out[i + 3] = s0, s1, s2, s3
        i += 4
    while i < count:
        out[i] = dot(w, rows[i])  # rows may be longer
        i += 1


@compiled
def inner_symmetric(G: Any, x: Any, out: Any) -> None:  # pragma: no cover (compiled)
    """``out`` = G x, of what stands on and below the diagonal of a symmetric G, float64: half of it is not read.

    More than from arithmetic the time comes from reading, where G is too large for the innermost cache. Four rows at a
    time meet x, and their reflections are added to ``out``, which must not be x.
    """
    n = len(x)
    whole = n - n % 4  # there are four numbers in a vector
    for i in range(0, whole, 4):
        x0, x1, x2, x3 = broadcast(x, (i,)), broadcast(x, (i + 1,)), broadcast(x, (i + 2,)), broadcast(x, (i + 3,))
        s0, s1, s2, s3 = zeros(G), zeros(G), zeros(G), zeros(G)
        for t in range(0, i, 4):
            v, y = load(x, (t,)), load(out, (t,))
            g0, g1, g2, g3 = load(G, (i, t)), load(G, (i + 1, t)), load(G, (i + 2, t)), load(G, (i + 3, t))
            s0, s1, s2, s3 = fma(s0, g0, v), fma(s1, g1, v), fma(s2, g2, v), fma(s3, g3, v)
            store(out, (t,), fma(fma(fma(fma(y, g0, x0), g1, x1), g2, x2), g3, x3))
        # On the diagonal stand four by four numbers.
        a1, a2, a3 = G[i + 1, i], G[i + 2, i], G[i + 3, i]
        b2, b3, c3 = G[i + 2, i + 1], G[i + 3, i + 1], G[i + 3, i + 2]
        u0, u1, u2, u3 = x[i], x[i + 1], x[i + 2], x[i + 3]
        out[i] = summed(s0) + (G[i, i] * u0 + a1 * u1) + (a2 * u2 + a3 * u3)
        out[i + 1] = summed(s1) + (a1 * u0 + G[i + 1, i + 1] * u1) + (b2 * u2 + b3 * u3)
        out[i + 2] = summed(s2) + (a2 * u0 + b2 * u1) + (G[i + 2, i + 2] * u2 + c3 * u3)
        out[i + 3] = summed(s3) + (a3 * u0 + b3 * u1) + (c3 * u2 + G[i + 3, i + 3] * u3)
    for i in range(whole, n):
        row, own = G[i, :i], x[i]
        total = G[i, i] * own
        for t in range(i):
            total += row[t] * x[t]
        for t in range(i):
            out[t] += own * row[t]
        out[i] = total


@compiled
def combine(coefficients: Any, count: int, rows: Any, used: int, out: Any) -> None:  # pragma: no cover (compiled)
    """``out[i]`` = Σ_j coefficients[i, j] rows_j over the first ``used`` rows, for the first ``count`` of ``out``.

    Two vectors of four rows of ``out`` stay in registers until all is summed up; what the last tile shares with the one
    before is written twice, with the same numbers.
    """
    n, w = rows.shape[1], width(rows)
    if n < 2 * w:  # there is no tile so narrow
        for i in range(count):
            for t in range(n):
                out[i, t] = 0.0
                for j in range(used):
                    out[i, t] += coefficients[i, j] * rows[j, t]
        return
    for i in range(0, count, 4):
        i1, i2, i3 = min(i + 1, count - 1), min(i + 2, count - 1), min(i + 3, count - 1)
        for start in range(0, n, 2 * w):
            t = min(start, n - 2 * w)
            x0, x1, x2, x3 = zeros(rows), zeros(rows), zeros(rows), zeros(rows)
            y0, y1, y2, y3 = zeros(rows), zeros(rows), zeros(rows), zeros(rows)
            for j in range(used):
                u, v = load(rows, (j, t)), load(rows, (j, t + w))
                c0, c1 = broadcast(coefficients, (i, j)), broadcast(coefficients, (i1, j))
                c2, c3 = broadcast(coefficients, (i2, j)), broadcast(coefficients, (i3, j))
                x0, x1, x2, x3 = fma(x0, c0, u), fma(x1, c1, u), fma(x2, c2, u), fma(x3, c3, u)
                y0, y1, y2, y3 = fma(y0, c0, v), fma(y1, c1, v), fma(y2, c2, v), fma(y3, c3, v)
            store(out, (i, t), x0)
            store(out, (i1, t), x1)
            store(out, (i2, t), x2)
            store(out, (i3, t), x3)
            store(out, (i, t + w), y0)
            store(out, (i1, t + w), y1)
            store(out, (i2, t + w), y2)
            store(out, (i3, t + w), y3)


@compiled
def subtract(rows: Any, count: int, c: Any, w: Any) -> None:  # pragma: no cover (compiled)
    """``w`` −= Σ c_i rows_i over the first ``count`` rows."""
    i = 0
    while i + 8 <= count:
        r0, r1, r2, r3 = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
        r4, r5, r6, r7 = rows[i + 4], rows[i + 5], rows[i + 6], rows[i + 7]
        c0, c1, c2, c3 = c[i], c[i + 1], c[i + 2], c[i + 3]
        c4, c5, c6, c7 = c[i + 4], c[i + 5], c[i + 6], c[i + 7]
        for t in range(len(w)):
            w[t] -= (c0 * r0[t] + c1 * r1[t] + c2 * r2[t] + c3 * r3[t]) + (
                c4 * r4[t] + c5 * r5[t] + c6 * r6[t] + c7 * r7[t]
            )
        i += 8
    while i + 4 <= count:
        r0, r1, r2, r3 = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
        c0, c1, c2, c3 = c[i], c[i + 1], c[i + 2], c[i + 3]
        for t in range(len(w)):
            w[t] -= c0 * r0[t] + c1 * r1[t] + c2 * r2[t] + c3 * r3[t]
        i += 4
    while i < count:
        row, c0 = rows[i], c[i]
        for t in range(len(w)):
            w[t] -= c0 * row[t]
        i += 1


@compiled
def accumulate(P: Any, at: Any, c: Any, d: Any, out: Any, also: Any) -> None:  # pragma: no cover (compiled)
    """``out[t]`` = Σ_i c_i P[at_i + t] over all i, and ``also`` likewise with d: two for the price of one reading."""
    length = len(out)
    for t in range(length):
        out[t] = 0.0
        also[t] = 0.0
    i = 0
    while i + 9 <= len(at):
        p0 = P[at[i] : at[i] + length]
        p1 = P[at[i + 1] : at[i + 1] + length]
        p2 = P[at[i + 2] : at[i + 2] + length]
        p3 = P[at[i + 3] : at[i + 3] + length]
        p4 = P[at[i + 4] : at[i + 4] + length]
        p5 = P[at[i + 5] : at[i + 5] + length]
        p6 = P[at[i + 6] : at[i + 6] + length]
        p7 = P[at[i + 7] : at[i + 7] + length]
        p8 = P[at[i + 8] : at[i + 8] + length]
        c0, c1, c2, c3, c4 = c[i], c[i + 1], c[i + 2], c[i + 3], c[i + 4]
        c5, c6, c7, c8 = c[i + 5], c[i + 6], c[i + 7], c[i + 8]
        d0, d1, d2, d3, d4 = d[i], d[i + 1], d[i + 2], d[i + 3], d[i + 4]
        d5, d6, d7, d8 = d[i + 5], d[i + 6], d[i + 7], d[i + 8]
        for t in range(length):
            v0, v1, v2, v3, v4, v5, v6, v7, v8 = p0[t], p1[t], p2[t], p3[t], p4[t], p5[t], p6[t], p7[t], p8[t]
            out[t] += (c0 * v0 + c1 * v1 + c2 * v2) + (c3 * v3 + c4 * v4 + c5 * v5) + (c6 * v6 + c7 * v7 + c8 * v8)
            also[t] += (d0 * v0 + d1 * v1 + d2 * v2) + (d3 * v3 + d4 * v4 + d5 * v5) + (d6 * v6 + d7 * v7 + d8 * v8)
        i += 9
    while i < len(at):
        p0, c0, d0 = P[at[i] : at[i] + length], c[i], d[i]
        for t in range(length):
            out[t] += c0 * p0[t]
            also[t] += d0 * p0[t]
        i += 1


@compiled
def correlate(P: Any, at: Any, w: Any, x: Any, out: Any, also: Any) -> None:  # pragma: no cover (compiled)
    """``out[i]`` = Σ_t w[t] P[at_i + t], and ``also`` likewise with x."""
    length = len(w)
    zero = w[0] - w[0]  # of its dtype
    i = 0
    while i + 9 <= len(at):
        p0 = P[at[i] : at[i] + length]
        p1 = P[at[i + 1] : at[i + 1] + length]
        p2 = P[at[i + 2] : at[i + 2] + length]
        p3 = P[at[i + 3] : at[i + 3] + length]
        p4 = P[at[i + 4] : at[i + 4] + length]
        p5 = P[at[i + 5] : at[i + 5] + length]
        p6 = P[at[i + 6] : at[i + 6] + length]
        p7 = P[at[i + 7] : at[i + 7] + length]
        p8 = P[at[i + 8] : at[i + 8] + length]
        s0, s1, s2, s3, s4, s5, s6, s7, s8 = zero, zero, zero, zero, zero, zero, zero, zero, zero
        z0, z1, z2, z3, z4, z5, z6, z7, z8 = zero, zero, zero, zero, zero, zero, zero, zero, zero
        for t in range(length):
            a, b = w[t], x[t]
            v0, v1, v2, v3, v4, v5, v6, v7, v8 = p0[t], p1[t], p2[t], p3[t], p4[t], p5[t], p6[t], p7[t], p8[t]
            s0 += a * v0
            s1 += a * v1
            s2 += a * v2
            s3 += a * v3
            s4 += a * v4
            s5 += a * v5
            s6 += a * v6
            s7 += a * v7
            s8 += a * v8
            z0 += b * v0
            z1 += b * v1
            z2 += b * v2
            z3 += b * v3
            z4 += b * v4
            z5 += b * v5
            z6 += b * v6
            z7 += b * v7
            z8 += b * v8
        out[i], out[i + 1], out[i + 2], out[i + 3], out[i + 4] = s0, s1, s2, s3, s4
        out[i + 5], out[i + 6], out[i + 7], out[i + 8] = s5, s6, s7, s8
        also[i], also[i + 1], also[i + 2], also[i + 3], also[i + 4] = z0, z1, z2, z3, z4
        also[i + 5], also[i + 6], also[i + 7], also[i + 8] = z5, z6, z7, z8
        i += 9
    while i < len(at):
        out[i] = dot(w, P[at[i] : at[i] + length])
        also[i] = dot(x, P[at[i] : at[i] + length])
        i += 1
