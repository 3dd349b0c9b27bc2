"""A process that does runs: ``python -m lrbench.running.worker``.

It reads jobs from its standard input and answers on its standard output, a line of JSON each. It ends with its input:
when whoever started it is gone, it stops in the middle of a run, with all that it started.
"""

import faulthandler
import json
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from typing import Any

from lrbench.files import UnwritableError

__all__ = ["main"]


def main() -> None:
    """Do the jobs that come."""
    faulthandler.enable()
    # Slurm asks this of all processes of a job: it is for the command, which ends this one and takes no run for failed.
    signal.signal(signal.SIGTERM, lambda *_: None)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever is printed is no answer
    jobs: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    idle = threading.Event()
    idle.set()
    threading.Thread(target=_listen, args=(jobs, idle), daemon=True).start()

    def answer(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")

    while (job := jobs.get()) is not None:
        final = _do(job, answer)
        idle.set()
        answer(**final)


def _listen(jobs: "queue.SimpleQueue[dict[str, Any] | None]", idle: threading.Event) -> None:
    for line in sys.stdin:
        idle.clear()
        jobs.put(json.loads(line))
    if not idle.is_set():
        os.killpg(0, signal.SIGKILL) if hasattr(os, "killpg") else os._exit(1)
    jobs.put(None)


def _do(given: dict[str, Any], answer: Any) -> dict[str, Any]:
    """Do one job and give the last answer: a record, or why none can be made here; what a run raises is recorded."""
    limit = given.pop("limit")
    try:
        from lrbench.running.job import Job

        job = Job.from_json(given)
        if limit is not None:  # the system itself ends a process that hangs, wherever it does
            signal.setitimer(signal.ITIMER_REAL, limit)
        return {"record": job.run(lambda epoch: answer(epoch=epoch))}
    except UnwritableError as error:
        return {"unwritable": [error.errno, error.strerror, error.filename]}
    except Exception as error:
        traceback.print_exc()
        return {"unfit": f"the machine {socket.gethostname()} cannot do the run: {type(error).__name__}: {error}"}
    finally:
        if limit is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    main()
