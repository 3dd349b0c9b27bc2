"""The CSV files: a row per observation, and text that looks like numbers stays text."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_records import (
    BATCH,
    IMAGES,
    layer,
    make_failure,
    make_policy_record,
    make_record,
    older,
    realistic_records,
    savings,
)

from lrbench.report import read_table
from lrbench.report.block_figures import draw_bytes, draw_ranks
from lrbench.report.listings import list_bytes
from lrbench.report.summaries import measure_sizes
from lrbench.report.tables import (
    blocks_table,
    describe_setting,
    epochs_table,
    layers_table,
    make_studies,
    runs_table,
    write_table,
)


@pytest.mark.parametrize("name", ["runs", "epochs", "layers"])
def test_masks_survive_the_csv(reported: Path, name: str) -> None:
    masks = read_table(reported / f"{name}.csv")["mask"]
    assert set(masks) == {"100000", "101010"} | ({"000000"} if name != "layers" else set())
    assert '"100000"' in (reported / f"{name}.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize("make", [runs_table, epochs_table, layers_table])
def test_a_table_reads_back_as_it_was_written(tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    table = make([*realistic_records()[:4], make_failure("no, “memory”\nleft", mask="101010")])
    write_table(table, tmp_path / "table.csv")
    pd.testing.assert_frame_equal(read_table(tmp_path / "table.csv"), table)


def test_ids_commits_and_hashes_that_look_like_numbers_stay_text(tmp_path: Path) -> None:
    record = make_record(config={"data_sha256": "0" * 63 + "1"})
    record["environment"]["commit"] = "12e4567"
    record["id"] = "0012345678901234"
    write_table(runs_table([record]), tmp_path / "runs.csv")
    row = read_table(tmp_path / "runs.csv").iloc[0]
    assert (row["id"], row["commit"], row["data_sha256"]) == ("0012345678901234", "12e4567", "0" * 63 + "1")
    assert row["compressor_version"] == 1


def test_the_compressor_none_is_not_a_missing_one(tmp_path: Path) -> None:
    write_table(runs_table([make_record("000000"), make_record("100000", "none")]), tmp_path / "runs.csv")
    table = read_table(tmp_path / "runs.csv")
    assert list(table["compressor"].isna()) == [True, False]
    assert table["compressor"].iloc[1] == "none"


def test_tables_have_one_row_per_observation() -> None:
    records = [make_record("000000"), make_record("101010", "svd"), make_failure()]
    assert len(runs_table(records)) == 3
    assert len(epochs_table(records)) == 2 * 4
    assert list(layers_table(records)["layer"]) == ["features.0", "features.4", "features.8"]
    assert len(blocks_table(records)) == 3 * IMAGES
    assert not epochs_table(records).duplicated(["id", "epoch"]).any()


def test_layers_carry_the_times_of_the_step() -> None:
    row = layers_table([make_record("100000", "svd")]).iloc[0]
    assert row["lowering_ms"] == pytest.approx(2.0)
    assert row["compressing_ms"] == pytest.approx(40 * 4.1 - 42)


def test_a_failed_run_has_a_row_with_its_reason_and_no_numbers() -> None:
    row = runs_table([make_failure("killed")]).iloc[0]
    assert (row["status"], row["reason"]) == ("failed", "killed")
    assert np.isnan(row["accuracy_as_trained"])


def test_runs_of_different_settings_are_apart() -> None:
    studies = make_studies([make_record(), make_record(config={"epochs": 2}), make_record(config={"augment": True})])
    assert len(studies) == 3
    assert any("augment True" in study.setting for study in studies)
    assert len({study.setting for study in studies}) == 3


def test_seed_and_cell_are_no_part_of_the_setting() -> None:
    first, other = make_record("100000", "svd", 0, eps=0.1), make_record("101010", "aca", 1, eps=0.3, path="backward")
    assert describe_setting(first["config"]) == describe_setting(other["config"])


def test_labels_name_what_varies() -> None:
    records = [make_record("100000", eps=0.1), make_record("100000", eps=0.3), make_record("100000", "none")]
    assert set(make_studies(records)[0].runs["label"]) == {"svd, eps 0.1", "svd, eps 0.3", "none"}
    versions = [make_record("100000"), make_record("100000", config={"compressor_version": 2})]
    assert set(make_studies(versions)[0].runs["label"]) == {"svd v1", "svd v2"}


def test_what_is_measured_on_one_batch_is_brought_to_the_blocks_of_the_row() -> None:
    row = layers_table([make_record("001000", "svd")]).iloc[0]
    measured = savings([layer(2, "svd", 0.1)])["layers"][0]
    assert row["saved_bytes"] == pytest.approx(measured["saved_bytes"] * IMAGES / BATCH) == row["input_bytes"]
    assert row["held_bytes"] == pytest.approx(row["factor_bytes"], rel=1e-4)
    assert row["freed_bytes"] == pytest.approx(row["input_bytes"] - row["held_bytes"])
    assert row["cut_saved"] == pytest.approx(1 - row["held_bytes"] / row["saved_bytes"])


def test_a_layer_with_nothing_to_save_has_no_cut_and_says_who_keeps_its_input() -> None:
    measured = layer(0, "svd", 0.1, factor_bytes=1000)
    row = layers_table([make_record("100000", layers=[measured])]).iloc[0]
    assert row["saved_bytes"] == 0
    assert np.isnan(row["cut_saved"])
    assert row["unrealised"] == "its input is kept by the caller, too"


def test_runs_carry_what_a_step_holds_and_the_totals_of_the_peak() -> None:
    row = runs_table([make_record("101000", savings=savings([layer(2, "svd", 0.1)], hidden_bytes=8))]).iloc[0]
    assert row["plain_held_bytes"] - row["freed_bytes"] == row["held_bytes"]
    assert row["claimed_bytes"] == row["freed_bytes"]
    assert (row["hidden_bytes"], row["peak_wrapped_total_bytes"], row["peak_plain_total_bytes_max"]) == (
        8,
        9.3e8,
        9.1e8,
    )


def test_an_older_record_has_no_savings_and_is_tabulated() -> None:
    record = older(make_record("100000"))
    assert np.isnan(runs_table([record]).iloc[0]["held_bytes"])
    assert np.isnan(runs_table([record]).iloc[0]["peak_wrapped_total_bytes"])
    assert np.isnan(layers_table([record]).iloc[0]["saved_bytes"])
    assert layers_table([record]).iloc[0]["layer_compressor"] == "svd"


SVD = {"compressor": "svd", "eps": 0.3, "path": "backward"}
ACA = {"compressor": "aca", "eps": 0.1, "path": "both"}


def test_the_layers_of_a_policy_have_what_it_says_of_them(tmp_path: Path) -> None:
    record = make_policy_record("tuned", {"features.4": SVD, "features.8": ACA})
    table = layers_table([record])
    own = table[["layer_compressor", "layer_eps", "layer_path"]].to_numpy().tolist()
    assert own == [["svd", 0.3, "backward"], ["aca", 0.1, "both"]]
    assert set(table["compressor"]) == {"tuned"}
    write_table(table, tmp_path / "table.csv")
    pd.testing.assert_frame_equal(read_table(tmp_path / "table.csv"), table)


def test_a_policy_that_only_keeps_bits_is_not_the_plain_model() -> None:
    (study,) = make_studies([make_record("000000"), make_policy_record("bits", {}, lean=True)])
    assert dict(zip(study.runs["name"], study.runs["plain"], strict=True)) == {"plain": True, "bits": False}


def test_policies_of_one_name_that_say_different_things_are_apart() -> None:
    records = [make_policy_record("tuned", {"features.4": said}) for said in (SVD, ACA)]
    (study,) = make_studies([*records, make_record("001000", "svd")])
    assert study.runs["label"].nunique() == 3
    assert all(label.startswith("tuned ") for label in study.runs["label"] if label != "svd")


def test_bytes_are_for_a_hundred_images_however_often_each_is_lowered() -> None:
    once = layer(0, "svd", 0.1)
    doubled = {key: 2 * once[key] for key in ("blocks", "im2col_bytes", "input_bytes", "factor_bytes")}
    older_once = {key: value for key, value in once.items() if key != "images"}
    made = (once, once | doubled, older_once)
    first, twice, older_first = (
        measure_sizes(make_studies([make_record("100000", layers=[row])])[0])[0] for row in made
    )
    assert first.im2col_bytes == older_first.im2col_bytes == 100 * 27 * 1024 * 4
    assert twice.im2col_bytes == 2 * first.im2col_bytes
    assert twice.input_bytes == 2 * 100 * 3072 * 4
    assert twice.saved_bytes == first.saved_bytes == 0


def test_calls_that_differ_in_shape_are_shown_with_a_dash() -> None:
    records = [make_record("100000", layers=[layer(0, "svd", 0.1, n=None, break_even_rank=None)])]
    (study,) = make_studies(records)
    (listed,) = list_bytes(study).rows
    assert listed[0] == "features.0, 27 × –"
    assert listed[14] == "–"
    for draw in (draw_ranks, draw_bytes):
        figure, _ = draw(study)
        assert figure.axes
