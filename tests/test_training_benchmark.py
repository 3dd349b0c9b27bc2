"""The benchmark of training steps: what a row says of the processes that measured it."""

import sys
from pathlib import Path

import numpy as np
import pytest

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


def test_one_process_has_no_spread_and_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        training.main(["--processes", "1", "--out", str(tmp_path / "out")])
    assert "--processes is 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
