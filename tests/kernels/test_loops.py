"""What the kernels are made of."""

import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from numba.core.caching import IndexDataCacheFile

from lrbench.kernels import crosses, gram, lanczos, layout, loops, magnitude, project, spectral


@pytest.mark.parametrize("count", range(21))
@pytest.mark.parametrize("length", [1, 7, 64, 77])
def test_products_are_right_whatever_is_left_over(count: int, length: int) -> None:
    g = np.random.default_rng(0)
    P, c, d = g.standard_normal(300), g.standard_normal(count), g.standard_normal(count)
    at = g.integers(0, 300 - length, count)
    rows = np.stack([P[i : i + length] for i in at]) if count else np.zeros((0, length))
    out, also = np.full(length, np.nan), np.full(length, np.nan)
    loops.accumulate(P, at, c, d, out, also)
    np.testing.assert_allclose(out, c @ rows, atol=1e-12)
    np.testing.assert_allclose(also, d @ rows, atol=1e-12)
    w, x = g.standard_normal(length), g.standard_normal(length)
    found, other = np.full(count, np.nan), np.full(count, np.nan)
    loops.correlate(P, at, w, x, found, other)
    np.testing.assert_allclose(found, rows @ w, atol=1e-12)
    np.testing.assert_allclose(other, rows @ x, atol=1e-12)
    loops.inner(rows, count, w, found)
    np.testing.assert_allclose(found, rows @ w, atol=1e-12)
    rest = w.copy()
    loops.subtract(rows, count, c, rest)
    np.testing.assert_allclose(rest, w - c @ rows, atol=1e-12)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 64, 77])
@pytest.mark.parametrize("count", range(7))
def test_rows_are_combined_whatever_is_left_over(count: int, n: int) -> None:
    g = np.random.default_rng(0)
    for used in (0, 1, 5):
        C, rows = g.standard_normal((8, 6)), g.standard_normal((6, n))
        out = np.full((8, n), np.nan)
        loops.combine(C, count, rows, used, out)
        np.testing.assert_allclose(out[:count], C[:count, :used] @ rows[:used], atol=1e-13)
        assert np.isnan(out[count:]).all()


@pytest.mark.parametrize("n", [*range(14), 27, 64, 77])
def test_a_symmetric_matrix_is_read_on_and_below_its_diagonal(n: int) -> None:
    g = np.random.default_rng(n)
    half, x, out = g.standard_normal((n, n)), g.standard_normal(n), np.full(n, np.nan)
    G = np.tril(half) + np.tril(half, -1).T
    half[np.triu_indices(n, 1)] = np.nan
    loops.inner_symmetric(half, x, out)
    np.testing.assert_allclose(out, G @ x, rtol=0, atol=1e-12)


def test_what_must_be_exact_is_so_within_a_kernel_that_takes_liberties() -> None:
    """2**514 twice is infinite, but not on the way from a subnormal number to one near 1."""
    x, P = np.full((1, 1, 3), 2.0**-1070), np.zeros(3)
    f = np.ldexp(1.0, 535)

    @loops.compiled
    def liberal(image, f, out):  # type: ignore[no-untyped-def]
        layout.pad(image, f, f, 3, 3, 0, 0, out)

    liberal(x, f, P)
    assert P.tolist() == [1.0] * 3


@pytest.fixture(params=["torch's threads", "threads of our own"])
def team(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "threads of our own":
        monkeypatch.setattr(loops, "_torch_threads", lambda: None)
    elif loops._torch_threads() is None:
        pytest.skip("torch has no OpenMP threads here")


@pytest.mark.usefixtures("team")
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 3, 100])
def test_every_part_is_done_once(threads: int, count: int) -> None:
    before = torch.get_num_threads()
    done, lock = np.zeros(count, int), threading.Lock()

    def work(start: int, stop: int) -> None:
        with lock:
            done[start:stop] += 1

    torch.set_num_threads(threads)
    try:
        loops.for_parts(count, work)
    finally:
        torch.set_num_threads(before)
    assert (done == 1).all()


@pytest.mark.skipif(sys.platform != "linux", reason="the test reads /proc")
def test_parts_are_done_by_the_threads_that_torch_has() -> None:
    """Threads beside torch's would share the processor with those that wait for torch's next operation."""
    script = (
        "import os, torch; from lrbench.kernels import loops; torch.set_num_threads(3)\n"
        "torch.rand(1 << 20).exp()\n"
        "before = set(os.listdir('/proc/self/task'))\n"
        "loops.for_parts(100, lambda a, b: None)\n"
        "print(len(before) >= 3 and before == set(os.listdir('/proc/self/task')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.usefixtures("team")
@pytest.mark.parametrize("thread", [1, 2])
def test_an_error_in_any_part_is_raised(thread: int) -> None:
    before = torch.get_num_threads()

    def work(start: int, stop: int) -> None:
        raise ValueError("a part failed")

    torch.set_num_threads(thread)
    try:
        with pytest.raises(ValueError, match="a part failed"):
            loops.for_parts(4, work)
    finally:
        torch.set_num_threads(before)


def test_threads_are_made_anew_after_a_fork() -> None:
    script = (
        "import os, torch; from lrbench.kernels import loops; torch.set_num_threads(2)\n"
        "loops.for_parts(4, lambda a, b: None)\n"
        "pid = os.fork()\n"
        "loops.for_parts(4, lambda a, b: None)\n"
        "os._exit(0) if pid == 0 else os.waitpid(pid, 0)\n"
        "print('both')"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "both", done.stderr


def test_a_change_in_any_kernels_file_makes_all_of_them_compile_anew(tmp_path: Path) -> None:
    """A kernel contains what it calls from other files, of which Numba's cache knows nothing."""
    for module in (crosses, gram, lanczos, layout, loops, magnitude, project, spectral):
        kernels = [value for value in vars(module).values() if hasattr(value, "py_func")]
        assert kernels
        stamps = {kernel._cache._cache_file._source_stamp for kernel in kernels}
        assert stamps == {loops.digest(Path(loops.__file__).parent)}
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "b.py").write_text("2")
    before = loops.digest(tmp_path)
    (tmp_path / "b.py").write_text("3")
    assert loops.digest(tmp_path) != before


def test_compiled_kernels_come_from_the_cache_on_the_second_start(tmp_path: Path) -> None:
    script = (
        "import numpy as np; from lrbench.kernels import loops\n"
        "loops.dot(np.ones(3), np.ones(3)); print(sum(loops.dot.stats.cache_hits.values()))"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    hits = [
        subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True).stdout.strip()
        for _ in range(2)
    ]
    assert hits == ["0", "1"]


def test_processes_that_compile_at_once_do_not_write_to_each_others_files(tmp_path: Path) -> None:
    keys = [(types, ("x86_64", "cpu", "features"), ("code", "cells")) for types in ("float32", "float64")]
    for key in keys:
        index = IndexDataCacheFile(str(tmp_path), "kernel", "stamp")
        loops.name_by_key(index)
        index._load_index = dict  # each began before the other had written
        index.save(key, key[0])
    held = {pickle.loads(file.read_bytes()) for file in tmp_path.glob("*.nbc")}
    assert held == {"float32", "float64"}
    fresh = IndexDataCacheFile(str(tmp_path), "kernel", "stamp")
    assert fresh.load(keys[1]) == "float64"


def test_every_kernels_files_are_named_by_what_they_are_compiled_for() -> None:
    assert loops.dot._cache._cache_file.save.__name__ == "save_by_key"
