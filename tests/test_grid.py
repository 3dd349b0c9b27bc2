import pytest
from runs import config

from lrbench.compressors import UnknownCompressorError
from lrbench.grid import Grid, expand


def cells(grid):
    runs, reasons = expand(grid, config(), classes=10)
    return [(r.mask, r.compressor, r.eps, r.path, r.seed) for r in runs], reasons


def test_a_grid_is_the_product_of_what_is_varied():
    runs, reasons = cells(Grid(["svd", "aca"], ["100000", "101010"], [0.1, 0.3], ["both", "backward"], [0, 1]))
    assert len(runs) == len(set(runs)) == 32
    assert not reasons


def test_a_mask_of_zeros_runs_once_and_says_why():
    runs, reasons = cells(Grid(["svd", "aca"], ["101010", "000000"], [0.1, 0.3], ["both"], [0, 1]))
    assert runs[:2] == [("000000", None, None, None, 0), ("000000", None, None, None, 1)]
    assert len(runs) == 2 + 8
    assert any("000000" in reason and "runs once" in reason for reason in reasons)


def test_a_compressor_without_tolerance_runs_once_for_all_eps_and_says_why():
    runs, reasons = cells(Grid(["none", "svd"], ["100000"], [0.1, 0.3], ["both"], [0]))
    assert runs == [
        ("100000", "none", None, "both", 0),
        ("100000", "svd", 0.1, "both", 0),
        ("100000", "svd", 0.3, "both", 0),
    ]
    assert reasons == ["none has no tolerance: it runs once for all eps"]


def test_masks_may_name_layers_and_the_same_mask_is_one():
    runs, _ = cells(Grid(["svd"], ["conv1,conv3", "101000", "conv[56]"], [0.1], ["both"], [0]))
    assert [run[0] for run in runs] == ["101000", "000011"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"compressors": ["svf"]}, UnknownCompressorError, "svd"),
        ({"masks": ["10101"]}, ValueError, "conv1, conv2"),
        ({"masks": ["102010"]}, ValueError, "0 or 1"),
        ({"eps": [0.0]}, ValueError, r"\(0, 1\]"),
        ({"paths": ["sideways"]}, ValueError, "forward, backward, both"),
    ],
)
def test_a_grid_that_asks_for_what_there_is_not_is_refused(change, error, message):
    good = {"compressors": ["svd"], "masks": ["100000"], "eps": [0.1], "paths": ["both"], "seeds": [0]}
    with pytest.raises(error, match=message):
        expand(Grid(**(good | change)), config(), classes=10)
