import io
import json

import pytest
import torch
from runs import PLAIN, POLICY, config, photos

import lrbench
from lrbench import LayerPolicy, Policy
from lrbench.experiment import Experiment
from lrbench.files import read_sealed, write_sealed
from lrbench.measure.memory import Peak
from lrbench.store import run_id

pytestmark = pytest.mark.usefixtures("young_heap")

SECONDS = {"seconds", "started", "finished", "step", "peak"}


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    experiment = Experiment(photos(), tmp_path_factory.mktemp("checkpoints"), rounds=2, processes=1, command="a test")
    return experiment.run(config())


def quiet(tmp_path):
    return Experiment(photos(), tmp_path, rounds=0, processes=0)


def test_a_record_says_what_ran_on_what_and_where(record):
    assert record["id"] == run_id(config().to_json())
    assert (record["status"], record["outcome"]) in {("finished", "trained"), ("finished", "chance")}
    assert record["data"]["sha256"] == photos().sha256
    assert record["data"]["source"] == photos().source
    assert record["environment"]["command"] == "a test"
    assert record["environment"]["torch"] == torch.__version__
    assert record["environment"]["threads"] == 1
    json.dumps(record, allow_nan=False)


def test_a_record_holds_every_epoch_both_evaluations_and_every_prediction(record):
    assert [entry["epoch"] for entry in record["epochs"]] == [1, 2, 3]
    labels = photos().test_labels[:40].tolist()
    for mode in ("as_trained", "exact"):
        final = record["final"][mode]
        right = sum(int(symbol) == label for symbol, label in zip(final["predictions"], labels, strict=True))
        assert final["accuracy"] == pytest.approx(right / 40)
    assert record["final"]["labels"] == "".join(map(str, labels))
    assert record["epochs"][-1]["test_accuracy"] == record["final"]["as_trained"]["accuracy"]
    assert [layer["layer"] for layer in record["layers"]] == ["conv1", "conv3", "conv5"]
    gradients = {row["layer"]: row for row in record["gradients"]}
    assert set(gradients) > {"conv1", "conv2", "conv3", "conv4", "conv5", "conv6"}
    assert 0 < gradients["conv5"]["error"] < 1
    assert -1 < gradients["conv5"]["cosine_min"] <= gradients["conv5"]["cosine"]
    assert 0 < gradients["conv5"]["cosine"] < 1


def test_a_record_holds_the_steps_time_and_its_parts_beside_the_plain_one(record):
    step = record["step"]
    assert step["wrapped_ms"]["q25"] <= step["wrapped_ms"]["median"] <= step["wrapped_ms"]["q75"]
    assert step["plain_ms"]["median"] > 0
    assert step["ratio"]["median"] > 0
    assert min(step["compressing_ms"], step["rest_ms"]) > 0
    assert step["lowering_ms"] == 0  # on a CPU the method lowers nothing
    assert len(step["layers"]) == 3


def test_a_record_holds_the_peak_or_the_reason_why_not(record):
    if record["peak"] is None:
        assert "clear_refs" in record["peak_reason"]
    else:
        assert record["peak"]["wrapped_bytes"]["min"] > 0
        assert record["peak"]["plain_bytes"]["min"] > 0


def test_what_was_not_asked_for_is_null_with_a_reason(tmp_path):
    record = quiet(tmp_path).run(config(epochs=1))
    for what in ("step", "peak"):
        assert record[what] is None
        assert record[f"{what}_reason"]


def test_the_same_run_gives_the_same_record(record, tmp_path):
    again = quiet(tmp_path).run(config())
    for key in ("epochs", "final", "layers", "outcome"):
        ours, theirs = ([{**e, "seconds": 0} for e in r[key]] if key == "epochs" else r[key] for r in (record, again))
        assert ours == theirs


def test_a_plain_run_is_its_own_exact_evaluation_and_has_no_ratio(tmp_path):
    record = Experiment(photos(), tmp_path, rounds=2, processes=0).run(config(**PLAIN, epochs=1))
    assert record["final"]["as_trained"] == record["final"]["exact"]
    assert record["layers"] == record["gradients"] == []
    assert record["step"]["plain_ms"]["median"] > 0
    assert record["step"]["ratio"] is None


def test_an_error_is_recorded_with_its_reason_not_raised(tmp_path):
    record = quiet(tmp_path).run(config(compressor="no-such"))
    assert record["status"] == "failed"
    assert "no-such" in record["reason"]
    assert "Traceback" in record["traceback"]


