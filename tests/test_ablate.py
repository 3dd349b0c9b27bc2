import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from runs import photos, signal_when_there

import lrbench.ablate as ablate
from lrbench.conv import compressed_layers
from lrbench.experiment import Experiment
from lrbench.request import read_request
from lrbench.store import read_runs, write_run

SMALL = ["--dataset", "photos", "--train-size", "40", "--test-size", "20", "--widths", "4", "4", "4"]
SMALL += ["--epochs", "2", "--batch-size", "20", "--threads", "1"]
QUIET = ["--timed-steps", "0", "--peak-processes", "0", "--jobs", "0"]
GRID = ["--compressors", "svd", "aca-estimate", "--masks", "000000", "100000", "--eps", "0.3"]


def run(out, *more, grid=GRID):
    return ablate.main([*SMALL, *QUIET, *grid, *more, "--out", str(out)])


def results(out):
    """What was computed, without times."""
    kept = ("config", "epochs", "final", "layers", "outcome")
    runs = {record["id"]: {key: record[key] for key in kept} for record in read_runs(out)}
    for record in runs.values():
        record["epochs"] = [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in record["epochs"]]
    return runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    assert run(out) == 0
    return out


def test_a_grid_ends_in_runs_tables_figures_and_a_page(finished):
    assert len(results(finished)) == 3
    for name in ("runs.csv", "epochs.csv", "layers.csv", "summary.md", "report.html", "figures/accuracy.png"):
        assert (finished / name).stat().st_size > 0, name
    assert not list((finished / "checkpoints").glob("*"))


def test_a_record_that_cannot_be_written_is_a_failed_run_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    import lrbench.experiment as experiment

    def measured(model, batches, seed):
        rows = measure(model, batches, seed)
        names = {layer.compressor.name for layer in compressed_layers(model).values()}
        return [row | {"of_another": float("nan")} for row in rows] if "aca-estimate" in names else rows

    measure = experiment.measure_layers
    monkeypatch.setattr(experiment, "measure_layers", measured)
    assert run(tmp_path) == 1
    status = {record["config"]["compressor"]: record["status"] for record in read_runs(tmp_path)}
    assert status == {None: "finished", "svd": "finished", "aca-estimate": "failed"}
    assert "its record cannot be written" in capsys.readouterr().err


def test_the_same_command_again_does_nothing(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in (finished / "runs").iterdir()}
    assert run(finished) == 0
    assert "3 of 3 runs are done already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (finished / "runs").iterdir()} == before


def test_a_larger_grid_does_only_what_is_missing_and_force_does_all(finished, tmp_path, capsys):
    grown = tmp_path / "grown"
    (grown / "runs").mkdir(parents=True)
    for path in (finished / "runs").iterdir():
        (grown / "runs" / path.name).write_bytes(path.read_bytes())
    assert run(grown, "--seeds", "0", "1") == 0
    assert "3 of 6 runs are done already" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (grown / "runs").iterdir()}
    assert run(grown, "--force") == 0
    after = {path: path.stat().st_mtime_ns for path in (grown / "runs").iterdir()}
    assert sum(after[path] != before[path] for path in before) == 3
    assert results(grown).items() >= results(finished).items()


