"""From a configuration to a record: train, evaluate, measure, and write down what was seen and what was not."""

import copy
import math
import statistics
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from lrbench import distributed
from lrbench.bit_modules import lean_modules
from lrbench.checkpointing import segments_of
from lrbench.conv import compressed_layers, plain_copy
from lrbench.datasets import Dataset, to_float
from lrbench.environment import device_name, environment
from lrbench.files import UnwritableError
from lrbench.measure.gradients import measure_gradients
from lrbench.measure.layers import measure_layers
from lrbench.measure.memory import Peak
from lrbench.measure.savings import measure_savings
from lrbench.measure.steps import measure_step_peaks
from lrbench.measure.time import period_of, quartiles, split_steps, time_steps
from lrbench.store import SCHEMA, Record, run_id
from lrbench.training import (
    Config,
    Evaluation,
    evaluate,
    make_optimizer,
    prepare_torch,
    train,
    training_step,
)

__all__ = ["Experiment"]

LAYER_BATCHES = 10
"""Training batches that the layers' ranks and errors are measured on."""


class NotMeasured(Exception):  # noqa: N818 (it is no error: it is the reason that is recorded)
    """Something was not measured, for the reason that the message gives."""


class Experiment:
    """What the runs of one command share: the data, what is to be measured, and the plain model's peak.

    Parameters
    ----------
    data : Dataset
        The data.
    checkpoints : Path or None
        Folder of the checkpoints of unfinished runs; None for no checkpoints.
    rounds : int
        Training steps that are timed, of each of the wrapped and the plain model; 0 for none.
    processes : int
        Processes in which the peak memory of a step is measured, of each of the two; 0 for none, and then no savings
        are measured either.
    command, preset : str
        As they were given.
    alone : callable
        Gives a context in which nothing else uses the machine: steps are timed within it.
    """

    def __init__(
        self,
        data: Dataset,
        checkpoints: Path | None,
        rounds: int = 10,
        processes: int = 5,
        command: str = "",
        preset: str = "",
        alone: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.data, self.checkpoints, self.rounds, self.processes = data, checkpoints, rounds, processes
        self.command, self.preset, self.alone = command, preset, alone
        self._plain_peaks: dict[tuple[Any, ...], list[Peak]] = {}

    def run(self, config: Config, on_epoch: Callable[[int], None] = lambda epoch: None) -> Record:
        """Run a configuration to its end and give its record; an error is recorded, not raised.

        Of several processes all run it, as process 0 bids them, and the record is process 0's.

        Raises
        ------
        UnwritableError
            If a checkpoint cannot be written: those of other runs could not, either.
        """
        record = self._frame(config)
        start = time.perf_counter()
        with distributed.leading(config):
            try:
                self._fill(record, config, on_epoch)
                record["status"] = "finished"
            except UnwritableError:
                raise
            except Exception as error:
                record["reason"] = distributed.reason(error)
                record["traceback"] = traceback.format_exc()
        record["finished"] = _now()
        record["seconds"] += time.perf_counter() - start
        return record

    def failed(self, config: Config, reason: str, seconds: float) -> Record:
        """Give the record of a run of which nothing came back but the reason."""
        return self._frame(config) | {"reason": reason, "finished": _now(), "seconds": seconds}

    def checkpoint(self, name: str) -> Path | None:
        """Where an unfinished run is kept, if it is."""
        return None if self.checkpoints is None else self.checkpoints / f"{name}.pt"

    def forget(self, name: str) -> None:
        """Remove what is kept of an unfinished run."""
        checkpoint = self.checkpoint(name)
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)

    def _frame(self, config: Config) -> Record:
        data = self.data
        return {
            "schema": SCHEMA,
            "id": run_id(config.to_json()),
            "status": "failed",
            "reason": None,
            "traceback": None,
            "config": config.to_json(),
            "data": {
                "name": data.name,
                "source": data.source,
                "sha256": data.sha256,
                "train": config.train_size,
                "test": config.test_size,
                "classes": list(data.classes),
            },
            "environment": {**environment(), "device": device_name(config.device), "threads": config.threads,
                            "command": self.command, "preset": self.preset},
            "started": _now(),
            **({} if config.processes == 1 else {"processes": list(distributed.NOTES)}),
            "seconds": 0.0,
            "outcome": None,
            "outcome_detail": None,
            "epochs": [],
            **_missing("the run failed"),
        }  # fmt: skip

    def _fill(self, record: Record, config: Config, on_epoch: Callable[[int], None]) -> None:
        prepare_torch(config)
        trained = train(config, self.data, self.checkpoint(record["id"]), on_epoch)
        model = trained.model
        record |= {"epochs": trained.history, "outcome": "trained", "seconds": trained.earlier_seconds}
        if trained.divergence is not None:
            reason = f"training diverged in {trained.divergence}"
            record |= {**_missing(reason), "outcome": "diverged", "outcome_detail": trained.divergence}
            return
        distributed.by_first(self._assess, record, model, config)

    def _assess(self, record: Record, model: nn.Module, config: Config) -> None:
        """Evaluate and measure what was trained."""
        images, labels = self.data.test_images[: config.test_size], self.data.test_labels[: config.test_size]
        as_trained = evaluate(model, images, labels, config)
        exact = evaluate(model, images, labels, config, exact=True) if compressed_layers(model) else as_trained
        final = {"as_trained": _written(as_trained), "exact": _written(exact), "labels": _symbols(labels)}
        record |= {"final": final, "final_reason": None}
        chance = _chance_level(as_trained, labels)
        if chance is not None:
            record |= {"outcome": "chance", "outcome_detail": chance}
        for key, measure in (
            ("layers", self._layers),
            ("gradients", self._gradients),
            ("step", self._step_times),
            ("peak", self._peaks),
            ("savings", self._savings),
        ):
            # What is trained is not lost because something cannot be measured on it.
            try:
                record |= {key: measure(model, config), f"{key}_reason": None}
            except Exception as error:
                reason = str(error) if isinstance(error, NotMeasured) else f"{type(error).__name__}: {error}"
                record |= {key: None, f"{key}_reason": reason}

    def _layers(self, model: nn.Module, config: Config) -> list[dict[str, Any]]:
        batches = (self._batch(k, config)[0] for k in range(self._batches(config)))
        return measure_layers(model, batches, config.seed)

    def _gradients(self, model: nn.Module, config: Config) -> list[dict[str, Any]]:
        """Compare the weights' gradients with those of the plain model of the same weights."""
        if not _changed(model):
            return []
        batches = (self._batch(k, config) for k in range(self._batches(config)))
        rows = measure_gradients(model, plain_copy(model), batches, config.seed)
        return [{key: value if _is_json(value) else None for key, value in row.items()} for row in rows]

    def _step_times(self, model: nn.Module, config: Config) -> dict[str, Any]:
        """Time steps of copies of the model, side by side with the plain one."""
        if not self.rounds:
            raise NotMeasured("the command asked for no timing")
        plain, wrapped = plain_copy(model), copy.deepcopy(model)
        generators = [config.device] if config.device.startswith("cuda") else []
        with self.alone(), torch.random.fork_rng(devices=generators):
            torch.manual_seed(config.seed)  # of dropout: the ranks of a step depend on it
            if not _changed(model):
                (seconds,) = time_steps([self._step(plain, config)], self.rounds, device=config.device)
                absent = dict.fromkeys(("wrapped_ms", "ratio", "lowering_ms", "compressing_ms", "rest_ms"))
                return {**absent, "plain_ms": quartiles(seconds, 1e3), "layers": [], "rounds": self.rounds}
            kinds = [self._step(wrapped, config), self._step(plain, config)]
            first, second = time_steps(kinds, self.rounds, device=config.device, period=period_of(wrapped))
            split = split_steps(wrapped, kinds[0], max(3, self.rounds // 2), config.device)
        return {
            "wrapped_ms": quartiles(first, 1e3),
            "plain_ms": quartiles(second, 1e3),
            "ratio": quartiles([a / b for a, b in zip(first, second, strict=True)]),
            **split,
            "rounds": self.rounds,
        }

    def _peaks(self, model: nn.Module, config: Config) -> dict[str, Any]:
        if not self.processes:
            raise NotMeasured("the command asked for no peak memory")
        x, y = self._batch(0, config)
        named = ("dataset", "model", "structure", "widths", "batch_size", "device", "threads")
        key = tuple(getattr(config, name) for name in named)
        if key not in self._plain_peaks:
            self._plain_peaks[key] = measure_step_peaks(plain_copy(model), x, y, self.processes)
        plain = self._plain_peaks[key]
        wrapped = measure_step_peaks(model, x, y, self.processes) if _changed(model) else None
        if min(_median(plain), _median(wrapped or plain)) <= 0:
            raise NotMeasured("the step is too small to add a page of memory")
        return {
            "wrapped_bytes": None if wrapped is None else _spread([peak.added for peak in wrapped]),
            "plain_bytes": _spread([peak.added for peak in plain]),
            "wrapped_total_bytes": None if wrapped is None else _spread([peak.total for peak in wrapped]),
            "plain_total_bytes": _spread([peak.total for peak in plain]),
            "processes": self.processes,
        }

    def _savings(self, model: nn.Module, config: Config) -> dict[str, Any]:
        if not self.processes:
            raise NotMeasured("the command asked for no memory measurement")
        return measure_savings(model, *self._batch(0, config), config.seed)

    def _step(self, model: nn.Module, config: Config) -> Callable[[int], object]:
        optimizer = make_optimizer(model, config)
        model.train()

        def step(number: int) -> object:
            x, y = self._batch(number, config)
            return training_step(model, optimizer, x, y)

        return step

    def _batches(self, config: Config) -> int:
        return max(1, min(LAYER_BATCHES, config.train_size // config.batch_size))

    def _batch(self, number: int, config: Config) -> tuple[Tensor, Tensor]:
        """Training batch ``number``, from the beginning again where the images end."""
        count = max(1, config.train_size // config.batch_size)
        start = number % count * config.batch_size
        part = slice(start, min(start + config.batch_size, config.train_size))
        images, labels = self.data.train_images[part], self.data.train_labels[part]
        return to_float(images.to(config.device)), labels.to(config.device)


def _is_json(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _changed(model: nn.Module) -> bool:
    """Whether a model is another one than the plain."""
    return bool(compressed_layers(model) or lean_modules(model) or any(map(segments_of, model.modules())))


def _median(peaks: list[Peak]) -> float:
    return statistics.median(peak.added for peak in peaks)


def _spread(values: list[int]) -> dict[str, int]:
    return {"median": int(statistics.median(values)), "min": min(values), "max": max(values)}


def _missing(reason: str) -> dict[str, Any]:
    """Everything that is measured on a trained model, as not measured."""
    keys = ("final", "layers", "gradients", "step", "peak", "savings")
    return {**dict.fromkeys(keys), **{f"{key}_reason": reason for key in keys}}


def _written(evaluation: Evaluation) -> dict[str, Any]:
    loss = evaluation.loss if math.isfinite(evaluation.loss) else None
    return {"loss": loss, "accuracy": evaluation.accuracy, "predictions": _symbols(evaluation.predictions)}


def _symbols(classes: Tensor) -> str | list[int]:
    """Classes as JSON: a character each, 0 to 9, then a to z; numbers where there are more."""
    symbols = "0123456789abcdefghijklmnopqrstuvwxyz"
    numbers: list[int] = classes.tolist()
    return "".join(symbols[c] for c in numbers) if max(numbers) < len(symbols) else numbers


def _chance_level(evaluation: Evaluation, labels: Tensor) -> str | None:
    """Say so if the accuracy does not exceed that of always naming the commonest class (one-sided, 1 %)."""
    correct = int((evaluation.predictions == labels).sum())
    commonest = int(labels.bincount().max()) / len(labels)
    if binomtest(correct, len(labels), commonest, alternative="greater").pvalue < 0.01:
        return None
    return f"test accuracy {evaluation.accuracy:.3f} does not exceed chance, {commonest:.3f}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
