"""The lazy blocks agree with F.unfold, the geometry with nn.Conv2d."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import PLAIN, Allocations, Arguments, frame, geometries, lowered
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

import lrbench
import lrbench.blocks
from lrbench.im2col import SLICE_BYTES, Geometry, break_even_rank

N, C, H, W = 2, 4, 9, 11
KERNELS = ((1, 1), (3, 3), (3, 5), (2, 2))
MODES = ("zeros", "reflect", "replicate", "circular")

SAMPLE: dict[str, Arguments] = {
    name: PLAIN | changes
    for name, changes in {
        "plain": {},
        "paper": {"padding": (1, 1)},
        "pointwise": {"kernel_size": (1, 1), "stride": (2, 2)},
        "strided": {"stride": (2, 1), "padding": (2, 1)},
        "dilated": {"kernel_size": (3, 5), "dilation": (1, 2), "padding": (1, 1)},
        "leftover": {"kernel_size": (2, 2), "stride": (2, 2)},
        "even_same": {"kernel_size": (2, 2), "padding": "same", "dilation": (1, 2)},
        "grouped": {"padding": (1, 1), "groups": 2},
        "depthwise": {"padding": (2, 1), "groups": C},
        "reflect": {"padding": (2, 1), "padding_mode": "reflect"},
        "replicate_grouped": {"padding": (1, 1), "padding_mode": "replicate", "groups": 2},
        "circular_same": {"kernel_size": (2, 2), "padding": "same", "padding_mode": "circular"},
        "circular_strided": {"padding": (1, 1), "padding_mode": "circular", "stride": (2, 2), "dilation": (1, 2)},
    }.items()
}
each_sample = pytest.mark.parametrize("arguments", SAMPLE.values(), ids=SAMPLE.keys())


def images(dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, C, H, W, generator=generator, dtype=torch.float64).to(dtype)


def exact(x: Tensor, arguments: Arguments) -> Tensor:
    """The oracle's blocks, float64."""
    return torch.from_numpy(lowered(x, arguments))


@pytest.mark.parametrize("padding_mode", MODES)
@pytest.mark.parametrize("kernel_size", KERNELS, ids=str)
def test_dense_is_unfold_for_every_geometry(kernel_size: tuple[int, int], padding_mode: str) -> None:
    x = images()
    count = 0
    for arguments in geometries(C, H, W):
        if (arguments["kernel_size"], arguments["padding_mode"]) == (kernel_size, padding_mode):
            blocks = lrbench.Im2col(x, **arguments)
            expected = exact(x, arguments)
            assert blocks.shape == expected.shape, arguments
            assert blocks.groups == arguments["groups"]
            assert torch.equal(blocks.dense(), expected), arguments
            count += 1
    assert count > 50


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("padding_mode", MODES)
@pytest.mark.parametrize("kernel_size", KERNELS, ids=str)
def test_convolution_and_its_gradients_are_those_of_conv2d(kernel_size: tuple[int, int], padding_mode: str) -> None:
    torch.manual_seed(0)
    for arguments in geometries(C, H, W):
        if (arguments["kernel_size"], arguments["padding_mode"]) != (kernel_size, padding_mode):
            continue
        conv = nn.Conv2d(C, 2 * C, **arguments, dtype=torch.float64)
        x = images().requires_grad_()
        y = conv(x)
        grad = torch.randn(y.shape, dtype=torch.float64)
        y.backward(grad)
        geometry = lrbench.Geometry.of(conv)
        assert geometry == lrbench.Geometry.parse(**arguments)
        assert geometry.output_size((H, W)) == y.shape[2:], arguments
        weight = conv.weight.detach()
        for ours, theirs in (
            (geometry.convolve(x.detach(), weight, conv.bias), y),
            (geometry.grad_input(grad, weight, x.shape), x.grad),
            (geometry.grad_weight(grad, x.detach(), weight.shape), conv.weight.grad),
        ):
            torch.testing.assert_close(ours, theirs, msg=lambda text, a=arguments: f"{a}: {text}")


