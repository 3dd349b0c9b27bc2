"""What the commands share: how they are asked, how much they say, and how they end."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import wraps
from typing import Any

from tqdm import tqdm

import lrbench

__all__ = ["ENDINGS", "add_loudness", "interruptible", "is_loud", "loudness", "make_parser", "progress"]

ENDINGS = """\
exit status: 0 done; 1 a run failed, or a file or a machine did; 130 or 143
             interrupted; 2 nothing was done, for the reason that is said"""

_LOG = logging.getLogger("lrbench")
_LOG.setLevel(logging.INFO)


class _Compact(argparse.RawDescriptionHelpFormatter):
    """Help with its paragraphs as they are written, and options close to what they do."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=27)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        """Write several values as ``NAME ...``, once."""
        if action.nargs in ("+", "*"):
            return f"{action.metavar or default_metavar} ..."
        return super()._format_args(action, default_metavar)


def make_parser(name: str, says: str, examples: str, usage: str = "[options]") -> argparse.ArgumentParser:
    """Make the parser of ``lrbench NAME``: what it does in a sentence, what it takes, examples, exit status."""
    indented = "\n".join(f"  {line}" for line in examples.strip().splitlines())
    parser = argparse.ArgumentParser(
        prog=f"lrbench {name}".strip(),
        usage=f"%(prog)s {usage}",
        description=says,
        epilog=f"examples:\n{indented}\n\n{ENDINGS}",
        formatter_class=_Compact,
    )
    parser.add_argument("--version", action="version", version=f"lrbench {lrbench.__version__}")
    return parser


def interruptible(main: Callable[[Sequence[str] | None], int]) -> Callable[..., int]:
    """Make a command that keeps nothing end with a word and its exit status, 130, where it is interrupted."""

    @wraps(main)
    def run(arguments: Sequence[str] | None = None) -> int:
        try:
            return main(arguments)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return 130

    return run


def add_loudness(parser: argparse.ArgumentParser) -> None:
    """Let a command be told how much to say."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--quiet", action="store_true", help="say nothing but what went wrong")
    group.add_argument("--verbose", action="store_true", help="say each run's epochs and what it lacks")


@contextmanager
def loudness(options: argparse.Namespace) -> Iterator[None]:
    """Say as much as the options ask for, each line as soon as it is complete, as a log file wants it."""
    with ExitStack() as stack:
        stack.callback(_LOG.setLevel, _LOG.level)
        _LOG.setLevel(logging.WARNING if options.quiet else logging.DEBUG if options.verbose else logging.INFO)
        if options.quiet:
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))  # noqa: PTH123
        elif hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(line_buffering=True)
        yield


def is_loud() -> bool:
    """Whether details are asked for."""
    return _LOG.isEnabledFor(logging.DEBUG)


def progress(total: int, unit: str) -> "tqdm[Any]":
    """A bar on the standard error, of a terminal alone: a log gets lines, and what is to be quiet nothing."""
    shown = total > 0 and _LOG.isEnabledFor(logging.INFO)
    return tqdm(total=total, unit=unit, disable=None if shown else True, dynamic_ncols=True)
