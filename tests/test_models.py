import re

import pytest
import torch
from torch import Tensor, nn

import lrbench
from lrbench.conv import convolutions
from lrbench.models import build_model, list_models, own_widths, paper_cnn


def traced(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """The output, and what went into and came out of every layer."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def record(name: str) -> None:
        def hook(_: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            inputs[name], outputs[name] = args[0], output

        model.get_submodule(name).register_forward_hook(hook)

    for name, _ in model.named_children():
        record(name)
    return model(x), inputs, outputs


def test_the_layers_come_in_the_papers_order() -> None:
    names = [name for name, _ in paper_cnn().named_children()]
    assert names == [
        *("conv1", "relu1", "conv2", "relu2", "dropout1", "pool1"),
        *("conv3", "relu3", "conv4", "relu4", "dropout2", "pool2"),
        *("conv5", "relu5", "conv6", "relu6", "dropout3", "pool3"),
        *("flatten", "fc1", "relu7", "dropout4", "fc2"),
    ]


def test_six_convolutions_are_the_bits_of_a_mask() -> None:
    model = paper_cnn()
    assert list(convolutions(model)) == [f"conv{i}" for i in range(1, 7)]
    assert list(lrbench.compressed_layers(lrbench.wrap(model, "101010"))) == ["conv1", "conv3", "conv5"]


@pytest.mark.parametrize(
    ("widths", "classes", "size"), [((32, 64, 128), 10, 32), ((2, 3, 5), 7, 16), ((1, 1, 1), 2, 8)]
)
def test_shapes_and_parameters_follow_from_the_widths(widths: tuple[int, int, int], classes: int, size: int) -> None:
    model = paper_cnn(widths, classes, size)
    a, b, c = widths
    channels = [(3, a), (a, a), (a, b), (b, b), (b, c), (c, c)]
    features = c * (size // 8) ** 2
    expected = sum(9 * before * after + after for before, after in channels)
    expected += features * 512 + 512 + 512 * classes + classes
    assert sum(parameter.numel() for parameter in model.parameters()) == expected

    output, inputs, outputs = traced(model, torch.randn(2, 3, size, size))
    assert output.shape == (2, classes)
    for i, (before, after) in enumerate(channels):
        side = size >> i // 2
        assert inputs[f"conv{i + 1}"].shape == (2, before, side, side)
        assert outputs[f"conv{i + 1}"].shape == (2, after, side, side)


def test_the_lowered_blocks_have_the_papers_shapes() -> None:
    model = paper_cnn()
    _, inputs, _ = traced(model, torch.randn(2, 3, 32, 32))
    shapes = {
        name: tuple(lrbench.Im2col.of(inputs[name], lrbench.Geometry.of(conv)).shape)
        for name, conv in convolutions(model).items()
    }
    assert (shapes["conv1"], shapes["conv3"], shapes["conv5"]) == ((2, 27, 1024), (2, 288, 256), (2, 576, 64))


def test_every_second_convolution_reads_what_a_relu_keeps() -> None:
    _, inputs, outputs = traced(paper_cnn((2, 3, 4)), torch.randn(2, 3, 32, 32))
    relus = {output.untyped_storage().data_ptr() for name, output in outputs.items() if name.startswith("relu")}
    fed = [inputs[f"conv{i}"].untyped_storage().data_ptr() in relus for i in range(1, 7)]
    assert fed == [False, True] * 3


def test_dropout_acts_in_training_only_before_each_pooling_and_between_the_linear_layers() -> None:
    torch.manual_seed(0)
    model = paper_cnn((8, 8, 8))
    x = torch.rand(4, 3, 32, 32)
    _, inputs, outputs = traced(model, x)
    for i in (1, 2, 3, 4):
        dropped = outputs[f"dropout{i}"].eq(0) & inputs[f"dropout{i}"].ne(0)
        assert dropped.any()
    for i in (1, 2, 3):
        assert inputs[f"dropout{i}"] is outputs[f"relu{2 * i}"]
        assert inputs[f"pool{i}"] is outputs[f"dropout{i}"]
    assert inputs["fc2"] is outputs["dropout4"]
    model.eval()
    assert torch.equal(model(x), model(x))


def test_the_softmax_is_left_to_the_loss() -> None:
    logits = paper_cnn((2, 2, 2)).eval()(torch.randn(4, 3, 32, 32))
    assert not torch.allclose(logits.exp().sum(1), torch.ones(4))
    assert not torch.allclose(logits.sum(1), torch.ones(4))
    assert logits.min() < 0


def test_weights_are_drawn_from_the_global_generator() -> None:
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(build_model("paper", (2, 2, 2), 10).conv1.weight)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_the_paper_is_among_the_models_and_built_by_name() -> None:
    assert "paper" in list_models()
    assert list_models() == sorted(list_models())
    model = build_model("paper", widths=(4, 5, 6), classes=3)
    assert [conv.out_channels for conv in convolutions(model).values()] == [4, 4, 5, 5, 6, 6]
    assert model.fc2.out_features == 3


@pytest.mark.parametrize("name", list_models())
@pytest.mark.parametrize("widths", [None, ()])
def test_a_model_that_is_given_no_widths_has_its_own(name: str, widths: tuple[int, ...] | None) -> None:
    with torch.device("meta"):
        shapes = [[p.shape for p in build_model(name, w, 10).parameters()] for w in (widths, own_widths(name))]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("widths", [(), (8,), (8, 8), (8, 8, 8, 8), (8, 0, 8), (8, 8, -1)], ids=str)
def test_other_widths_are_refused(widths: tuple[int, ...]) -> None:
    message = re.escape(f"widths are {widths}: the paper's network takes three positive numbers")
    with pytest.raises(ValueError, match=message):
        paper_cnn(widths)
    if widths:
        with pytest.raises(ValueError, match=message):
            build_model("paper", widths, 10)


@pytest.mark.parametrize("size", [0, 4, 28, 33, -8])
def test_images_that_cannot_be_pooled_three_times_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"images are {size} pixels wide: .* multiple of 8"):
        paper_cnn(image_size=size)


def test_an_unknown_model_is_refused_with_the_names_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"there is no model 'lenet': use .*paper"):
        build_model("lenet", (8, 8, 8), 10)
