import pytest
import torch
from runs import config, photos
from torch import nn

import lrbench
from lrbench.measure.layers import measure_layers
from lrbench.training import make_model


def images(count):
    return photos().train_images[:count].float() / 255


def test_a_layers_numbers_are_those_of_its_blocks():
    model = make_model(config(mask="100000", eps=0.1), 10)
    (layer,) = measure_layers(model, [images(20), images(50)[20:]])
    blocks = lrbench.Im2col(images(50), 3, padding=1)
    factors = lrbench.get_compressor("svd", eps=0.1).compress(blocks)
    D, approximation = blocks.dense().double(), factors.dense().double()
    errors = (D - approximation).norm(dim=(1, 2)) / D.norm(dim=(1, 2))
    assert (layer["layer"], layer["index"], layer["m"], layer["n"], layer["blocks"]) == ("conv1", 0, 27, 1024, 50)
    assert layer["ranks"] == factors.ranks.tolist()
    assert layer["rank_mean"] == pytest.approx(factors.ranks.double().mean().item())
    assert layer["errors"] == pytest.approx(errors.tolist(), rel=1e-4)
    assert layer["error_max"] == pytest.approx(errors.max().item(), rel=1e-6)
    assert layer["violations"] == 0
    assert layer["share_own"] == 1
    assert layer["im2col_bytes"] == 50 * 27 * 1024 * 4
    assert layer["input_bytes"] == 50 * 3 * 1024 * 4
    assert layer["factor_bytes"] == pytest.approx(factors.nbytes, abs=64)  # two batches have one offset more
    assert layer["cut_im2col"] == 1 - layer["factor_bytes"] / layer["im2col_bytes"]
    assert layer["cut_input"] == 1 - layer["factor_bytes"] / layer["input_bytes"]
    assert layer["break_even_rank"] == pytest.approx(3072 / 1051)


def test_violations_are_counted():
    model = make_model(config(mask="100000", compressor="aca-estimate", eps=0.1), 10)
    (layer,) = measure_layers(model, [images(50)])
    assert layer["guarantee"] is None
    assert layer["violations"] == sum(error > 0.1 for error in layer["errors"]) > 0
    assert layer["error_max"] == pytest.approx(max(layer["errors"]), rel=1e-5)


def test_blocks_that_are_stored_or_kept_whole_are_counted_as_such():
    (none,) = measure_layers(make_model(config(mask="010000", compressor="none", eps=None), 10), [images(5)])
    assert (none["rank_mean"], none["error_max"], none["violations"], none["eps"]) == (36, 0, None, None)
    assert none["factor_bytes"] >= none["im2col_bytes"]
    (stored,) = measure_layers(make_model(config(mask="100000", eps=1e-6), 10), [images(5)])
    assert stored["share_stored"] == 1
    assert stored["factor_bytes"] == pytest.approx(stored["input_bytes"], rel=0.01)


@pytest.mark.parametrize("path", ["both", "backward", "forward"])
def test_measuring_leaves_the_model_as_it_was_and_works_on_every_path(path):
    model = make_model(config(path=path), 10).eval()
    before = model.state_dict()
    generator = torch.get_rng_state()
    layers = measure_layers(model, [images(5)], seed=3)
    assert [layer["layer"] for layer in layers] == ["conv1", "conv3", "conv5"]
    assert [layer["index"] for layer in layers] == [0, 2, 4]
    assert not model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert measure_layers(model, [images(5)], seed=3) == layers


def test_a_method_without_ranks_is_measured_without_them():
    x = images(5)
    model = make_model(config(mask="100000", compressor="quant4", eps=None), 10)
    (layer,) = measure_layers(model, [x])
    assert [layer[key] for key in ("rank_mean", "rank_min", "rank_max", "ranks", "violations")] == [None] * 5
    assert len(layer["errors"]) == layer["blocks"] == 5
    assert 0.01 < layer["error_mean"] < 0.2
    assert layer["cut_input"] == pytest.approx(1 - 1587 / 12288, abs=0.01)


class Twice(nn.Module):
    """One convolution that is called twice, behind a pooling or not."""

    def __init__(self, pool):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 3, 3, padding=1), nn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, x):
        return self.conv(self.pool(self.conv(x)))


def test_a_layer_that_is_called_twice_has_the_bytes_of_both_calls_for_each_image():
    model = lrbench.wrap(Twice(pool=False), "1", "svd", eps=0.1)
    (layer,) = measure_layers(model, [images(4), images(10)[4:]])
    assert (layer["images"], layer["blocks"], layer["m"], layer["n"]) == (10, 20, 27, 1024)
    assert layer["im2col_bytes"] == 2 * 10 * 27 * 1024 * 4
    assert layer["input_bytes"] == 2 * 10 * 3 * 1024 * 4
    assert layer["break_even_rank"] == pytest.approx(3072 / 1051)


def test_calls_whose_images_differ_in_size_have_no_shape_and_no_break_even_rank_in_common():
    model = lrbench.wrap(Twice(pool=True), "1", "svd", eps=0.1)
    (layer,) = measure_layers(model, [images(10)])
    assert (layer["images"], layer["blocks"], layer["m"], layer["n"]) == (10, 20, 27, None)
    assert layer["im2col_bytes"] == 10 * 27 * (1024 + 256) * 4
    assert layer["input_bytes"] == 10 * 3 * (1024 + 256) * 4
    assert layer["break_even_rank"] is None
