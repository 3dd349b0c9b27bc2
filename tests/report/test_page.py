"""The report as a whole: figures, the summary, one page that needs nothing else, and the command."""

import base64
import hashlib
import math
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from report_records import layer, make_failure, make_policy_record, make_record, older, realistic_records, write_folder

import lrbench.report
from lrbench.report import NoRunsError, write_report
from lrbench.report.__main__ import main
from lrbench.report.block_figures import draw_cuts
from lrbench.report.figures import NAMES, Picture
from lrbench.report.listings import list_bytes, list_held
from lrbench.report.tables import make_studies
from lrbench.store import Record, prepare_folder

# seaborn's own, of matplotlib's newest release
pytestmark = pytest.mark.filterwarnings("ignore:vert. bool was deprecated:DeprecationWarning")

SCRIPT = (Path(lrbench.report.__file__).parent / "page.js").read_text(encoding="utf-8")
NASTY = "<script>alert('x')</script>"

EVERY = set(NAMES) - {"contrasts", "effects"}
"""Figures of any study; the others are of presets with comparisons, and of many masks."""


class Resources(HTMLParser):
    """Collect what a page would load or run, and check that its elements are balanced."""

    void = frozenset({"meta", "link", "img", "br", "hr", "input", "path", "use", "rect"})

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.void:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
                self.loads.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag


def parse(html: str) -> Resources:
    """Parse a page."""
    resources = Resources()
    resources.feed(html)
    return resources


@pytest.fixture(scope="session")
def page(reported: Path) -> str:
    return (reported / "report.html").read_text(encoding="utf-8")


def test_every_figure_is_there_as_png_and_svg(reported: Path) -> None:
    names = {path.name for path in (reported / "figures").iterdir()}
    assert names == {f"{name}.{kind}" for name in EVERY for kind in ("png", "svg")}
    for name in EVERY:
        with Image.open(reported / "figures" / f"{name}.png") as image:
            assert image.width == pytest.approx(1400, abs=2)
            darkest, lightest = image.convert("L").getextrema()
            assert darkest < 128 < lightest
        assert (reported / "figures" / f"{name}.svg").read_text(encoding="utf-8").count("<path") > 20


def test_the_page_needs_nothing_outside_itself(page: str) -> None:
    found = parse(page)
    assert all(target.startswith("#") for target in found.loads)
    assert not {"link", "img", "iframe", "object", "embed"} & set(found.tags)
    assert found.tags.count("script") == 1
    assert "://" not in page
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_the_page_is_well_formed_and_its_ids_are_unique(page: str) -> None:
    found = parse(page)
    assert found.open == []
    assert len(found.ids) == len(set(found.ids))
    assert {target.removeprefix("#") for target in found.loads} <= set(found.ids)


def test_the_page_follows_the_colour_scheme(page: str) -> None:
    assert "prefers-color-scheme: dark" in page
    assert "fill: var(--ink)" in page, "figures too"
    assert 'name="viewport"' in page


def test_no_script_may_run_but_the_pages_own(page: str) -> None:
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script == SCRIPT
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_a_command_stands_there_as_it_was_given(report_of: Callable[..., str], tmp_path: Path) -> None:
    record, other = make_failure("none", mask="000000"), make_failure("none", mask="100000")
    for each, words in ((record, "a 'b  c' <d>"), (other, "other")):
        each["environment"]["command"] = f"python -m lrbench.ablate --out {words}"
    html = report_of(record, other)
    text = " ".join(re.sub("<[^>]*>", "", html).split())
    assert "Command of 1 run python -m lrbench.ablate --out a 'b c' &lt;d&gt;" in text.replace("&#39;", "'")
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "<pre>python -m lrbench.ablate --out a 'b  c' &lt;d&gt;</pre>" in summary
    assert "<pre>python -m lrbench.ablate --out other</pre>" in summary


def test_the_papers_bytes_stand_beside_a_layer_of_its_shape(page: str, report_of: Callable[..., str]) -> None:
    assert "2,592,556" in page
    assert "2,592,556" not in report_of(make_record(layers=[layer(2, "svd", 0.1)]), make_record("000000"))


def test_the_summary_holds_verdicts_tables_data_and_command(reported: Path) -> None:
    summary = (reported / "summary.md").read_text(encoding="utf-8")
    for words in (
        "broke eps 0.1 on 3",
        "no faster",
        "vs im2col",
        "larger than the input",
        "| layer | mask |",
        "python -m lrbench.ablate",
        "the official binary archive",
        "figures/accuracy.png",
    ):
        assert words in summary
    for line in summary.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_the_same_runs_give_the_same_bytes(reported: Path, tmp_path: Path) -> None:
    again = tmp_path / reported.name
    shutil.copytree(reported / "runs", again / "runs")
    write_report(again)
    files = [path.relative_to(reported) for path in reported.rglob("*") if path.is_file()]
    assert len(files) > 2 * len(NAMES) + 5
    for name in files:
        assert (again / name).read_bytes() == (reported / name).read_bytes(), name


