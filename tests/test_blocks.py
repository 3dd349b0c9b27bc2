"""Dense blocks, exact scaling, and what is taken for blocks at all."""

import numpy as np
import pytest
import torch
from torch import Tensor

import lrbench
import lrbench.blocks
from lrbench.blocks import ScaledBlocks, as_blocks, block_norms, scale_by_power_of_two
from lrbench.contract.adversarial import low_rank_plus_noise

LAYOUTS = {
    "contiguous": lambda D: D,
    "transposed": lambda D: D.mT.contiguous().mT,
    "every_second": lambda D: D.repeat_interleave(2, 2)[..., ::2],
    "reordered": lambda D: D.permute(1, 2, 0).contiguous().permute(2, 0, 1),
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def values(dtype: torch.dtype = torch.float64) -> Tensor:
    return low_rank_plus_noise(4, 7, 11).to(dtype)


@each_layout
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dense_blocks_read_as_their_tensor(layout: str, dtype: torch.dtype) -> None:
    given = LAYOUTS[layout](values(dtype))
    blocks, D = lrbench.DenseBlocks(given), values(dtype).double()
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(4, 7, 3, generator=generator, dtype=torch.float64)
    right = torch.randn(4, 3, 11, generator=generator, dtype=torch.float64)
    each = torch.arange(4)
    assert (len(blocks), blocks.shape, blocks.dtype, blocks.groups) == (4, (4, 7, 11), dtype, 1)
    assert torch.equal(blocks.dense().double(), D)
    assert blocks.dense().is_contiguous()
    assert torch.equal(blocks.rows(6).double(), D[:, 6])
    assert torch.equal(blocks.columns(10).double(), D[:, :, 10])
    assert torch.equal(blocks.rows(each + 3).double(), D[each, each + 3])
    assert torch.equal(blocks.columns(each * 3).double(), D[each, :, each * 3])
    assert torch.equal(blocks.abs_max().double(), D.abs().amax((1, 2)))
    torch.testing.assert_close(blocks.gram("rows"), D @ D.mT)
    torch.testing.assert_close(blocks.gram("columns"), D.mT @ D)
    torch.testing.assert_close(blocks.squared_norm(), D.square().sum((1, 2)))
    torch.testing.assert_close(block_norms(blocks), torch.linalg.norm(D, dim=(1, 2)))
    torch.testing.assert_close(blocks.left_product(left), left.mT @ D)
    torch.testing.assert_close(blocks.right_product(right), D @ right.mT)


@each_layout
def test_products_of_dense_blocks(layout: str) -> None:
    blocks, D = lrbench.DenseBlocks(LAYOUTS[layout](values())), values()
    weight, grad = D[0, :, :5].T.contiguous(), D[:, :5]
    torch.testing.assert_close(blocks.matmul(weight), torch.einsum("km,imn->ikn", weight, D))
    torch.testing.assert_close(blocks.grad_weight(grad), torch.einsum("ikn,imn->km", grad, D))


@each_layout
@pytest.mark.parametrize("along", ["rows", "columns"])
def test_strips_cover_every_number_once(layout: str, along: str, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, D = lrbench.DenseBlocks(LAYOUTS[layout](values())), values()
    for limit in (1, 300, 700, 5000):
        monkeypatch.setattr(lrbench.blocks, "STRIP_BYTES", {"cpu": limit})
        seen, found = torch.zeros(D.shape), torch.zeros_like(D)
        for part, cut, strip in blocks.strips(along):  # type: ignore[arg-type]
            where = (part, cut) if along == "rows" else (part, slice(None), cut)
            seen[where] += 1
            found[where] = strip
            assert strip.nbytes <= max(limit, 8 * 11)
            strip.zero_()  # a strip is the reader's own
        assert torch.equal(seen, torch.ones(D.shape))
        assert torch.equal(found, D)
        torch.testing.assert_close(blocks.gram("rows"), D @ D.mT)
        torch.testing.assert_close(blocks.squared_norm(), D.square().sum((1, 2)))
    assert torch.equal(blocks.dense(), D)


def test_float32_gram_matrices_are_summed_in_float64() -> None:
    D = low_rank_plus_noise(2, 5, 4000).float()
    exact = D.double() @ D.double().mT
    assert ((lrbench.DenseBlocks(D).gram() - exact).abs() <= 1e-13 * exact.abs().amax()).all()
    x = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    lowered = lrbench.Im2col(x, 3).dense().double()
    exact = lowered @ lowered.mT
    assert ((lrbench.Im2col(x, 3).gram() - exact).abs() <= 1e-13 * exact.amax()).all()


def test_selected_dense_blocks_are_a_copy_by_index_and_a_view_by_slice() -> None:
    D = values()
    blocks = lrbench.DenseBlocks(D, groups=2)
    chosen, part = blocks.select(torch.tensor([3, 1])), blocks.select(slice(1, 3))
    assert chosen.groups == part.groups == 1
    assert torch.equal(chosen.dense(), D[[3, 1]])
    assert torch.equal(part.dense(), D[1:3])
    assert chosen.tensor.untyped_storage().data_ptr() != D.untyped_storage().data_ptr()
    assert part.tensor.untyped_storage().data_ptr() == D.untyped_storage().data_ptr()
    assert blocks.like(D + 1).groups == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_scaling_by_a_power_of_two_is_exact(dtype: torch.dtype) -> None:
    D = values(dtype)
    largest = 126 if dtype == torch.float32 else 1022
    for exponent in (0, 1, -1, 7, -8, largest // 2, -largest // 2):
        scaled = scale_by_power_of_two(D, torch.full((4,), exponent))
        assert scaled.dtype == dtype
        assert np.array_equal(scaled.numpy(), np.ldexp(D.numpy(), exponent))
    each = torch.tensor([3, 0, -largest + 20, largest - 20])
    assert np.array_equal(scale_by_power_of_two(D, each).numpy(), np.ldexp(D.numpy(), each.numpy()[:, None, None]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_numbers_of_every_magnitude_are_brought_near_one(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    numbers = torch.tensor([info.smallest_normal * info.eps, info.smallest_normal, 1.0, info.max], dtype=dtype)
    exponent = -torch.frexp(numbers).exponent.to(torch.int64)
    scaled = scale_by_power_of_two(numbers, exponent)
    assert ((scaled >= 0.5) & (scaled < 1)).all()
    assert torch.equal(scale_by_power_of_two(scaled, -exponent), numbers)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (torch.zeros(3, 4), ValueError, r"\(N, m, n\)"),
        (torch.zeros(3, 0, 4), ValueError, "m, n >= 1"),
        (torch.zeros(3, 4, 0), ValueError, "m, n >= 1"),
        (torch.zeros(2, 3, 4, 5), ValueError, r"\(N, m, n\)"),
        (torch.zeros(3, 4, 5, dtype=torch.int64), TypeError, "int64"),
        (torch.zeros(3, 4, 5, dtype=torch.bool), TypeError, "bool"),
        (torch.zeros(3, 4, 5, dtype=torch.complex64), TypeError, "complex64"),
        (np.zeros((3, 4, 5)), TypeError, "ndarray"),
        ([[[1.0]]], TypeError, "list"),
        (None, TypeError, "NoneType"),
    ],
    ids=lambda value: None if isinstance(value, torch.Tensor) else str(value)[:20],
)
def test_what_is_no_batch_of_matrices_is_refused(given: object, error: type, words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        as_blocks(given)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_blocks_are_taken_as_they_are_and_a_tensor_without_its_graph() -> None:
    blocks = lrbench.Im2col(torch.zeros(1, 1, 3, 3), 2)
    assert as_blocks(blocks) is blocks
    assert not as_blocks(values().requires_grad_()).tensor.requires_grad
    assert len(as_blocks(torch.zeros(0, 3, 4))) == 0


@pytest.mark.parametrize("index", [-1, 7, torch.tensor([0, 1, 2, 7]), torch.tensor([0, 1]), 0.5], ids=str)
def test_a_bad_index_is_refused(index: int) -> None:
    with pytest.raises(IndexError, match="a row index"):
        lrbench.DenseBlocks(values()).rows(index)


def test_nothing_that_is_read_from_blocks_carries_a_graph() -> None:
    for blocks in (
        lrbench.DenseBlocks(values().requires_grad_()),
        lrbench.Im2col(torch.ones(1, 1, 3, 3, requires_grad=True), 2),
    ):
        readings = (blocks.dense(), blocks.rows(0), blocks.gram(), blocks.squared_norm(), blocks.abs_max())
        assert not any(reading.requires_grad for reading in readings), type(blocks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [0, 7, -30, 31, -90, 90])
def test_products_of_scaled_blocks_are_those_of_their_numbers(dtype: torch.dtype, size: int) -> None:
    """Whether the product is scaled, or the blocks are, because the product alone would leave the dtype's range."""
    images = torch.rand(3, 2, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exponent = torch.tensor([size, 0, -size])
    original = torch.ldexp(images, -exponent[:, None, None, None]).to(dtype)
    scaled = ScaledBlocks(lrbench.Im2col(original, 3, padding=1), exponent)
    D = lrbench.Im2col(images.to(dtype), 3, padding=1).dense().double()
    weight, grad = torch.rand(4, 18, dtype=torch.float64), torch.rand(3, 4, 30, dtype=torch.float64)
    tolerance = {"rtol": 1e-5 if dtype == torch.float32 else 1e-13, "atol": 0.0}
    torch.testing.assert_close(scaled.matmul(weight.to(dtype)).double(), weight @ D, **tolerance)
    torch.testing.assert_close(scaled.grad_weight(grad.to(dtype)).double(), (grad @ D.mT).sum(0), **tolerance)
    torch.testing.assert_close(scaled.squared_norm(), D.square().sum((1, 2)), rtol=1e-13, atol=0.0)
