"""The disk is full, or read-only, from some point of a grid on; later there is room, and the command is given again."""

import errno
import itertools
import os
import random
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import faults
from findings import Findings
from folders import differences, left_over
from kills import undisturbed

import lrbench.report.__main__ as report

SIZES = ("112k", "24k", "64k", "256k", "640k")
NAMES = {errno.ENOSPC: "full", errno.EROFS: "read-only"}


def try_disks(count: int, seed: int, base: Path) -> Findings:
    """Let the disk fail at ``count`` random points of the writing; of small and read-only disks, try a share."""
    draw, found, reference = random.Random(seed), Findings("A full disk, a read-only folder"), base / "reference"
    whole = undisturbed(reference, base, found)
    for number in range(count):
        folder, kind = base / f"failed-{number}", (errno.ENOSPC, errno.EROFS)[number % 2]
        at = draw.randrange(1, len(whole.points))
        what = f"seed {seed}, disk {number}: {NAMES[kind]} from {whole.points[at - 1]}"
        found.count(f"made to fail: {NAMES[kind]}")
        ended = faults.run(faults.command(folder), folder, base, faults.failing(at, kind))
        _judge(ended, os.strerror(kind), found, what)
        _go_on(folder, reference, base, found, what)
        shutil.rmtree(folder)
    _small_disks(SIZES[: max(1, count // 4)], reference, base, found)
    if count >= 10:
        _read_only_disk(base, found)
    return found


def _judge(ended: faults.Ended, reason: str, found: Findings, what: str) -> None:
    """What must be said, whatever failed."""
    found.expect(ended.status in (1, 2), f"{what}: it ended with {ended.status}: {ended.err}")
    found.expect("Traceback" not in ended.err, f"{what}: {ended.err}")
    named = ended.last_words.startswith("lrbench.") and reason in ended.last_words
    found.expect(named, f"{what}: its last words were {ended.last_words}")


def _go_on(folder: Path, reference: Path, base: Path, found: Findings, what: str) -> None:
    runs = {path: path.read_bytes() for path in (folder / "runs").glob("*.json")}
    found.expect(not [name for name in left_over(folder) if name.endswith(".json.part")], f"{what}: a part is left")
    again = faults.run(faults.command(folder), folder, base)
    found.expect(again.status == 0, f"{what}: with room again it ended with {again.status}: {again.err}")
    changed = [path.name for path, content in runs.items() if path.read_bytes() != content]
    found.expect(not changed, f"{what}: finished runs {changed} were changed")
    for difference in differences(folder, reference) if again.status == 0 else ():
        found.expect(False, f"{what}: {difference}")


def _small_disks(sizes: Sequence[str], reference: Path, base: Path, found: Findings) -> None:
    """Fill real file systems of several sizes, then give them room."""
    disk = base / "small"
    disk.mkdir()
    for size, jobs in itertools.product(sizes, ("0", "1")):
        if not _mount(disk, f"size={size}"):
            found.measured["small disks"] = "not tried: only root can mount"
            return
        try:
            folder, what = disk / "results", f"a disk of {size}, --jobs {jobs}"
            ended = faults.run(faults.command(folder, "--jobs", jobs), folder, base)
            _judge(ended, os.strerror(errno.ENOSPC), found, what)
            _mount(disk, "remount,size=64m")
            _go_on(folder, reference, base, found, what)
            found.count(f"a small disk, --jobs {jobs}")
        finally:
            subprocess.run(["umount", str(disk)], check=True)


def _read_only_disk(base: Path, found: Findings) -> None:
    """Make a real file system read-only after a grid: it is not written, what is there is listed."""
    disk = base / "read-only"
    disk.mkdir()
    if not _mount(disk, "size=64m"):
        return
    try:
        folder = disk / "results"
        faults.run(faults.command(folder), folder, base)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        _mount(disk, "remount,ro")
        reason = os.strerror(errno.EROFS)
        for main in (None, report.main):
            arguments = faults.command(folder) if main is None else [str(folder)]
            ended = faults.run(arguments, folder, base, **({} if main is None else {"main": main}))
            _judge(ended, reason, found, "a read-only disk")
            found.count("a read-only disk")
        listed = faults.run(faults.command(folder, "--dry-run"), folder, base)
        found.expect(listed.status == 0, f"--dry-run on a read-only disk: {listed.err}")
        after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        found.expect(before == after, "a read-only disk was written")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def _mount(disk: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
