"""A wrapped model under PyTorch's own tools: copies, casts, checkpoints, autocast, compilation."""

import copy
import io
from typing import Any

import pytest
import torch
from conv_oracle import FEW_CASES, Case, Counting, Outcome, layer_of, native, outcome, output_gradient, smooth_images
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import lrbench
from lrbench.conv import PATHS, Path

every_path = pytest.mark.parametrize("path", PATHS)


def wrapped(path: Path = "both", compressor: str | lrbench.Compressor = "svd") -> nn.Sequential:
    """Two convolutions in float64, compressed to 0.3 if by name."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, groups=2, padding_mode="reflect", padding=1),
    ).double()
    return lrbench.wrap(model, "11", compressor, eps=0.3 if isinstance(compressor, str) else None, path=path)


def images(dtype: torch.dtype = torch.float64) -> Tensor:
    return smooth_images(3, 3, 8, 8, dtype=dtype)


def gradients(model: nn.Module, output: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(output, list(model.parameters()), output_gradient(output)))


def run(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and gradients."""
    output = model(x)
    return [output.detach(), *gradients(model, output)]


def same(first: Any, second: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@every_path
def test_a_deep_copy_is_another_wrapped_model(path: Path) -> None:
    model = wrapped(path, Counting())
    twin = copy.deepcopy(model)
    assert lrbench.compressed_layers(twin).keys() == {"0", "2"}
    for name, layer in lrbench.compressed_layers(twin).items():
        assert layer.conv is twin.get_submodule(name)
        assert layer.compressor is not layer_of(model, name).compressor
    expected = run(model, images())
    assert same(run(twin, images()), expected)
    assert layer_of(model, "0").compressor.calls == layer_of(twin, "0").compressor.calls == 1

    with torch.no_grad():
        twin[0].weight.mul_(2)
    assert same(run(model, images()), expected)
    assert not same(run(twin, images()), expected)
    # The copy's mode is its own too.
    layer_of(twin, "0").exact_eval = layer_of(model, "0").exact_eval = True
    twin.eval()
    model(images()), twin(images())
    assert layer_of(model, "0").compressor.calls > layer_of(twin, "0").compressor.calls

    lrbench.unwrap(twin)
    assert lrbench.compressed_layers(model).keys() == {"0", "2"}
    assert same(run(model, images()), expected)


@every_path
def test_a_saved_model_comes_back_wrapped(path: Path) -> None:
    model = wrapped(path, Counting())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert [layer.conv for layer in lrbench.compressed_layers(loaded).values()] == [loaded[0], loaded[2]]
    assert [layer.path for layer in lrbench.compressed_layers(loaded).values()] == [path] * 2
    assert same(run(loaded, images()), run(model, images()))
    assert layer_of(loaded, "0").compressor.calls == 1


@every_path
def test_a_model_follows_to_another_dtype(path: Path) -> None:
    model = wrapped(path)
    expected = run(model, images())
    single = run(model.to(torch.float32), images(torch.float32))
    assert {tensor.dtype for tensor in single} == {torch.float32}
    assert_close([tensor.double() for tensor in single], expected, rtol=1e-4, atol=1e-4)
    assert {tensor.dtype for tensor in run(model.bfloat16(), images(torch.bfloat16))} == {torch.bfloat16}
    assert {tensor.dtype for tensor in run(model.half(), images(torch.float16))} == {torch.float16}


@every_path
@pytest.mark.parametrize("assign", [False, True])
def test_loaded_weights_are_the_ones_that_convolve(path: Path, assign: bool) -> None:
    model, other = wrapped(path), wrapped(path)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    before = run(model, images())
    model.load_state_dict(copy.deepcopy(other.state_dict()), assign=assign)
    after = run(model, images())
    assert same(after, run(other, images()))
    assert not same(after, before)


@every_path
def test_a_functional_call_convolves_with_the_weights_that_it_is_given(path: Path) -> None:
    model, other = wrapped(path), wrapped(path)
    before = run(model, images())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    output = torch.func.functional_call(model, dict(other.named_parameters()), images())
    assert same([output.detach(), *gradients(other, output)], run(other, images()))
    assert same(run(model, images()), before)


@every_path
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_changes_nothing(path: Path, use_reentrant: bool) -> None:
    model, x = wrapped(path, Counting()), images().requires_grad_()
    expected = outcome_of(model, model(x), x)
    layer = layer_of(model, "0")
    layer.compressor.calls = 0
    result = outcome_of(model, checkpoint(model, x, use_reentrant=use_reentrant), x)
    assert same(result, expected)
    # Once more in the recomputation; a reentrant checkpoint runs without a graph first.
    assert layer.compressor.calls == (1 if path == "backward" and use_reentrant else 2)


def outcome_of(model: nn.Module, output: Tensor, x: Tensor) -> list[Tensor]:
    """Output and gradients by `backward`, which alone a reentrant checkpoint allows."""
    model.zero_grad()
    x.grad = None
    output.backward(output_gradient(output))
    return [output.detach(), *(p.grad.clone() for p in model.parameters()), x.grad.clone()]


@every_path
@pytest.mark.parametrize("compressor", ["none", "svd"])
@pytest.mark.parametrize("inside", [False, True], ids=["backward-outside", "backward-inside"])
@pytest.mark.parametrize("case", FEW_CASES[:3], ids=str)
def test_autocast_gives_the_native_dtypes_and_close_values(
    case: Case, inside: bool, compressor: str, path: Path
) -> None:
    layer, x = case.layer(torch.float32), case.images(torch.float32)
    exact = outcome(layer, x)
    lrbench.wrap(layer, "1", compressor, eps=1e-3, path=path)
    expected, result = (autocast_outcome(module, x, inside) for module in (native(layer), layer))
    assert result.output.dtype == expected.output.dtype == torch.bfloat16
    for value, reference, truth in zip(result, expected, exact, strict=True):
        assert value.dtype == reference.dtype
        assert (value.float() - truth).norm() <= 0.01 * truth.norm()


def autocast_outcome(layer: nn.Module, x: Tensor, inside: bool) -> Outcome:
    """Cast in the forward pass, and around the backward pass too if ``inside``."""

    def forward(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(x)

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
        return outcome(layer, x, forward)


@every_path
def test_autocast_leaves_float64_alone(path: Path) -> None:
    model = wrapped(path)
    expected = run(model, images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = run(model, images())
    assert same(result, expected)


@every_path
def test_autocast_refuses_mixed_dtypes_as_natively(path: Path) -> None:
    layer = lrbench.wrap(nn.Conv2d(3, 4, 3), "1", path=path)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for module in (native(layer), layer):
            with pytest.raises(RuntimeError):
                module(images())


@every_path
@pytest.mark.parametrize("loss", ["square", "linear"])
def test_differentiating_twice_is_an_error_and_never_a_silent_constant(path: Path, loss: str) -> None:
    layer = lrbench.wrap(nn.Conv2d(3, 4, 3, dtype=torch.float64), "1", path=path)
    x = images().requires_grad_()
    output = layer(x)
    # Of a linear loss the first gradient of x still depends on the weight.
    value = output.square().sum() if loss == "square" else output.sum()

    def penalize() -> None:
        (grad,) = torch.autograd.grad(value, x, create_graph=True)
        (grad.square().sum() + layer(x).sum()).backward()

    with pytest.raises(RuntimeError, match="differentiate twice"):
        penalize()


@every_path
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_gives_the_same(backend: str, path: Path) -> None:
    model = wrapped(path, Counting())
    expected = run(model, images())
    layer = layer_of(model, "0")
    layer.compressor.calls = 0
    torch._dynamo.reset()
    try:
        result = run(torch.compile(model, backend=backend), images())
    finally:
        torch._dynamo.reset()
    assert_close(result, expected, rtol=1e-12, atol=1e-12)
    assert layer.compressor.calls == 1
