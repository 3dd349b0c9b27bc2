"""A wrapped convolution is the native one, as far as its compressor is exact."""

import copy

import pytest
import torch
from conv_oracle import CASES, FEW_CASES, Case, native, outcome, output_gradient, smooth_images
from torch import nn
from torch.testing import assert_close

import lrbench
from lrbench.conv import PATHS, Path
from lrbench.im2col import Geometry

every_path = pytest.mark.parametrize("path", PATHS)
TIGHT = {"rtol": 1e-11, "atol": 1e-11}


@every_path
@pytest.mark.parametrize("case", CASES, ids=str)
def test_uncompressed_layers_equal_the_native_convolution(case: Case, path: Path) -> None:
    layer, x = case.layer(), case.images()
    expected = outcome(layer, x)
    lrbench.wrap(layer, "1", "none", path=path)
    assert_close(outcome(layer, x), expected, **TIGHT)


@every_path
@pytest.mark.parametrize("case", FEW_CASES, ids=str)
def test_a_tiny_tolerance_gives_the_native_convolution(case: Case, path: Path) -> None:
    layer, x = case.layer(), case.images()
    expected = outcome(layer, x)
    lrbench.wrap(layer, "1", "svd", eps=1e-6, path=path)
    assert_close(outcome(layer, x), expected, rtol=1e-4, atol=1e-4)


@every_path
@pytest.mark.parametrize("case", FEW_CASES, ids=str)
def test_gradients_agree_with_finite_differences(case: Case, path: Path) -> None:
    layer = lrbench.wrap(case.layer(), "1", "none", path=path)
    inputs = [case.images()[..., :6, :7], layer.weight, layer.bias]

    def convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x)

    tensors = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(convolve, tensors, fast_mode=True)


@every_path
@pytest.mark.parametrize("groups", [1, 2])
def test_any_layout_of_images_and_of_output_gradients_will_do(groups: int, path: Path) -> None:
    plain = nn.Conv2d(4, 6, 3, padding=1, groups=groups, dtype=torch.float64)
    wrapped = lrbench.wrap(copy.deepcopy(plain), "1", "svd", eps=1e-6, path=path)
    x = smooth_images(3, 4, 8, 8)
    for images in (x[:1].expand(3, -1, -1, -1), x.mT, x.permute(1, 0, 2, 3)[:, [0, 1, 2, 0]], x[:, :, ::2]):
        outputs = [layer(images) for layer in (plain, wrapped)]
        dense = output_gradient(outputs[0])
        last = dense.contiguous(memory_format=torch.channels_last)
        for grad in (dense, last, dense[:1, :, :1, :1].expand_as(dense), dense.flip(3)):
            expected, result = (
                torch.autograd.grad(output, list(layer.parameters()), grad, retain_graph=True)
                for output, layer in zip(outputs, (plain, wrapped), strict=True)
            )
            assert_close(result, expected, rtol=1e-4, atol=1e-4)


@every_path
@pytest.mark.parametrize("compressor", ["none", "svd", "aca", "input", "quant4", "topk", "hosvd"])
def test_an_empty_batch_goes_there_and_back_like_the_native(compressor: str, path: Path) -> None:
    layer = nn.Conv2d(4, 6, 3, padding=1, groups=2, dtype=torch.float64)
    x = torch.zeros(0, 4, 5, 7, dtype=torch.float64)
    expected = outcome(layer, x)
    assert_close(outcome(lrbench.wrap(layer, "1", compressor, path=path), x), expected)


@every_path
@pytest.mark.parametrize(
    "x",
    [
        pytest.param(torch.ones(2, 3, 5, 5), id="channels"),
        pytest.param(torch.ones(3, 5, 5), id="channels-unbatched"),
        pytest.param(torch.ones(2, 4, 5, 5, dtype=torch.float64), id="float64"),
        pytest.param(torch.ones(2, 4, 5, 5, dtype=torch.int64), id="int64"),
        pytest.param(torch.ones(4, 5), id="two-dimensions"),
        pytest.param(torch.ones(1, 2, 4, 5, 5), id="five-dimensions"),
    ],
)
def test_what_the_native_convolution_refuses_is_refused_with_its_error(x: torch.Tensor, path: Path) -> None:
    layer = nn.Conv2d(4, 6, 3)
    with pytest.raises(RuntimeError):
        layer(x)
    lrbench.wrap(layer, "1", path=path)
    with pytest.raises(RuntimeError):
        layer(x)


