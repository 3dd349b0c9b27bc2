import json
import os
import re

import pytest

from lrbench.store import (
    SCHEMA,
    OtherLayoutError,
    ResultsFolderError,
    checksum,
    is_finished,
    prepare_folder,
    read_folder,
    read_runs,
    recover_folder,
    run_id,
    write_run,
)


def record(seed=0, **more):
    config = {"seed": seed, "mask": "000000"}
    return {
        "schema": SCHEMA,
        "id": run_id(config),
        "status": "finished",
        "outcome": "trained",
        "config": config,
        **more,
    }


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


def damage_id(text):
    return json.dumps(sealed(json.loads(text) | {"id": "0" * 16}))


def damage_number(text):
    return text.replace('"value": 0.5', '"value": 0.25')


def damage_schema(text):
    return text.replace(f'"schema": {SCHEMA}', '"schema": 9')


def damage_to_no_run(text):
    return "[]"


def damage_to_depth(text):
    return "[" * 100_000


def sealed(content):
    return content | {"checksum": checksum(content)}


DAMAGES = [damage_cut, damage_config, damage_id, damage_number, damage_schema, damage_to_no_run, damage_to_depth]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_named_and_left_out_and_the_others_are_read(tmp_path, damage):
    prepare_folder(tmp_path)
    path = write_run(tmp_path, record(0, value=0.5))
    write_run(tmp_path, record(1))
    path.write_text(damage(path.read_text()))
    with pytest.warns(UserWarning, match=path.name):
        runs = read_runs(tmp_path)
    assert [run["config"]["seed"] for run in runs] == [1]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_named_and_kept_under_another_name(tmp_path, damage):
    prepare_folder(tmp_path)
    path = write_run(tmp_path, record(0, value=0.5))
    write_run(tmp_path, record(1))
    damaged = damage(path.read_text())
    for name in (f"{path.name}.corrupt", f"{path.name}.corrupt.2"):
        path.write_text(damaged)
        (said,) = recover_folder(tmp_path)
        assert said.startswith(f"{path} is damaged")
        assert name in said
        assert path.with_name(name).read_text() == damaged
        assert not path.exists()
    assert len(read_runs(tmp_path)) == 1


def test_a_run_may_be_laid_out_anew_but_not_changed(tmp_path):
    prepare_folder(tmp_path)
    path = write_run(tmp_path, record(0, value=0.5))
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    assert read_runs(tmp_path) == [record(0, value=0.5)]


def test_a_folder_of_another_layout_is_refused_by_name_and_left_as_it_is(tmp_path):
    prepare_folder(tmp_path)
    path = write_run(tmp_path, record(0))
    older = {key: value for key, value in json.loads(path.read_text()).items() if key != "checksum"} | {"schema": 1}
    path.write_text(json.dumps(older))
    (tmp_path / "runs" / "damaged.json").write_text("{")
    with pytest.raises(OtherLayoutError, match=rf"1 runs of layout 1, such as {path.name}.*--out"):
        recover_folder(tmp_path)
    assert sorted(found.name for found in path.parent.iterdir()) == [path.name, "damaged.json"]
    path.with_name("damaged.json").unlink()
    with pytest.warns(UserWarning, match="of layout 1, not 2"):
        assert read_runs(tmp_path) == []


def test_what_killed_writers_left_is_removed(tmp_path):
    prepare_folder(tmp_path)
    for name in ("runs", "checkpoints", "figures"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "x.json.12.part").write_text("{")
    (tmp_path / "runs.csv.12.part").write_text("id")
    assert recover_folder(tmp_path) == []
    assert not list(tmp_path.rglob("*.part"))


def test_a_folder_that_cannot_be_written_is_named_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsFolderError, match=r"file.*--out"):
        prepare_folder(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ResultsFolderError, match="--out"):
        prepare_folder(tmp_path / "inside")


@pytest.mark.parametrize(
    ("place", "value"),
    [("epochs", 5), ("layers[0]", ["conv1"]), ("final", "good"), ("environment", []), ("status", "well"),
     ("config.mask", {}), ("outcome", None)],
)  # fmt: skip
def test_a_sealed_file_that_holds_what_no_run_does_is_left_out_and_its_field_is_named(tmp_path, place, value):
    prepare_folder(tmp_path)
    write_run(tmp_path, record())
    strange = record(seed=7) | {re.split(r"[.\[]", place)[0]: value}
    path = write_run(tmp_path, strange | {"id": run_id(strange["config"])})
    contents = read_folder(tmp_path)
    assert contents.records == [record()]
    assert contents.damaged[path] == f"{place} is not what a run holds"
