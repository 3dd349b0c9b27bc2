"""Lean modules compute what the plain ones do, bit for bit, and keep the bits alone."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import lrbench
from lrbench.models import paper_cnn

POOLS = [
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, stride=2, padding=1),
    nn.MaxPool2d((2, 3), stride=(3, 1), dilation=(1, 2)),
    nn.MaxPool2d(3, stride=2, ceil_mode=True),
    nn.MaxPool2d(5, stride=1, padding=2),
    nn.MaxPool2d((17, 16), stride=2),
    nn.MaxPool2d(1),
    nn.MaxPool2d((1, 2)),
]
FORMATS = [torch.contiguous_format, torch.channels_last]


def step(module: nn.Module, x: Tensor, grad: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Output, input gradient, and the generator's state after it."""
    torch.manual_seed(3)
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    out = module(x * 1)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    out.backward(upstream if grad is None else grad)
    assert x.grad is not None
    return out.detach(), x.grad, torch.get_rng_state()


def assert_same_step(module: nn.Module, x: Tensor, grad: Tensor | None = None) -> None:
    plain = step(module, x, grad)
    lean = step(lrbench.lean(copy.deepcopy(module)), x, grad)
    for ours, theirs in zip(lean, plain, strict=True):
        assert torch.equal(ours.nan_to_num(nan=7.0), theirs.nan_to_num(nan=7.0))
        assert ours.isnan().equal(theirs.isnan()) if ours.is_floating_point() else True


def images(dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (3, 5, 19, 18)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("order", FORMATS, ids=str)
@pytest.mark.parametrize(
    "module",
    [nn.ReLU(), nn.ReLU(inplace=True), nn.Dropout(0.25), nn.Dropout(0.5), nn.Dropout(0.0), nn.Dropout(1.0), *POOLS],
    ids=str,
)
def test_outputs_gradients_and_random_numbers_are_the_plain_modules(
    module: nn.Module, order: torch.memory_format, dtype: torch.dtype
) -> None:
    if dtype == torch.bfloat16 and isinstance(module, nn.MaxPool2d) and module.kernel_size != module.stride:
        pytest.skip("windows overlap: PyTorch rounds after each addition")
    assert_same_step(module, images(dtype).contiguous(memory_format=order))


def test_gradients_of_overlapping_windows_are_summed_before_they_are_rounded() -> None:
    module, x = lrbench.lean(nn.MaxPool2d(3, stride=1)), images(torch.bfloat16)
    upstream = torch.randn(module(x).shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    _, ours, _ = step(module, x, upstream)
    _, exact, _ = step(nn.MaxPool2d(3, stride=1), x.double(), upstream.double())
    assert torch.equal(ours, exact.to(torch.bfloat16))


@pytest.mark.parametrize("module", [nn.ReLU(), nn.Dropout(0.5), nn.MaxPool2d(2)], ids=str)
def test_what_is_not_finite_passes_as_in_the_plain_modules(module: nn.Module) -> None:
    x = images()
    x[0, 0, 0, :4] = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0])
    x[1, 1, 4:6, 4:6] = float("nan")
    out = module(x)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    grad[0, 0, 0, 1], grad[1, 0, 2, 2] = float("nan"), float("inf")
    assert_same_step(module, x, grad)


@pytest.mark.parametrize("shape", [(7,), (3, 5), (0, 3), (2, 3, 5, 7, 2)])
def test_any_shape_passes_where_the_plain_module_takes_it(shape: tuple[int, ...]) -> None:
    assert_same_step(nn.ReLU(), images(shape=shape))
    assert_same_step(nn.Dropout(0.5), images(shape=shape))


def test_ties_go_to_the_place_that_the_plain_pooling_takes() -> None:
    assert_same_step(nn.MaxPool2d(3, stride=1, padding=1), torch.zeros(2, 3, 8, 8))


def test_a_gradient_of_another_memory_format_is_understood() -> None:
    x = images()
    for module in (nn.ReLU(), nn.Dropout(0.5), nn.MaxPool2d(2)):
        grad = torch.randn(module(x).shape, generator=torch.Generator().manual_seed(2))
        assert_same_step(module, x, grad.contiguous(memory_format=torch.channels_last))


def test_what_is_kept_is_a_bit_an_element_or_a_place_in_a_window() -> None:
    for module, bits in ((nn.ReLU(), 1.0), (nn.Dropout(0.5), 1.0), (nn.MaxPool2d(2), 2 / 4), (nn.MaxPool2d(4), 4 / 16)):
        saved = []

        def note(tensor: Tensor, saved: list[int] = saved) -> Tensor:
            saved.append(tensor.untyped_storage().nbytes())
            return tensor.detach()

        x = torch.randn(4, 8, 16, 16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            lrbench.lean(module)(x * 1)
        assert 8 * sum(saved) == bits * x.numel(), module


def test_a_model_trains_to_the_same_bits_lean_or_plain() -> None:
    torch.manual_seed(0)
    plain = paper_cnn((4, 4, 8), image_size=16)
    lean = lrbench.lean(copy.deepcopy(plain))
    x = images(shape=(8, 3, 16, 16))
    for model in (plain, lean):
        torch.manual_seed(1)
        model(x).square().sum().backward()
    for ours, theirs in zip(lean.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    plain.eval(), lean.eval()
    assert torch.equal(plain(x), lean(x))


def test_lean_and_wrap_go_together_copied_and_pickled() -> None:
    torch.manual_seed(0)
    model = lrbench.lean(lrbench.wrap(paper_cnn((4, 4, 8), image_size=16), "111111", "svd", 0.3, "backward"))
    again = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert len(lrbench.lean_modules(again)) == 7 + 4 + 3
    x = images(shape=(4, 3, 16, 16))
    results = []
    for each in (model, again):
        torch.manual_seed(1)
        results.append(each(x).detach())
    assert torch.equal(*results)
    assert again.relu1.forward.module is again.relu1
    assert not lrbench.lean_modules(lrbench.unlean(again))
    assert len(lrbench.compressed_layers(again)) == 6


def test_a_module_with_a_forward_of_its_own_is_left_alone() -> None:
    class Shifted(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x - 1)

    model = lrbench.lean(nn.Sequential(Shifted(), nn.ReLU(), nn.MaxPool2d(2, return_indices=True)))
    assert list(lrbench.lean_modules(model)) == ["1", "2"]
    assert model[2](torch.randn(1, 1, 4, 4, requires_grad=True))[1].dtype == torch.int64


def test_a_lean_model_cannot_be_made_lean_again() -> None:
    model = lrbench.lean(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match="lean already"):
        lrbench.lean(model)


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    x = images().requires_grad_()
    (first,) = torch.autograd.grad(lrbench.lean(nn.ReLU())(x * x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_an_instances_own_forward_is_left_alone() -> None:
    model = nn.Sequential(nn.ReLU())
    model[0].forward = nn.functional.leaky_relu
    expected = model(images())
    assert torch.equal(lrbench.lean(model)(images()), expected)
    assert torch.equal(lrbench.unlean(model)(images()), expected)


def test_sizes_may_be_lists_and_the_input_may_be_named() -> None:
    assert_same_step(nn.MaxPool2d([2, 2]), images())
    x = images().requires_grad_()
    assert torch.equal(lrbench.lean(nn.ReLU())(input=x), x.relu())
