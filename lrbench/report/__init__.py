"""From a results folder to tables, figures, a summary and one self-contained HTML page.

Data flow one way: run files → `tables` → `summaries` → `verdicts`, `listings` and figures → `content` → `page`.
"""

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrbench.files import write_atomically
from lrbench.store import SCHEMA, read_folder

# What draws is imported where it is first needed: the command line answers at once.
if TYPE_CHECKING:
    from lrbench.report.tables import NoRunsError, read_table

__all__ = ["NoRunsError", "read_table", "write_report"]


def write_report(folder: Path) -> Path:
    """Write everything that can be derived from a results folder's runs, and return the path of its page.

    Writes ``runs.csv``, ``epochs.csv``, ``layers.csv``, ``figures/``, ``summary.md`` and ``report.html``; the same runs
    give the same bytes. A figure whose data are missing is skipped, and the page says why.

    Parameters
    ----------
    folder
        A results folder, with its runs in ``folder/runs``.

    Returns
    -------
    Path
        ``folder/report.html``.

    Raises
    ------
    NoRunsError
        If the folder holds no intact run.
    """
    from lrbench.report.content import compose, suffix_of
    from lrbench.report.figures import draw_figures
    from lrbench.report.page import render_html, render_markdown
    from lrbench.report.tables import NoRunsError, make_studies, write_tables

    folder = Path(folder)
    contents = read_folder(folder)
    for path, reason in contents.left_out.items():
        warnings.warn(f"{path} is left out: {reason}", stacklevel=2)
    if not contents.records:
        none = f"no intact run of layout {SCHEMA}" if contents.left_out else "no run"
        state = none if folder.is_dir() else "no folder"
        raise NoRunsError(
            f"there is no folder {folder}, and so nothing to report"
            if state == "no folder"
            else f"{folder} holds {state} to report: runs are expected as {folder / 'runs'}/*.json"
        )
    studies = make_studies(contents.records)
    write_tables(studies, folder)
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    suffixes = [suffix_of(place, len(studies)) for place in range(len(studies))]
    pictures = [draw_figures(study, figures, suffix) for study, suffix in zip(studies, suffixes, strict=True)]
    drawn = {
        f"{name}{suffix}" for suffix, some in zip(suffixes, pictures, strict=True) for name in some if some[name].svg
    }
    _remove_figures(figures, drawn)
    report = compose(studies, pictures, contents)
    write_atomically(folder / "summary.md", render_markdown(report))
    page = folder / "report.html"
    write_atomically(page, render_html(report))
    return page


def _remove_figures(folder: Path, drawn: set[str]) -> None:
    """Remove an earlier report's other figures, and nothing else: one may have lost its data since."""
    from lrbench.report.figures import NAMES

    ours = re.compile(rf"(?:{'|'.join(NAMES)})(?:-\d+)?\.(?:png|svg)")
    for path in folder.iterdir():
        if ours.fullmatch(path.name) and path.stem not in drawn:
            path.unlink(missing_ok=True)  # another command may be at it


if not TYPE_CHECKING:  # a checker that saw it would believe in every name

    def __getattr__(name: str) -> Any:
        """Import a name of the tables when it is first asked for."""
        if name in ("NoRunsError", "read_table"):
            from lrbench.report import tables

            return globals().setdefault(name, getattr(tables, name))
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
