"""A training step of the paper's network, plain and compressed, and the accuracy of the runs in results/."""

from itertools import cycle
from pathlib import Path

import torch

import lrbench
from lrbench.models import paper_cnn
from lrbench.store import Record, is_finished, read_runs
from lrbench.training import training_step

from .inputs import COMPRESSORS, batches, require

PLAIN = "plain"


class TrainingStep:
    """Seconds for a step on a batch of 100 images at widths 32, 64, 128."""

    params = ([PLAIN, *COMPRESSORS], ["100000", "101010"])
    param_names = ("compressor", "mask")

    def setup(self, name: str, mask: str) -> None:
        if name == PLAIN and mask != self.params[1][0]:
            raise NotImplementedError("the plain model has no mask: it is measured once")
        torch.manual_seed(0)
        self.model = paper_cnn().train()
        if name != PLAIN:
            require(name, "both")
            lrbench.wrap(self.model, mask, name, path="both")
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.batches = cycle(batches())
        self.run()

    def run(self) -> None:
        training_step(self.model, self.optimizer, *next(self.batches))

    def time_step(self, name: str, mask: str) -> None:
        self.run()


def cell(run: Record) -> tuple[str, str | None]:
    """Name the cell of a run: at eps 0.1 and on path ``both``, or without either."""
    config = run["config"]
    other = config["eps"] not in (None, 0.1) or config["path"] not in (None, "both")
    return config["mask"], "another" if other else config["compressor"]


class Accuracy:
    """Last-epoch test accuracy, as trained, of the runs that the repository holds: read, not trained again."""

    folder = Path(__file__).resolve().parent.parent / "results" / "first-look"
    params = ([PLAIN, *COMPRESSORS], ["000000", "100000", "101010"])
    param_names = ("compressor", "mask")

    def setup(self, name: str, mask: str) -> None:
        if not (self.folder / "runs").is_dir():
            raise NotImplementedError(f"{self.folder} holds no runs")

    def track_accuracy(self, name: str, mask: str) -> float:
        wanted = (mask, None if name == PLAIN else name)
        found = [run for run in read_runs(self.folder) if is_finished(run) and run["final"] and cell(run) == wanted]
        finals = [run["final"]["as_trained"]["accuracy"] for run in found]
        return sum(finals) / len(finals) if finals else float("nan")

    track_accuracy.unit = "mean accuracy over seeds"
