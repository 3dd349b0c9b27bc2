"""A reproduction agrees with stored runs if its differences are such as theirs let expect, after as many epochs."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are not installed
sys.path.insert(0, str(Path(__file__).parent / "report"))
from report_records import make_record, write_folder

from benchmarks.reproduce import main, prediction_interval


def run(mask, seed, accuracies, preset, **config):
    """A run of a preset, with these accuracies by epoch."""
    record = make_record(mask, "aca-estimate", seed, accuracies[-1], config=config)
    record["environment"]["preset"] = preset
    record["epochs"] = [
        {**record["epochs"][0], "epoch": number, "test_accuracy": value} for number, value in enumerate(accuracies, 1)
    ]
    return record


@pytest.fixture
def stored(tmp_path):
    """Three seeds of three epochs: the difference after two epochs is -4, -5 and -6 points, after three it is -9."""
    records = []
    for seed, lost in enumerate((0.04, 0.05, 0.06)):
        records += [
            run("000000", seed, (0.3, 0.5, 0.6), "paper"),
            run("101010", seed, (0.3, 0.5 - lost, 0.51), "paper"),
        ]
    return write_folder(tmp_path / "stored", records)


def reproduction(tmp_path, lost, seeds=(5, 6), **config):
    records = []
    for seed in seeds:
        records += [run("000000", seed, (0.2, 0.4), "reproduce-small", **config)]
        records += [run("101010", seed, (0.2, 0.4 - lost), "reproduce-small", **config)]
    return write_folder(tmp_path / "new", records)


def test_what_lies_where_it_is_expected_agrees_and_the_epoch_is_the_last_that_both_have(stored, tmp_path, capsys):
    assert main([str(reproduction(tmp_path, 0.051)), str(stored)]) == 0
    out = capsys.readouterr().out
    assert "after epoch 2" in out
    assert "stored: -5.00 (seed 0: -4.00, seed 1: -5.00, seed 2: -6.00)" in out
    assert "new: -5.10 (seed 5: -5.10, seed 6: -5.10)" in out
    assert "agrees" in out


def test_what_lies_elsewhere_does_not(stored, tmp_path, capsys):
    assert main([str(reproduction(tmp_path, -0.2)), str(stored)]) == 1
    assert "DISAGREES" in capsys.readouterr().out


def test_where_no_difference_would_agree_as_well_nothing_is_told(tmp_path, capsys):
    records = []
    for seed, lost in enumerate((0.01, 0.09)):
        records += [run("000000", seed, (0.3, 0.5), "paper"), run("101010", seed, (0.3, 0.5 - lost), "paper")]
    folder = write_folder(tmp_path / "two", records)
    assert main([str(reproduction(tmp_path, 0.05)), str(folder)]) == 1
    assert "CANNOT TELL" in capsys.readouterr().out


def test_a_reproduction_that_diverges_disagrees(stored, tmp_path, capsys):
    folder = reproduction(tmp_path, 0.051)
    broken = run("101010", 7, (0.2, 0.1), "reproduce-small") | {"outcome": "diverged"}
    write_folder(folder, [broken])
    assert main([str(folder), str(stored)]) == 1
    assert "DISAGREES: 101010 aca-estimate, seed 7, diverged" in capsys.readouterr().out


def test_other_data_are_named(stored, tmp_path, capsys):
    main([str(reproduction(tmp_path, 0.05, data_sha256="f" * 64)), str(stored)])
    assert "differ in data_sha256" in capsys.readouterr().out


def test_a_single_stored_seed_tells_nothing(tmp_path, capsys):
    records = [run("000000", 0, (0.3, 0.5), "paper"), run("101010", 0, (0.3, 0.4), "paper")]
    folder = write_folder(tmp_path / "one", records)
    assert main([str(reproduction(tmp_path, 0.1)), str(folder)]) == 1
    assert "nothing can be compared" in capsys.readouterr().err


def test_an_empty_folder_is_named(stored, tmp_path, capsys):
    (tmp_path / "empty" / "runs").mkdir(parents=True)
    assert main([str(tmp_path / "empty"), str(stored)]) == 1
    assert "holds no finished run" in capsys.readouterr().err


def test_means_of_new_values_of_the_same_law_lie_in_the_interval_as_often_as_it_says():
    draw = np.random.default_rng(0)
    inside = 0
    for _ in range(4000):
        values, new = draw.normal(3, 2, 5), draw.normal(3, 2, 2)
        low, high = prediction_interval(list(values), 2, 0.9)
        inside += low <= new.mean() <= high
    assert stats.binomtest(inside, 4000, 0.9).pvalue > 1e-3
