"""The command ``lrbench``: it hands over to one of its commands, and imports nothing of the others."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from lrbench.shell import make_parser

__all__ = ["main"]

COMMANDS = {
    "ablate": ("lrbench.ablate", "run a grid: compressors x masks x tolerances x paths x seeds"),
    "report": ("lrbench.report.__main__", "write tables, figures and page of a results folder again"),
    "plan": ("lrbench.plan", "what compression can bring in each convolution of a model"),
    "list": ("lrbench.catalogue", "compressors, what each does and what it promises"),
    "sizes": ("lrbench.sizes", "bytes and errors of the first layer, without training"),
}

EXAMPLES = """\
lrbench ablate                             a demonstration in results/demo
lrbench list '*aca*'
lrbench plan resnet50 --input 256,3,224,224
lrbench COMMAND --help"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that is named first, with what stands behind it; give its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = "\n".join(f"  {name:8}{says}" for name, (_, says) in COMMANDS.items())
    says = f"Compress what convolutions work on, and measure what that gives and costs.\n\n{commands}"
    parser = make_parser("", says, EXAMPLES, "COMMAND [options]")
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help=argparse.SUPPRESS)
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    name = parser.parse_args(arguments[:1]).command
    status: int = importlib.import_module(COMMANDS[name][0]).main(arguments[1:])
    return status


if __name__ == "__main__":
    sys.exit(main())
