"""One command at a time in a results folder."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from report_records import make_record, write_folder

import lrbench.ablate as ablate
import lrbench.lock as lock
import lrbench.report.__main__ as report
from lrbench.lock import FolderInUseError, locked

SMALL = ["--dataset", "photos", "--train-size", "40", "--test-size", "20", "--compressors", "svd"]

HOLD = """
import sys, time
from pathlib import Path
from lrbench.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """A process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def name_holder(folder: Path, **changes) -> Path:
    file = folder / ".holder"
    named = {"host": socket.gethostname(), "process": 1, "since": "2026-11-24T04:00:00+00:00"} | changes
    file.write_text(json.dumps(named))
    return file


def test_a_second_command_is_refused_and_told_the_firsts_host_and_process(tmp_path, other):
    said = rf"process {other.pid} on {socket.gethostname()}, since 20.*--out"
    for _ in range(2):  # being refused takes nothing from the holder
        with pytest.raises(FolderInUseError, match=said), locked(tmp_path):
            pass


def test_a_killed_holder_leaves_no_lock_behind(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / ".holder").exists()
    with locked(tmp_path):
        assert json.loads((tmp_path / ".holder").read_text())["process"] == os.getpid()


def test_a_holder_on_another_host_is_believed_until_its_file_is_removed(tmp_path):
    file = name_holder(tmp_path, host="node7", process=12)
    said = rf"process 12 on node7, since 2026-11-24.*if that process has ended, remove {file}"
    with pytest.raises(FolderInUseError, match=said), locked(tmp_path):
        pass
    file.unlink()
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("stale", [False, True])
def test_of_two_machines_that_see_no_lock_of_each_other_and_start_at_once_one_is_refused(tmp_path, monkeypatch, stale):
    if stale:
        name_holder(tmp_path)
    own = lock._self

    def named_too_late():
        name_holder(tmp_path, host="node7", process=12)
        return own()

    monkeypatch.setattr(lock, "_self", named_too_late)
    with pytest.raises(FolderInUseError, match="process 12 on node7"), locked(tmp_path):
        pass
    assert json.loads((tmp_path / ".holder").read_text())["host"] == "node7"
    assert [path.name for path in tmp_path.glob(".holder*")] == [".holder"]


def test_a_file_system_without_hard_links_can_be_locked(tmp_path, monkeypatch):
    def refused(self, target):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "hardlink_to", refused)
    with locked(tmp_path):
        assert json.loads((tmp_path / ".holder").read_text())["process"] == os.getpid()
    assert not list(tmp_path.glob(".holder*"))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "node7"}', "[" * 100_000])
def test_a_holders_file_that_names_no_one_stands_in_nobodys_way(tmp_path, content):
    (tmp_path / ".holder").write_text(content)
    with locked(tmp_path):
        pass


def test_a_folder_is_free_again_after_use_and_after_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), locked(tmp_path):
        raise KeyboardInterrupt
    with locked(tmp_path):
        pass
    assert not (tmp_path / ".holder").exists()


def test_the_command_is_refused_in_one_sentence_and_reading_needs_no_lock(tmp_path, other, capsys):
    write_folder(tmp_path, [make_record("000000")])
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert ablate.main([*SMALL, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"lrbench.ablate: {tmp_path} is in use by process {other.pid} on ")
    assert error.count("\n") == 1
    assert ablate.main([*SMALL, "--out", str(tmp_path), "--dry-run"]) == 0
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    assert report.main([str(tmp_path)]) == 0
