"""The compressors by name: what each does, in a line, and what it promises.

python -m lrbench.catalogue '*aca*'
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lrbench.shell import interruptible, make_parser

# What takes torch is imported where it is first needed: the command line answers at once.
if TYPE_CHECKING:
    from lrbench.compressors import Compressor

__all__ = ["main"]

PROMISES = {"block": "every block within eps", "batch": "the batch within eps", None: "none"}
EXAMPLES = """\
lrbench list
lrbench list '*aca*'"""


@interruptible
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; give its exit status."""
    parser = make_parser("list", "List compressors: name, promise and method.", EXAMPLES, "[PATTERN]")
    parser.add_argument("pattern", metavar="PATTERN", nargs="?", default="*", help="such as '*aca*'; all without it")
    pattern = parser.parse_args(arguments).pattern

    from lrbench.compressors import compressor_class, list_compressors

    names = list_compressors(pattern)
    if not names:
        known = ", ".join(list_compressors())
        print(f"lrbench.list: no compressor matches {pattern!r}: use names of {known}, or wildcards", file=sys.stderr)
        return 2
    rows = [(name, *_described(compressor_class(name))) for name in names]
    widths = [max(len(row[place]) for row in (*rows, ("name", "promise"))) for place in range(2)]
    for name, promise, method in (("name", "promise", "method"), *rows):
        print(f"{name:{widths[0]}}  {promise:{widths[1]}}  {method}")
    return 0


def _described(cls: type[Compressor]) -> tuple[str, str]:
    """What a compressor promises, and the first line of what is written on it."""
    exact = cls.guarantee == "block" and not cls.uses_eps
    return "exact" if exact else PROMISES[cls.guarantee], (inspect.getdoc(cls) or "").partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
