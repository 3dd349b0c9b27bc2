"""What the methods that replace a layer's input promise beyond the contract, against plain float64 arithmetic."""

import pytest
import torch
from oracles import Allocations, geometries, lowered
from torch import Tensor

import lrbench
from lrbench import Compressed, EncodedInput, Im2col, Origin
from lrbench.contract.adversarial import photo_crops
from lrbench.conv import Geometry

ON_INPUT = ["bf16", "dct", "hosvd", "input", "pool", "quant2", "quant4", "quant8", "topk"]


def photos(N: int = 12, size: int = 16, dtype: torch.dtype = torch.float32) -> Tensor:
    return photo_crops(N, size).to(dtype)


def encoded(name: str, blocks: Im2col | Tensor, eps: float = 0.1, **options: object) -> EncodedInput:
    result = lrbench.get_compressor(name, eps=eps, **options).compress(blocks)
    assert isinstance(result, EncodedInput)
    return result


@pytest.mark.parametrize("name", ON_INPUT)
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_the_error_is_that_of_the_blocks_in_float64(name: str, padding_mode: str) -> None:
    for options in ({"padding": 1}, {"padding": 1, "stride": 2}, {"padding": 2, "dilation": 2, "groups": 3}):
        x = photos(4)
        blocks = Im2col(x, 3, padding_mode=padding_mode, **options)  # type: ignore[arg-type]
        result = encoded(name, blocks, 0.3)
        D = blocks.dense().double()
        decoded = Im2col.of(result.decode().view(x.shape), blocks.geometry).dense().double()
        expected = (D - decoded).norm(dim=(1, 2)) / D.norm(dim=(1, 2))
        torch.testing.assert_close(lrbench.relative_error(blocks, result), expected, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(lrbench.relative_error(blocks.dense(), result), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", sorted(set(ON_INPUT) - {"input"}))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_code_holds_no_memory_beyond_its_numbers(name: str, dtype: torch.dtype) -> None:
    for eps in (0.5, 0.1, 0.001):
        result = encoded(name, Im2col(photos(dtype=dtype), 3, padding=1), eps)
        assert result.nbytes == sum(tensor.numel() * tensor.itemsize for tensor in result.tensors())


@pytest.mark.parametrize("name", ON_INPUT)
@pytest.mark.parametrize("spoilt", [False, True])
def test_parts_can_be_chosen_joined_and_restored(name: str, spoilt: bool) -> None:
    x = photos(7)
    if spoilt:
        x[[1, 5], 0, 3, 3] = torch.nan
    geometry = Geometry.parse(3, padding=1)
    compressor = lrbench.get_compressor(name, eps=0.1)
    parts = [compressor.compress(Im2col.of(part, geometry), nonfinite="keep") for part in x.split([4, 3])]
    joined = Compressed.concatenate(parts)
    dense = torch.cat([part.dense() for part in parts]).nan_to_num(nan=7)
    again = joined.layout.restore(tuple(tensor.clone() for tensor in joined.tensors()))
    assert again.origin.tolist() == joined.origin.tolist() == [o for part in parts for o in part.origin.tolist()]
    assert torch.equal(again.dense().nan_to_num(nan=7), dense)
    for index in (torch.tensor([6, 0, 3, 3]), torch.tensor([5, 1]), torch.tensor([4]), torch.arange(0)):
        chosen = joined.select(index)
        assert chosen.shape == (len(index), 27, 256)
        torch.testing.assert_close(chosen.dense().nan_to_num(nan=7), dense[index], rtol=1e-6, atol=1e-6)
        assert chosen.origin.tolist() == joined.origin[index].tolist()
    index = torch.tensor([6, 0, 3])
    grad = torch.randn(3, 5, 256, generator=torch.Generator().manual_seed(0))
    expected = (grad @ dense[index].mT).sum(0)
    torch.testing.assert_close(joined.select(index).grad_weight(grad), expected, rtol=1e-3, atol=1e-3)
    weight = torch.randn(5, 27, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(joined.select(index).matmul(weight), weight @ dense[index], rtol=1e-3, atol=1e-3)


def test_pixels_that_no_window_reaches_do_not_count() -> None:
    x = photos(3, 8)
    x[:, :, 2] = torch.inf
    x[:, :, :, 5] = torch.nan
    blocks = Im2col(x, 2, stride=3)
    for name in ON_INPUT:
        result = encoded(name, blocks, 0.3)
        assert (result.origin != int(Origin.STORED)).any() or name in ("topk", "hosvd")
        assert (lrbench.relative_error(blocks, result) <= (0.31 if name in ("topk", "input") else 2)).all(), name


def test_how_often_a_pixel_occurs_is_a_product_of_its_lines_share_and_its_columns() -> None:
    """What hosvd builds on; for every geometry."""
    for arguments in geometries(4, 6, 7):
        w = Im2col(torch.zeros(1, 4, 6, 7), **arguments).multiplicity()
        torch.testing.assert_close(w.sum(1)[:, None] * w.sum(0) / w.sum(), w)


@pytest.mark.parametrize("eps", [0.3, 0.1, 0.03])
@pytest.mark.parametrize("padding", [0, 1])
def test_hosvd_keeps_the_tolerance_for_the_batch_and_would_not_with_a_rank_less(eps: float, padding: int) -> None:
    x = photos(30, 16, torch.float64)
    arguments = {"kernel_size": (3, 3), "padding": (padding, padding)}
    blocks = Im2col(x, 3, padding=padding)
    result = encoded("hosvd", blocks, eps)
    full = {"stride": (1, 1), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
    D = torch.from_numpy(lowered(x, arguments | full))
    error = (D - result.dense()).norm() / D.norm()
    assert error <= eps
    core = result.code.core  # type: ignore[attr-defined]
    for mode in range(4):
        smaller = core.clone()
        smaller.select(mode, -1).zero_()
        object.__setattr__(result.code, "core", smaller)
        assert (D - result.dense()).norm() > 0.999 * eps * D.norm(), mode
    object.__setattr__(result.code, "core", core)
    assert result.origin.tolist() == [int(Origin.OWN)] * 30
    assert result.nbytes < (0.7 if eps == 0.03 else 0.4) * x.nbytes


@pytest.mark.parametrize("padding", [0, 1])
def test_topk_keeps_the_fewest_numbers_that_keep_the_tolerance(padding: int) -> None:
    x = photos(5, 12, torch.float64) - 0.4
    blocks = Im2col(x, 3, padding=padding)
    result = encoded("topk", blocks, 0.5)
    kept = result.decode() != 0
    share = (x.square() * blocks.multiplicity()).flatten(1).sort(1).values
    lost = share.cumsum(1) <= 0.25 * share.sum(1, keepdim=True)
    counts = (~lost).sum(1)
    assert (kept.flatten(1).sum(1) - counts).abs().max() <= 1  # it aims a little inside
    assert torch.equal(result.decode()[kept], x[kept])


def test_topk_keeps_a_bit_for_each_number_so_that_few_that_are_dropped_pay() -> None:
    x = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) + 1
    x.flatten(1)[:, ::16] = 0.01
    result = encoded("topk", Im2col(x, 3, padding=1), 0.1)
    counts = (result.decode() != 0).flatten(1).sum(1)
    assert (counts > 0.9 * 768).all()
    assert (result.origin == int(Origin.OWN)).all()
    assert result.code.sizes().tolist() == (4 * counts + 768 // 8).tolist()


@pytest.mark.parametrize(("name", "bits"), [("quant8", 8), ("quant4", 4), ("quant2", 2)])
def test_quantised_numbers_are_right_on_average_and_within_a_step(name: str, bits: int) -> None:
    x = photos(2)
    blocks = Im2col(x, 3, padding=1)
    decoded = torch.stack([encoded(name, blocks, seed=seed).decode() for seed in range(200)]).double()
    groups = x.flatten(1).unflatten(1, (-1, 256))
    steps = ((groups.amax(2) - groups.amin(2)) / (2**bits - 1)).repeat_interleave(256, 1).view(x.shape)
    assert ((decoded - x).abs() <= 1.05 * steps + 0.01).all()
    # Of 200 roundings at random, each off by less than a step, the mean is off by a step / 28 at one sigma.
    assert ((decoded.mean(0) - x).abs() <= 5.5 * steps / 28 + 1e-4).all()
    assert not torch.equal(decoded[0], decoded[1])
    assert encoded(name, blocks).nbytes == 2 * (768 * bits // 8 + 3 * 2 * 2 + 1 + 2)


def test_dct_of_a_better_quality_is_larger_and_nearer() -> None:
    blocks = Im2col(photos(6, 19), 3, padding=1)
    results = [encoded("dct", blocks, quality=quality) for quality in (20, 60, 95)]
    errors = [lrbench.relative_error(blocks, result).mean() for result in results]
    assert errors[0] > errors[1] > errors[2]
    assert results[0].nbytes < results[1].nbytes < results[2].nbytes < blocks.tensor.nbytes / 3
    constant = Im2col(torch.full((1, 2, 11, 5), 0.7), 3, padding=1)
    assert lrbench.relative_error(constant, encoded("dct", constant)).max() < 0.01


def test_pool_keeps_means_of_patches() -> None:
    x = photos(3, 9, torch.float64)
    decoded = encoded("pool", Im2col(x, 3)).decode()
    assert torch.equal(decoded[:, :, 0, 0], decoded[:, :, 1, 1])
    torch.testing.assert_close(decoded[:, :, 4, 2], x[:, :, 4:6, 2:4].mean((2, 3)))
    torch.testing.assert_close(decoded[:, :, 8, 8], x[:, :, 8, 8])
    torch.testing.assert_close(decoded[:, :, 8, 0], x[:, :, 8, :2].mean(2))


@pytest.mark.parametrize("option", [("dct", "quality", 0), ("pool", "patch", 0), ("quant4", "seed", -1)])
def test_an_option_out_of_range_is_refused(option: tuple[str, str, int]) -> None:
    name, what, value = option
    with pytest.raises(ValueError, match=f"{what} is {value}: use a whole number"):
        lrbench.get_compressor(name, **{what: value})


def test_a_mean_is_of_what_windows_reach() -> None:
    blocks = Im2col(photos(2, 9) + 1, 1, stride=2)
    result = encoded("pool", blocks, 0.1)
    assert (lrbench.relative_error(blocks, result) <= 1e-6).all()  # of each patch one pixel is reached
    ones = encoded("pool", Im2col(torch.ones(1, 2, 7, 7), (1, 2), stride=(2, 3)), 0.1)
    torch.testing.assert_close(ones.dense(), torch.ones_like(ones.dense()))


@pytest.mark.parametrize("name", ON_INPUT)
def test_windows_that_meet_nothing_but_padding_are_zero_blocks(name: str) -> None:
    blocks = Im2col(torch.rand(3, 1, 1, 1), 1, stride=3, padding=1)
    result = encoded(name, blocks)
    assert (blocks.dense() == 0).all()
    assert (result.dense() == 0).all()
    assert (lrbench.relative_error(blocks, result) == 0).all()


@pytest.mark.parametrize("name", sorted(set(ON_INPUT) - {"input"}))
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("groups", [1, 3])
def test_no_more_images_are_decoded_at_a_time_than_are_worked_on(
    name: str, order: torch.memory_format, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = photos(48)
    result = encoded(name, Im2col(x, 3, padding=1, groups=groups), 0.3)
    out = torch.randn(48, 6, 16, 16, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=order)
    grad = out.reshape(48 * groups, 6 // groups, 256)
    whole = result.grad_weight(grad)
    monkeypatch.setattr(lrbench.im2col, "SLICE_BYTES", (x.nbytes + out.nbytes) // 8)
    with Allocations() as seen:
        sliced = result.grad_weight(grad)
    torch.testing.assert_close(sliced, whole, rtol=1e-4, atol=1e-3)
    decoded = [shape for shape in seen.shapes if shape[1:] == (3, 16, 16)]
    assert decoded
    assert max(count for count, *_ in decoded) <= 6


def test_a_sliced_gradient_counts_images_that_are_kept_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    x = photos(12)
    x[[1, 7], 0, 3, 3] = torch.inf
    result = lrbench.get_compressor("topk", eps=0.3).compress(Im2col(x, 3, padding=1), nonfinite="keep")
    grad = torch.randn(12, 4, 256, generator=torch.Generator().manual_seed(0))
    whole = result.grad_weight(grad)
    monkeypatch.setattr(lrbench.im2col, "SLICE_BYTES", 3 * 12 * 1024)
    torch.testing.assert_close(result.grad_weight(grad), whole, rtol=1e-4, atol=1e-3, equal_nan=True)
