import io
import math

import pytest
import torch
from runs import PLAIN, POLICY, config, photos

import lrbench
from lrbench.conv import compressed_layers
from lrbench.files import read_sealed, write_sealed
from lrbench.training import evaluate, make_model, make_optimizer, train, training_step


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def without_time(history):
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("compressor", ["svd", "rsvd", "aca-estimate"])
@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_run_that_was_stopped_ends_bit_for_bit_where_an_uninterrupted_one_does(tmp_path, compressor, stop_after):
    run = config(compressor=compressor)
    whole = train(run, photos())

    def stop(epoch):
        if epoch == stop_after:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(run, photos(), tmp_path / "run.pt", stop)
    torch.manual_seed(123)  # whatever else the process does with the global generator
    epochs = []
    resumed = train(run, photos(), tmp_path / "run.pt", epochs.append)
    assert epochs == list(range(stop_after + 1, run.epochs + 1))
    assert equal(weights(whole.model), weights(resumed.model))
    assert without_time(whole.history) == without_time(resumed.history)


def test_a_run_that_was_stopped_within_an_epoch_begins_that_epoch_again(tmp_path, monkeypatch):
    run = config()
    whole = train(run, photos())
    import lrbench.training as training

    steps = 0
    original = training.training_step

    def failing(*arguments):
        nonlocal steps
        steps += 1
        if steps == 5:  # the second of three steps in the second epoch
            raise StoppedError
        return original(*arguments)

    monkeypatch.setattr(training, "training_step", failing)
    with pytest.raises(StoppedError):
        train(run, photos(), tmp_path / "run.pt")
    monkeypatch.undo()
    resumed = train(run, photos(), tmp_path / "run.pt")
    assert equal(weights(whole.model), weights(resumed.model))


def test_a_compressors_own_state_is_resumed(tmp_path):
    @lrbench.register("test-stateful")
    class Stateful(type(lrbench.get_compressor("svd"))):
        calls = 0

        def factorize(self, blocks):
            self.calls += 1
            return super().factorize(blocks)

        def state_dict(self):
            return {"calls": self.calls}

        def load_state_dict(self, state):
            self.calls = state["calls"]

    try:
        run = config(compressor="test-stateful", mask="100000")
        whole = train(run, photos())

        def stop(epoch):
            raise StoppedError

        with pytest.raises(StoppedError):
            train(run, photos(), tmp_path / "run.pt", stop)
        resumed = train(run, photos(), tmp_path / "run.pt")
        calls = [layer.compressor.calls for t in (whole, resumed) for layer in compressed_layers(t.model).values()]
        assert calls[0] == calls[1] > 0
    finally:
        from lrbench import compressors

        del compressors._classes["test-stateful"]


def test_a_seed_fixes_weights_order_and_dropout_whatever_is_compressed():
    classes = len(photos().classes)
    assert equal(weights(make_model(config(**PLAIN), classes)), weights(make_model(config(), classes)))
    # An exact compressor follows the plain run up to rounding, through dropout and the order of the data.
    plain, none = train(config(**PLAIN), photos()), train(config(compressor="none", eps=None), photos())
    for a, b in zip(plain.history, none.history, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
    other = train(config(**PLAIN, seed=1), photos())
    assert abs(other.history[0]["train_loss"] - plain.history[0]["train_loss"]) > 1e-3


def test_every_epoch_has_an_order_of_its_own_in_which_each_image_comes_once(monkeypatch):
    met = []

    def watched(model, optimizer, x, y, *weight):
        met.append(x.double().sum((1, 2, 3)))
        return training_step(model, optimizer, x, y, *weight)

    monkeypatch.setattr("lrbench.training.training_step", watched)
    train(config(**PLAIN, epochs=3), photos())
    orders = torch.cat(met).reshape(3, 60)
    for first, second in ((0, 1), (1, 2), (0, 2)):
        assert (orders[first] != orders[second]).sum() > 30
    assert (orders.sort(1).values.diff(dim=0) == 0).all()


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    train(config(epochs=1), photos())
    assert torch.equal(before, torch.get_rng_state())


def test_training_learns():
    history = train(config(**PLAIN, epochs=12, train_size=200, widths=(8, 8, 8), learning_rate=3e-3), photos()).history
    assert history[-1]["train_loss"] < history[0]["train_loss"] - 0.1


def test_divergence_is_recorded_with_what_was_before_it():
    trained = train(config(learning_rate=1e20, epochs=5), photos())
    assert trained.divergence is not None
    assert trained.divergence.startswith(f"epoch {len(trained.history) + 1}: ")
    assert len(trained.history) < 5


def test_a_block_that_is_not_finite_is_divergence():
    run = config(mask="001000", compressor="svd", learning_rate=1e30, batch_size=60, epochs=2)
    divergence = train(run, photos()).divergence
    assert divergence is not None
    assert "NaN or infinity" in divergence or "loss became" in divergence


def test_evaluation_counts_every_image_once_and_leaves_the_model_as_it_was():
    run = config(batch_size=7)
    model = make_model(run, len(photos().classes)).train()
    images, labels = photos().test_images[:40], photos().test_labels[:40]
    result = evaluate(model, images, labels, run)
    model.eval()
    with torch.no_grad():
        logits = model(images.float() / 255)
    assert torch.equal(result.predictions, logits.argmax(1))
    assert result.accuracy == (logits.argmax(1) == labels).float().mean()
    assert result.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)
    model.train()
    evaluate(model, images, labels, run, exact=True)
    assert model.training
    assert not any(layer.exact_eval for layer in compressed_layers(model).values())


