"""Names come from models, compressors, files and commands: none of them acts in the page, its tables or figures."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_records import make_failure, make_policy_record, make_record, savings, write_folder

from lrbench.report import write_report
from lrbench.store import Record, run_id

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

HOSTILE = "<script>alert(1)</script>\"><img src=x onerror='alert(2)'> | a\n| b --> ]]> </svg> \ud800 &amp; `${x}`"
KEPT = {"id", "status", "mask", "checksum", "guarantee", "outcome", "policy", "predictions", "data_sha256"}
"""Not a name, but of our own making, or checked where it is read."""


def poisoned(value: Any, place: str = "") -> Any:
    """Put the hostile words behind every name that a record holds."""
    if isinstance(value, dict):
        return {key: item if key in KEPT else poisoned(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item, place) for item in value]
    return f"{value} {HOSTILE}" if isinstance(value, str) else value


def poison(record: Record) -> Record:
    config = poisoned(record["config"])
    if "policy" in config:
        policy = json.loads(config["policy"])
        layers = {f"{name} {HOSTILE}": poisoned(said) for name, said in policy["layers"].items()}
        config["policy"] = json.dumps({**policy, "layers": layers}, sort_keys=True)
    return poisoned(record) | {"config": config, "id": run_id(config)}


class Elements(HTMLParser):
    """Collect the elements and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.targets: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.targets |= {value or "" for name, value in attributes if name in ("href", "src", "xlink:href")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    measured = make_record("101010", "svd", layers_reason="why", step_reason="why", peak_reason="why")
    unmeasured = {"layers": None, "step": None, "peak": None, "savings": None}
    reasons = {f"{key}_reason": f"{key} was not asked for" for key in unmeasured}
    records = [
        make_record("000000"),
        measured | {"savings": savings(measured["layers"], formula_reason="a custom module")},
        make_record("100000", "aca", outcome="diverged", outcome_detail="epoch 3: the loss became nan"),
        make_record("100000", "rsvd", **unmeasured, **reasons),
        make_failure("MemoryError: not enough", mask="001000", compressor="qr-svd"),
        make_policy_record("tuned", {"features.0": {"compressor": "svd", "eps": 0.1, "path": "backward"}}, lean=True),
    ]
    folder = write_folder(tmp_path_factory.mktemp("hostile"), [poison(record) for record in records])
    write_report(folder)
    return folder


def test_no_name_becomes_an_element_or_an_attribute_of_the_page(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    elements = Elements()
    elements.feed(page)
    assert page.count("&lt;script&gt;") > 50
    assert page.count("<script") == 1, "that of the page itself"
    assert not {"img", "iframe", "object", "embed", "link", "base", "form"} & elements.tags
    assert not [name for name in elements.attributes if name.startswith("on")]
    assert all(target.startswith("#") for target in elements.targets)
    assert {"svg", "table"} <= elements.tags


def test_no_name_becomes_an_element_of_a_figure(folder: Path) -> None:
    figures = list((folder / "figures").glob("*.svg"))
    assert len(figures) == 10
    for figure in figures:
        assert not re.search(
            r"<(script|img|foreignObject)|\bon\w+=", re.sub(r"<!--.*?-->", "", figure.read_text(), flags=re.S)
        )


def test_no_name_breaks_a_row_or_acts_in_the_summary(folder: Path) -> None:
    summary = (folder / "summary.md").read_text(encoding="utf-8")
    assert "&lt;script&gt;" in summary
    assert not re.search(r"<(script|img|/svg)", summary)
    assert summary.count("<pre>") == summary.count("</pre>") > 0
    columns = 0
    summary = re.sub(r"<pre>.*?</pre>", "", summary, flags=re.S)  # commands, in which Markdown means nothing
    for line in summary.splitlines():
        bars = len(re.findall(r"(?<!\\)\|", line))
        assert line.startswith("|") or not bars, line
        columns = columns or bars if line.startswith("|") else 0
        assert bars == columns, line
