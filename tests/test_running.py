"""Runs in processes of their own: the same numbers, and no harm to the grid from one that dies."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace

import misbehaving
import pytest
import torch
from misbehaving import install
from runs import PLAIN, config, photos, signal_when_there
from test_ablate import GRID, QUIET, SMALL, results

import lrbench
import lrbench.ablate as ablate
from lrbench import compressors
from lrbench.compressors.svd import TruncatedSVD
from lrbench.experiment import Experiment
from lrbench.running.job import Job, Setting
from lrbench.running.local import _environments, in_processes
from lrbench.running.machine import Machine
from lrbench.running.process import Lost, MachineError, RunProcess
from lrbench.running.termination import Terminated, terminable
from lrbench.store import read_runs

COMMAND = [*SMALL, "--timed-steps", "0", "--peak-processes", "0"]


def setting(folder):
    return Setting("photos", None, str(folder / "checkpoints"), 0, 0, "a test", "")


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """No report, and compressors that misbehave: in this process, and in those that it starts."""
    monkeypatch.setattr("lrbench.report.write_report", lambda folder: folder)
    for name, value in install(tmp_path).items():
        monkeypatch.setenv(name, value)
    compressors.list_compressors()
    before = dict(compressors._classes)
    for name in ("killed", "crashing", "hanging", "raising"):
        lrbench.register(name)(getattr(misbehaving, name.capitalize()))
    yield
    compressors._classes.clear()
    compressors._classes.update(before)


def test_a_grid_in_processes_side_by_side_gives_what_it_gives_in_one(tmp_path, quick):
    assert ablate.main([*SMALL, *QUIET, *GRID, "--out", str(tmp_path / "one")]) == 0
    assert ablate.main([*COMMAND, *GRID, "--jobs", "2", "--out", str(tmp_path / "two")]) == 0
    assert len(results(tmp_path / "two")) == 3
    assert results(tmp_path / "two") == results(tmp_path / "one")
    assert not list((tmp_path / "two" / "checkpoints").glob("*"))


def test_runs_that_die_hang_or_raise_are_recorded_and_left_until_a_retry_is_asked_for(tmp_path, quick, capsys):
    names = ["killed", "crashing", "hanging", "raising"]
    grid = ["--compressors", *names, "--masks", "000000", "100000", "--eps", "0.3", "--epochs", "1"]
    command = [*COMMAND, *grid, "--run-timeout", "15", "--out", str(tmp_path / "out")]

    def files():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").iterdir()}

    assert ablate.main(command) == 1
    reasons = {record["config"]["compressor"]: record["reason"] for record in read_runs(tmp_path / "out")}
    assert reasons[None] is None
    assert "SIGKILL" in reasons["killed"]
    assert "memory" in reasons["killed"]
    assert "SIGSEGV" in reasons["crashing"]
    assert reasons["hanging"] == "TimeoutError: it took longer than 15 s"
    assert "MemoryError: not enough" in reasons["raising"]
    before = files()
    capsys.readouterr()
    assert ablate.main(command) == 1
    said = capsys.readouterr()
    assert "1 of 5 runs are done already" in said.out
    assert said.err.count("--retry-failed") == 4
    assert "SIGSEGV" in said.err
    assert files() == before
    (tmp_path / "behave").touch()
    assert ablate.main([*command, "--retry-failed"]) == 0
    assert {record["status"] for record in read_runs(tmp_path / "out")} == {"finished"}
    assert sum(files()[path] != before[path] for path in before) == 4


def test_a_run_that_hangs_is_ended_when_its_time_is_up(tmp_path, quick):
    process = RunProcess()
    hanging = Job(setting(tmp_path), config(compressor="hanging", compressor_version=TruncatedSVD.version, epochs=1))
    outcome = process.run(hanging.to_json(), 1, lambda epoch: None)
    assert isinstance(outcome, Lost)
    assert outcome.reason == "TimeoutError: it took longer than 1 s"
    assert outcome.seconds < 120
    assert not process.alive


def test_a_job_says_what_the_machine_lacks_and_leaves_no_folder_where_there_was_none(tmp_path):
    nowhere = replace(setting(tmp_path), checkpoints=str(tmp_path / "elsewhere" / "checkpoints"))
    with pytest.raises(ValueError, match="SHA-256"):
        Job(nowhere, config(data_sha256="0" * 64)).run(lambda epoch: None)
    with pytest.raises(ValueError, match="svd has another version"):
        Job(nowhere, config(compressor_version=77)).run(lambda epoch: None)
    assert Job(nowhere, config(**PLAIN, epochs=1)).run(lambda epoch: None)["status"] == "finished"
    assert not list(tmp_path.iterdir())
    job = Job(replace(nowhere, checkpoints=str(tmp_path / "checkpoints")), config(**PLAIN, epochs=1))
    assert Job.from_json(job.to_json()) == job
    job.run(lambda epoch: None)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_a_disk_that_is_full_for_a_checkpoint_ends_the_command_and_is_no_runs_failure(tmp_path, quick, capfd):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoints").touch()  # where no folder can be made: as good as a full disk, for root too
    command = [*COMMAND, "--compressors", "--masks", "000000", "--seeds", "0", "1", "--out", str(tmp_path / "out")]
    assert ablate.main(command) == 1
    errors = capfd.readouterr().err
    assert errors.count("cannot be written") == 1
    assert "failed:" not in errors
    assert "Traceback" not in errors
    assert read_runs(tmp_path / "out") == []


def test_a_machine_that_cannot_do_a_run_ends_the_command_and_is_named(tmp_path):
    strange = [Job(setting(tmp_path), config(data_sha256="0" * 64, seed=seed)) for seed in (0, 1)]
    with pytest.raises(MachineError, match=f"{socket.gethostname()} .*SHA-256.*give this machine the same data"):
        list(in_processes(strange, 1, None, lambda *_: None))


def test_a_process_whose_gpu_met_an_error_does_no_other_run(tmp_path, monkeypatch):
    made = []

    class Fake:
        def __init__(self, environment):
            self.alive = True
            made.append(self)

        def run(self, job, limit, on_epoch):
            return {"status": "failed" if len(made) == 1 else "finished"}

        def end(self):
            self.alive = False

    monkeypatch.setattr("lrbench.running.local.RunProcess", Fake)
    for device, processes in (("cuda", 2), ("cpu", 1)):
        made.clear()
        jobs = [Job(setting(tmp_path), config(device=device, seed=seed)) for seed in (0, 1, 2)]
        assert len(list(in_processes(jobs, 1, None, lambda *_: None))) == 3
        assert len(made) == processes


def test_a_lost_run_of_a_gpu_that_is_elsewhere_is_recorded(tmp_path):
    record = Experiment(photos(), tmp_path).failed(config(device="cuda"), "it was killed", 1.0)
    assert (record["reason"], record["status"]) == ("it was killed", "failed")
    if not torch.cuda.is_available():
        assert record["environment"]["device"] == "cuda"


def test_that_no_process_can_be_started_ends_the_command(tmp_path, monkeypatch):
    def none(environment):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr("lrbench.running.local.RunProcess", none)
    with pytest.raises(BlockingIOError):
        list(in_processes([Job(setting(tmp_path), config())], 1, None, lambda *_: None))


def test_processes_side_by_side_see_the_gpus_in_turn_where_cuda_leaves_the_choice(tmp_path, monkeypatch):
    def seen(device, count):
        jobs = [Job(setting(tmp_path), config(device=device))] * 3
        return [environment.get("CUDA_VISIBLE_DEVICES") for environment in _environments(jobs, count)]

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert seen("cuda", 3) == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert seen("cuda", 3) == ["3", "5", "3"]
    assert seen("cuda", 1) == [None]
    assert seen("cuda:1", 3) == seen("cpu", 3) == [None] * 3


def _gone(pid):
    for _ in range(200):
        with suppress(ProcessLookupError):
            os.kill(pid, 0)
            time.sleep(0.05)
            continue
        return True
    return False


def wait_for_process_in(file, starter):
    while not (file.exists() and file.read_text()) and starter.poll() is None:
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_command_that_ends_leaves_no_process_behind_and_keeps_what_is_finished(tmp_path, sent, status):
    environment = {**os.environ, **install(tmp_path)}
    grid = ["--compressors", "hanging", "--masks", "000000", "100000", "--eps", "0.3"]
    command = [sys.executable, "-m", "lrbench.ablate", *COMMAND, *grid, "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    hanging = tmp_path / "behave.pid"
    if sent == signal.SIGTERM:  # as Slurm sends it: to all processes of a job, and in no order
        wait_for_process_in(hanging, process)
        os.kill(int(hanging.read_text()), sent)
        time.sleep(0.3)
    errors = signal_when_there(hanging, process, sent)
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    assert (tmp_path / "out" / ".holder").exists() == (sent == signal.SIGKILL)
    assert _gone(int(hanging.read_text()))
    assert [record["config"]["compressor"] for record in read_runs(tmp_path / "out")] == [None]


def test_being_asked_to_end_is_an_interrupt_while_it_lasts_and_in_the_main_thread_alone():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), terminable():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    entered = []

    def elsewhere():
        with terminable():
            entered.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert entered == [before]


def test_who_measures_has_the_machine_alone_and_goes_before_who_comes_later(tmp_path):
    first, second, third = (Machine(tmp_path) for _ in range(3))
    order = []

    def measure():
        with second.shared():
            order.append("second trains")
            with second.alone():
                order.append("second measures")
                time.sleep(0.2)
                order.append("second has measured")

    def train():
        with third.shared():
            order.append("third trains")

    with first.shared():
        measuring = threading.Thread(target=measure)
        measuring.start()
        time.sleep(0.2)
        training = threading.Thread(target=train)
        training.start()
        time.sleep(0.2)
        assert order == ["second trains"]
        first.make_way()
        order.append("first trains on")
    measuring.join()
    training.join()
    assert order[:3] == ["second trains", "second measures", "second has measured"]
    assert set(order[3:]) == {"first trains on", "third trains"}


def test_waiting_for_the_machine_does_not_use_up_a_runs_time(tmp_path):
    first, second = Machine(tmp_path), Machine(tmp_path)
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    try:
        with first.shared(), second.shared():
            threading.Timer(0.5, second._leave).start()
            signal.setitimer(signal.ITIMER_REAL, 0.25)
            with first.alone():
                assert not rung
                assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 0.25
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_who_waits_long_for_the_machine_says_for_what(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("lrbench.running.machine.PATIENCE", 0.1)
    first, second = Machine(tmp_path), Machine(tmp_path)
    with first.shared(), second.shared(), caplog.at_level("WARNING", "lrbench"):
        threading.Timer(0.5, first._leave).start()
        with second.alone():
            assert "waiting to measure alone" in caplog.text
            caplog.clear()
            threading.Timer(0.5, second._leave).start()
            first.make_way()
        assert "waiting to train on" in caplog.text
        caplog.clear()
        time.sleep(0.3)
        second.make_way()
        assert not caplog.text


@pytest.mark.parametrize("way", ["in the command's process", "in one of its own"])
def test_a_run_trains_beside_others_on_the_machine_and_is_timed_alone(tmp_path, monkeypatch, way):
    import lrbench.experiment as experiment

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("lrbench.report.write_report", lambda folder: folder)
    refused = {}

    def others_may(what):
        with (tmp_path / f"lrbench-{os.getuid()}.room").open("a") as room:
            try:
                fcntl.flock(room, {"train": fcntl.LOCK_SH, "measure": fcntl.LOCK_EX}[what] | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    def watched(name):
        original = getattr(experiment, name)

        def call(*arguments, **options):
            refused[name] = {what for what in ("train", "measure") if not others_may(what)}
            return original(*arguments, **options)

        monkeypatch.setattr(experiment, name, call)

    watched("train")
    watched("time_steps")
    if way == "in one of its own":
        Job(replace(setting(tmp_path), rounds=1), config(**PLAIN, epochs=1)).run(lambda epoch: None)
    else:
        grid = ["--compressors", "--masks", "000000", "--epochs", "1", "--timed-steps", "1", "--peak-processes", "0"]
        assert ablate.main([*SMALL, *grid, "--jobs", "0", "--out", str(tmp_path / "out")]) == 0
    assert refused == {"train": {"measure"}, "time_steps": {"train", "measure"}}


def test_steps_are_timed_alone_and_nothing_else_is_done_so(tmp_path, monkeypatch):
    import lrbench.experiment as experiment
    from lrbench.measure.memory import Peak

    states, alone = {}, [False]

    class Alone:
        def __enter__(self):
            alone[0] = True

        def __exit__(self, *_):
            alone[0] = False

    def watched(name, given=None):
        original = getattr(experiment, name)

        def call(*arguments, **options):
            states.setdefault(name, set()).add(alone[0])
            return original(*arguments, **options) if given is None else given

        monkeypatch.setattr(experiment, name, call)

    for name in ("train", "evaluate", "measure_layers", "measure_savings", "time_steps", "split_steps"):
        watched(name)
    watched("measure_step_peaks", [Peak(1000, 2000)])
    record = Experiment(photos(), tmp_path, 1, 1, alone=Alone).run(config(epochs=1))
    assert record["peak"] is not None
    assert {name for name, seen in states.items() if seen == {True}} == {
        "time_steps",
        "split_steps",
    }
    assert {name for name, seen in states.items() if seen == {False}} == states.keys() - {"time_steps", "split_steps"}
