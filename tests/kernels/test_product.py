"""Products of ragged factors agree with a float64 oracle, whatever the ranks, and whoever shares what."""

import pytest
import torch
from torch import Tensor

from lrbench.kernels.loops import for_parts
from lrbench.kernels.prefix import packed_rows, row_energies
from lrbench.kernels.product import against, times

RANKS = [0, 1, 2, 3, 7, 8, 9, 17, 0, 31]


def ragged(dtype: torch.dtype, n: int, shared: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """V with rows of nobody's among the others, where each block's begin, how many they are, and the same for U."""
    generator = torch.Generator().manual_seed(n)
    ranks = torch.tensor(RANKS)
    first = ranks.cumsum(0) - ranks
    V = torch.randn(int(ranks.sum()) + 3 * len(RANKS), n, generator=generator, dtype=torch.float64).to(dtype)
    places = first + 3 * torch.arange(len(RANKS))
    starts = torch.tensor([0, 0, 1, 0, 0, 2, 0, 0, 5, 0]) if shared else first
    return V, places, ranks, starts, 31 if shared else int(ranks.sum())


@pytest.mark.parametrize("shared", [False, True], ids=["packed", "shared"])
@pytest.mark.parametrize("K", [1, 2, 3, 5, 8, 13, 16, 32, 39, 72])
@pytest.mark.parametrize("n", [1, 7, 64, 333])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ragged_products_are_those_of_each_block(dtype: torch.dtype, n: int, K: int, shared: bool) -> None:
    V, places, ranks, starts, rows = ragged(dtype, n, shared)
    generator = torch.Generator().manual_seed(K)
    left = torch.randn(rows, K, generator=generator, dtype=torch.float64).to(dtype)
    bias = torch.randn(K, generator=generator, dtype=torch.float64).to(dtype)
    grad = torch.randn(len(RANKS), K, n, generator=generator, dtype=torch.float64).to(dtype)
    right = torch.zeros(rows, K, dtype=torch.float64)
    tolerance = {"rtol": 0.0, "atol": 1e-4 if dtype == torch.float32 else 1e-12}
    out, plain = times(left, starts, V, places, ranks, bias), times(left, starts, V, places, ranks, None)
    for i, r in enumerate(RANKS):
        part = V[places[i] : places[i] + r].double()
        exact = left[starts[i] : starts[i] + r].double().T @ part
        torch.testing.assert_close(out[i].double(), exact + bias.double()[:, None], **tolerance)
        torch.testing.assert_close(plain[i].double(), exact, **tolerance)
        right[starts[i] : starts[i] + r] += part @ grad[i].double().T
    last = times(left, starts, V, places, ranks, bias, channels_last=True)
    assert last.mT.is_contiguous()
    torch.testing.assert_close(last, out, **tolerance)
    for laid_out in (grad, grad.mT.contiguous().mT):
        found, sums = against(V, places, ranks, starts, rows, laid_out, shared)
        torch.testing.assert_close(found.double(), right, **tolerance)
        torch.testing.assert_close(sums.double(), grad.double().sum((0, 2)), **tolerance)


def test_shared_sums_do_not_depend_on_which_thread_came_first() -> None:
    V, places, ranks, starts, rows = ragged(torch.float32, 64, shared=True)
    grad = torch.randn(len(RANKS), 8, 64, generator=torch.Generator().manual_seed(0))
    first, sums = against(V, places, ranks, starts, rows, grad, shared=True)
    for _ in range(20):
        again, total = against(V, places, ranks, starts, rows, grad, shared=True)
        assert torch.equal(again, first)
        assert torch.equal(total, sums)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_leading_rows_are_weighed_and_packed(dtype: torch.dtype) -> None:
    values = torch.randn(5, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    torch.testing.assert_close(row_energies(values), values.double().square().sum(2), rtol=1e-14, atol=0)
    counts, exponent = torch.tensor([0, 6, 2, 0, 1]), torch.tensor([1, -3, 0, 5, 40])
    expected = torch.cat([torch.ldexp(values[i, :c], exponent[i]) for i, c in enumerate(counts.tolist())])
    assert torch.equal(packed_rows(values, counts, exponent), expected)


def test_no_parts_are_no_work() -> None:
    for_parts(0, lambda start, stop: pytest.fail("called"))
