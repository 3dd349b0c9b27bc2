"""A sealed file may hold anything: what no run holds is left out and named, and what a run may hold is reported."""

import copy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from report_records import make_failure, make_policy_record, make_record, older, realistic_records, write_folder

from lrbench.report import read_table, write_report
from lrbench.run_shape import find_strange
from lrbench.store import Record, read_folder, run_id, write_run

RESULTS = Path(__file__).parents[2] / "results"
POLICY = make_policy_record("tuned", {"features.0": {"compressor": "svd", "eps": 0.1, "path": "both"}})

ODD = [
    ("seconds", "x"),
    ("seconds", True),
    ("seconds", 10**400),
    ("started", 5),
    ("outcome", None),
    ("config.data_sha256", 5),
    ("config.seed", 2**63),
    ("config.eps", 0),
    ("config.compressor", None),
    ("config.widths", "32"),
    ("environment.device", [1]),
    ("environment.dirty", "yes"),
    ("data.classes", 10),
    ("epochs[1].test_accuracy", {}),
    ("epochs[1].test_accuracy", 1.5),
    ("epochs[1].epoch", None),
    ("final.as_trained", "good"),
    ("final.as_trained.accuracy", 1e308),
    ("layers[0].m", 27.5),
    ("layers[0].blocks", 0),
    ("layers[0].ranks", [1, "2"]),
    ("layers[0].errors", [0.1, 10**400]),
    ("gradients[0].cosine_min", None),
    ("step.ratio", 2.0),
    ("step.ratio.median", "2"),
    ("step.ratio.median", 0),
    ("step.layers", {"layer": "features.0"}),
    ("peak.plain_bytes.median", 0),
    ("savings.layers", 5),
    ("savings.layers[0].claimed_bytes", None),
]


def changed(record: Record, place: str, value: Any) -> Record:
    """Give a record with another value at a place such as ``layers[0].m``, under the name of its configuration."""
    made = copy.deepcopy(record)
    *before, last = place.replace("[", ".").replace("]", "").split(".")
    within: Any = made
    for key in before:
        within = within[int(key)] if isinstance(within, list) else within[key]
    within[last] = value
    return made | {"id": run_id(made["config"])}


def pick(row: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key in keys}


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(("place", "value"), ODD)
def test_an_odd_value_in_a_sealed_file_is_named_and_does_not_stop_the_report(
    tmp_path: Path, place: str, value: Any
) -> None:
    write_folder(tmp_path, [make_record("000000")])
    path = write_run(tmp_path, changed(make_record(seed=7), place, value))
    with pytest.warns(UserWarning, match=path.name):
        page = write_report(tmp_path)
    assert read_folder(tmp_path).damaged == {path: f"{place} is not what a run holds"}
    assert "1 file in runs/ is not an intact run" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("policy", ["{", "[]", '{"lean": 1, "layers": {}}', '{"lean": true, "layers": {"a": {}}}'])
def test_a_policy_that_is_none_is_named(policy: str) -> None:
    assert find_strange(POLICY) is None
    assert find_strange(changed(POLICY, "config.policy", policy)) == "config.policy"


def test_predictions_are_as_many_as_the_labels() -> None:
    record = make_record()
    final = record["final"] | {"labels": record["final"]["as_trained"]["predictions"]}
    assert find_strange(record | {"final": final}) is None
    assert find_strange(record | {"final": final | {"labels": final["labels"][1:]}}) == "final.labels"


def test_what_a_run_may_leave_out_or_add_is_no_oddity() -> None:
    record = make_record()
    for run in (*realistic_records(), POLICY, older(record), make_failure(), make_record("000000")):
        assert find_strange(run) is None
    for key in ("step", "peak", "savings", "layers", "gradients", "final", "epochs", "data", "environment"):
        assert find_strange(record | {key: None}) is None
    added = [{**row, "new": object()} for row in record["layers"]]
    assert find_strange(record | {"new": object(), "layers": added}) is None
    assert find_strange(changed(record, "layers[0].errors", [0.1, None])) is None
    numbered = {"as_trained": {"loss": None, "accuracy": 0.5, "predictions": [40, 41]}, "labels": [40, 40]}
    assert find_strange(record | {"final": numbered}) is None


@pytest.mark.usefixtures("without_figures")
def test_a_run_of_which_nothing_is_known_but_its_configuration_is_reported(tmp_path: Path) -> None:
    record = make_record()
    bare = {key: record[key] for key in ("schema", "id", "status", "outcome", "config")}
    needed = {"layer", "cosine_min", "index", "m", "blocks", "input_bytes", "epoch"}
    rows = {key: [pick(row, needed) for row in record[key]] for key in ("epochs", "layers", "gradients")}
    thin = make_record(seed=1) | rows | {"step": {}, "peak": {}, "savings": {}, "data": {}, "environment": {}}
    counted = {"layer", "input_bytes", "saved_bytes", "held_bytes", "freed_bytes", "claimed_bytes"}
    ledger = make_record(seed=2)
    ledger |= {"savings": {"layers": [pick(row, counted) for row in ledger["savings"]["layers"]]}}
    written = [bare, thin, ledger]
    page = write_report(write_folder(tmp_path, [*written, make_record("000000")])).read_text(encoding="utf-8")
    assert [record["id"] for record in written if record["id"] not in page] == []


@pytest.mark.parametrize("folder", sorted({path.parents[1].name for path in RESULTS.glob("*/runs/*.json")}))
def test_every_run_that_is_kept_with_the_code_is_read(folder: str) -> None:
    contents = read_folder(RESULTS / folder)
    assert contents.left_out == {}
    assert len(contents.records) == len(list((RESULTS / folder / "runs").glob("*.json"))) > 0


@pytest.mark.usefixtures("without_figures")
def test_a_key_that_was_added_to_a_row_is_never_taken_for_a_column_of_another_origin(tmp_path: Path) -> None:
    record = make_record("100000", savings=None)
    record["layers"][0] |= {"lowering_ms": "x", "saved_bytes": "x", "gradient_bias": "x", "layer_eps": "x"}
    record["step"]["layers"][0] |= {"m": "x", "kept_by": 5, "new": "x"}
    write_report(write_folder(tmp_path, [record]))
    (row,) = read_table(tmp_path / "layers.csv").to_dict("records")
    assert (row["lowering_ms"], row["layer_eps"], row["m"]) == (2.0, 0.1, 27)
    assert pd.isna(row["saved_bytes"])
