"""Putting compression into a model and out of it again."""

import copy
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.utils.parametrizations as parametrizations
from conv_oracle import Counting, layer_of, native, outcome, smooth_images
from torch import Tensor, nn
from torch.nn.utils.parametrize import remove_parametrizations
from torch.testing import assert_close

import lrbench
from lrbench.conv import PATHS, convolutions, masked_layers

NAMES = ("stem", "features.first", "features.second", "head")


class Net(nn.Module):
    """Four convolutions, of which the third is used twice; they are registered in another order than they run in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.features = nn.Sequential()
        self.features.first = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.features.norm = nn.BatchNorm2d(4)
        self.features.second = nn.Conv2d(4, 4, 1)
        self.again = self.features.second
        self.head = nn.Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.features(self.stem(x).relu())))


class Renamed(nn.Conv2d):
    """A subclass that convolves as its parent does."""


class OwnForward(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class OwnConvolution(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight * 2, bias)


def images() -> Tensor:
    return smooth_images(2, 3, 8, 8, dtype=torch.float32)


def wrapped_names(model: nn.Module) -> list[str]:
    return list(lrbench.compressed_layers(model))


def anatomy(model: nn.Module) -> list[Any]:
    """Everything about a model that wrapping may not change, by identity where there is one."""
    modules = [(name, id(module), type(module)) for name, module in model.named_modules(remove_duplicate=False)]
    tensors = [(name, id(p)) for named in (model.named_parameters(), model.named_buffers()) for name, p in named]
    return [modules, tensors, list(model.state_dict()), model.training]


def test_wrapping_is_in_place_and_changes_nothing_but_the_convolution() -> None:
    model = Net()
    before = anatomy(model)
    assert lrbench.wrap(model, "1111") is model
    assert anatomy(model) == before
    assert wrapped_names(model) == list(NAMES)
    assert lrbench.unwrap(model) is model
    assert anatomy(model) == before
    assert wrapped_names(model) == []


@pytest.mark.parametrize(
    ("mask", "chosen"),
    [
        ("0000", ()),
        ("1000", ("stem",)),
        ("0100", ("features.first",)),
        ("0010", ("features.second",)),
        ("0001", ("head",)),
        ("1010", ("stem", "features.second")),
        ("1111", NAMES),
        ("head", ("head",)),
        ("features.*", ("features.first", "features.second")),
        ("*", NAMES),
        (["head", "stem"], ("stem", "head")),
        (("*.first", "s*"), ("stem", "features.first")),
        (["head", "h*"], ("head",)),
        ([], ()),
    ],
    ids=str,
)
def test_a_mask_selects_in_the_order_of_named_modules(mask: str | Sequence[str], chosen: tuple[str, ...]) -> None:
    model = Net()
    assert masked_layers(model, mask) == list(chosen)
    assert wrapped_names(lrbench.wrap(model, mask)) == list(chosen)


def test_bits_mean_bits_even_where_layers_are_called_by_numbers() -> None:
    one = nn.Sequential(nn.Conv2d(3, 4, 3))
    assert masked_layers(one, "1") == ["0"]
    assert masked_layers(one, ["0"]) == ["0"]
    assert masked_layers(one, "0") == []
    several = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    assert masked_layers(several, "10") == ["1"]
    assert masked_layers(several, "2") == ["2"]


def test_a_module_that_is_used_twice_is_one_bit_and_compresses_at_each_use() -> None:
    model = Net()
    assert list(convolutions(model)) == list(NAMES)
    lrbench.wrap(model, "0010", Counting())
    model(images())
    assert layer_of(model, "features.second").compressor.calls == 2


@pytest.mark.parametrize("mask", ["1", "*", [""]], ids=str)
def test_a_bare_convolution_is_a_model(mask: str | Sequence[str]) -> None:
    conv = nn.Conv2d(3, 4, 3)
    assert lrbench.wrap(conv, mask) is conv
    assert isinstance(conv, nn.Conv2d)
    assert layer_of(conv).conv is conv
    assert wrapped_names(lrbench.unwrap(conv)) == []


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "too-few-bits": ({"mask": "101"}, "mask is '101': it must have 4 bits, 0 or 1, for the convolutions stem, "),
    "too-many-bits": ({"mask": "10101"}, "it must have 4 bits"),
    "not-a-bit": ({"mask": "1012"}, "mask is '1012': it must have 4 bits, 0 or 1"),
    "unmatched-pattern": ({"mask": ["stem", "tail*"]}, r"mask has 'tail\*', which matches no convolution: there are "),
    "empty": ({"mask": ""}, "mask has '', which matches no convolution"),
    "no-convolution": ({"mask": "features.norm"}, "matches no convolution"),
    "path": ({"path": "sideways"}, "path is 'sideways': use forward, backward, both"),
    "eps-beside-an-instance": ({"compressor": Counting(0.2), "eps": 0.1}, "eps is 0.1 beside an instance"),
    "eps-too-large": ({"eps": 1.5}, "eps is 1.5: it must be a number"),
    "no-such-compressor": ({"compressor": "svdd"}, "there is no compressor 'svdd': did you mean "),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_mistake_is_named_in_one_sentence_and_leaves_the_model_as_it_was(case: str) -> None:
    model = Net()
    before = anatomy(model)
    arguments, message = ERRORS[case]
    with pytest.raises((ValueError, LookupError), match=message) as caught:
        lrbench.wrap(model, **{"mask": "1111", **arguments})
    assert "\n" not in str(caught.value)
    assert anatomy(model) == before
    assert wrapped_names(model) == []


@pytest.mark.parametrize("mask", ["1000", "0001", "0000"])
def test_wrapping_twice_is_an_error_that_leaves_the_first_wrapping(mask: str) -> None:
    model = lrbench.wrap(Net(), "1000", eps=0.3)
    first = layer_of(model, "stem")
    with pytest.raises(ValueError, match=re.escape("the model is wrapped already (stem): call lrbench.unwrap")):
        lrbench.wrap(model, mask, eps=0.1)
    assert lrbench.compressed_layers(model) == {"stem": first}


@pytest.mark.parametrize("cls", [OwnForward, OwnConvolution])
def test_a_subclass_with_a_convolution_of_its_own_is_refused_unless_masked_out(cls: type[nn.Conv2d]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), cls(4, 4, 3))
    with pytest.raises(ValueError, match=f"layer '1' is a {cls.__name__} with a forward of its own: leave it out"):
        lrbench.wrap(model, "11")
    assert wrapped_names(model) == []
    assert wrapped_names(lrbench.wrap(model, "10")) == ["0"]


def test_a_subclass_that_convolves_as_its_parent_is_wrapped() -> None:
    layer = Renamed(3, 4, 3)
    expected = outcome(layer, images())
    assert type(lrbench.wrap(layer, "1", "none")) is Renamed
    assert_close(outcome(layer, images()), expected)


@pytest.mark.parametrize("path", PATHS)
def test_unwrapping_is_bitwise_native_with_the_current_weights(path: Any) -> None:
    model = lrbench.wrap(Net(), "1111", eps=0.3, path=path).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(images()).square().mean().backward()
    optimizer.step()
    fresh = Net().eval()
    fresh.load_state_dict(model.state_dict())
    expected = fresh(images())
    assert torch.equal(lrbench.unwrap(model)(images()), expected)
    lrbench.wrap(model, "1000", eps=1e-5)
    assert wrapped_names(model) == ["stem"]
    assert_close(model(images()), expected, rtol=1e-3, atol=1e-3)


def test_unwrapping_a_plain_model_does_nothing() -> None:
    model = Net()
    before = anatomy(model)
    assert lrbench.unwrap(model) is model
    assert anatomy(model) == before


def test_each_layer_compresses_with_a_copy_of_its_own() -> None:
    given = Counting(0.25)
    model = lrbench.wrap(Net(), "1101", given)
    compressors = [layer.compressor for layer in lrbench.compressed_layers(model).values()]
    assert len({id(compressor) for compressor in (*compressors, given)}) == 4
    assert [compressor.eps for compressor in compressors] == [0.25] * 3
    model.stem(images())
    assert [compressor.calls for compressor in (*compressors, given)] == [1, 0, 0, 0]


@pytest.mark.parametrize(("eps", "expected"), [(None, lrbench.get_compressor("svd").eps), (0.3, 0.3)])
def test_eps_reaches_a_compressor_that_is_given_by_name(eps: float | None, expected: float) -> None:
    model = lrbench.wrap(nn.Conv2d(3, 4, 3), "1", eps=eps)
    assert layer_of(model).compressor.eps == expected


def test_hooks_run_as_before_and_so_do_later_ones() -> None:
    layer, calls = nn.Conv2d(3, 4, 3), []
    layer.register_forward_pre_hook(lambda module, args: calls.append("pre") or (args[0] * 2,))
    layer.register_forward_hook(lambda module, args, output: calls.append("post") or output + 1)
    expected = outcome(layer, images())
    calls.clear()
    lrbench.wrap(layer, "1", "none")
    layer.register_full_backward_hook(lambda module, grad_input, grad_output: calls.append("back"))
    assert_close(outcome(layer, images()), expected)
    assert calls == ["pre", "post", "back"]


@pytest.mark.parametrize("order", ["parametrized-first", "wrapped-first"])
@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrizations_come_and_go_around_the_wrapping(norm: Any, order: str) -> None:
    plain = nn.Conv2d(3, 4, 3, dtype=torch.float64)
    layer, x = copy.deepcopy(plain), smooth_images(2, 3, 8, 8)
    for module in (plain, layer):
        torch.manual_seed(1)
        if module is layer and order == "wrapped-first":
            lrbench.wrap(layer, "1", "none")
        norm(module)
        if module is layer and order == "parametrized-first":
            lrbench.wrap(layer, "1", "none")
    assert list(layer.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in layer.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert isinstance(layer, nn.Conv2d)
    for _ in range(2):  # the spectral norm's power iteration moves on with each pass
        outputs = [module(x) for module in (plain, layer)]
        grads = [
            torch.autograd.grad(output.square().sum(), list(module.parameters()))
            for output, module in zip(outputs, (plain, layer), strict=True)
        ]
        assert_close((outputs[1], grads[1]), (outputs[0], grads[0]))
    for module in (plain, layer):
        remove_parametrizations(module.eval(), "weight")
    assert type(layer) is nn.Conv2d
    assert wrapped_names(layer) == [""]
    assert_close(outcome(layer, x), outcome(plain, x))
    assert torch.equal(lrbench.unwrap(layer)(x), native(layer)(x))


def test_a_lazy_convolution_may_be_wrapped_before_it_knows_its_channels() -> None:
    layer = lrbench.wrap(nn.LazyConv2d(4, 3, padding=1), "1", "none")
    output = layer(images())
    assert type(layer) is nn.Conv2d
    assert_close(output, native(layer)(images()))


def test_what_evaluation_meets_leaves_no_trace_in_a_compressors_state() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    lrbench.wrap(model, "1", "warm", 0.1)
    model(smooth_images(8, 3, 8, 8, dtype=torch.float32))
    state = lrbench.compressed_layers(model)["0"].compressor.state_dict()
    before = copy.deepcopy(state)
    model.eval()(torch.randn(8, 3, 8, 8))
    after = lrbench.compressed_layers(model)["0"].compressor.state_dict()
    assert torch.equal(after["basis"], before["basis"])
    assert {**after, "basis": None} == {**before, "basis": None}
    model.train()(torch.randn(8, 3, 8, 8))
    assert lrbench.compressed_layers(model)["0"].compressor.state_dict()["calls"] == before["calls"] + 1


def test_an_instances_own_convolution_is_refused_and_left_as_it_is() -> None:
    for name in ("_conv_forward", "forward"):
        model = nn.Sequential(nn.Conv2d(3, 4, 3))
        setattr(model[0], name, lambda *arguments: arguments[0])
        with pytest.raises(ValueError, match="layer '0' is a Conv2d with a forward of its own: leave it out"):
            lrbench.wrap(model, "1", "svd")
        assert name in vars(model[0])
