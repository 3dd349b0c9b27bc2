"""A command in a process that is killed, or whose disk fails, at a chosen point of its writing.

The process is forked from one that has imported everything, so that a trial takes what the command itself takes. Its
writing is counted: opening a part, writing it (half of it, where that is the point), syncing, renaming before and
after, removing. Epochs are written to a log as they begin and once they are safe in a checkpoint.
"""

import errno
import os
import pathlib
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from epochs import PATIENCE, log_epochs, log_workers

import lrbench.ablate
import lrbench.report  # forked with the rest

COMMAND = ["--dataset", "photos", "--train-size", "40", "--test-size", "20", "--widths", "4", "4", "4"]
COMMAND += ["--epochs", "2", "--batch-size", "20", "--threads", "1", "--timed-steps", "0", "--peak-processes", "0"]
COMMAND += ["--jobs", "0"]  # in the process that is killed, or whose disk fails, unless said otherwise
COMMAND += ["--compressors", "svd", "aca-estimate", "--masks", "000000", "100000", "--eps", "0.3"]
RUNS, EPOCHS = 3, 2

Act = Callable[[str, Callable[[], object]], None]
"""What happens at a point: it is given the point's name, and how to do half of it."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status, its words, its seconds, the points it passed and the epochs it logged.

    Points are those of the command's own process, epochs those of its workers, too; orphans are workers that went on.
    """

    status: int
    out: str
    err: str
    seconds: float
    points: list[str]
    begun: list[str]
    safe: list[str]
    orphans: set[str]

    @property
    def last_words(self) -> str:
        """The last line of the errors, without the progress bar."""
        lines = [line.rpartition("\r")[2] for line in self.err.splitlines()]
        return next((line for line in reversed(lines) if line.strip() and "epoch" not in line), "")


def command(out: Path, *more: str) -> list[str]:
    """The command of the grid that is tried, into a folder."""
    return [*COMMAND, *more, "--out", str(out)]


def run(
    arguments: list[str],
    folder: Path,
    scratch: Path,
    act: Act = lambda name, half: None,
    kill_after: float | None = None,
    main: Callable[[list[str]], int] = lrbench.ablate.main,
) -> Ended:
    """Run a command in a forked process and say how it ended."""
    files = [scratch / name for name in ("out", "err", "points", "epochs")]
    for file in files:
        file.write_text("")
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        _work(arguments, folder, files, act, main)
    if kill_after is not None:
        deadline = start + kill_after
        while (
            time.perf_counter() < deadline and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        ):
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    seconds = time.perf_counter() - start
    orphans = {pid for pid in _logged(files[3], "worker") if _lives_on(int(pid))} | {*_logged(files[3], "orphan")}
    out, err, points, _ = (file.read_text(errors="replace") for file in files)
    begun, safe = _logged(files[3], "begun"), _logged(files[3], "safe")
    return Ended(os.waitstatus_to_exitcode(status), out, err, seconds, points.splitlines(), begun, safe, orphans)


def _logged(epochs: Path, kind: str) -> list[str]:
    lines = [line.split(" ", 1) for line in epochs.read_text().splitlines()]
    return [name for what, name in lines if what == kind]


def _lives_on(pid: int) -> bool:
    """Whether a worker goes on for long without its command; then end it."""
    deadline = time.perf_counter() + 5 * PATIENCE
    try:
        while time.perf_counter() < deadline:
            os.kill(pid, 0)
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def killing(at: int) -> Act:
    """Kill the process at the point of that number."""
    count = 0

    def act(name: str, half: Callable[[], object]) -> None:
        nonlocal count
        count += 1
        if count == at:
            half()
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def failing(at: int, number: int) -> Act:
    """Let the disk be full, or read-only, from the point of that number on."""
    kinds = {errno.ENOSPC: ("open", "write", "fsync"), errno.EROFS: ("open", "write", "fsync", "replace", "unlink")}
    count = 0

    def act(name: str, half: Callable[[], object]) -> None:
        nonlocal count
        count += 1
        if count >= at and name.split(" ")[0] in kinds[number]:
            half()
            raise OSError(number, os.strerror(number))

    return act


def _work(arguments: list[str], folder: Path, files: list[Path], act: Act, main: Callable[[list[str]], int]) -> None:
    status = 99
    try:
        for file, number in zip(files[:2], (1, 2), strict=True):
            os.dup2(os.open(file, os.O_WRONLY), number)
        points, epochs = (os.open(file, os.O_WRONLY | os.O_APPEND) for file in files[2:])
        _count(folder, points, act)
        log_epochs(epochs)
        log_workers(files[3])
        status = main(arguments)
    except BaseException:  # the fork must not go on with its parent's work
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _count(folder: Path, log: int, act: Act) -> None:
    opening, replacing, unlinking, syncing = Path.open, Path.replace, Path.unlink, os.fsync
    opened = ""

    def point(kind: str, path: Path, half: Callable[[], object] = lambda: None) -> None:
        if path.is_relative_to(folder):
            name = f"{kind} {path.relative_to(folder)}"
            os.write(log, f"{name}\n".encode())
            act(name, half)

    def open_(self: Path, mode: str = "r", *rest: object, **named: object) -> object:
        nonlocal opened
        if "w" not in mode:
            return opening(self, mode, *rest, **named)
        point("open", self)
        opened = str(self)
        file = opening(self, mode, *rest, **named)
        write = file.write

        class Torn:
            def __enter__(self) -> "Torn":
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def __getattr__(self, name: str) -> object:
                return getattr(file, name)

            def write(_, data: bytes) -> int:  # noqa: N805
                point("write", self, lambda: (write(data[: len(data) // 2]), file.flush()))
                return write(data)

        return Torn()

    def replace(self: Path, target: Path) -> Path:
        point("replace", Path(target))
        done = replacing(self, target)
        point("replaced", Path(target))
        return done

    def unlink(self: Path, missing_ok: bool = False) -> None:
        if self.exists() or not missing_ok:
            point("unlink", self)
        unlinking(self, missing_ok)

    def fsync(descriptor: int) -> None:
        point("fsync", Path(opened))
        syncing(descriptor)

    pathlib.Path.open, pathlib.Path.replace, pathlib.Path.unlink = open_, replace, unlink
    os.fsync = fsync
