"""Try the reliability of the results folder and of the parsers.

python -m tests.reliability --out results/reliability           everything, about an hour of one core
python -m tests.reliability kills --share 3 --seed 1            a few trials of one kind, printed as JSON

What is found is in the table; the exit status is 1 where that is anything.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "report"), str(TESTS / "reliability")]

import torch  # noqa: E402
from damages import try_damages  # noqa: E402
from disks import try_disks  # noqa: E402
from findings import Findings  # noqa: E402
from fuzz import try_parsers  # noqa: E402
from kills import try_kills  # noqa: E402
from many import try_many  # noqa: E402
from report_records import realistic_records, write_folder  # noqa: E402

from lrbench.datasets import load_dataset  # noqa: E402
from lrbench.environment import environment  # noqa: E402
from lrbench.files import write_atomically  # noqa: E402
from lrbench.report import write_report  # noqa: E402

ALL: dict[str, tuple[Callable[[int, int, Path], Findings], int]] = {
    "kills": (try_kills, 50),
    "disks": (try_disks, 30),
    "damages": (try_damages, 10_000),
    "many": (try_many, 10_000),
    "parsers": (try_parsers, 100_000),
}
"""What tries what, and how often that is all."""


def main() -> int:
    """Run the command; give its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.reliability", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(ALL)} (all)")
    parser.add_argument("--share", type=int, metavar="N", help="how often, instead of all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="DIR", help="where reliability.md and .json go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for name in options.kinds or ALL:
        attempt, often = ALL[name]
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as base:
            if name in ("kills", "disks", "damages"):
                _warm_up(Path(base))
            found[name] = vars(attempt(options.share or often, options.seed, Path(base)))
        found[name]["seconds"] = round(time.perf_counter() - start)
        print(json.dumps(found[name], indent=1), flush=True)
    if options.out is not None:
        facts = {key: environment()[key] for key in ("lrbench", "commit", "dirty", "torch", "python", "platform")}
        written = {"seed": options.seed, "environment": facts, "trials": found}
        write_atomically(options.out / "reliability.json", json.dumps(written, indent=1) + "\n")
        write_atomically(options.out / "reliability.md", _markdown(written))
    return int(any(one["found"] for one in found.values()))


def _warm_up(base: Path) -> None:
    """Load in this process what its forks need, so that they start fast."""
    load_dataset("photos")
    write_report(write_folder(base / "warm-up", realistic_records()[:4]))


def _markdown(written: dict) -> str:
    lines = ["# Reliability", "", "| tried | how often | found |", "| --- | ---: | --- |"]
    for one in written["trials"].values():
        for number, (kind, amount) in enumerate(one["tried"].items()):
            title = f"{one['title']}: " if number == 0 else ""
            findings = ("; ".join(one["found"]) or "nothing") if number == 0 else ""
            lines.append(f"| {title}{kind} | {amount:,} | {' '.join(findings.replace('|', '/').split())[:2000]} |")
    measured = [f"- {what}: {value}" for one in written["trials"].values() for what, value in one["measured"].items()]
    facts = written["environment"]
    where = f"lrbench {facts['lrbench']}, commit {facts['commit']}, torch {facts['torch']}, Python {facts['python']}"
    seconds = sum(one["seconds"] for one in written["trials"].values())
    lines += ["", *measured, "", f"`make reliability`, seed {written['seed']}, {seconds:,} s; {where}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
