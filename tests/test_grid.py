from pathlib import Path

import pytest
from runs import config

from lrbench import LayerPolicy, Policy
from lrbench.compressors import UnknownCompressorError, compressor_class
from lrbench.grid import Grid, expand, load_policies
from lrbench.im2col import Geometry
from lrbench.store import read_runs, run_id
from lrbench.training import Config


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


@pytest.mark.usefixtures("registry_of_its_own")
def test_a_compressor_without_tolerance_need_not_take_one(tmp_path):
    file = tmp_path / "ranked.py"
    file.write_text(
        "import lrbench\n"
        "class Ranked(lrbench.Compressor):\n"
        "    uses_eps = False\n"
        "    def __init__(self, rank=2):\n"
        "        super().__init__()\n"
        "        self.rank = rank\n"
    )
    ((_, name, eps, _, _),), _ = cells(Grid([f"{file}:Ranked"], ["100000"], [0.1], ["both"], [0]))
    assert name.startswith("Ranked@")
    assert eps is None


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
        ({"path": ["sideways"]}, ValueError, "forward, backward, both"),
        ({"seeds": [0, 2**63]}, ValueError, "seed is 9223372036854775808"),
    ],
)
def test_a_grid_that_asks_for_what_there_is_not_is_refused(change, error, message):
    good = {"compressors": ["svd"], "masks": ["100000"], "eps": [0.1], "path": ["both"], "seeds": [0]}
    with pytest.raises(error, match=message):
        expand(Grid(**(good | change)), config(), classes=10)


def test_a_model_without_a_convolution_is_refused_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "flat_models.py").write_text(
        "from torch import nn\ndef flat(classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(3072, classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    base = config(model="flat_models:flat", widths=())
    with pytest.raises(ValueError, match=r"^flat_models:flat has no Conv2d, .* name a model that has one$"):
        expand(Grid(["svd"], None, [0.1], ["both"], [0]), base, classes=10)


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


TUNED = Policy({"conv2": LayerPolicy("svd", 0.3), "conv4": LayerPolicy("rsvd", 0.1, "both", {"sketch": 4})}, lean=True)
BITS = Policy({}, lean=True)


def with_policies(policies, compressors=(), masks=("000000",)):
    return expand(Grid(compressors, masks, [0.1], ["both"], [0, 1], policies), config(), classes=10)


def test_a_policy_is_one_cell_for_each_seed():
    runs, reasons = with_policies({"tuned": TUNED, "bits": BITS}, ["svd"], ["000000", "100000"])
    cells = [(r.mask, r.compressor, r.compressor_version, r.eps, r.path, r.seed) for r in runs[-4:]]
    assert cells == [(m, n, None, None, None, s) for m, n in (("010100", "tuned"), ("000000", "bits")) for s in (0, 1)]
    assert len(runs) == 2 + 2 + 4
    assert Policy.from_identity(runs[-4].policy) == TUNED
    assert [run.plain for run in runs] == [True] * 2 + [False] * 6
    assert not reasons


def test_without_a_compressor_policies_run_beside_the_plain_model_and_the_other_masks_are_named():
    runs, reasons = with_policies({"bits": BITS}, masks=["000000", "101010"])
    assert [run.compressor for run in runs] == [None, None, "bits", "bits"]
    assert reasons == ["mask 101010 does not run: no compressor is named"]
    with pytest.raises(ValueError, match="no run is left: mask 101010 does not run"):
        with_policies({}, masks=["101010"])


def test_what_a_policy_says_is_part_of_a_runs_identity():
    (first, _), _ = with_policies({"a": TUNED}, masks=[])
    (other, _), _ = with_policies({"a": Policy(TUNED.layers)}, masks=[])
    (again, _), _ = with_policies({"a": TUNED}, masks=[])
    assert run_id(first.to_json()) == run_id(again.to_json()) != run_id(other.to_json())
    assert Config.from_json(first.to_json()) == first


def test_runs_without_a_policy_keep_the_names_that_they_had_before_there_were_any():
    records = read_runs(Path(__file__).parent.parent / "results" / "first-look")
    assert len(records) == 14
    for record in records:
        assert run_id(Config.from_json(record["config"]).to_json()) == record["id"]


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        ({"svd": TUNED}, "a policy is called svd"),
        ({"plain": TUNED}, "a policy is called plain"),
        ({"idle": Policy({})}, "policy idle changes nothing"),
        ({"wide": Policy({"conv9": LayerPolicy("svd")})}, "policy wide: the policy names conv9"),
        ({"typo": Policy({"conv1": LayerPolicy("svf")})}, "policy typo: .*svd"),
        ({"typo": Policy({"conv1": LayerPolicy("svd", options={"sketches": 3})})}, "policy typo: .*sketches"),
    ],
)
def test_a_policy_that_cannot_run_is_refused_by_its_name(policies, message):
    with pytest.raises(ValueError, match=message):
        with_policies(policies)


def test_policies_are_named_by_their_files(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tuned.toml").write_text(TUNED.to_toml())
    one, two = (tmp_path / folder / "tuned.toml" for folder in ("one", "two"))
    assert load_policies([one, one]) == {"tuned": TUNED}
    with pytest.raises(ValueError, match="two policies are called tuned"):
        load_policies([one, two])
