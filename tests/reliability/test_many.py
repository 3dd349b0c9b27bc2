"""Work grows with the number of runs and no faster: counted in calls, which are the same on every machine."""

from pathlib import Path

import pytest
from many import calls, command, jobs, write

import lrbench.report.facets as facets
from lrbench.report.facets import Facet, bounded
from lrbench.report.figures import NAMES, Picture


@pytest.fixture(autouse=True)
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    none = {name: Picture(name, name, "", None, "not drawn here") for name in NAMES}
    monkeypatch.setattr("lrbench.report.figures.draw_figures", lambda *_: none)


def test_listing_going_on_and_reporting_grow_in_proportion_to_the_runs(tmp_path: Path) -> None:
    spent: dict[str, list[int]] = {}
    amounts = []
    for count in (10, 60, 240):  # the first time some things are loaded
        folder = tmp_path / str(count)
        arguments = command(folder, count)
        amounts.append(len(write(folder, arguments)))
        for what, act in jobs(folder, arguments).items():
            spent.setdefault(what, []).append(calls(act))
    for what, (_, fewer, more) in spent.items():
        assert more / fewer < 1.3 * amounts[2] / amounts[1], what


def test_a_figure_has_a_bounded_number_of_panels_and_rows_and_says_what_it_leaves_out() -> None:
    many = [Facet(list(range(1000)), str(mask), "", "") for mask in range(100)]
    shown, said = bounded(many)
    assert len(shown) == facets.PANELS
    assert {len(facet.rows) for facet in shown} == {facets.ROWS}
    rows = "the first 40 of up to 1,000 compressors and policies of a panel"
    assert said == f" Only the first 9 of 100 panels and {rows} are drawn; the tables hold all."
    assert bounded(many[:3] and [Facet([1, 2], "m", "", "")]) == ([Facet([1, 2], "m", "", "")], "")
