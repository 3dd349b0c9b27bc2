"""The benchmark of training steps: what a row says of the processes that measured it."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lrbench.conv import compressed_layers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # benchmarks are not installed
from benchmarks import training
from benchmarks.training import Case


def row(ratios, **promised):
    """The cells of a row; one step in nine is an outlier that a mean over rounds would show."""
    plain = [0.1] * 8 + [9.0]
    measured = [{"plain": plain, "wrapped": [0.1 * ratio] * 8 + [5.0]} for ratio in ratios]
    case = Case("100000", "svd", 0.1, "both", **promised)
    return [cell.strip() for cell in training._row(case, measured).strip("|").split("|")]


def test_a_ratio_is_the_geometric_mean_of_the_processes_ratios_of_medians():
    cells = row([0.5, 2.0])
    assert cells[1:5] == ["2", "100.0", "100.0", "1.000"]
    assert cells[6] == "[0.500, 2.000]"


def test_the_interval_is_students_over_processes_and_no_wider_for_more_rounds():
    logs = np.log([0.9, 1.0, 1.1, 1.2])
    # The 95 % quantile of t with three degrees of freedom, from a table.
    half = 2.353363 * logs.std(ddof=1) / 2
    least, most = map(float, row([0.9, 1.0, 1.1, 1.2])[5].split(" to "))
    assert (least, most) == pytest.approx(tuple(np.exp([logs.mean() - half, logs.mean() + half])), abs=6e-4)


def test_a_bound_is_kept_or_missed_and_told_apart_from_what_the_mean_alone_says():
    assert row([1.04, 1.05, 1.04], bound=1.2)[-2:] == ["≤ 1.20", "kept"]
    assert row([1.04, 1.05, 1.04], bound=1.0)[-2:] == ["≤ 1.00", "missed"]
    assert row([0.8, 1.2, 1.1], bound=1.05)[-1] == "kept, by the mean alone"
    assert row([0.9, 1.2, 1.1], bound=1.05)[-1] == "missed, by the mean alone"


def test_with_kept_factors_a_step_as_long_as_the_plain_one_misses_its_bound():
    assert row([0.5, 2.0], bound=1.0)[-1] == "kept, by the mean alone"
    assert row([0.5, 2.0], bound=1.0, keeps=True)[-2:] == ["< 1.00", "missed, by the mean alone"]


def images_of(records):
    return torch.rand(100, 3, 8, 8), torch.zeros(100, dtype=torch.int64), "noise"


def test_both_kinds_of_step_train_the_same_parameters_with_the_same_optimizer(monkeypatch):
    seen = []
    monkeypatch.setattr(training, "images_of", images_of)
    monkeypatch.setattr(training, "training_step", lambda model, optimizer, *_: seen.append((optimizer, model)))
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 2))
    training._measure(Case("1", "svd", 0.1, "both", keeps=True), model, None, 2)
    optimizers = {id(optimizer): optimizer for optimizer, _ in seen}
    assert len(optimizers) == len(training.FORMATS)
    for key, optimizer in optimizers.items():
        models = {id(trained): trained for made, trained in seen if id(made) == key}.values()
        assert sorted(len(compressed_layers(trained)) for trained in models) == [0, 1]
        trained_by = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for trained in models:
            assert {id(parameter) for parameter in trained.parameters()} == trained_by


def test_all_is_measured_where_memory_is_kept_and_what_is_promised_by_default_too(monkeypatch, tmp_path):
    told = []

    def apart(variables, case, *_):
        told.append((case, {name for name in variables if name.startswith("MALLOC_")}))
        return {"plain": [0.1], "wrapped": [0.1 + 0.01 * len(told)], "kept_bytes": 7}

    monkeypatch.setattr(training, "images_of", images_of)
    monkeypatch.setattr(training, "trained_network", lambda images, labels: None)
    monkeypatch.setattr(training, "_apart", apart)
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1000000")  # of whoever calls: it is not to count
    training.main(["--processes", "2", "--out", str(tmp_path)])
    keeping = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}
    assert {case for case, names in told if names == keeping} == set(training.CASES)
    assert {case for case, names in told if not names} == {case for case in training.CASES if case.bound is not None}
    assert all(names in (keeping, set()) for _, names in told)
    page = (tmp_path / "training.md").read_text(encoding="utf-8")
    assert page.count("input's factors kept |") == 2
    assert page.count("take 7 bytes") == 1


def test_a_process_has_the_variables_that_it_is_given_and_no_others(monkeypatch):
    monkeypatch.setattr(training, "_measure", os.getenv)
    monkeypatch.setenv("LRBENCH_TOLD", "by the caller")
    rest = {name: value for name, value in os.environ.items() if name != "LRBENCH_TOLD"}
    assert training._apart(rest, "LRBENCH_TOLD") is None
    assert training._apart({**rest, "LRBENCH_TOLD": "anew"}, "LRBENCH_TOLD") == "anew"
    assert os.environ["LRBENCH_TOLD"] == "by the caller"


def test_one_process_has_no_spread_and_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        training.main(["--processes", "1", "--out", str(tmp_path / "out")])
    assert "--processes is 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
