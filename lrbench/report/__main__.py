"""Write a results folder's report again: ``python -m lrbench.report DIR``; or that of several, joined in a new one."""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from lrbench.shell import interruptible, make_parser

__all__ = ["main"]


@interruptible
def main(arguments: Sequence[str] | None = None) -> int:
    """Report what the command line names, and return the exit status.

    Returns
    -------
    int
        0; 1 if something could not be written; 2 where there is nothing to report, or nothing that can be joined.
    """
    says = (
        "Write the tables, figures, summary and page of a results folder from its runs.\n"
        "Several folders, the parts of one grid, are joined: their runs are copied to the\n"
        "folder that --out names. A run that is in more than one must have the same\n"
        "numbers in each, times and memory aside; the first that finished is taken."
    )
    examples = "lrbench report results/demo\nlrbench report part-1 part-2 --out whole"
    parser = make_parser("report", says, examples, "DIR [DIR ... --out DIR]")
    parser.add_argument(
        "folders", metavar="DIR", type=Path, nargs="+", help="results folder, with its runs in DIR/runs/*.json"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="where several folders are joined")
    options = parser.parse_args(arguments)
    if len(options.folders) > 1 and options.out is None:
        parser.error("several folders are joined in another one: name it with --out")
    # What draws is imported now only: the command line answers at once.
    from lrbench.joining import JoinError, join_folders
    from lrbench.report import NoRunsError, write_report
    from lrbench.store import ResultsFolderError

    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        try:
            if options.out is not None:
                join_folders(options.folders, options.out)
            page = write_report(options.out or options.folders[0])
        except (JoinError, NoRunsError, OSError) as error:
            print(f"lrbench.report: {error}", file=sys.stderr)
            # A folder that is none, or of another version, is refused before anything is done.
            unwritten = isinstance(error, OSError) and not isinstance(error, ResultsFolderError)
            return 1 if unwritten else 2
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