@every_path
def test_a_bias_of_another_dtype_is_refused(path: Path) -> None:
    layer = lrbench.wrap(nn.Conv2d(4, 6, 3), "1", path=path)
    layer.bias = nn.Parameter(layer.bias.double())
    with pytest.raises(RuntimeError, match=r"bias torch\.float64"):
        layer(torch.ones(2, 4, 5, 5))


@every_path
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_outputs_and_gradients_have_the_layers_dtype(dtype: torch.dtype, path: Path) -> None:
    x = smooth_images(3, 4, 8, 8, dtype=dtype)
    layer = lrbench.wrap(nn.Conv2d(4, 6, 3, padding=1), "1", "none", path=path).to(dtype)
    expected = outcome(native(layer), x)
    result = outcome(layer, x)
    for value, reference in zip(result, expected, strict=True):
        assert value.dtype == dtype
        error = (value.double() - reference.double()).norm()
        assert error <= 4 * torch.finfo(dtype).eps * reference.double().norm()


@every_path
@pytest.mark.parametrize("name", ["none", "svd", "input", "topk", "hosvd"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_an_output_may_be_overwritten_by_the_next_layer(layout: torch.memory_format, name: str, path: Path) -> None:
    plain = nn.Sequential(nn.Conv2d(4, 6, 3, dtype=torch.float64), nn.ReLU(inplace=True))
    plain = plain.to(memory_format=layout)  # type: ignore[call-overload]
    options = {} if name in ("none", "input") else {"eps": 1e-13}
    wrapped = lrbench.wrap(copy.deepcopy(plain), "1", name, path=path, **options)
    for x in (smooth_images(2, 4, 6, 6), smooth_images(1, 4, 6, 6)[0]):
        gradients = []
        for model in (plain, wrapped):
            out = model(x)
            gradients.append(torch.autograd.grad(out, list(model.parameters()), output_gradient(out)))
        assert_close(gradients[1], gradients[0], **TIGHT)


@pytest.mark.parametrize("name", lrbench.list_compressors())
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_an_output_lies_in_memory_as_the_native_does_so_that_dropout_behind_it_is_the_same(
    layout: torch.memory_format, groups: int, name: str
) -> None:
    plain = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, groups=groups), nn.Dropout(0.5))
    plain = plain.to(memory_format=layout)  # type: ignore[call-overload]
    made = lrbench.get_compressor(name)
    path: Path = "backward" if made.skip(Geometry.of(plain[0]), None, "both") else "both"
    wrapped = lrbench.wrap(copy.deepcopy(plain), "1", made, path=path)
    x = smooth_images(5, 4, 8, 8, dtype=torch.float32)
    for images in (x, x.contiguous(memory_format=torch.channels_last)):
        outputs = []
        for model in (plain, wrapped):
            torch.manual_seed(0)
            outputs.append(model(images))
        assert outputs[1].stride() == outputs[0].stride()
        assert ((outputs[1] == 0) == (outputs[0] == 0)).all()


@every_path
def test_training_steps_follow_the_native_ones(path: Path) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, groups=2, padding_mode="reflect"),
        nn.Flatten(),
        nn.Linear(6 * 64, 4),
    ).double()
    wrapped = lrbench.wrap(copy.deepcopy(plain), "11", "svd", eps=1e-6, path=path)
    x, labels = smooth_images(8, 3, 8, 8), torch.arange(8) % 4
    losses = []
    for model in (plain, wrapped):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        steps = []
        for _ in range(5):
            loss = nn.functional.cross_entropy(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps.append(loss.item())
        losses.append(steps)
    assert losses[0][-1] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
