"""Runs on this machine: in this process, or several at a time in processes of their own."""

import os
import queue
import threading
from collections.abc import Callable, Sequence
from functools import partial

import torch

from lrbench.experiment import Experiment
from lrbench.running.job import Job, run_beside_others
from lrbench.running.machine import Machine
from lrbench.running.process import Lost, Outcomes, RunProcess
from lrbench.store import Record, is_finished
from lrbench.training import Config

__all__ = ["in_processes", "in_this_process"]

OnEpoch = Callable[[int, int], None]
"""Called with a run's place and the number of each epoch when it is finished."""


def in_this_process(configs: Sequence[Config], experiment: Experiment, machine: Machine, on_epoch: OnEpoch) -> Outcomes:
    """Do one run after the other, here: what kills one ends them all."""
    for place, config in enumerate(configs):
        yield place, run_beside_others(config, experiment, machine, partial(on_epoch, place))


def in_processes(jobs: Sequence[Job], at_once: int, limit: float | None, on_epoch: OnEpoch) -> Outcomes:
    """Do some runs at a time, each in a process that does no other meanwhile.

    Parameters
    ----------
    jobs
        The runs.
    at_once
        How many processes there are; where runs compute on ``cuda``, the GPUs take turns at serving them.
    limit
        Seconds that one run may take; one that takes longer is killed.
    on_epoch
        Called from the thread that waits for the runs.

    Yields
    ------
    int, dict or Lost
        The place of a run and what became of it, as they come. Closing this ends the processes.

    Raises
    ------
    OSError
        If this machine cannot do the runs, as where a checkpoint cannot be written or no process started.
    """
    todo: queue.SimpleQueue[tuple[int, Job]] = queue.SimpleQueue()
    for entry in enumerate(jobs):
        todo.put(entry)
    news: queue.SimpleQueue[tuple[int, _News]] = queue.SimpleQueue()
    slots = [_Slot(environment) for environment in _environments(jobs, min(at_once, len(jobs)))]
    for slot in slots:
        threading.Thread(target=slot.serve, args=(todo, limit, news.put), daemon=True).start()
    left = len(jobs)
    try:
        while left:
            place, what = news.get()
            if isinstance(what, int):
                on_epoch(place, what)
            elif isinstance(what, Exception):
                raise what
            else:
                left -= 1
                yield place, what
    finally:
        for slot in slots:
            slot.close()


_News = int | Record | Lost | Exception
"""An epoch of a run, what became of it, or why nothing could."""

Tell = Callable[[tuple[int, _News]], None]
"""Takes a run's place and its news."""


class _Slot:
    """A place for one process at a time; one that died is replaced when the next run comes."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._process: RunProcess | None = None
        self._lock = threading.Lock()
        self._closed = False

    def serve(
        self,
        todo: "queue.SimpleQueue[tuple[int, Job]]",
        limit: float | None,
        tell: Tell,
    ) -> None:
        """Do runs until there are none left."""
        while True:
            try:
                place, job = todo.get_nowait()
            except queue.Empty:
                return
            try:
                process = self._living()
                if process is None:
                    return
                outcome = process.run(job.to_json(), limit, partial(_tell_epoch, tell, place))
                if job.config.device.startswith("cuda") and isinstance(outcome, dict) and not is_finished(outcome):
                    process.end()  # an error of a GPU stays with the process that met it
                tell((place, outcome))
            except Exception as error:  # of this machine, and no run's fault
                tell((place, error))
                return

    def close(self) -> None:
        """End the process, and have no other."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.end()

    def _living(self) -> RunProcess | None:
        with self._lock:
            if self._closed:
                return None
            if self._process is None or not self._process.alive:
                self._process = RunProcess(self._environment)
            return self._process


def _tell_epoch(tell: Tell, place: int, epoch: int) -> None:
    tell((place, epoch))


def _environments(jobs: Sequence[Job], count: int) -> list[dict[str, str]]:
    """What is special to each process: the one GPU that it sees, where ``cuda`` leaves the choice."""
    if count < 2 or {job.config.device for job in jobs} != {"cuda"}:
        return [{} for _ in range(count)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    gpus = visible.split(",")
    return [{"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} for place in range(count)]
