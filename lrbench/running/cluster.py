"""Runs on a Dask cluster that is there already, whatever brought it up: Slurm, PBS, Kubernetes or two shells.

Dask's futures, not joblib's backend for Dask: they ask a worker for what a run takes, come back one by one as they are
done, and are done again by another worker where one is lost. A worker does each run in a process of its own, as the
command itself would: a run that dies takes no worker with it.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed import Client, KilledWorker, WorkerPlugin, as_completed, get_worker
from distributed.worker import thread_state

from lrbench.files import UnwritableError
from lrbench.running.process import Lost, MachineError, Outcomes, RunProcess
from lrbench.store import Record

# Scheduler and workers load this file, too, and need nothing heavy for it: a run's own process imports what it takes.
if TYPE_CHECKING:
    from lrbench.running.job import Job

__all__ = ["ClusterError", "connect", "on_cluster"]

THREADS, GPU = "lrbench-threads", "GPU"
"""What a worker offers: its threads, by this module's own word; GPUs, if it was started with ``--resources GPU=1``."""


class ClusterError(ConnectionError):
    """The cluster cannot be reached, or cannot do such runs; the message says why."""


class _Threads(WorkerPlugin):
    """Offers a worker's threads to runs, each of which may take several: Dask itself counts tasks."""

    name = "lrbench-threads"
    idempotent = True

    async def setup(self, worker: Any) -> None:
        """Tell the scheduler, when the worker or this plug-in comes."""
        await worker.set_resources(**{THREADS: worker.state.nthreads})


def connect(address: str | None, scheduler_file: Path | None) -> Client:
    """Connect to the scheduler at an address, or in a file that it wrote.

    Raises
    ------
    ClusterError
        If there is none, or its workers have not lrbench.
    """
    where = address or scheduler_file
    if scheduler_file is not None and not scheduler_file.exists():
        raise ClusterError(
            f"there is no scheduler file {scheduler_file}: start `dask scheduler --scheduler-file` first"
        )
    try:
        client = Client(address, scheduler_file=None if scheduler_file is None else str(scheduler_file), timeout=10)
    except (OSError, ValueError) as error:
        raise ClusterError(f"no scheduler answers at {where}: {str(error).splitlines()[0]}") from error
    try:
        client.register_plugin(_Threads())
    except Exception as error:
        client.close()
        raise ClusterError(f"a worker cannot load lrbench, install it there as here: {error}") from error
    return client


def on_cluster(client: Client, jobs: Sequence[Job], limit: float | None) -> Outcomes:
    """Do runs on a cluster.

    Parameters
    ----------
    client
        Of :func:`connect`.
    jobs
        The runs. Each asks for its threads, or for a GPU, of one worker.
    limit
        Seconds that one run may take; one that takes longer is killed.

    Yields
    ------
    int, dict or Lost
        The place of a run and what became of it, as they come. Closing this ends the runs.

    Raises
    ------
    ClusterError
        If no worker has what a run asks for, or the scheduler is lost.
    UnwritableError, MachineError
        If a worker cannot write a checkpoint, or lacks what a run takes: it would spoil one run after the other.
    """
    _find_room(client, jobs)
    command = uuid.uuid4().hex
    places = {
        client.submit(
            _run_in_a_process, job.to_json(), limit, key=f"lrbench-{place}-{command}", resources=_needs(job)
        ): place
        for place, job in enumerate(jobs)
    }
    try:
        for future in as_completed(list(places)):
            yield places.pop(future), _outcome(future)
    finally:
        client.cancel(list(places), force=True)


def _find_room(client: Client, jobs: Sequence[Job]) -> None:
    """Say so if no worker has room for a run, which would wait for ever; where there are no workers yet, they may."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    for name, needed in {item for job in jobs for item in _needs(job).items()}:
        offers = [worker["resources"].get(name, 0) for worker in workers]
        if offers and max(offers) < needed:
            raise ClusterError(
                f"no worker has {needed} threads for a run, but {max(offers):g} at most: give fewer with --threads, or "
                f"start workers with --nthreads {needed}"
                if name == THREADS
                else "no worker offers a GPU: start workers with --resources GPU=1, one for each GPU"
            )


def _needs(job: Job) -> dict[str, int]:
    return {THREADS: job.config.threads} | ({GPU: 1} if job.config.device.startswith("cuda") else {})


def _outcome(future: Any) -> Record | Lost:
    """What became of a run; what is wrong with the cluster is no run's fault."""
    if future.status == "finished":
        result: Record | Lost = future.result()
        return result
    error = future.exception() if future.status == "error" else None
    if isinstance(error, KilledWorker):
        count, last = error.allowed_failures + 1, error.last_worker.address
        return Lost(f"KilledWorker: {count} workers died that did this run, the last one at {last}")
    if isinstance(error, UnwritableError | MachineError):
        raise error
    raise ClusterError(f"the cluster lost a run: {error or f'the scheduler left it {future.status}'}")


def _run_in_a_process(given: dict[str, Any], limit: float | None) -> Record | Lost:
    """Do a run on a worker, and end it when nobody waits for it any more: a worker's threads cannot be stopped."""
    tasks, key = get_worker().state.tasks, thread_state.key
    process, over = RunProcess(), threading.Event()

    def watch() -> None:
        while not over.wait(1):
            if key not in tasks or tasks[key].state == "cancelled":
                process.end()
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        return process.run(given, limit, lambda epoch: None)
    finally:
        over.set()
        process.end()
