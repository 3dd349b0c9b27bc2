"""Reported folders."""

from collections.abc import Callable
from pathlib import Path

import pytest
from report_records import realistic_records, write_folder

from lrbench.report import write_report
from lrbench.report.figures import NAMES, Picture
from lrbench.store import Record


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a realistic ablation, reported once."""
    folder = write_folder(tmp_path_factory.mktemp("reported"), realistic_records())
    write_report(folder)
    return folder


@pytest.fixture
def report_of(tmp_path: Path) -> Callable[..., str]:
    """Return a function that reports records and returns the page's HTML."""

    def report(*records: Record) -> str:
        return write_report(write_folder(tmp_path, list(records))).read_text(encoding="utf-8")

    return report


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes a report's time, in tests of its words."""
    none = {name: Picture(name, name, "", None, "not drawn here") for name in NAMES}
    monkeypatch.setattr("lrbench.report.figures.draw_figures", lambda *_: none)
