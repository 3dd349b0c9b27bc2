"""Write a results folder's report again: ``python -m lrbench.report DIR``."""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from lrbench.shell import make_parser

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Report the folder that the command line names, and return the exit status: 0, or 2 where that is not possible."""
    says = "Write the tables, figures, summary and page of a results folder from its runs."
    parser = make_parser("report", says, "lrbench report results/demo", "DIR")
    parser.add_argument("folder", metavar="DIR", type=Path, help="results folder, with its runs in DIR/runs/*.json")
    folder = parser.parse_args(arguments).folder
    # What draws is imported now only: the command line answers at once.
    from lrbench.report import NoRunsError, write_report

    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        try:
            page = write_report(folder)
        except (NoRunsError, OSError) as error:
            print(f"lrbench.report: {error}", file=sys.stderr)
            return 2
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
