import copy

import pytest
import torch
from torch import nn

import lrbench
from lrbench.measure.gradients import measure_gradients


def batches(count, images=8):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.rand(images, 3, 8, 8, generator=generator), torch.randint(10, (images,), generator=generator))
        for _ in range(count)
    ]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 64, 10)).double()


def double(pairs):
    return [(x.double(), y) for x, y in pairs]


class Halved(nn.Conv2d):
    """Its weight's gradient is half of what it should be."""

    def __init__(self, conv):
        super().__init__(3, 8, 3, padding=1, dtype=torch.float64)
        self.load_state_dict(conv.state_dict())
        self.weight.register_hook(lambda grad: grad / 2)

    def __deepcopy__(self, memo):
        return Halved(self)


def test_a_gradient_that_is_always_too_small_has_a_bias_as_large_as_its_error():
    exact = network()
    halved = nn.Sequential(Halved(exact[0]), *copy.deepcopy(exact[1:]))
    first, last = measure_gradients(halved, exact, double(batches(3)))
    assert (first["layer"], last["layer"]) == ("0", "2")
    assert first["cosine"] == pytest.approx(1)
    assert first["error"] == pytest.approx(0.5)
    assert first["bias"] == pytest.approx(0.5)
    assert (last["error"], last["bias"]) == (0, 0)


def test_the_bias_of_an_unbiased_method_averages_out_and_that_of_a_biased_one_stays():
    exact = network()
    agreeing = [(x, torch.full_like(y, 3)) for x, y in double(batches(40))]  # or gradients would average out, too
    found = {}
    for name, options in (("rproj", {}), ("svd", {"eps": 0.6})):
        wrapped = lrbench.wrap(copy.deepcopy(exact), "1", lrbench.get_compressor(name, **options), path="backward")
        found[name] = measure_gradients(wrapped, exact, agreeing)[0]
    assert found["rproj"]["bias"] < 0.4 * found["rproj"]["error"]
    assert found["svd"]["bias"] > 0.5 * found["svd"]["error"] > 0


def test_the_least_cosine_is_that_of_the_worst_batch_and_both_models_meet_the_same_dropout():
    exact = nn.Sequential(nn.Dropout(0.5), *network())
    wrapped = lrbench.wrap(copy.deepcopy(exact), "1", "svd", eps=0.5, path="backward")
    pairs = double(batches(4))
    row = measure_gradients(wrapped, exact, pairs)[0]
    alone = [measure_gradients(wrapped, exact, [pair], seed=k)[0]["cosine"] for k, pair in enumerate(pairs)]
    assert row["cosine_min"] == pytest.approx(min(alone))
    assert row["cosine"] == pytest.approx(sum(alone) / 4)
    assert measure_gradients(exact, exact, pairs)[0]["error"] == 0


def test_models_and_the_generator_are_left_as_they_were():
    exact = network()
    before, state = copy.deepcopy(exact.state_dict()), torch.get_rng_state()
    measure_gradients(exact, exact, double(batches(1)))
    assert all(torch.equal(value, before[name]) for name, value in exact.state_dict().items())
    assert all(parameter.grad is None for parameter in exact.parameters())
    assert torch.equal(torch.get_rng_state(), state)
