import pytest
from runs import config

from lrbench.compressors import UnknownCompressorError, compressor_class
from lrbench.grid import Grid, expand
from lrbench.im2col import Geometry


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


def test_cells_that_a_compressor_speaks_against_are_left_out_with_its_reason() -> None:
    runs, reasons = cells(Grid(["rproj", "svd"], ["100000"], [0.1], ["both", "backward"], [0, 1]))
    assert {(run[1], run[3]) for run in runs} == {("rproj", "backward"), ("svd", "both"), ("svd", "backward")}
    said = "rproj on path both is left out for mask 100000: its estimate is unbiased in the backward pass only"
    assert reasons == [said]


def test_compressors_are_asked_with_the_geometry_and_the_size_of_each_layers_input(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def small(self: object, geometry: Geometry, size: tuple[int, int], path: str) -> str | None:
        asked.append((geometry.padding, size, path))
        return "its input is too small" if size[0] < 16 else None

    monkeypatch.setattr(compressor_class("svd"), "skip", small)
    runs, reasons = cells(Grid(["svd"], ["100000", "101010"], [0.1], ["both"], [0]))
    assert [run[0] for run in runs] == ["100000"]
    assert reasons == ["svd on path both is left out for mask 101010: its input is too small (conv5)"]
    assert asked[-3:] == [((1, 1, 1, 1), (size, size), "both") for size in (32, 16, 8)]


def test_a_grid_of_which_nothing_is_left_is_refused() -> None:
    with pytest.raises(ValueError, match="no run is left: rproj on path both is left out"):
        cells(Grid(["rproj"], ["100000"], [0.1], ["both"], [0]))
