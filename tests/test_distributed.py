"""Several processes on this machine, over loopback, as ``torchrun`` starts them."""

import faulthandler
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import weakref
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from runs import PLAIN, config, photos
from torch import nn

import lrbench.ablate as ablate
import lrbench.training as training
from lrbench import distributed
from lrbench.compressors import NonFiniteBlockError
from lrbench.conv import compressed_layers
from lrbench.experiment import Experiment
from lrbench.grid import Grid, expand
from lrbench.models import build_model
from lrbench.policy import LayerPolicy, Policy
from lrbench.store import run_id
from lrbench.training import train

BESIDE = multiprocessing.get_context("forkserver")
BESIDE.set_forkserver_preload(["runs", "lrbench.experiment"])


def _one(rank, port, work, arguments, results):
    faulthandler.dump_traceback_later(110, file=sys.__stderr__)  # before who started it gives up: where it waits
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "GLOO_SOCKET_IFNAME": "lo"}
    with distributed.processes():
        found = work(*arguments)
    # Outside: a pipe holds so much, and who waits for it to be read would keep the others from their end.
    results.send(found)


def two(work, *arguments):
    """What a function gives in each of two processes; None where it did not end."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    started = []
    for rank in range(2):
        receiver, sender = BESIDE.Pipe(duplex=False)
        process = BESIDE.Process(target=_one, args=(rank, store.port, work, arguments, sender))
        process.start()
        sender.close()
        started.append((process, receiver))
    found = []
    for process, receiver in started:
        try:
            found.append(receiver.recv() if receiver.poll(120) else pytest.fail("the processes wait for each other"))
        except EOFError:
            found.append(None)
        process.join(60)
    return found


def weights(model):
    return [p.detach().numpy().copy() for p in model.parameters()]


def equal(first, second):
    return all((a == b).all() for a, b in zip(first, second, strict=True))


def exact_curves(runs):
    """The losses of every step, and the final weights, in float64 and without dropout."""

    def exact(*arguments):
        model = build_model(*arguments).double()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return model

    found = []
    for run in runs:
        losses = []

        def noted(*numbers, losses=losses, totals=distributed.totals):
            sums = totals(*numbers)
            losses.append(sums[0])
            return sums

        with ExitStack() as patched:
            patched.enter_context(patch("lrbench.distributed.totals", noted))
            patched.enter_context(patch.object(training, "build_model", exact))
            patched.enter_context(patch.object(training, "to_float", lambda images: images.double() / 255))
            found.append((losses, weights(train(run, photos()).model)))
    return found


def test_two_processes_train_as_one_does_with_twice_the_batch():
    # Steps of 8, 8, 8 and 5 images: the last is shared unevenly, and in the second run one of 1 image leaves none.
    ones = [
        config(**PLAIN, batch_size=8, train_size=29, epochs=5, test_size=4),
        config(mask="101000", batch_size=8, train_size=17, epochs=1, test_size=4),
    ]
    alone = exact_curves(ones)
    found = two(exact_curves, [replace(run, batch_size=4, processes=2) for run in ones])
    assert [len(losses) for losses, _ in alone] == [20, 3]
    for (losses, final), *others in zip(alone, *found, strict=True):
        for theirs, ended in others:
            assert theirs == pytest.approx(losses, rel=1e-9)
            for a, b in zip(final, ended, strict=True):
                assert b == pytest.approx(a, rel=1e-6, abs=1e-9)


def trained_weights(run, folder):
    seeds, step = [], training.training_step

    def seen(*arguments):
        seeds.append(torch.initial_seed())
        return step(*arguments)

    def stop(epoch):
        raise InterruptedError

    with patch.object(training, "training_step", seen):
        whole = train(run, photos())
    with pytest.raises(InterruptedError):
        train(run, photos(), folder / "run.pt", stop)
    epochs = []
    resumed = train(run, photos(), folder / "run.pt", epochs.append)
    bases = [
        [layer.compressor.state_dict()["basis"].numpy() for layer in compressed_layers(trained.model).values()]
        for trained in (whole, resumed)
    ]
    return weights(whole.model), weights(resumed.model), bases, sorted(set(seeds)), epochs


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    run = config(compressor="warm", mask="101000", batch_size=7, epochs=2, processes=2, test_size=4)
    return two(trained_weights, run, tmp_path_factory.mktemp("checkpoints"))


def test_processes_hold_equal_weights_though_their_dropout_and_their_bases_differ(warm):
    first, second = warm
    assert equal(first[0], second[0])
    assert len(first[3]) == len(second[3]) == 2
    assert not set(first[3]) & set(second[3])
    assert not any(a.shape == b.shape and (a == b).all() for a, b in zip(first[2][0], second[2][0], strict=True))


def test_a_stopped_run_is_taken_up_bit_for_bit_in_every_process(warm):
    for whole, resumed, bases, _, epochs in warm:
        assert epochs == [2]
        assert equal(whole, resumed)
        assert equal(*bases)


def divergences(runs):
    """Process 1 alone meets a number that is none, in the second step."""
    found = []
    for run in runs:
        steps = []

        def spoilt(images, steps=steps):
            steps.append(1)
            return images.float() / (0 if distributed.rank() == 1 and len(steps) == 2 else 255)

        with patch.object(training, "to_float", spoilt):
            found.append(train(run, photos()).divergence)
    return found


def test_what_diverges_in_one_process_is_divergence_in_all():
    shared = {"processes": 2, "train_size": 30, "batch_size": 5, "test_size": 4, "epochs": 1}
    runs = [config(**PLAIN, **shared), config(mask="100000", **shared)]
    for loss, block in two(divergences, runs):
        assert loss == "epoch 1: the loss became nan in step 2"
        assert block.startswith("epoch 1: 5 of the blocks hold NaN or infinity (indices 0, 1, 2, 3, 4)")


def records(runs, folder, fault):
    """The records of some runs, in the first of which process 1 fails, and how it ended."""
    experiment = Experiment(photos(), folder, rounds=0, processes=0)
    step, found = training.training_step, []

    def failing(model, optimizer, x, y, weight):
        if found or distributed.first():
            return step(model, optimizer, x, y, weight)
        if fault == "forward":
            x = x.new_empty(0, 1)
        logits = model(x)
        if fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise MemoryError(f"no room for {len(logits)} logits")

    with patch.object(training, "training_step", failing):
        try:
            for run in runs if distributed.first() else distributed.announced():
                found.append(experiment.run(run))
        except distributed.ProcessesError as error:
            return found, str(error)
    return found, None


FAILING = [
    config(**PLAIN, processes=2, batch_size=5, train_size=10, test_size=4, epochs=1, seed=seed) for seed in (0, 1)
]


def test_an_error_that_all_know_of_is_recorded_and_the_next_run_begins(tmp_path):
    for found, ended in two(records, FAILING, tmp_path, "forward"):
        assert ended is None
        assert [record["status"] for record in found] == ["failed", "finished"]
        assert "(in process 1 of 2)" in found[0]["reason"]


def reducers_of_errors(run, folder):
    """Of a run that failed, while its error is known still: whether what reduces its gradients is there."""
    seen, made = [], distributed._Replica.__init__

    def noted(replica, model):
        made(replica, model)
        seen.append(weakref.ref(replica.reducer))

    with patch.object(distributed._Replica, "__init__", noted):
        records([run], folder, "forward")
    assert distributed._group.agreed is not None
    return [reducer() is not None for reducer in seen]


def test_an_error_keeps_nothing_that_would_hold_up_the_end_of_the_processes(tmp_path):
    assert two(reducers_of_errors, FAILING[0], tmp_path) == [[False], [False]]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("backward", "process 1 of 2: MemoryError: no room for 5 logits"),
        ("killed", distributed.LOST),
    ],
)
def test_a_process_that_fails_while_others_wait_ends_all_and_the_reason_is_recorded(tmp_path, fault, reason):
    leader, other = two(records, FAILING, tmp_path, fault)
    ((record,), ended) = leader
    assert record["status"] == "failed"
    assert reason in record["reason"]
    assert ended == record["reason"]
    assert other is None if fault == "killed" else other[1] == ended


def test_errors_that_travel_between_processes_arrive_as_they_were():
    error = distributed._portable(NonFiniteBlockError([3, 5]))
    assert error.indices == [3, 5]

    class LocalError(Exception):
        pass

    assert str(distributed._portable(LocalError("here"))) == "LocalError: here"


def test_the_number_of_processes_is_part_of_a_runs_name_and_one_is_not_said():
    run = config()
    assert "processes" not in run.to_json()
    assert run_id(run.to_json()) != run_id(replace(run, processes=2).to_json())
    for given in (run, replace(run, processes=2)):
        assert training.Config.from_json(given.to_json()) == given


def test_a_run_of_more_processes_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"one of 3 processes, and there are 1: .*--nproc-per-node 3"):
        train(config(processes=3), photos())


def test_what_is_promised_for_a_batch_as_a_whole_is_left_out_where_each_process_has_a_part():
    policies = {
        "whole": Policy({"conv1": LayerPolicy("hosvd", 0.3)}),
        "each": Policy({"conv1": LayerPolicy("svd", 0.3)}),
    }
    grid = Grid(["hosvd", "warm"], ["100000"], [0.3], ["both"], [0], policies)
    runs, reasons = expand(grid, config(**PLAIN, processes=2), 10)
    assert [run.compressor for run in runs] == ["warm", "each"]
    assert reasons == [
        "hosvd is left out: its guarantee spans the batch, of which each of 2 processes has a part",
        "policy whole is left out: its guarantee spans the batch, of which each of 2 processes has a part (conv1)",
    ]
    assert len(expand(grid, config(**PLAIN), 10)[0]) == 4


def test_torchrun_and_several_runs_at_a_time_exclude_each_other(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "count", lambda: 2)
    assert ablate.main(["--jobs", "2", "--dry-run", "--out", str(tmp_path)]) == 2
    assert "several runs at a time were asked for under torchrun" in capsys.readouterr().err


def test_torchrun_fills_a_results_folder(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "lrbench.ablate", "--train-size", "12", "--test-size", "4", "--widths", "4", "4", "4"]
    command += ["--epochs", "1", "--batch-size", "3", "--compressors", "svd", "hosvd", "--masks", "000000", "100000"]
    command += ["--eps", "0.3", "--timed-steps", "1", "--peak-processes", "0", "--threads", "1", "--out", str(tmp_path)]
    # A temporary folder of its own: whoever else measures on this machine is not waited for.
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    environment["TMPDIR"] = str(tmp_path / "temporary")
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as launcher:
        try:
            said, errors = launcher.communicate(timeout=200)
        finally:
            launcher.terminate()  # it ends the processes that it started; killed, it would leave them behind
    assert launcher.returncode == 0, errors
    assert said.count("hosvd is left out: its guarantee spans the batch") == 1
    assert said.count("000000 plain, seed 0: test accuracy") == 1
    assert (tmp_path / "report.html").stat().st_size > 0
    found = [json.loads(path.read_text()) for path in Path(tmp_path, "runs").iterdir()]
    assert sorted(str(record["config"]["compressor"]) for record in found) == ["None", "svd"]
    for record in found:
        assert record["status"] == "finished", record["reason"]
        assert record["config"]["processes"] == 2
        assert record["processes"] == list(distributed.NOTES)
        assert len(record["final"]["exact"]["predictions"]) == 4
        assert record["step"]["plain_ms"]["median"] > 0
    assert "processes 2" in (tmp_path / "summary.md").read_text()
