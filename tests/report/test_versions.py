"""Runs of several versions of the code, of its libraries or on several machines may meet in a folder: it is said."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from report_records import make_record, write_folder

from lrbench.joining import join_folders
from lrbench.report import write_report
from lrbench.store import Record

pytestmark = pytest.mark.usefixtures("without_figures")

CODE = "The runs come from 2 versions of the code"
LIBRARIES = "The runs come from several versions of torch, numpy or scipy"
DIRTY = "Some runs come from a working tree with uncommitted changes."
MACHINES = "The runs come from several machines; their times and peaks do not compare."


def runs(**second: Any) -> list[Record]:
    """Two runs, the second in an environment that differs in this."""
    plain, other = make_record("000000"), make_record("100000")
    return [plain, other | {"environment": {**other["environment"], **second}}]


def labels(folder: Path) -> set[str]:
    """Those of the four that stand on a folder's page and in its summary."""
    page = write_report(folder).read_text(encoding="utf-8")
    summary = (folder / "summary.md").read_text(encoding="utf-8")
    said = {label for label in (CODE, LIBRARIES, DIRTY, MACHINES) if label in page}
    assert said == {label for label in (CODE, LIBRARIES, DIRTY, MACHINES) if label in summary}
    return said


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({}, set()),
        ({"commit": "7654321"}, {CODE}),
        ({"commit": None}, {CODE}),
        ({"lrbench": "0.2.0"}, {CODE}),
        ({"torch": "2.14.0+cpu"}, {LIBRARIES}),
        ({"numpy": "2.4.0"}, {LIBRARIES}),
        ({"scipy": "1.18.0"}, {LIBRARIES}),
        ({"dirty": True}, {DIRTY}),
        ({"processor": "Intel Xeon"}, {MACHINES}),
        ({"python": "3.12.1"}, set()),
    ],
)
def test_what_the_runs_environments_differ_in_is_said_at_the_top(
    tmp_path: Path, second: dict[str, Any], said: set[str]
) -> None:
    assert labels(write_folder(tmp_path, runs(**second))) == said


def parts_of(folder: Path, records: Sequence[Record]) -> list[Path]:
    return [write_folder(folder / f"part-{place}", [record]) for place, record in enumerate(records)]


def test_parts_of_two_commits_are_joined_and_their_report_says_so(tmp_path: Path) -> None:
    parts = parts_of(tmp_path, runs(commit="7654321"))
    assert [labels(part) for part in parts] == [set(), set()]
    join_folders(parts, tmp_path / "whole")
    assert labels(tmp_path / "whole") == {CODE}
    page = (tmp_path / "whole" / "report.html").read_text(encoding="utf-8")
    assert "1234567 (1 run); 7654321 (1 run)" in page


def test_one_run_of_two_commits_is_taken_from_the_first_part_and_not_called_mixed(tmp_path: Path) -> None:
    record = make_record("000000")
    later = record | {"environment": {**record["environment"], "commit": "7654321"}}
    parts = parts_of(tmp_path, [record, later])
    join_folders(parts, tmp_path / "whole")
    assert labels(tmp_path / "whole") == set()


def test_a_run_of_another_layout_is_left_out_with_its_layout_and_its_name(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, runs())
    path = max((folder / "runs").iterdir())
    path.write_text('{"schema": 1}')
    with pytest.warns(UserWarning, match=rf"{path.name} is left out: it is of layout 1, not 2"):
        page = write_report(folder).read_text(encoding="utf-8")
    assert "1 file in runs/ is of layout 1, not 2; it is left out." in page
