import json
import os

import pytest

from lrbench.store import SCHEMA, ResultsFolderError, is_finished, prepare_folder, read_runs, run_id, write_run


def record(seed=0, **more):
    config = {"seed": seed, "mask": "000000"}
    return {"schema": SCHEMA, "id": run_id(config), "status": "finished", "config": config, **more}


def test_a_run_is_named_by_its_configuration_whatever_the_order_of_its_keys():
    assert run_id({"a": 1, "b": "000000"}) == run_id({"b": "000000", "a": 1})
    assert run_id({"a": 1, "b": "000000"}) != run_id({"a": 1, "b": "0"})
    assert len(run_id({})) == 16


def test_runs_come_back_as_they_were_written_and_finished_ones_are_told_apart(tmp_path):
    prepare_folder(tmp_path)
    written = [record(0), record(1, reason="out of memory") | {"status": "failed"}]
    for run in written:
        write_run(tmp_path, run)
    read = read_runs(tmp_path)
    assert sorted(map(json.dumps, read)) == sorted(map(json.dumps, written))
    assert [is_finished(run) for run in sorted(read, key=lambda r: r["config"]["seed"])] == [True, False]


def test_writing_again_replaces_a_run_and_leaves_no_other_file(tmp_path):
    prepare_folder(tmp_path)
    write_run(tmp_path, record(value=1))
    path = write_run(tmp_path, record(value=2))
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert read_runs(tmp_path)[0]["value"] == 2


def test_a_number_that_is_no_json_is_refused_and_the_old_file_stays(tmp_path):
    prepare_folder(tmp_path)
    path = write_run(tmp_path, record(value=1))
    with pytest.raises(ValueError, match="JSON"):
        write_run(tmp_path, record(value=float("nan")))
    assert json.loads(path.read_text())["value"] == 1
    assert len(list(path.parent.iterdir())) == 1


def damage_cut(text):
    return text[: len(text) // 2]


def damage_config(text):
    return text.replace('"seed": 0', '"seed": 7')


def damage_schema(text):
    return text.replace(f'"schema": {SCHEMA}', '"schema": 99')


@pytest.mark.parametrize("damage", [damage_cut, damage_config, damage_schema])
def test_a_damaged_run_is_named_and_left_out_and_the_others_are_read(tmp_path, damage):
    prepare_folder(tmp_path)
    path = write_run(tmp_path, record(0))
    write_run(tmp_path, record(1))
    path.write_text(damage(path.read_text()))
    with pytest.warns(UserWarning, match=path.name):
        runs = read_runs(tmp_path)
    assert [run["config"]["seed"] for run in runs] == [1]


def test_a_folder_that_cannot_be_written_is_named_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsFolderError, match=r"file.*--out"):
        prepare_folder(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ResultsFolderError, match="--out"):
        prepare_folder(tmp_path / "inside")