def test_force_that_is_interrupted_loses_no_run_and_is_gone_on_with(tmp_path, monkeypatch, finished, capsys):
    runs = tmp_path / "runs"
    runs.mkdir()
    for path in (finished / "runs").iterdir():
        (runs / path.name).write_bytes(path.read_bytes())
    before = {path.name: path.read_bytes() for path in runs.iterdir()}
    done = 0

    def interrupted(folder, record):
        nonlocal done
        done += 1
        if done == 2:
            raise KeyboardInterrupt
        return write_run(folder, record)

    monkeypatch.setattr(ablate, "write_run", interrupted)
    assert run(tmp_path, "--force") == 130
    assert "the same command without --force goes on from there" in capsys.readouterr().err
    kept = {path.name.removesuffix(".replaced"): path.read_bytes() for path in runs.glob("*.replaced")}
    assert len(kept) == 2
    assert kept.items() <= before.items()
    monkeypatch.undo()
    assert run(tmp_path) == 0
    assert "1 of 3 runs are done already" in capsys.readouterr().out
    assert results(tmp_path) == results(finished)
    assert {path.name for path in runs.iterdir()} == set(before)
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_an_earlier_run_is_kept_where_the_new_one_fails(tmp_path, monkeypatch, finished):
    (tmp_path / "runs").mkdir()
    for path in (finished / "runs").iterdir():
        (tmp_path / "runs" / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(Experiment, "_fill", lambda *_, **__: 1 / 0)
    assert run(tmp_path, "--force") == 1
    assert {record["status"] for record in read_runs(tmp_path)} == {"failed"}
    assert len(list((tmp_path / "runs").glob("*.replaced"))) == 3


def test_what_was_not_measured_is_said_when_it_is_asked_for_later(finished, capsys):
    arguments = [*SMALL, "--timed-steps", "2", "--peak-processes", "0", *GRID, "--out", str(finished)]
    assert ablate.main(arguments) == 0
    assert "3 of them hold no step measurement" in capsys.readouterr().out


def test_a_disk_that_fills_up_is_said_in_one_sentence_and_loses_nothing(tmp_path, monkeypatch, capsys):
    def full(folder, record):
        if record["config"]["compressor"] is not None:
            raise OSError(28, "No space left on device")
        return write_run(folder, record)

    monkeypatch.setattr(ablate, "write_run", full)
    assert run(tmp_path) == 1
    assert "No space left" in capsys.readouterr().err
    assert len(read_runs(tmp_path)) == 1


def test_a_dry_run_lists_the_runs_and_which_are_done_and_does_none(finished, tmp_path, capsys):
    assert run(finished, "--dry-run", "--seeds", "0", "1") == 0
    out = capsys.readouterr().out
    assert out.count("finished  ") == 3
    assert out.count("missing  ") == 3
    assert "mask 000000 compresses no layer" in out
    assert run(tmp_path / "none", "--dry-run") == 0
    assert not (tmp_path / "none").exists()


def test_a_failing_run_is_recorded_the_others_go_on_and_the_status_says_so(tmp_path, monkeypatch, capsys):
    import lrbench.experiment as experiment

    train = experiment.train

    def failing(config, *arguments):
        if config.compressor == "svd":
            raise MemoryError("not enough")
        return train(config, *arguments)

    monkeypatch.setattr(experiment, "train", failing)
    assert run(tmp_path) == 1
    assert "not enough" in capsys.readouterr().err
    states = {record["config"]["compressor"]: record["status"] for record in read_runs(tmp_path)}
    assert states == {None: "finished", "svd": "failed", "aca-estimate": "finished"}
    monkeypatch.undo()
    assert run(tmp_path) == 1
    assert "--retry-failed" in capsys.readouterr().err
    assert run(tmp_path, "--retry-failed") == 0
    assert {record["status"] for record in read_runs(tmp_path)} == {"finished"}


INTERRUPTED = """
import sys, time
from pathlib import Path
import lrbench.ablate, lrbench.training

epochs, train = [], lrbench.training._train_epoch

def pausing(*arguments):
    epochs.append(1)
    if len(epochs) == 4:  # the last epoch of the second run: one run is finished, one has a checkpoint
        Path(sys.argv[1]).touch()
        time.sleep(600)
    return train(*arguments)

lrbench.training._train_epoch = pausing
sys.exit(lrbench.ablate.main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_an_interrupted_grid_is_completed_by_the_same_command(finished, tmp_path, sent, status):
    paused = tmp_path / "paused"
    command = [sys.executable, "-c", INTERRUPTED, str(paused), *SMALL, *QUIET, *GRID, "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    errors = signal_when_there(paused, process, sent)
    assert process.returncode == status, errors
    if sent == signal.SIGINT:
        assert "the same command goes on" in errors
        assert "Traceback" not in errors
    assert len(read_runs(tmp_path)) == 1
    assert len(list((tmp_path / "checkpoints").glob("*"))) == 1
    assert run(tmp_path) == 0
    assert results(tmp_path) == results(finished)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--compressors", "svf"], "svd"),
        (["--masks", "1010"], "conv1, conv2, conv3, conv4, conv5, conv6"),
        (["--masks", "10101x"], "matches no convolution"),
        (["--eps", "0"], "(0, 1]"),
        (["--eps", "1.5"], "(0, 1]"),
        (["--path", "up"], "forward, backward, both"),
        (["--train-size", "0"], "--train-size is 0"),
        (["--test-size", "100000"], "1 to 500"),
        (["--epochs", "0"], "at least 1"),
        (["--widths", "4", "4"], "three"),
        (["--learning-rate", "0"], "positive"),
        (["--learning-rate", "inf"], "positive"),
        (["--jobs", "-1"], "--jobs is -1"),
        (["--jobs", "1", "--run-timeout", "0"], "--run-timeout is 0"),
        (["--run-timeout", "5"], "--jobs of at least 1"),
        (["--device", "nowhere"], "--device is nowhere"),
        (["--dataset", "cifar10", "--data-dir", "/nonexistent"], "/nonexistent"),
        (["--data-dir", "/nonexistent"], "add --dataset cifar10"),
        (["--data-dir", "/nonexistent", "--dry-run"], "add --dataset cifar10"),
        (["--policies", "/nonexistent/tuned.toml"], "the policy /nonexistent/tuned.toml cannot be read"),
        (["--compressors", "--masks", "100000"], "no run is left"),
    ],
)
def test_a_bad_request_gets_one_sentence_and_loses_nothing(finished, more, message, capsys):
    before = sorted(path.name for path in (finished / "runs").iterdir())
    assert run(finished, *more) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert sorted(path.name for path in (finished / "runs").iterdir()) == before


def test_a_results_folder_that_cannot_be_written_is_refused_before_anything_runs(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file") == 2
    assert "--out" in capsys.readouterr().err


def test_presets_are_defaults_that_options_override():
    demo = read_request([])
    assert (demo.preset, demo.dataset, demo.out) == ("demo", "photos", Path("results/demo"))
    cifar10 = read_request(["--dataset", "cifar10", "--epochs", "3", "--eps", "0.3"])
    assert (cifar10.preset, cifar10.epochs) == ("cifar10", 3)
    assert cifar10.grids[0]["masks"] == ["000000", "100000", "101010"]
    assert cifar10.grids[0]["eps"] == [0.3]
    assert read_request(["--preset", "cifar10"]).epochs == 20


def test_a_preset_that_names_its_data_takes_a_folder_for_them(tmp_path, capsys):
    arguments = ["--preset", "paper", "--data-dir", str(tmp_path), "--dry-run"]
    assert ablate.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert f"--data-dir names {tmp_path}, but it holds no" in capsys.readouterr().err


def test_an_option_holds_for_every_grid_of_a_preset():
    grids = read_request(["--preset", "paper", "--eps", "0.2"]).grids
    assert [grid["eps"] for grid in grids] == [[0.2], [0.2]]
    assert [grid["compressors"] for grid in grids] == [["aca-estimate", "svd"], ["svd-same-rank", "svd-same-error"]]


def test_a_preset_gives_its_widths_and_masks_to_the_papers_network_alone(tmp_path, capsys):
    arguments = ["--model", "resnet20", *SMALL[:6], *QUIET, "--compressors", "svd", "--out", str(tmp_path)]
    assert ablate.main([*arguments, "--dry-run"]) == 0
    implied = capsys.readouterr().out
    assert f"{'0' * 19} plain" in implied
    masks = ["0" * 19, "1" + "0" * 18, "10" * 9 + "1"]
    assert ablate.main([*arguments, "--widths", "16", "32", "64", "--masks", *masks, "--dry-run"]) == 0
    assert capsys.readouterr().out == implied


def test_every_run_of_a_folder_is_json_with_the_command_that_gave_it(finished):
    for path in (finished / "runs").iterdir():
        record = json.loads(path.read_text())
        assert record["environment"]["command"].startswith("python -m lrbench.ablate --dataset photos")
        assert record["data"]["name"] == photos().name


def test_policies_run_beside_the_plain_model_and_are_reported(tmp_path, capsys):
    (tmp_path / "tuned.toml").write_text('lean = true\n[layers.conv4]\ncompressor = "svd"\neps = 0.3\n')
    (tmp_path / "bits.toml").write_text("lean = true\n")
    files = [str(tmp_path / name) for name in ("tuned.toml", "bits.toml")]
    grid = ["--compressors", "--masks", "000000", "--policies", *files]
    assert run(tmp_path / "out", grid=grid) == 0
    found = {record["config"]["compressor"]: record for record in read_runs(tmp_path / "out")}
    assert set(found) == {None, "tuned", "bits"}
    assert [layer["layer"] for layer in found["tuned"]["layers"]] == ["conv4"]
    plain, bits = ([epoch["test_loss"] for epoch in found[name]["epochs"]] for name in (None, "bits"))
    assert plain == bits, "bits change no number"
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "| 000100 | tuned | – | – |" in summary
    capsys.readouterr()
    assert run(tmp_path / "out", "--dry-run", grid=grid) == 0
    out = capsys.readouterr().out
    assert "finished  000100 policy tuned, seed 0" in out
    assert "finished  000000 policy bits, seed 0" in out
    assert "3 runs, 3 finished" in out