def test_names_from_records_are_escaped(report_of: Callable[..., str], tmp_path: Path) -> None:
    measured = layer(0, "svd", 0.1, layer=NASTY)
    record = make_record("100000", NASTY, path=f'both"{NASTY}', layers=[measured], outcome_detail=NASTY)
    failure = make_failure(f"| {NASTY} $x$", mask="101010")
    html = report_of(make_record("000000"), record, failure)
    assert html.count("<script") == 1, "the page's own"
    assert "&lt;script&gt;" in html
    assert parse(html).tags.count("script") == 1
    assert "<script" not in (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert r"\| &lt;script&gt;" in (tmp_path / "summary.md").read_text(encoding="utf-8")


def test_a_figure_without_data_is_skipped_and_the_page_says_why(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    for earlier in ("time.png", "memory-2.svg", "mine.png"):
        (tmp_path / "figures" / earlier).touch()
    bare = make_record(step=None, step_reason="timing was switched off", peak=None, peak_reason="no /proc here")
    html = write_report(write_folder(tmp_path, [bare])).read_text(encoding="utf-8")
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert "error.png" in names
    assert "mine.png" in names, "what the report did not write it does not remove"
    assert not {name for name in names if name.startswith(("time", "memory"))}, "an earlier one is removed"
    assert "did not record step times: timing was switched off." in html
    assert "did not record peak memory: no /proc here." in html


def test_only_failed_runs_still_make_a_page(report_of: Callable[..., str], tmp_path: Path) -> None:
    html = report_of(make_failure("out of memory"))
    assert "out of memory" in html
    assert list((tmp_path / "figures").iterdir()) == []


def test_settings_are_reported_apart(report_of: Callable[..., str], tmp_path: Path) -> None:
    photos = {"dataset": "photos", "epochs": 2}
    html = report_of(make_record("000000"), make_record("000000", config=photos))
    assert "The folder holds 2 settings." in html
    assert "no finding rests on them" in html
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"accuracy-1", "accuracy-2"}


def test_eps_and_paths_are_not_averaged_together(report_of: Callable[..., str]) -> None:
    html = report_of(
        make_record("000000"), *(make_record(eps=eps, layers=None, step=None, peak=None) for eps in (0.1, 0.3))
    )
    assert "svd, eps 0.1" in html
    assert "svd, eps 0.3" in html


def test_a_damaged_run_is_warned_about_and_left_out(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [make_record("000000")])
    (folder / "runs" / "0123456789abcdef.json").write_text('{"schema": 1')
    with pytest.warns(UserWarning, match="0123456789abcdef"):
        page = write_report(folder)
    assert "1 file in runs/ is not an intact run; it is left out." in page.read_text(encoding="utf-8")


def test_a_folder_without_runs_is_one_clear_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_folder(tmp_path)
    assert main([str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "holds no run to report" in captured.err
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(NoRunsError, match="there is no folder"):
        write_report(tmp_path / "nowhere")


def test_the_command_prints_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path, [make_record("000000")])
    (folder / "runs" / "damaged.json").write_text("{")
    assert main([str(folder)]) == 0
    captured = capsys.readouterr()
    assert Path(captured.out.strip()) == folder / "report.html"
    assert captured.err.startswith("warning: ")
    assert "damaged.json" in captured.err


def test_the_report_never_imports_torch() -> None:
    for path in Path(lrbench.report.__file__).parent.glob("*.py"):
        assert not re.search(r"^\s*(?:import|from) torch", path.read_text(encoding="utf-8"), re.MULTILINE), path


def test_both_documents_say_what_a_figure_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Only the first 9 of 31 panels are drawn; the tables hold all."
    drawn = {name: Picture(name, name, f"Words of {name}. {said}", "<svg></svg>", None) for name in NAMES}
    monkeypatch.setattr("lrbench.report.figures.draw_figures", lambda *_: drawn)
    html = write_report(write_folder(tmp_path, [make_record("000000"), make_record()])).read_text(encoding="utf-8")
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert f"![ranks](figures/ranks.png)\n\nWords of ranks. {said}\n" in summary
    assert html.count(said) == summary.count(said)


def test_realistic_records_have_their_ids() -> None:
    assert len({record["id"] for record in realistic_records()}) == 22


def test_data_that_are_not_the_official_archive_are_named_at_the_top(report_of: Callable[..., str]) -> None:
    record = make_record("000000")
    record["data"]["source"] = "folder cifar-10-copy"
    html = report_of(record)
    assert "The data are those of the folder cifar-10-copy, not the official archive" in html
    record["data"]["source"] = "the official binary archive (MD5 c32a)"
    assert "not the official archive" not in report_of(record)


def cuts_of(*records: Record) -> list[tuple[str, list[str], list[float]]]:
    """Title, texts and heights of the markers of each panel."""
    (study,) = make_studies(records)
    figure, _ = draw_cuts(study)
    return [
        (ax.get_title(), [text.get_text() for text in ax.texts],
         [float(y) for line in ax.lines if line.get_marker() not in ("None", None, "") for y in line.get_ydata()])
        for ax in figure.axes
    ]  # fmt: skip


def test_cuts_have_three_denominators_and_a_layer_with_nothing_to_save_is_marked() -> None:
    small = [layer(index, "svd", 0.1, factor_bytes=100_000) for index in (0, 2)]
    im2col, given, saved = cuts_of(make_record("101000", layers=small))
    assert [panel[0] for panel in (im2col, given, saved)] == [
        "against im2col",
        "against the input",
        "against what is saved",
    ]
    assert "nothing to save:\nthe caller keeps it" in saved[1]
    assert not any("nothing to save" in text for text in im2col[1] + given[1])
    drawn = [y for y in saved[2] if not math.isnan(y)]
    assert drawn == [pytest.approx(1 - 100_000 / (50 * 32 * 16 * 16 * 4))]


def test_cuts_of_older_runs_say_that_what_is_saved_was_not_measured() -> None:
    *_, saved = cuts_of(older(make_record("101000")))
    assert saved[1] == ["not measured", "not measured"]


def test_older_runs_are_listed_with_dashes() -> None:
    (study,) = make_studies([older(make_record("100000")), older(make_record("000000"))])
    listing = list_bytes(study)
    row = dict(zip(listing.columns, listing.rows[0], strict=True))
    assert (row["cut vs saved"], row["saved bytes"], row["freed bytes"]) == ("not measured", "–", "–")
    (only,) = list_held(study).rows
    assert only[-1] == "not measured what it holds"
    assert only[4:9] == ("–",) * 5


def test_bytes_name_who_keeps_an_input_of_which_nothing_is_to_save() -> None:
    (study,) = make_studies([make_record(layers=[layer(0, "svd", 0.1, factor_bytes=1000)])])
    listing = list_bytes(study)
    assert dict(zip(listing.columns, listing.rows[0], strict=True))["cut vs saved"] == "nothing to save (the caller)"
    assert listing.rows[1][2] == "the paper's ACA"
    assert len(listing.rows[1]) == len(listing.columns)


def test_what_a_step_holds_is_listed_beside_the_plain_model() -> None:
    (study,) = make_studies([make_record("000000"), make_record("001000")])
    listing = list_held(study)
    assert listing.caption == "What one training step holds, for a batch of 100 images, in bytes"
    plain, ours = (dict(zip(listing.columns, row, strict=True)) for row in listing.rows)
    assert (plain["compressor"], plain["by formula"], plain["held"]) == ("plain model", "9,999,000", "10,000,000")
    assert (ours["peak added"], ours["peak ratio to plain"]) == ("530,000,000", "1.06")


def test_policies_are_reported_beside_compressors(report_of: Callable[..., str], tmp_path: Path) -> None:
    said = {"features.4": {"compressor": "svd", "eps": 0.3, "path": "backward"}}
    said |= {"features.8": {"compressor": "none", "eps": None, "path": "both"}}
    records = [make_policy_record("tuned", said, lean=True), make_policy_record("bits", {}, lean=True)]
    html = report_of(make_record("000000"), make_record("100000"), *records)
    assert "1 compressor · 2 policy files" in html
    assert "tuned: svd" in html
    assert "tuned: none" in html
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "| tuned | yes | features.4 | svd v1 | 0.3 | backward | – |" in summary
    assert "| bits | yes | – | – | – | – | – |" in summary
    assert "as the policy says" not in html, "figures are drawn, not written"
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert names == EVERY


@pytest.mark.parametrize(("preset", "notice"), [("frontier", "Does it pay? Which method"), ("path", "acts. Does an")])
def test_the_question_of_a_preset_is_at_the_top(report_of: Callable[..., str], preset: str, notice: str) -> None:
    sizes = {"train_size": 10_000, "test_size": 10_000, "widths": [16, 32, 64], "epochs": 8}
    record = make_record(config=sizes)
    record["environment"]["preset"] = preset
    assert notice in " ".join(report_of(record).split())


@pytest.mark.usefixtures("without_figures")
def test_the_question_of_a_preset_is_not_that_of_runs_with_other_settings(report_of: Callable[..., str]) -> None:
    record = make_record(config={"dataset": "photos", "widths": [16, 32, 64], "epochs": 1, "train_size": 10_000})
    record["environment"]["preset"] = "path"
    html = report_of(record)
    said = "The runs of the preset path were made with other settings than the preset"
    assert said in html
    assert "dataset and epochs." in html
    assert "harmless" not in html