def test_exact_evaluation_is_the_plain_models():
    run = config(eps=0.9, compressor="aca-estimate")
    model = make_model(run, len(photos().classes))
    images, labels = photos().test_images[:20], photos().test_labels[:20]
    exact, compressed = (evaluate(model, images, labels, run, exact=exact) for exact in (True, False))
    lrbench.unwrap(model)
    plain = evaluate(model, images, labels, run)
    assert exact.loss == plain.loss
    assert compressed.loss != plain.loss


def test_a_step_is_adams_on_the_batchs_mean_cross_entropy():
    run = config(**PLAIN)
    model, twin = (make_model(run, 10).eval() for _ in range(2))
    x, y = photos().train_images[:20].float() / 255, photos().train_labels[:20]
    loss, logits = training_step(model, make_optimizer(model, run), x, y)
    adam = torch.optim.Adam(twin.parameters(), lr=run.learning_rate, foreach=False, fused=False)
    expected = torch.nn.functional.cross_entropy(twin(x), y)
    expected.backward()
    adam.step()
    assert loss == expected
    assert math.isfinite(loss)
    assert logits.shape == (20, 10)
    torch.testing.assert_close(weights(model), weights(twin), rtol=1e-5, atol=1e-7)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:100])


def with_a_flipped_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def without_a_checksum(path):
    path.write_bytes(read_sealed(path))


def changed(path, change):
    state = torch.load(io.BytesIO(read_sealed(path)), weights_only=True)
    change(state)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_sealed(path, buffer.getvalue())


def of_another_torch(path):
    changed(path, lambda state: state["made_by"].update(torch="1.0"))


def of_other_code(path):
    changed(path, lambda state: state["made_by"].update(lrbench="0.1.0"))


def without_its_last_weights(path):
    changed(path, lambda state: state["model"].popitem())


@pytest.mark.parametrize(
    ("spoil", "suffix"),
    [
        (cut_short, "corrupt"),
        (with_a_flipped_bit, "corrupt"),
        (without_a_checksum, "corrupt"),
        (of_another_torch, "outdated"),
        (of_other_code, "outdated"),
        (without_its_last_weights, "outdated"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named_set_aside_and_the_run_begins_anew(tmp_path, spoil, suffix):
    run = config(epochs=2)
    whole = train(run, photos(), tmp_path / "run.pt")
    spoil(tmp_path / "run.pt")
    spoilt = (tmp_path / "run.pt").read_bytes()
    epochs = []
    with pytest.warns(UserWarning, match=r"run\.pt"):
        again = train(run, photos(), tmp_path / "run.pt", epochs.append)
    assert epochs == [1, 2]
    assert equal(weights(whole.model), weights(again.model))
    assert (tmp_path / f"run.pt.{suffix}").read_bytes() == spoilt


def test_a_policys_run_is_resumed_bit_for_bit_and_its_checkpoint_is_of_that_policy(tmp_path):
    first, other = (
        config(**POLICY, mask="010000", policy=lrbench.Policy({"conv2": lrbench.LayerPolicy("svd", eps)}).identity())
        for eps in (0.3, 0.4)
    )
    whole = train(first, photos())

    def stop(epoch):
        raise StoppedError

    with pytest.raises(StoppedError):
        train(first, photos(), tmp_path / "run.pt", stop)
    epochs = []
    resumed = train(first, photos(), tmp_path / "run.pt", epochs.append)
    assert epochs == [2, 3]
    assert equal(weights(whole.model), weights(resumed.model))
    with pytest.warns(UserWarning, match="begins anew"):
        train(other, photos(), tmp_path / "run.pt")