def test_divergence_is_a_finished_run_and_nothing_is_made_up_after_it(tmp_path):
    record = quiet(tmp_path).run(config(learning_rate=1e20))
    assert (record["status"], record["outcome"]) == ("finished", "diverged")
    assert "epoch" in record["outcome_detail"]
    for what in ("final", "layers", "gradients", "step", "peak"):
        assert record[what] is None
        assert "diverged" in record[f"{what}_reason"]


def test_an_end_at_chance_level_is_said(tmp_path):
    record = quiet(tmp_path).run(config(learning_rate=1e-12, epochs=1))
    assert record["outcome"] == "chance"
    assert "does not exceed chance" in record["outcome_detail"]


def test_a_failed_run_says_of_everything_that_it_was_not_measured(tmp_path):
    record = quiet(tmp_path).run(config(compressor="no-such"))
    assert record["epochs"] == []
    for what in ("final", "layers", "gradients", "step", "peak"):
        assert record[what] is None
        assert record[f"{what}_reason"] == "the run failed"


@pytest.mark.parametrize("what", ["layers", "step", "peak"])
def test_what_cannot_be_measured_does_not_cost_what_was_trained(tmp_path, monkeypatch, what):
    function = {"layers": "measure_layers", "step": "time_steps", "peak": "measure_step_peaks"}[what]

    def broken(*arguments, **options):
        raise MemoryError("too large")

    monkeypatch.setattr(f"lrbench.experiment.{function}", broken)
    record = Experiment(photos(), tmp_path, rounds=1, processes=1 if what == "peak" else 0).run(config(epochs=1))
    assert record["status"] == "finished"
    assert record["final"] is not None
    assert record[what] is None
    assert "too large" in record[f"{what}_reason"]


def test_figures_of_gradients_that_are_no_numbers_are_left_out(tmp_path, monkeypatch):
    row = {"layer": "features.0", "cosine": float("nan"), "cosine_min": 0.5, "error": float("inf"), "bias": 0.1}
    monkeypatch.setattr("lrbench.experiment.measure_gradients", lambda *_: [row])
    record = quiet(tmp_path).run(config(epochs=1))
    assert record["gradients"] == [row | {"cosine": None, "error": None}]


def test_a_resumed_runs_seconds_are_those_of_all_its_epochs(tmp_path):
    run = config(epochs=1)
    experiment = quiet(tmp_path)
    checkpoint = experiment.checkpoint(run_id(run.to_json()))
    assert experiment.run(run)["status"] == "finished"
    state = torch.load(io.BytesIO(read_sealed(checkpoint)), weights_only=True)
    state["history"][0]["seconds"] = 1000.0
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_sealed(checkpoint, buffer.getbuffer())
    assert experiment.run(run)["seconds"] > 1000


def test_a_policys_run_is_measured_beside_the_plain_model(tmp_path):
    policy = Policy({"conv2": LayerPolicy("svd", 0.3), "conv4": LayerPolicy("aca", 0.2, "both")}, lean=True)
    run = config(**POLICY, mask="010100", policy=policy.identity(), epochs=1)
    record = Experiment(photos(), tmp_path, rounds=1, processes=1).run(run)
    assert record["reason"] is None
    assert [(layer["layer"], layer["eps"]) for layer in record["layers"]] == [("conv2", 0.3), ("conv4", 0.2)]
    assert record["step"]["ratio"]["median"] > 0
    assert record["peak"] is None or record["peak"]["wrapped_bytes"]["median"] > 0, record["peak_reason"]
    savings = record["savings"]
    assert savings["lean_freed_bytes"] > 0
    assert savings["plain_bytes"] - savings["lean_freed_bytes"] - savings["freed_bytes"] == savings["held_bytes"]


def test_a_policy_that_only_keeps_bits_is_no_plain_run(tmp_path):
    run = config(**POLICY, mask="000000", policy=Policy({}, lean=True).identity(), epochs=1)
    record = Experiment(photos(), tmp_path, rounds=1, processes=0).run(run)
    assert record["layers"] == []
    assert {row["error"] for row in record["gradients"]} == {0.0}
    assert record["step"]["ratio"]["median"] > 0


def test_the_plain_models_peak_is_that_of_a_model_without_policy(tmp_path, monkeypatch):
    made = []

    def measured(model, x, y, processes):
        made.append((bool(lrbench.lean_modules(model)), len(x), processes))
        return [Peak(1000, 2000)] * processes

    monkeypatch.setattr("lrbench.experiment.measure_step_peaks", measured)
    run = config(**POLICY, mask="000000", policy=Policy({}, lean=True).identity(), epochs=1)
    peak = Experiment(photos(), tmp_path, rounds=0, processes=2).run(run)["peak"]
    assert made == [(False, run.batch_size, 2), (True, run.batch_size, 2)]
    assert peak["wrapped_total_bytes"] == {"median": 2000, "min": 2000, "max": 2000}
