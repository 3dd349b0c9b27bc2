import pytest
import torch
from runs import config, photos

import lrbench
from lrbench.conv import compressed_layers
from lrbench.im2col import Im2col
from lrbench.measure.time import period_of, quartiles, split_steps, time_steps
from lrbench.training import make_model


def test_every_kind_of_step_is_taken_once_a_round_in_turned_order_on_new_batches():
    taken = []
    seconds = time_steps([lambda k: taken.append(("a", k)), lambda k: taken.append(("b", k))], rounds=3, warmup=1)
    assert [len(s) for s in seconds] == [3, 3]
    assert taken == [(kind, k) for k, order in enumerate(["ab", "ba", "ab", "ba"]) for kind in order]


@pytest.fixture
def spend(monkeypatch):
    """A clock that runs only when somebody spends time."""
    now = 0.0

    def spend(seconds):
        nonlocal now
        now += seconds

    monkeypatch.setattr("lrbench.measure.time._now", lambda device: now)
    return spend


def test_steps_of_a_period_are_timed_together(spend):
    taken = []

    def rare(k):
        taken.append(k)
        spend(8.0 if k % 4 == 3 else 1.0)

    (seconds,) = time_steps([rare], rounds=2, warmup=1, period=4)
    assert seconds == [2.75, 2.75]
    assert taken == list(range(12))


def test_a_models_period_is_that_of_all_its_compressors():
    model = make_model(config(mask="101000", compressor="svd"), 10)
    assert period_of(model) == 1
    first, second = compressed_layers(model).values()
    first.compressor, second.compressor = (lrbench.get_compressor("warm", refresh=k) for k in (4, 6))
    assert period_of(model) == 12
    assert period_of(lrbench.unwrap(model)) == 1


def test_what_only_some_steps_do_is_in_the_split(monkeypatch, spend):
    model = make_model(config(mask="100000", compressor="warm"), 10)
    (layer,) = compressed_layers(model).values()
    layer.compressor.period = 3
    calls = []

    def compress(blocks, compress=layer.compressor.compress):
        calls.append(None)
        spend(3.0 if len(calls) % 3 == 0 else 0.0)
        return compress(blocks)

    monkeypatch.setattr(layer.compressor, "compress", compress)
    x = photos().train_images[:4].float() / 255
    assert split_steps(model, lambda number: model(x), rounds=2)["compressing_ms"] == 1000.0


def test_the_seconds_are_each_steps_own(spend):
    slow, quick = time_steps([lambda k: spend(2.0), lambda k: spend(0.5)], rounds=3)
    assert slow == [2.0] * 3
    assert quick == [0.5] * 3


def test_quartiles_are_numpys():
    assert quartiles([1, 2, 3, 4, 5], scale=10) == {"median": 30, "q25": 20, "q75": 40}


def test_time_is_split_among_the_layers_and_adds_up(monkeypatch, spend):
    model = make_model(config(mask="101000", compressor="none", eps=None), 10)
    x = photos().train_images[:4].float() / 255
    lower = Im2col._lower

    def slow_lower(windows, out):
        spend(0.020)
        return lower(windows, out)

    monkeypatch.setattr(Im2col, "_lower", staticmethod(slow_lower))
    for layer in compressed_layers(model).values():

        def slow_compress(blocks, compress=layer.compressor.compress):
            spend(0.010)
            return compress(blocks)

        monkeypatch.setattr(layer.compressor, "compress", slow_compress)

    def step(number):
        spend(0.030)
        return model(x)

    split = split_steps(model, step, rounds=3)
    assert [layer["layer"] for layer in split["layers"]] == ["conv1", "conv3"]
    for layer in split["layers"]:
        assert layer["lowering_ms"] == pytest.approx(20)
        assert layer["compressing_ms"] == pytest.approx(10)
    assert split["lowering_ms"] == pytest.approx(40)
    assert split["compressing_ms"] == pytest.approx(20)
    assert split["rest_ms"] == pytest.approx(30)


def test_the_clocks_are_taken_out_again_even_after_an_error():
    model = make_model(config(mask="100000"), 10)
    lower = Im2col.__dict__["_lower"]
    calls = 0

    def step(number):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise ArithmeticError
        return model(torch.rand(2, 3, 32, 32))

    with pytest.raises(ArithmeticError):
        split_steps(model, step, rounds=3)
    assert Im2col.__dict__["_lower"] is lower
    assert not any("compress" in vars(layer.compressor) for layer in compressed_layers(model).values())
