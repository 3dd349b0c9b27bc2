"""From a report's content to its two documents: one self-contained HTML page, one Markdown summary."""

import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from hashlib import sha256
from html import escape
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lrbench.report.content import Report
from lrbench.report.figures import Picture
from lrbench.report.listings import Listing
from lrbench.report.style import BAD, GRID, INK, MUTED, PAPER

__all__ = ["render_html", "render_markdown"]

_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {mark: f"\\{mark}" for mark in "\\`*_[]|"})
_INKS = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--card", BAD: "--bad"}


def render_html(report: Report) -> str:
    """Render the page; it refers to nothing outside itself, and all that comes from records is escaped.

    Of scripts, only the page's own may run: the page names its SHA-256.
    """
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["inline"] = inline
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = f"sha256-{b64encode(sha256(script.encode()).digest()).decode()}"
    template = environment.get_template("report.html.j2")
    return template.render(report=report, style=Markup(style), script=Markup(script), digest=digest)


def inline(picture: Picture, suffix: str) -> Markup:
    """Make a figure's SVG part of the page: no prolog, no names that clash, inks that follow the colour scheme.

    Text is drawn as outlines, and names from records stand in the SVG's comments only, which are removed.
    """
    svg = picture.svg or ""
    svg = re.sub(
        r"<!--.*?-->|<style.*?</style>|<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL
    )
    svg = re.sub(r' (?:xmlns(?::xlink)?|version)="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    name = f"{picture.name}{suffix}"
    svg = re.sub(r'((?:\bid="|href="#|url\(#))', rf"\g<1>{name}-", svg)
    for colour, variable in _INKS.items():
        svg = svg.replace(colour, f"var({variable})")
    return Markup(svg.replace("<svg", '<svg aria-hidden="true"', 1))


def render_markdown(report: Report) -> str:
    """Render the summary: headline verdicts, each verdict in words, tables, data, environment and command."""
    return "\n".join(_lines(report)).rstrip() + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield from (f"# {_escape(report.title)}", "", _escape(report.subtitle), "")
    for notice in report.notices:
        yield from (f"> {_escape(notice)}", "")
    for chapter in report.chapters:
        yield from (f"## {_escape(chapter.setting)}", "", "### In short", "")
        for topic, lines in chapter.headlines.items():
            yield f"- **{topic}**"
            for line in lines:
                yield f"  - {_escape(line.outcome)}: {_escape('; '.join(line.subjects))}"
        yield ""
        for section in chapter.sections:
            yield from (f"### {section.title}", "")
            if section.verdicts:
                yield from (*(f"- {_escape(verdict.text)}" for verdict in section.verdicts), "")
            for picture in section.pictures:
                yield from (_picture(picture, chapter.suffix), "")
                if picture.caption:
                    yield from (_escape(picture.caption), "")
            for listing in section.listings:
                yield from _table(listing)
        yield from ("### Runs", "", *_table(chapter.runs))
    yield from ("## Where it comes from", "")
    for listing in report.origins:
        yield from _table(listing)
    for command, runs in report.commands.items():
        yield from (f"**Command of {runs}**", "", f"<pre>{escape(command, quote=False)}</pre>", "")


def _picture(picture: Picture, suffix: str) -> str:
    if picture.reason is not None:
        return f"No figure “{picture.title}”: {_escape(picture.reason)}."
    return f"![{picture.title}](figures/{picture.name}{suffix}.png)"


def _table(listing: Listing) -> Iterator[str]:
    yield from (f"**{_escape(listing.caption)}**", "", _row(listing.columns))
    yield (
        "|" + "|".join(" ---: " if place in listing.numeric else " --- " for place in range(len(listing.columns))) + "|"
    )
    yield from (_row(row) for row in listing.rows)
    yield ""
    if listing.note:
        yield from (_escape(listing.note), "")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_escape(cell) for cell in cells) + " |"


def _escape(text: str) -> str:
    """Keep a record's text from acting as Markdown or HTML."""
    return " ".join(text.split()).translate(_ESCAPES)
