"""Threads that take one block after the other, and wait for what others find out about those before."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import njit

from lrbench.kernels.turns import UNKNOWN, sum_before, take, tell


@njit(nogil=True)  # type: ignore[untyped-decorator]
def _work(turn: Any, numbers: Any, sums: Any, taken: Any) -> int:  # pragma: no cover (compiled)
    first, total, count = 0, 0, 0
    while True:
        b = take(turn)
        if b >= len(numbers):
            return count
        taken[b] += 1
        number = b * 7919 % 13
        waste = 0.0
        for k in range(100 * number):  # blocks differ in what they cost
            waste += np.sin(float(k))
        tell(numbers, (b,), number + int(waste > 1e9))
        total += sum_before(numbers, first, b)
        first = b
        sums[b] = total
        count += 1


def test_every_block_is_taken_once_and_knows_the_sum_of_all_before() -> None:
    """Whatever the threads, and however many there are of them for two processors."""
    for threads in (1, 2, 5):
        turn, numbers = np.zeros(1, np.int64), np.full(3000, UNKNOWN)
        sums, taken = np.zeros(3000, np.int64), np.zeros(3000, np.int64)
        with ThreadPoolExecutor(threads) as pool:
            counts = [pool.submit(_work, turn, numbers, sums, taken) for _ in range(threads)]
        assert sum(count.result() for count in counts) == 3000
        np.testing.assert_array_equal(taken, 1)
        np.testing.assert_array_equal(numbers, np.arange(3000) * 7919 % 13)
        np.testing.assert_array_equal(sums, np.cumsum(numbers) - numbers)
