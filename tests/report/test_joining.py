"""Folders that hold the parts of one grid become one; nothing that speaks against it is passed over."""

import json
from contextlib import contextmanager

import pytest
from report_records import make_record, write_folder

from lrbench.joining import JoinError, join_folders
from lrbench.lock import locked
from lrbench.report.__main__ import main
from lrbench.store import SCHEMA, read_runs, run_path, write_run


@pytest.fixture
def parts(tmp_path):
    """Two parts, each with its compressor and the same plain run, which took another time."""
    plain = make_record("000000")
    one = write_folder(tmp_path / "one", [plain, make_record("100000", "svd")])
    two = write_folder(tmp_path / "two", [plain | {"seconds": 777.0}, make_record("100000", "aca")])
    return one, two


def changed(folder, name, **changes):
    path = next(p for p in (folder / "runs").iterdir() if json.loads(p.read_text())["config"]["compressor"] == name)
    record = next(record for record in read_runs(folder) if record["id"] == path.stem)
    return write_run(folder, record | changes)


def test_parts_become_one_folder_and_a_run_of_both_is_there_once(parts, tmp_path, capsys):
    out = tmp_path / "joined"
    assert main([*map(str, parts), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out / "report.html")
    joined = {record["config"]["compressor"]: record for record in read_runs(out)}
    assert set(joined) == {None, "svd", "aca"}
    assert joined[None]["seconds"] != 777.0
    assert joined["aca"] in read_runs(parts[1])
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").iterdir()}
    join_folders(parts, out)
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").iterdir()} == before


def test_one_run_with_two_results_is_refused_and_both_files_are_named(parts, tmp_path, capsys):
    path = changed(parts[1], None, outcome="chance")
    assert main([*map(str, parts), "--out", str(tmp_path / "joined")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(path) in error
    assert str(run_path(parts[0], path.stem)) in error
    assert "outcome" in error
    assert not (tmp_path / "joined").exists()


@pytest.mark.parametrize("failing", [0, 1])
def test_a_run_that_failed_in_one_part_is_taken_from_where_it_finished(parts, tmp_path, failing):
    changed(parts[failing], None, status="failed", reason="out of memory", final=None, epochs=[])
    join_folders(parts, tmp_path / "joined")
    assert {record["status"] for record in read_runs(tmp_path / "joined")} == {"finished"}


def test_a_damaged_run_or_a_folder_that_is_none_stops_the_joining(parts, tmp_path):
    path = next((parts[1] / "runs").iterdir())
    path.write_text(path.read_text()[:100])
    with pytest.raises(JoinError, match=path.name):
        join_folders(parts, tmp_path / "joined")
    with pytest.raises(JoinError, match="nowhere is no results folder"):
        join_folders([parts[0], tmp_path / "nowhere"], tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


def test_several_folders_without_a_place_to_join_them_are_refused(parts, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*map(str, parts)])
    assert stop.value.code == 2
    assert "--out" in capsys.readouterr().err


def test_folders_are_not_joined_where_another_command_writes(parts, tmp_path, capsys):
    out = tmp_path / "joined"
    join_folders(parts[:1], out)
    before = sorted(path.name for path in (out / "runs").iterdir())
    with locked(out):
        assert main([*map(str, parts), "--out", str(out)]) == 2
    assert "is in use by process" in capsys.readouterr().err
    assert sorted(path.name for path in (out / "runs").iterdir()) == before


@pytest.mark.parametrize("outcome", ["trained", "chance"])
def test_a_run_that_the_folder_gains_at_the_last_moment_is_compared_too_and_never_overwritten(
    parts, tmp_path, monkeypatch, outcome
):
    out = tmp_path / "joined"
    plain = next(record for record in read_runs(parts[0]) if record["config"]["compressor"] is None)
    gained = plain | {"seconds": 1.5, "outcome": outcome}

    @contextmanager
    def locked_late(folder):
        write_run(folder, gained)
        with locked(folder):
            yield

    monkeypatch.setattr("lrbench.joining.locked", locked_late)
    if outcome == plain["outcome"]:
        join_folders(parts, out)
    else:
        with pytest.raises(JoinError, match="two results"):
            join_folders(parts, out)
    assert gained in read_runs(out)


def test_runs_whose_files_hold_no_epochs_are_joined_and_compared(parts, tmp_path):
    for folder in parts:
        changed(folder, None, epochs=None)
    join_folders(parts, tmp_path / "joined")
    assert len(read_runs(tmp_path / "joined")) == 3


def test_parts_of_another_layout_are_not_joined_and_the_file_is_named(parts, tmp_path):
    path = next((parts[1] / "runs").iterdir())
    older = {key: value for key, value in json.loads(path.read_text()).items() if key != "checksum"}
    path.write_text(json.dumps(older | {"schema": SCHEMA - 1}))
    with pytest.raises(JoinError, match=rf"{path.name} is left out: it is of layout {SCHEMA - 1}, not {SCHEMA}"):
        join_folders(parts, tmp_path / "joined")
    assert not (tmp_path / "joined").exists()
