"""One machine for many runs: they train side by side, but what is timed or weighed has the machine to itself."""

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where runs are not kept apart
    fcntl = None  # type: ignore[assignment]

__all__ = ["Machine"]

PATIENCE = 10.0
"""Seconds after which it is said what is waited for."""

_LOG = logging.getLogger("lrbench")


class Machine:
    """The machine at hand: shared by the runs that train, lent to one that measures.

    A lock for many or one, on files in the machine's temporary folder: it binds all runs of one user that see that
    folder, whatever command or cluster started them, and the system takes it back from a process that dies. Who waits
    to measure goes before those who train, at the end of their epochs. Waiting does not use up a run's time.

    Parameters
    ----------
    folder : Path, optional
        Where the files are, if not in the temporary folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        if fcntl is None:
            return
        place, user = folder or Path(tempfile.gettempdir()), os.getuid()
        # Not from the library filelock: its lock for many or one cannot be interrupted while it waits.
        self._gate, self._room = ((place / f"lrbench-{user}.{name}").open("a") for name in ("gate", "room"))

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Train here, beside others."""
        self.make_way()
        try:
            yield
        finally:
            self._leave()

    def make_way(self) -> None:
        """Let those go first who wait to measure; called between two epochs, within `shared`."""
        if fcntl is not None:
            self._enter(fcntl.LOCK_SH)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Measure here, while nobody trains or measures; called within `shared`, which it interrupts."""
        if fcntl is not None:
            self._enter(fcntl.LOCK_EX)
        try:
            yield
        finally:
            self.make_way()

    def _enter(self, how: int) -> None:
        """Leave, and come in again behind whoever waits at the gate: nobody can pass one who waits for the room."""
        self._leave()
        what = (
            "waiting to train on, while another run is measured on this machine"
            if how == fcntl.LOCK_SH
            else "waiting to measure alone, until the other runs on this machine end an epoch"
        )
        with _stopped_clock(), _said(what):
            fcntl.flock(self._gate, fcntl.LOCK_EX)
            try:
                fcntl.flock(self._room, how)
            finally:
                fcntl.flock(self._gate, fcntl.LOCK_UN)

    def _leave(self) -> None:
        if fcntl is not None:
            fcntl.flock(self._room, fcntl.LOCK_UN)


@contextmanager
def _said(what: str) -> Iterator[None]:
    """Say what this is about if it takes long; a process that seems to hang is killed for it."""
    timer = threading.Timer(PATIENCE, _LOG.warning, [f"{what} (process {os.getpid()})"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _stopped_clock() -> Iterator[None]:
    """Stop the alarm that ends a run whose time is up, if one is set."""
    left = signal.setitimer(signal.ITIMER_REAL, 0)[0]
    try:
        yield
    finally:
        if left:
            signal.setitimer(signal.ITIMER_REAL, left)
