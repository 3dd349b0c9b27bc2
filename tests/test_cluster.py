"""A Dask cluster on this machine: the same numbers, whatever happens to its workers."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest
from misbehaving import install
from runs import PLAIN, config
from test_ablate import SMALL, results

import lrbench.ablate as ablate
from lrbench.files import UnwritableError
from lrbench.running.job import Job, Setting
from lrbench.running.process import MachineError
from lrbench.store import read_runs

distributed = pytest.importorskip("distributed")

GRID = ["--compressors", "svd", "aca-estimate", "--masks", "000000", "100000", "--eps", "0.3"]
COMMAND = [*SMALL, "--timed-steps", "0", "--peak-processes", "0"]


def wait_for(condition, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A scheduler and two workers, of one thread each, by name."""
    folder = tmp_path_factory.mktemp("cluster")
    environment = {**os.environ, **install(folder)}
    file = folder / "scheduler.json"
    with ExitStack() as stack:

        def start(module, *arguments):
            command = [
                sys.executable,
                "-m",
                f"distributed.cli.{module}",
                "--scheduler-file",
                str(file),
                "--no-dashboard",
            ]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            process = subprocess.Popen([*command, *arguments], env=environment, **quiet)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        start("dask_scheduler", "--host", "127.0.0.1", "--port", "0")
        wait_for(file.exists)
        workers = {
            name: start("dask_worker", "--no-nanny", "--nthreads", "1", "--name", name, "--host", "127.0.0.1")
            for name in ("a", "b")
        }
        with distributed.Client(scheduler_file=str(file)) as client:
            wait_for(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 2)
            yield folder, client, workers


def ablation(folder, out, *more):
    command = [sys.executable, "-m", "lrbench.ablate", *COMMAND, *more, "--out", str(out)]
    command += ["--scheduler-file", str(folder / "scheduler.json")]
    environment = {**os.environ, "PYTHONPATH": str(folder), "BEHAVE": str(folder / "behave")}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def running(client):
    """Names of workers that do a run."""
    info = client.scheduler_info(n_workers=-1)["workers"]
    return {info[address]["id"]: keys for address, keys in client.processing().items() if keys}


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_interrupted_command_ends_its_runs_on_the_workers(cluster, tmp_path):
    folder, client, _ = cluster
    grid = ["--compressors", "hanging", "--masks", "100000", "--eps", "0.3"]
    command = ablation(folder, tmp_path, *grid)
    hanging = folder / "behave.pid"
    wait_for(lambda: hanging.exists() or command.poll() is not None)
    command.send_signal(signal.SIGINT)
    _, errors = command.communicate(timeout=60)
    assert command.returncode == 130, errors
    wait_for(lambda: not alive(int(hanging.read_text())), 30)
    wait_for(lambda: not running(client), 30)
    assert read_runs(tmp_path) == []


def test_a_request_that_the_cluster_cannot_meet_gets_one_sentence(cluster, tmp_path, capsys):
    folder, client, _ = cluster
    file = ["--scheduler-file", str(folder / "scheduler.json")]
    address = ["--scheduler", client.scheduler.address]
    assert ablate.main([*COMMAND, *GRID, "--threads", "7", *address, "--out", str(tmp_path)]) == 1
    assert "no worker has 7 threads for a run, but 1 at most" in capsys.readouterr().err
    assert ablate.main([*COMMAND, *GRID, "--device", "cuda", *file, "--out", str(tmp_path)]) == 1
    assert "--resources GPU=1" in capsys.readouterr().err
    missing = ["--scheduler-file", str(folder / "none.json")]
    assert ablate.main([*COMMAND, *GRID, *missing, "--out", str(tmp_path)]) == 2
    assert "there is no scheduler file" in capsys.readouterr().err
    assert read_runs(tmp_path) == []


def test_that_no_scheduler_answers_is_said_in_one_sentence(tmp_path, monkeypatch, capsys):
    import lrbench.running.cluster as cluster

    monkeypatch.setattr(cluster, "Client", lambda *given, timeout, **named: distributed.Client(*given, timeout=0.2))
    nobody = "tcp://127.0.0.1:1"
    assert ablate.main([*COMMAND, *GRID, "--scheduler", nobody, "--out", str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"lrbench.ablate: no scheduler answers at {nobody}: ")
    assert errors.count("\n") == 1


def test_a_run_asks_for_its_threads_and_its_gpu(tmp_path, monkeypatch):
    import lrbench.running.cluster as cluster

    asked = []

    class Recording:
        status = "finished"

        def scheduler_info(self, **_):
            return {"workers": {}}

        def submit(self, *given, resources, **named):
            asked.append(resources)
            return Recording()

        def result(self):
            return {}

        def cancel(self, *given, **named):
            pass

    monkeypatch.setattr(cluster, "as_completed", list)
    setting = Setting("photos", None, str(tmp_path), 0, 0, "a test", "")
    jobs = [Job(setting, config(threads=3)), Job(setting, config(device="cuda:0", threads=2))]
    assert list(cluster.on_cluster(Recording(), jobs, None)) == [(0, {}), (1, {})]
    assert asked == [{cluster.THREADS: 3}, {cluster.THREADS: 2, cluster.GPU: 1}]


def test_a_worker_that_lacks_the_data_or_room_ends_the_command_and_spoils_no_run(cluster, tmp_path):
    from lrbench.running.cluster import connect, on_cluster

    folder, _, _ = cluster
    setting = Setting("photos", None, str(tmp_path / "checkpoints"), 0, 0, "a test", "")
    strange = [Job(setting, config(data_sha256="0" * 64))]
    with connect(None, folder / "scheduler.json") as client:
        with pytest.raises(MachineError, match=f"{socket.gethostname()} .*SHA-256.*give this machine the same data"):
            list(on_cluster(client, strange, None))
        (tmp_path / "checkpoints").touch()  # where no folder can be made: as good as a full disk, for root too
        with pytest.raises(UnwritableError, match=f"{tmp_path}/checkpoints/.* cannot be written"):
            list(on_cluster(client, [Job(setting, config(**PLAIN))], None))


def test_a_grid_outlives_a_worker_and_a_run_that_dies_and_gives_what_it_gives_here(cluster, tmp_path):
    folder, client, workers = cluster
    grid = ["--compressors", "svd", "aca-estimate", "crashing", "--masks", "000000", "100000", "--eps", "0.3"]
    grid += ["--epochs", "4"]
    command = ablation(folder, tmp_path / "there", *grid)
    checkpoints = tmp_path / "there" / "checkpoints"
    wait_for(lambda: list(checkpoints.glob("*.pt")) or command.poll() is not None)
    victim = next(iter(running(client)))
    workers[victim].kill()
    _, errors = command.communicate(timeout=900)
    assert command.returncode == 1, errors
    failed = [record for record in read_runs(tmp_path / "there") if record["status"] == "failed"]
    assert {record["config"]["compressor"] for record in failed} == {"crashing"}
    assert all("SIGSEGV" in record["reason"] for record in failed)
    grid.remove("crashing")
    assert ablate.main([*COMMAND, *grid, "--jobs", "0", "--out", str(tmp_path / "here")]) == 0
    here, there = results(tmp_path / "here"), results(tmp_path / "there")
    assert len(here) == 3
    assert {name: there[name] for name in here} == here
    assert not list(checkpoints.glob("*.pt"))