@each_sample
def test_rows_and_columns_are_those_of_the_dense_blocks(arguments: Arguments) -> None:
    blocks, D = lrbench.Im2col(images(), **arguments), exact(images(), arguments)
    count, m, n = D.shape
    for i in range(m):
        assert torch.equal(blocks.rows(i), D[:, i])
    for j in range(n):
        assert torch.equal(blocks.columns(j), D[:, :, j])
    each = torch.arange(count)
    rows, columns = each * 5 % m, (each * 7 + 3) % n
    assert torch.equal(blocks.rows(rows), D[each, rows])
    assert torch.equal(blocks.columns(columns), D[each, :, columns])


@each_sample
def test_grams_norms_and_products_are_those_of_the_dense_blocks(arguments: Arguments) -> None:
    blocks, D = lrbench.Im2col(images(), **arguments), exact(images(), arguments)
    count, m, n = D.shape
    generator = torch.Generator().manual_seed(1)
    left = torch.randn(count, m, 3, generator=generator, dtype=torch.float64)
    right = torch.randn(count, 3, n, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(blocks.gram("rows"), D @ D.mT)
    torch.testing.assert_close(blocks.gram("columns"), D.mT @ D)
    torch.testing.assert_close(blocks.squared_norm(), D.square().sum((1, 2)))
    torch.testing.assert_close(blocks.left_product(left), left.mT @ D)
    torch.testing.assert_close(blocks.right_product(right), D @ right.mT)
    assert torch.equal(blocks.abs_max(), D.abs().amax((1, 2)))


@each_sample
def test_streams_do_not_depend_on_where_blocks_are_cut(arguments: Arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, D = lrbench.Im2col(images(), **arguments), exact(images(), arguments)
    basis = torch.ones(len(D), D.shape[1], 2, dtype=torch.float64)
    for limit in (1, 2000, 20000):
        monkeypatch.setattr(lrbench.blocks, "STRIP_BYTES", {"cpu": limit})
        torch.testing.assert_close(blocks.gram("rows"), D @ D.mT)
        torch.testing.assert_close(blocks.gram("columns"), D.mT @ D)
        torch.testing.assert_close(blocks.left_product(basis), basis.mT @ D)
        torch.testing.assert_close(blocks.right_product(D[:, :2]), D @ D[:, :2].mT)


@each_sample
@pytest.mark.parametrize("along", ["rows", "columns"])
def test_strips_cover_every_number_once(arguments: Arguments, along: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lrbench.blocks, "STRIP_BYTES", {"cpu": 3000})
    blocks, D = lrbench.Im2col(images(), **arguments), exact(images(), arguments)
    seen, values = torch.zeros(D.shape), torch.zeros_like(D)
    order = []
    for part, cut, strip in blocks.strips(along):  # type: ignore[arg-type]
        where = (part, cut) if along == "rows" else (part, slice(None), cut)
        seen[where] += 1
        values[where] = strip
        order.append(part.start)
        assert strip.is_contiguous()
    assert torch.equal(seen, torch.ones(D.shape))
    assert torch.equal(values, D)
    assert order == sorted(order)


@each_sample
def test_products_of_a_single_group_are_native_convolutions(arguments: Arguments) -> None:
    x = images()[:, : C // arguments["groups"]]
    single = arguments | {"groups": 1}
    blocks, D = lrbench.Im2col(x, **single), exact(x, single)
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(5, D.shape[1], generator=generator, dtype=torch.float64)
    grad = torch.randn(len(D), 5, D.shape[2], generator=generator, dtype=torch.float64)
    torch.testing.assert_close(blocks.matmul(weight), weight @ D)
    torch.testing.assert_close(blocks.grad_weight(grad), (grad @ D.mT).sum(0))


@each_sample
def test_selected_blocks_are_blocks_of_one_group(arguments: Arguments) -> None:
    blocks, D = lrbench.Im2col(images(), **arguments), exact(images(), arguments)
    index = torch.tensor([len(D) - 1, 0])
    chosen = blocks.select(index)
    assert chosen.groups == 1
    assert torch.equal(chosen.dense(), D[index])
    assert chosen.tensor.untyped_storage().data_ptr() != blocks.tensor.untyped_storage().data_ptr()
    assert torch.equal(blocks.select(slice(1, 2)).dense(), D[1:2])
    same = blocks.like(blocks.tensor + 1)
    assert same.groups == blocks.groups
    assert torch.equal(same.dense(), exact(images() + 1, arguments))


@each_sample
def test_scaling_is_exact(arguments: Arguments) -> None:
    blocks, D = lrbench.Im2col(images(torch.float32), **arguments), exact(images(torch.float32), arguments)
    exponent = torch.arange(len(D)) * 29 - 100
    scaled = blocks.scaled(exponent)
    assert scaled.dtype == torch.float32
    assert torch.equal(scaled.dense().double(), torch.ldexp(D, exponent[:, None, None]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@each_sample
def test_every_precision_is_lowered_without_rounding(arguments: Arguments, dtype: torch.dtype) -> None:
    x = images(dtype)
    blocks, D = lrbench.Im2col(x, **arguments), exact(x, arguments)
    assert blocks.dense().dtype == blocks.rows(0).dtype == blocks.columns(0).dtype == dtype
    assert torch.equal(blocks.dense().double(), D)
    assert torch.equal(blocks.rows(D.shape[1] - 1).double(), D[:, -1])
    assert torch.equal(blocks.columns(D.shape[2] - 1).double(), D[:, :, -1])
    assert blocks.gram().dtype == blocks.squared_norm().dtype == torch.float64
    torch.testing.assert_close(blocks.gram(), D @ D.mT)
    torch.testing.assert_close(blocks.squared_norm(), D.square().sum((1, 2)))


LAYOUTS = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.mT.contiguous().mT,
    "every_second": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "inner_part": lambda x: torch.nn.functional.pad(x, (2, 1, 1, 3))[:, :, 1:-3, 2:-1],
    "expanded": lambda x: x[:1].expand(N, -1, -1, -1),
    "requires_grad": lambda x: x.clone().requires_grad_(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@each_sample
def test_layout_in_memory_does_not_matter(arguments: Arguments, layout: str) -> None:
    x = LAYOUTS[layout](images())
    blocks, D = lrbench.Im2col(x, **arguments), exact(x, arguments)
    assert torch.equal(blocks.dense(), D)
    assert torch.equal(blocks.rows(1), D[:, 1])
    torch.testing.assert_close(blocks.gram(), D @ D.mT)
    torch.testing.assert_close(blocks.squared_norm(), D.square().sum((1, 2)))
    assert not blocks.dense().requires_grad


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    kernel_size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.one_of(st.tuples(st.integers(0, 3), st.integers(0, 3)), st.sampled_from(["same", "valid"])),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_any_zero_padded_geometry_lowers_as_unfold_does_or_says_why_not(
    size: tuple[int, int],
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int] | str,
    dilation: tuple[int, int],
    channels: tuple[int, int],
) -> None:
    groups, width = channels
    arguments = {
        "kernel_size": kernel_size,
        "stride": stride if padding != "same" else (1, 1),
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "padding_mode": "zeros",
    }
    x = torch.randn(2, groups * width, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fits = all(
        side + sum(pad) > d * (k - 1)
        for side, pad, k, d in zip(size, frame(arguments), kernel_size, dilation, strict=True)
    )
    if not fits:
        with pytest.raises(ValueError, match="does not fit"):
            lrbench.Im2col(x, **arguments)
        return
    blocks, D = lrbench.Im2col(x, **arguments), exact(x, arguments)
    assert torch.equal(blocks.dense(), D)
    torch.testing.assert_close(blocks.gram(), D @ D.mT)
    torch.testing.assert_close(blocks.squared_norm(), D.square().sum((1, 2)))


UNREACHED: dict[str, tuple[Arguments, tuple[slice, slice]]] = {
    "leftover_line": (SAMPLE["leftover"], (slice(8, 9), slice(None))),
    "leftover_column": (SAMPLE["leftover"], (slice(None), slice(10, 11))),
    "between_strides": (SAMPLE["pointwise"], (slice(1, None, 2), slice(None))),
    "leftover_grouped": (SAMPLE["leftover"] | {"groups": 2}, (slice(8, 9), slice(None))),
    "padded": (SAMPLE["leftover"] | {"kernel_size": (1, 1), "padding": (1, 1)}, (slice(None), slice(0, None, 2))),
}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("case", UNREACHED)
def test_pixels_that_no_window_reaches_do_not_count(case: str, value: float) -> None:
    arguments, (lines, columns) = UNREACHED[case]
    x = images()
    x[:, :, lines, columns] = value
    blocks, D = lrbench.Im2col(x, **arguments), exact(x, arguments)
    assert bool((D.abs() < 100).all())
    assert torch.equal(blocks.abs_max(), D.abs().amax((1, 2)))
    torch.testing.assert_close(blocks.squared_norm(), D.square().sum((1, 2)))
    torch.testing.assert_close(blocks.gram(), D @ D.mT)
    single = blocks.select(torch.arange(len(D)))
    weight = torch.ones(1, D.shape[1], dtype=torch.float64)
    torch.testing.assert_close(single.matmul(weight), weight @ D)
    grad = torch.ones(len(D), 1, D.shape[2], dtype=torch.float64)
    torch.testing.assert_close(single.grad_weight(grad), (grad @ D.mT).sum(0))


@pytest.mark.parametrize("padding_mode", MODES)
def test_norms_are_the_same_in_inference_mode(padding_mode: str) -> None:
    x = images()[:, :, :8, :7]  # a size of its own, so that no cache has seen it
    arguments = SAMPLE["paper"] | {"padding_mode": padding_mode}
    expected = exact(x, arguments).square().sum((1, 2))
    with torch.inference_mode():
        norms = lrbench.Im2col(x, **arguments).squared_norm()
    torch.testing.assert_close(norms.clone(), expected)


def test_a_pixel_that_is_not_finite_is_found_in_every_block_that_holds_it() -> None:
    x = images()
    x[1, 3, 8, 10] = float("nan")
    assert lrbench.Im2col(x, 3, padding=1, groups=2).abs_max().isfinite().tolist() == [True, True, True, False]
    x[0, 0, 0, 0] = float("-inf")
    assert lrbench.Im2col(x, 3, padding=1).abs_max().isfinite().tolist() == [False, False]


@pytest.mark.parametrize("padding_mode", MODES)
def test_only_dense_forms_the_blocks(padding_mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lrbench.blocks, "STRIP_BYTES", {"cpu": 1 << 14})
    x = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    dense_bytes = 16 * 27 * 256 * 4
    with Allocations() as seen:
        blocks = lrbench.Im2col(x, 3, padding=1, padding_mode=padding_mode)
    assert seen.largest <= x.nbytes
    readings = {
        "rows": lambda: blocks.rows(5),
        "columns": lambda: blocks.columns(5),
        "gram": lambda: blocks.gram("rows"),
        "squared_norm": blocks.squared_norm,
        "abs_max": blocks.abs_max,
        "matmul": lambda: blocks.matmul(torch.ones(1, 27)),
        "grad_weight": lambda: blocks.grad_weight(torch.ones(16, 1, 256)),
        "left_product": lambda: blocks.left_product(torch.ones(16, 27, 1)),
        "right_product": lambda: blocks.right_product(torch.ones(16, 1, 256)),
        "strips": lambda: sum(1 for _ in blocks.strips("columns")),
    }
    for name, read in readings.items():
        with Allocations() as seen:
            read()
        assert seen.largest < dense_bytes / 3, name
    with Allocations() as seen:
        blocks.dense()
    assert seen.largest == dense_bytes


def test_scratch_of_a_gram_matrix_is_bounded_whatever_the_batch() -> None:
    x = torch.zeros(96, 3, 32, 32)
    blocks = lrbench.Im2col(x, 3, padding=1)
    with Allocations() as seen:
        blocks.gram()
    assert seen.largest <= lrbench.blocks.STRIP_BYTES["cpu"] < 96 * 27 * 1024 * 8 / 4


def test_the_input_is_referenced_and_left_as_it_is() -> None:
    x = images()
    before = x.clone()
    blocks = lrbench.Im2col(x, 3, padding=1)
    assert blocks.tensor.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    blocks.dense().zero_()
    blocks.rows(0).zero_()
    blocks.gram()
    blocks.scaled(torch.tensor([1, 2])).dense().zero_()
    assert torch.equal(x, before)


def test_a_batch_may_be_empty() -> None:
    for padding_mode in MODES:
        blocks = lrbench.Im2col(images()[:0], 3, padding=1, padding_mode=padding_mode, groups=2)
        assert blocks.shape == (0, 18, 99)
        assert blocks.dense().shape == (0, 18, 99)
        assert blocks.gram().shape == (0, 18, 18)
        assert blocks.squared_norm().shape == (0,)
        assert blocks.rows(3).shape == (0, 99)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kernel_size": 0}, "kernel_size is 0"),
        ({"kernel_size": (3, 3, 3)}, "kernel_size is"),
        ({"kernel_size": "33"}, "kernel_size is '33'"),
        ({"kernel_size": 2.5}, "kernel_size is 2.5"),
        ({"kernel_size": 20}, "does not fit"),
        ({"stride": 0}, "stride is 0"),
        ({"stride": (1, 1.5)}, "stride is"),
        ({"dilation": -1}, "dilation is -1"),
        ({"padding": -1}, "padding is -1"),
        ({"padding": "full"}, "padding is 'full'"),
        ({"padding": "same", "stride": 2}, "'same' with stride"),
        ({"padding_mode": "mirror"}, "padding_mode is 'mirror'"),
        ({"groups": 0}, "groups is 0"),
        ({"groups": "2"}, "groups is '2'"),
        ({"groups": 3}, "4 channels.* 3 groups"),
    ],
    ids=str,
)
def test_a_bad_geometry_is_refused_in_one_sentence(changes: Arguments, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        lrbench.Im2col(images(), **({"kernel_size": 3} | changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (torch.zeros(4, 9, 11), ValueError, "N, C, H, W"),
        (torch.zeros(1, 0, 9, 11), ValueError, "0 channels"),
        (torch.zeros(1, 4, 9, 11, dtype=torch.uint8), TypeError, "uint8"),
        (torch.zeros(1, 4, 9, 11, dtype=torch.complex64), TypeError, "complex64"),
        (np.zeros((1, 4, 9, 11), dtype=np.float32), TypeError, "ndarray"),
    ],
    ids=["3d", "no_channels", "uint8", "complex", "numpy"],
)
def test_an_input_that_is_no_batch_of_images_is_refused(x: Tensor, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        lrbench.Im2col(x, 3)


@pytest.mark.parametrize("read", ["rows", "columns"])
@pytest.mark.parametrize(
    "index", [-1, 99, torch.tensor([0, 99]), torch.tensor([0]), torch.tensor([0.0, 1.0]), 1.5], ids=str
)
def test_a_bad_index_is_refused(read: str, index: int) -> None:
    blocks = lrbench.Im2col(images(), 3, padding=1)
    with pytest.raises(IndexError, match=f"a {read[:-1]} index"):
        getattr(blocks, read)(index)


def test_break_even_rank_is_where_factors_are_as_large_as_the_input() -> None:
    assert break_even_rank(27, 1024, 3 * 32 * 32) == pytest.approx(3072 / 1051)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_a_large_batch_convolved_in_slices_gives_the_same(order: torch.memory_format, mode: str) -> None:
    generator = torch.Generator().manual_seed(0)
    geometry = Geometry.parse(3, stride=(2, 1), padding=1, groups=2, padding_mode=mode)
    x = torch.randn(70, 32, 40, 40, generator=generator).contiguous(memory_format=order)
    weight = torch.randn(24, 16, 3, 3, generator=generator)
    out = geometry.convolve(x, weight)
    assert x.nbytes + out.nbytes > 2 * SLICE_BYTES
    assert out.is_contiguous(memory_format=order)
    grad = torch.randn(out.shape, generator=generator).contiguous(memory_format=order)
    lifted = geometry.grad_input(grad, weight, x.shape)
    total = geometry.grad_weight(grad, x, weight.shape)
    native = conv2d_weight(geometry.pad(x), weight.shape, grad, (2, 1), 0, 1, 2)
    torch.testing.assert_close(total, native, rtol=1e-4, atol=1e-2)
    for i in (0, 33, 69):
        torch.testing.assert_close(out[i : i + 1], geometry.convolve(x[i : i + 1], weight))
        torch.testing.assert_close(lifted[i : i + 1], geometry.grad_input(grad[i : i + 1], weight, x[i : i + 1].shape))
