"""A grid is killed at random moments and points, and the same command given again."""

import random
import shutil
import signal
from pathlib import Path

import faults
from findings import Findings
from folders import differences

PLACES = ("checkpoints/", "runs/", ".csv", "figures/", "report.html", ".holder")
"""Where in the folder a process is killed; each as often as the others."""


def try_kills(count: int, seed: int, base: Path) -> Findings:
    """Kill a grid ``count`` times: every other time at a random moment, else at a random point of its writing.

    Every other two times its runs are in processes of their own.
    """
    draw, found, reference = random.Random(seed), Findings("SIGKILL in a grid"), base / "reference"
    whole = {"0": undisturbed(reference, base, found)}
    if count > 2:
        folder = base / "reference-1"
        whole["1"] = faults.run(faults.command(folder, "--jobs", "1"), folder, base)
        found.expect(not differences(folder, reference), f"with a process of its own: {differences(folder, reference)}")
    for number in range(count):
        folder, jobs = base / f"killed-{number}", str(number // 2 % 2)
        arguments, points = faults.command(folder, "--jobs", jobs), whole[jobs].points
        if number % 2:
            place = draw.choice(PLACES)
            point = draw.choice([at for at, name in enumerate(points, 1) if place in name])
            kind = points[point - 1].split(" ")[0]
            first = faults.run(arguments, folder, base, faults.killing(point))
            what = f"seed {seed}, kill {number}, --jobs {jobs}: {kind} in {place}"
            found.count(f"at a point of its writing, --jobs {jobs}: {place.strip('/.')}")
        else:
            moment = draw.uniform(0, whole[jobs].seconds)
            first = faults.run(arguments, folder, base, kill_after=moment)
            what = f"seed {seed}, kill {number}, --jobs {jobs}: after {moment:.3f} s"
            found.count(f"at a random moment, --jobs {jobs}")
        _go_on(arguments, folder, reference, base, first, found, what)
        shutil.rmtree(folder)
    return found


def undisturbed(folder: Path, base: Path, found: Findings) -> faults.Ended:
    """Do the grid that others are compared with, twice: the first time some things are loaded."""
    for _ in range(2):
        shutil.rmtree(folder, ignore_errors=True)
        ended = faults.run(faults.command(folder), folder, base)
    found.expect(ended.status == 0 and len(ended.safe) == faults.RUNS * faults.EPOCHS, f"undisturbed: {ended.err}")
    found.expect(not differences(folder, folder), "the undisturbed grid leaves something over")
    return ended


def _go_on(
    arguments: list[str],
    folder: Path,
    reference: Path,
    base: Path,
    first: faults.Ended,
    found: Findings,
    what: str,
) -> None:
    found.expect(first.status in (-signal.SIGKILL, 0), f"{what}: it ended with {first.status}: {first.err}")
    found.expect(not first.orphans, f"{what}: workers {first.orphans} went on")
    found.count("of them after the grid's end", int(first.status == 0))
    found.expect(len(first.begun) - len(first.safe) <= 1, f"{what}: several epochs under way")
    runs = {path: path.read_bytes() for path in (folder / "runs").glob("*.json")}
    second = faults.run(arguments, folder, base)
    found.expect(second.status == 0, f"{what}: then the command ended with {second.status}: {second.err}")
    again = set(first.safe) & set(second.begun)
    found.expect(not again, f"{what}: epochs {sorted(again)} were safe and done again")
    # One whose checkpoint was in place when the kill came, but not yet in the log, is not begun again.
    done = len(set(first.begun) | set(second.begun))
    found.expect(done == faults.RUNS * faults.EPOCHS, f"{what}: {done} epochs in the end")
    changed = [path.name for path, content in runs.items() if path.read_bytes() != content]
    found.expect(not changed, f"{what}: finished runs {changed} were changed")
    for difference in differences(folder, reference) if second.status == 0 else ():
        found.expect(False, f"{what}: {difference}")
