"""The bugs that are planted are bugs of the code as it stands, and what is not found is said."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the bugs are not installed
from tests.mutations import __main__ as mutations
from tests.mutations.bugs import BUGS, Bug

ROOT = Path(__file__).resolve().parents[1]
RECORD = "Record = dict[str, Any]\n"
HARMLESS = Bug("harmless", "store.py", RECORD, f"# still\n{RECORD}", "test_store.py", "order_of_its_keys")


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_bug_can_be_planted(bug: Bug) -> None:
    text = mutations.planted(bug, ROOT / "lrbench")
    assert text != (ROOT / "lrbench" / bug.file).read_text()
    compile(text, bug.file, "exec")
    assert (ROOT / "tests" / bug.tests).exists()


def test_bugs_have_names_of_their_own() -> None:
    assert len({bug.name for bug in BUGS}) == len(BUGS)


def test_what_the_tests_do_not_find_is_said_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    before = (ROOT / "lrbench/store.py").read_bytes()
    gone = replace(HARMLESS, name="gone", old="Record = list\n")
    crash = replace(HARMLESS, name="crash", new="Record = 1 / 0\n")
    real = replace(HARMLESS, name="real", old="sort_keys=True", new="sort_keys=False")
    monkeypatch.setattr(mutations, "BUGS", [HARMLESS, gone, crash, real])
    monkeypatch.setattr(sys, "argv", ["mutations", "--share", "4", "--out", str(tmp_path)])
    assert mutations.main() == 1
    said = capsys.readouterr().out
    assert "not found   harmless (store.py)" in said
    assert "no verdict  gone (store.py)  the text that it replaces is 0 times in store.py" in said
    assert "no verdict  crash (store.py)  pytest ended with" in said
    assert "found       real (store.py)  test_store.py::test_a_run_is_named_by_its_configuration" in said
    assert "1 of 4 bugs found" in said
    assert "| harmless | store.py | **not found** |" in (tmp_path / "mutations.md").read_text()
    assert (ROOT / "lrbench/store.py").read_bytes() == before


def test_a_share_is_drawn_by_its_seed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(mutations, "search", lambda bug: ("found", "test_x.py::test_x"))

    def drawn(seed: str) -> str:
        monkeypatch.setattr(sys, "argv", ["mutations", "--share", "3", "--seed", seed])
        assert mutations.main() == 0
        return capsys.readouterr().out

    assert drawn("a") == drawn("a")
    assert drawn("a") != drawn("b")
    assert f"3 of {len(BUGS)} bugs, drawn by --seed a" in drawn("a")
