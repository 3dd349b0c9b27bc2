"""A process of its own for runs, which may die without harm: the side of whoever started it, who needs no torch."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lrbench.files import UnwritableError
from lrbench.store import Record

__all__ = ["Lost", "MachineError", "Outcomes", "RunProcess"]


class MachineError(OSError):
    """A machine cannot do what it is asked for, which is no run's fault; the message names it and says why."""


@dataclass(frozen=True)
class Lost:
    """What became of a run that gave no record.

    Attributes
    ----------
    reason : str
        As it is recorded.
    seconds : float
        How long it lived.
    """

    reason: str
    seconds: float = 0.0


Outcomes = Generator[tuple[int, Record | Lost], None, None]
"""Places of runs and what became of them, as they come; closing it ends the runs that are not over."""


class RunProcess:
    """A process that does one run after the other, and is of no more use once it died.

    Parameters
    ----------
    environment : mapping
        Variables that are added to those of this process.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lrbench.running.worker"],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,  # an interrupt from the terminal is for the command alone; it ends this one
        )
        self.alive = True

    def run(self, job: Mapping[str, Any], limit: float | None, on_epoch: Callable[[int], None]) -> Record | Lost:
        """Do a run, and wait for it.

        Parameters
        ----------
        job
            The run, as :meth:`lrbench.running.job.Job.to_json` gives it.
        limit
            Seconds that it may take, not counting what it waits for others; None for no limit.
        on_epoch
            Called with the number of each epoch when it is finished.

        Returns
        -------
        dict or Lost
            The run's record; where the process died, what became of it.

        Raises
        ------
        UnwritableError
            If a checkpoint cannot be written: those of other runs could not, either.
        MachineError
            If this machine lacks what the run takes, such as its data.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        started = time.perf_counter()
        with suppress(BrokenPipeError, json.JSONDecodeError):  # it died before it read, or while it wrote
            stdin.write(json.dumps({**job, "limit": limit}) + "\n")
            stdin.flush()
            for line in stdout:
                message = json.loads(line)
                if "epoch" in message:
                    on_epoch(message["epoch"])
                elif "record" in message:
                    record: Record = message["record"]
                    return record
                elif "unwritable" in message:
                    raise UnwritableError(*message["unwritable"])
                else:
                    raise MachineError(message["unfit"])
        return Lost(self._reason(limit), time.perf_counter() - started)

    def end(self) -> None:
        """End the process with all that it started, whatever it is doing."""
        self.alive = False
        with suppress(ProcessLookupError, PermissionError):  # of its group nothing is left, or it is not ours any more
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()

    def _reason(self, limit: float | None) -> str:
        """Why the process died."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)  # it closed its output: it is about to end
        status = self._process.poll()
        self.end()
        if status is None or status >= 0:
            return f"its process ended by itself, with status {status}"
        if -status == getattr(signal, "SIGALRM", None) and limit is not None:
            return f"TimeoutError: it took longer than {limit:g} s"
        cause = ", as the system does where memory runs out" if -status == signal.SIGKILL else ""
        return f"its process was killed by {signal.Signals(-status).name}{cause}"
