"""Plant every bug into a copy of the package, and run the tests that must find it.

python -m tests.mutations                              all of them, after the same tests on the package as it is
python -m tests.mutations --only "check skipped"       those whose name holds a text
python -m tests.mutations --share 2 --seed 2026-01-31  a few, drawn by the seed (today's date without one)

Exit status 1 if a bug is not found, or can no longer be planted. The working tree is left alone.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

from tests.mutations.bugs import BUGS, Bug

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 600
"""That the tests of one bug may take."""


def planted(bug: Bug, package: Path) -> str:
    """The text of the bug's file with the bug in it.

    Raises
    ------
    ValueError
        If the text that is to be replaced is not there, or more than once.
    """
    text = (package / bug.file).read_text(encoding="utf-8")
    if text.count(bug.old) != 1:
        raise ValueError(f"the text that it replaces is {text.count(bug.old)} times in {bug.file}: mend the bug")
    return text.replace(bug.old, bug.new)


def verdict(bug: Bug | None, tests: str, select: str) -> tuple[str, str]:
    """Run some tests on a copy with a bug, or without one.

    Returns
    -------
    tuple
        "found" and the test that failed, "not found", or "no verdict" and the end of what pytest said.
    """
    with tempfile.TemporaryDirectory(prefix="lrbench-bug-") as folder:
        copy = Path(folder)
        for part in ("lrbench", "tests"):
            # What Numba compiled goes along: it is stamped with the content of all kernels, and good for no others.
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("*.pyc"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        if bug is not None:
            (copy / "lrbench" / bug.file).write_text(planted(bug, ROOT / "lrbench"), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", f"tests/{tests}", "-k", select, "-x", "-q", "-rf"]
        environment = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                [*command, "-p", "no:cacheprovider", "-p", "no:xdist"],
                cwd=copy, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return "no verdict", f"the tests took longer than {SECONDS} s"
    failed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    if done.returncode == 0:
        return "not found", ""
    if done.returncode == 1 and failed:
        return "found", failed[0].removeprefix("tests/")
    return "no verdict", f"pytest ended with {done.returncode}: {(done.stdout + done.stderr).strip()[-500:]}"


def search(bug: Bug) -> tuple[str, str]:
    """Whether the tests find a bug."""
    try:
        return verdict(bug, bug.tests, bug.select)
    except ValueError as error:
        return "no verdict", str(error)


def table(results: Iterable[tuple[Bug, tuple[str, str]]]) -> str:
    """The bugs in Markdown, each with the test that finds it."""
    lines = [
        "# Bugs that the tests find",
        "",
        "Each is planted, alone, into a copy of the package; the tests named for it run until one fails.",
        "",
        "| bug | file | found by |",
        "| --- | --- | --- |",
    ]
    for bug, (outcome, test) in results:
        where, _, name = test.rpartition("::")
        shown = f"`{name.partition('[')[0]}` in {where.partition('::')[0]}" if outcome == "found" else f"**{outcome}**"
        lines.append(f"| {bug.name} | {bug.file} | {shown} |")
    return "\n".join([*lines, "", "`make mutants`", ""])


def main() -> int:
    """Run the command; give its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutations", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="TEXT", default="", help="bugs whose name holds a text")
    parser.add_argument("--share", type=int, metavar="N", help="so many of them, drawn by the seed")
    parser.add_argument("--seed", default=date.today().isoformat(), help="any text (today)")
    parser.add_argument("--jobs", type=int, default=2, help="copies that are tested side by side")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where mutations.md goes")
    options = parser.parse_args()
    chosen = [bug for bug in BUGS if options.only in bug.name]
    if not chosen:
        parser.error(f"no bug's name holds {options.only!r}")
    if options.share is not None:
        drawn = random.Random(options.seed).sample(chosen, min(options.share, len(chosen)))
        chosen = [bug for bug in chosen if bug in drawn]
        print(f"{len(chosen)} of {len(BUGS)} bugs, drawn by --seed {options.seed}")
    wrong = []
    with ThreadPoolExecutor(options.jobs) as pool:
        if options.share is None:
            # A test that fails without the bug says nothing of it.
            runs = list(dict.fromkeys((bug.tests, bug.select) for bug in chosen))
            for run, (outcome, detail) in zip(runs, pool.map(lambda run: verdict(None, *run), runs), strict=True):
                if outcome != "not found":
                    wrong.append(f"{run[0]} -k {run[1]!r} fails without any bug: {detail}")
                    print(wrong[-1], flush=True)
        results = []
        for bug, (outcome, detail) in zip(chosen, pool.map(search, chosen), strict=True):
            print(f"{outcome:10}  {bug.name} ({bug.file})  {detail}", flush=True)
            results.append((bug, (outcome, detail)))
            if outcome != "found":
                wrong.append(bug.name)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "mutations.md").write_text(table(results), encoding="utf-8")
    print(f"{sum(outcome == 'found' for _, (outcome, _) in results)} of {len(results)} bugs found")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
