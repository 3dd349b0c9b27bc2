"""What a process needs to know to do a run anywhere: a few words as JSON, never the data themselves."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from lrbench.compressors import compressor_class
from lrbench.datasets import Dataset, load_dataset
from lrbench.experiment import Experiment
from lrbench.policy import Policy
from lrbench.running.machine import Machine
from lrbench.store import Record
from lrbench.training import Config

__all__ = ["Job", "Setting", "check", "run_beside_others"]


@dataclass(frozen=True)
class Setting:
    """What the runs of one command share.

    Attributes
    ----------
    dataset : str
        Its name.
    data_dir : str or None
        An absolute path. Where a machine has no such folder, it looks for the data as if none were named.
    checkpoints : str
        An absolute path. Where a machine does not see the results folder around it, an unfinished run that comes there
        begins anew.
    rounds, processes, command, preset : int, int, str, str
        As :class:`lrbench.experiment.Experiment` takes them.
    """

    dataset: str
    data_dir: str | None
    checkpoints: str
    rounds: int
    processes: int
    command: str
    preset: str


@dataclass(frozen=True)
class Job:
    """One run."""

    setting: Setting
    config: Config

    def to_json(self) -> dict[str, Any]:
        """Give it as plain JSON types."""
        return {"setting": asdict(self.setting), "config": self.config.to_json(), "files": list(self.config.files)}

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> "Job":
        """Read what :meth:`to_json` gave."""
        config = replace(Config.from_json(given["config"]), files=tuple(given["files"]))
        return cls(Setting(**given["setting"]), config)

    def run(self, on_epoch: Callable[[int], None]) -> Record:
        """Do it in this process, on this machine.

        Raises
        ------
        ValueError
            If the data or the methods that are here are not those that the run is about.
        UnwritableError
            If a checkpoint cannot be written.
        """
        here = _here(self.setting)
        with here.machine.shared():  # to read the data takes the machine, too
            check(self.config, here.experiment.data)
        return run_beside_others(self.config, here.experiment, here.machine, on_epoch)


def run_beside_others(
    config: Config, experiment: Experiment, machine: Machine, on_epoch: Callable[[int], None]
) -> Record:
    """Do a run in this process, and let others who wait to measure go first after each epoch; epoch 0 is its begin."""
    on_epoch(0)

    def between_epochs(epoch: int) -> None:
        on_epoch(epoch)
        machine.make_way()

    with machine.shared():
        return experiment.run(config, between_epochs)


class _Here:
    """What this process does all runs of a command with: the data are read, and the plain model is weighed, once."""

    def __init__(self, setting: Setting) -> None:
        self.machine, self._setting = Machine(), setting

    @cached_property
    def experiment(self) -> Experiment:
        setting, folder = self._setting, self._setting.data_dir
        data = load_dataset(setting.dataset, folder if folder is not None and Path(folder).is_dir() else None)
        checkpoints = Path(setting.checkpoints)
        shared = setting.rounds, setting.processes, setting.command, setting.preset
        seen = checkpoints if checkpoints.parent.is_dir() else None
        return Experiment(data, seen, *shared, alone=self.machine.alone)


@cache
def _here(setting: Setting) -> _Here:
    return _Here(setting)


def check(config: Config, data: Dataset) -> None:
    """Raise ValueError if the data or the methods that are here are not those that a run is about."""
    if data.sha256 != config.data_sha256:
        raise ValueError(
            f"the data here ({data.source}) have the SHA-256 {data.sha256}, the run is about {config.data_sha256}: "
            "give this machine the same data"
        )
    for place in config.files:
        compressor_class(place)
    if config.policy is not None:
        same = Policy.from_identity(config.policy).identity() == config.policy
    elif config.compressor is not None:
        same = compressor_class(config.compressor).version == config.compressor_version
    else:
        same = True
    if not same:
        raise ValueError(f"{config.compressor} has another version here than where the grid was made: install the same")
