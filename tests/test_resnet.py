import pytest
import torch
from runs import config
from torch import nn

import lrbench
from lrbench.conv import convolutions
from lrbench.grid import Grid, expand
from lrbench.models import build_model, own_widths
from lrbench.resnet import resnet18, resnet20, resnet50
from lrbench.training import make_model


@pytest.mark.parametrize(
    ("name", "classes", "parameters", "bits"),
    [("resnet18", 1000, 11_689_512, 20), ("resnet50", 1000, 25_557_032, 53), ("resnet20", 10, 269_722, 19)],
)
def test_parameters_are_as_many_as_published_and_convolutions_are_the_bits_of_a_mask(name, classes, parameters, bits):
    with torch.device("meta"):
        model = build_model(name, None, classes)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(convolutions(model)) == bits
    assert len(lrbench.compressed_layers(lrbench.wrap(model, "1" * bits))) == bits


@pytest.mark.parametrize(("name", "size"), [("resnet18", 64), ("resnet50", 64), ("resnet20", 32)])
def test_a_stage_halves_the_image_and_every_layer_has_its_width(name, size):
    with torch.device("meta"):
        model = build_model(name, (), 7)
        seen = {}
        for stage in range(1, model.stages + 1):
            model.get_submodule(f"layer{stage}").register_forward_hook(
                lambda _, __, out, stage=stage: seen.__setitem__(stage, tuple(out.shape))
            )
        assert model(torch.empty(2, 3, size, size)).shape == (2, 7)
    widest = 4 if name == "resnet50" else 1
    first = size // 4 if name != "resnet20" else size
    assert seen == {
        stage: (2, widest * width, first >> (stage - 1), first >> (stage - 1))
        for stage, width in enumerate(own_widths(name), start=1)
    }


def test_the_stride_of_a_bottleneck_is_on_its_3x3_convolution():
    with torch.device("meta"):
        layers = convolutions(resnet50())
    strided = [name for name, conv in layers.items() if conv.stride == (2, 2)]
    assert strided == ["conv1", *(f"layer{s}.0.{c}" for s in (2, 3, 4) for c in ("conv2", "downsample.0"))]
    first = [*(f"layer1.0.conv{i}" for i in (1, 2, 3)), "layer1.0.downsample.0", "layer1.1.conv1"]
    assert list(layers)[:6] == ["conv1", *first]


@pytest.mark.parametrize("build", [resnet18, resnet20, resnet50])
def test_every_relu_is_a_module_that_is_called_once(build):
    with torch.device("meta"):
        model = build()
        calls = {name: 0 for name, module in model.named_modules() if isinstance(module, nn.ReLU)}
        for name in calls:
            model.get_submodule(name).register_forward_hook(
                lambda *_, name=name: calls.__setitem__(name, calls[name] + 1)
            )
        model(torch.empty(2, 3, 64, 64))
    assert set(calls.values()) == {1}
    assert len(calls) == {resnet18: 17, resnet20: 19, resnet50: 49}[build]


def test_a_block_is_its_branch_beside_the_zero_padded_shortcut():
    torch.manual_seed(0)
    block = resnet20((3, 5, 8)).layer2[0].eval().double()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    branch = block.bn2(block.conv2(block.relu1(block.bn1(block.conv1(x)))))
    shortcut = torch.zeros(2, 5, 4, 4, dtype=torch.float64)
    shortcut[:, 1:4] = x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), (branch + shortcut).clamp(min=0))


def test_a_narrower_stage_keeps_the_channels_that_fit():
    assert resnet20((8, 4, 2))(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_weights_are_drawn_as_he_did():
    torch.manual_seed(0)
    for conv in convolutions(resnet18()).values():
        fan = conv.out_channels * conv.kernel_size[0] * conv.kernel_size[1]
        assert conv.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.05)
        assert abs(conv.weight.mean().item()) < 4 * (2 / fan / conv.weight.numel()) ** 0.5
        assert conv.bias is None


def test_a_wrapped_resnet_learns_from_factors():
    torch.manual_seed(0)
    model = lrbench.wrap(resnet20((4, 4, 8)), "1" * 19, "svd", eps=0.01)
    model(torch.rand(4, 3, 32, 32)).logsumexp(1).sum().backward()
    assert all(conv.weight.grad.abs().sum() > 0 for conv in convolutions(model).values())


@pytest.mark.parametrize("widths", [(8,), (8, 8, 8, 8), (8, 0, 8)], ids=str)
def test_other_widths_are_refused(widths):
    with pytest.raises(ValueError, match="this network takes 3 positive numbers"):
        build_model("resnet20", widths, 10)


def test_a_network_without_classes_is_refused():
    with pytest.raises(ValueError, match="classes is 0"):
        resnet20(classes=0)


def test_a_grid_of_another_model_has_the_papers_masks_in_its_own_number_of_bits():
    base = config(model="resnet20", widths=own_widths("resnet20"))
    runs, _ = expand(Grid(["svd"], None, [0.1], ["both"], [0]), base, 10)
    assert [run.mask for run in runs] == ["0" * 19, "1" + "0" * 18, "10" * 9 + "1"]
    assert len(convolutions(make_model(runs[1], 10))) == 19
    assert expand(Grid(["svd"], None, [0.1], ["both"], [0]), config(), 10) == expand(
        Grid(["svd"], ["000000", "100000", "101010"], [0.1], ["both"], [0]), config(), 10
    )
