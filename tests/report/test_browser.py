"""The page as people meet it: a browser sorts, filters and enlarges it, wide and narrow, light and dark."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Page, browse, find_chromium
from report_records import layer, make_failure, make_record, write_folder
from test_effects import some

from lrbench.report import write_report

# seaborn's own, of matplotlib's newest release
pytestmark = pytest.mark.filterwarnings("ignore:vert. bool was deprecated:DeprecationWarning")

DESKTOP, PHONE = 1280, 390
COMMAND = f"python -m lrbench.ablate --compressors svd --masks 000000 100000 --out 'two words/{'folder' * 12}'"
NASTY = "<img src=x onerror='document.title=1'><script>document.title=2</script>"

ROWS = "[...document.querySelectorAll('#runs tbody tr')].filter(row => !row.hidden)"
OUTER = """
[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, .drawing') && !(e instanceof SVGElement)
    && (e.getBoundingClientRect().right > innerWidth + 1 || e.getBoundingClientRect().left < -1)).map(e => e.outerHTML)
"""
CONTRASTS = """
(() => {
  const channel = c => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number);
    return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  };
  const contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const ground = e => light(getComputedStyle(e).backgroundColor);
  const ink = (selector, property) => light(getComputedStyle(document.querySelector(selector))[property]);
  return {
    body: contrast(ink('h1', 'color'), ground(document.body)),
    muted: contrast(ink('figcaption', 'color'), ground(document.body)),
    table: contrast(ink('td', 'color'), ground(document.querySelector('.scroll'))),
    figure: contrast(ink('.drawing svg [id*="text_"] g', 'fill'), ground(document.querySelector('.drawing'))),
    dark: ground(document.body) < 0.1,
  };
})()
"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium is installed: the page is not tried in a browser")
    with browse(program, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with numbers that sort otherwise as text, a run without any, and names that would be markup."""
    nasty = [layer(0, "svd", 0.1, layer=NASTY)]
    records = [
        make_record("000000", seconds=None),
        make_record("100000", seconds=9.5),
        make_record("100000", "aca", seconds=1234.5),
        make_record("100000", "aca", eps=0.03, seconds=20.0),
        make_record("100000", NASTY, path=NASTY, layers=nasty, outcome_detail=NASTY, seconds=30.0),
        make_failure(NASTY, mask="101010"),
    ]
    for record in records:
        record["environment"]["command"] = COMMAND
        record["data"]["source"] = NASTY
    records[-1]["seconds"] = 100.0
    return write_report(write_folder(tmp_path_factory.mktemp("report"), records))


def column(page: Page, head: str) -> list[str]:
    """Texts of a column of the table of runs, as it is shown."""
    place = f"[...document.querySelectorAll('#runs th')].findIndex(e => e.textContent.trim() === '{head}')"
    found: list[str] = page.run(f"{ROWS}.map(row => row.cells[{place}].textContent.trim())")
    return found


def sort_by(page: Page, head: str) -> None:
    place = page.run(f"[...document.querySelectorAll('#runs th')].findIndex(e => e.textContent.trim() === '{head}')")
    page.click(f"#runs th:nth-child({place + 1}) button")


def choose(page: Page, label: str, value: str) -> None:
    page.run(
        "(() => { const select = [...document.querySelectorAll('#runs .tools label')]"
        f".find(e => e.firstChild.textContent.trim() === '{label}').querySelector('select');"
        f"select.value = '{value}'; select.dispatchEvent(new Event('input', {{bubbles: true}})); }})()"
    )


def drawings(page: Page) -> list[Any]:
    """What each figure's card holds."""
    found: list[Any] = page.run("[...document.querySelectorAll('.drawing')].map(e => e.innerHTML.length)")
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_the_page_fits_asks_for_nothing_and_complains_of_nothing(
    chromium: Page, report: Path, reported: Path, width: int, scheme: str
) -> None:
    for path in (report, reported / "report.html"):
        chromium.open(path, width, scheme=scheme)
        assert chromium.requests == [path.as_uri()]
        assert chromium.run("document.documentElement.scrollWidth") == width
        assert chromium.run(OUTER) == []
        assert chromium.run("document.title").startswith("What compression gave"), "nothing else ran"
        assert chromium.complaints == []
        found = chromium.run(CONTRASTS)
        assert found.pop("dark") is (scheme == "dark")
        assert min(found.values()) > 4.5, found


def test_a_table_too_wide_for_a_phone_scrolls_in_its_own_box(chromium: Page, report: Path) -> None:
    chromium.open(report, PHONE)
    box = "document.querySelector('#runs .scroll')"
    assert chromium.run(f"{box}.scrollWidth > {box}.clientWidth + 100")
    chromium.run(f"{box}.scrollTo({{left: 200, behavior: 'instant'}})")
    assert chromium.run(f"[{box}.scrollLeft, scrollX]") == [200, 0]


def test_runs_are_sorted_as_numbers_up_then_down_then_as_they_were(chromium: Page, report: Path) -> None:
    chromium.open(report)
    before = column(chromium, "id")
    heads = "[...document.querySelectorAll('#runs [aria-sort]')].map(e => [e.textContent, e.ariaSort])"
    sort_by(chromium, "seconds")
    assert column(chromium, "seconds") == ["9.5", "20.0", "30.0", "100.0", "1,234.5", "–"]
    assert chromium.run(heads) == [["seconds", "ascending"]]
    sort_by(chromium, "seconds")
    assert column(chromium, "seconds") == ["1,234.5", "100.0", "30.0", "20.0", "9.5", "–"], "what is missing stays last"
    assert chromium.run(heads) == [["seconds", "descending"]]
    sort_by(chromium, "seconds")
    assert column(chromium, "id") == before
    assert chromium.run(heads) == []
    sort_by(chromium, "eps")
    assert [text for text in column(chromium, "eps") if text != "–"] == ["0.03", "0.1", "0.1", "0.1", "0.1"]
    sort_by(chromium, "compressor")
    assert column(chromium, "compressor") == [NASTY, "aca", "aca", "plain model", "svd", "svd"]
    assert chromium.complaints == []


def test_the_smallest_p_sorts_before_all_that_are_told(chromium: Page, tmp_path: Path) -> None:
    chromium.open(write_report(write_folder(tmp_path, some())))
    cells = "[...document.querySelectorAll('[data-ours] tbody tr')].map(row => row.cells[4].textContent.trim())"
    chromium.run(
        "[...document.querySelectorAll('th')].find(e => e.textContent.trim() === 'p (Holm)').closest('table')"
        ".dataset.ours = ''"
    )
    chromium.click("[data-ours] th:nth-child(5) button")
    shown = chromium.run(cells)
    told = shown.count("< 0.001")
    assert told > 1
    assert shown[:told] == ["< 0.001"] * told
    assert shown[told:] == sorted(shown[told:], key=float)


def test_a_sort_button_answers_the_keyboard(chromium: Page, report: Path) -> None:
    chromium.open(report)
    chromium.run("[...document.querySelectorAll('#runs th button')].find(e => e.textContent === 'seconds').focus()")
    chromium.press("Enter", 13, "\r")
    assert column(chromium, "seconds")[0] == "9.5"


def test_runs_are_filtered_by_words_and_by_values_and_counted(chromium: Page, report: Path) -> None:
    chromium.open(report)
    count = "document.querySelector('#runs output').textContent"
    assert chromium.run(count) == "6 of 6 rows"
    chromium.click("#runs .tools input")
    chromium.type("100000 ACA")
    assert column(chromium, "compressor") == ["aca", "aca"]
    assert chromium.run(count) == "2 of 6 rows"
    choose(chromium, "eps", "0.03")
    assert column(chromium, "seconds") == ["20.0"]
    sort_by(chromium, "seconds")
    assert column(chromium, "seconds") == ["20.0"], "sorting shows nothing that is filtered away"
    chromium.run("document.querySelector('#runs .tools input').select()")
    chromium.press("Backspace", 8)
    assert chromium.run(count) == "1 of 6 rows"
    choose(chromium, "eps", "all")
    choose(chromium, "compressor", "svd")
    assert column(chromium, "mask") == ["100000", "101010"]
    choose(chromium, "compressor", "all")
    assert chromium.run(count) == "6 of 6 rows"
    assert chromium.complaints == []


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_a_figure_is_enlarged_by_click_or_enter_and_closed_by_escape(chromium: Page, report: Path, width: int) -> None:
    chromium.open(report, width)
    before = drawings(chromium)
    size = "document.querySelector('{} svg').getBoundingClientRect().width"
    small = chromium.run(size.format(".drawing"))
    height = chromium.run("document.documentElement.scrollHeight")
    chromium.click(".drawing")
    assert chromium.run("document.querySelector('dialog').open")
    assert chromium.run(size.format(".stage")) > 1.2 * small
    assert chromium.run(
        "document.querySelector('#enlarged-title').textContent === document.querySelector('h4').textContent"
    )
    assert chromium.run("document.documentElement.scrollHeight") == height, "the page behind does not move"
    chromium.press("Escape", 27)
    assert not chromium.run("document.querySelector('dialog').open")
    assert drawings(chromium) == before
    chromium.run("document.querySelectorAll('.drawing')[1].focus()")
    chromium.press("Enter", 13, "\r")
    assert chromium.run("document.querySelector('dialog').open")
    assert chromium.run("document.activeElement.closest('dialog') !== null")
    chromium.press("Enter", 13, "\r")  # on the button that closes, which has the focus
    assert not chromium.run("document.querySelector('dialog').open")
    assert chromium.run("document.activeElement === document.querySelectorAll('.drawing')[1]")
    assert drawings(chromium) == before
    assert chromium.complaints == []


def test_colours_may_be_chosen_against_the_system_and_are_remembered(chromium: Page, report: Path) -> None:
    chromium.open(report, scheme="light")
    assert chromium.run("document.querySelector('.scheme').textContent") == "Dark colours"
    chromium.click(".scheme")
    chosen = chromium.run(CONTRASTS)
    chromium.open(report, scheme="light")
    assert chromium.run(CONTRASTS) == chosen
    assert chosen.pop("dark")
    assert min(chosen.values()) > 4.5, chosen
    assert chromium.run("document.querySelector('.scheme').textContent") == "Light colours"
    chromium.click(".scheme")
    chromium.open(report, scheme="dark")
    assert chromium.run(CONTRASTS)["dark"], "it follows the system again"


def test_one_click_selects_the_whole_command(chromium: Page, report: Path) -> None:
    chromium.open(report, PHONE)
    chromium.click(".command")
    assert chromium.run("getSelection().toString().trim()") == COMMAND


def test_without_javascript_everything_is_there_and_nothing_is_dead(chromium: Page, report: Path) -> None:
    chromium.open(report, PHONE, script=False)
    assert chromium.run("document.querySelectorAll('button, input, select, dialog, [role=button]').length") == 0
    assert len(column(chromium, "id")) == 6
    assert chromium.run("document.documentElement.scrollWidth") == PHONE
    shown = chromium.run("document.body.innerText")
    for words in ("In short", COMMAND, NASTY, "1,234.5"):
        assert words in re.sub(r"\s+", " ", shown)
