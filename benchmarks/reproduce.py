"""Whether a small reproduction agrees with stored runs of the same experiment, after as many epochs.

``python -m benchmarks.reproduce NEW STORED`` takes two results folders. The learning rate is constant: a run of few
epochs is the beginning of a longer one. Where both hold the cells of a comparison that NEW's preset wrote down, the
mean of NEW's paired differences must lie where the mean of so many new seeds is expected: within Student's prediction
interval, at 95 %, from the differences of STORED. Where that holds 0, no difference at all would agree as well, and
nothing is told. Exit status 1 if one disagrees, has runs that diverged, tells nothing, or nothing can be compared.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from lrbench.presets import PlannedComparison, load_preset
from lrbench.store import Record, is_finished, read_runs

LEVEL = 0.95
FREE = ("seed", "epochs", "threads", "device")
"""What may differ between a run and the one that it repeats."""


@dataclass(frozen=True)
class Agreement:
    """One comparison, there and here: differences by seed, in points, after an epoch; and where theirs let ours be."""

    name: str
    epoch: int
    stored: Mapping[int, float]
    new: Mapping[int, float]
    low: float
    high: float

    @property
    def inside(self) -> bool:
        """Whether the mean of ours lies where it is expected."""
        return self.low <= float(np.mean(list(self.new.values()))) <= self.high

    @property
    def tells(self) -> bool:
        """Whether no difference at all would lie elsewhere."""
        return not self.low <= 0 <= self.high


def agreements(new: Sequence[Record], stored: Sequence[Record]) -> list[Agreement]:
    """Compare what two folders hold of the comparisons that the preset of the first wrote down."""
    epoch = min(len(run["epochs"]) for run in [*new, *stored])
    presets = dict.fromkeys(run["environment"]["preset"] for run in new)
    found = []
    for comparison in (comparison for preset in presets for comparison in load_preset(preset).comparisons):
        ours, theirs = (differences(runs, comparison, epoch) for runs in (new, stored))
        if ours and len(theirs) > 1:
            low, high = prediction_interval(list(theirs.values()), len(ours))
            found.append(Agreement(comparison.name, epoch, theirs, ours, low, high))
    return found


def differences(runs: Sequence[Record], comparison: PlannedComparison, epoch: int) -> dict[int, float]:
    """Test accuracy of a comparison's cell minus the other's after an epoch, in points, by seed."""
    cell, against = (_accuracies(runs, side, epoch) for side in (comparison.cell, comparison.against))
    return {seed: 100 * (cell[seed] - against[seed]) for seed in sorted(cell.keys() & against.keys())}


def prediction_interval(values: Sequence[float], count: int, level: float = LEVEL) -> tuple[float, float]:
    """Where the mean of ``count`` further values lies, with probability ``level``, if all are of one normal law."""
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    t = float(stats.t.ppf((1 + level) / 2, len(values) - 1))
    reach = t * spread * (1 / len(values) + 1 / count) ** 0.5
    return mean - reach, mean + reach


def _accuracies(runs: Sequence[Record], cell: Mapping[str, Any], epoch: int) -> dict[int, float]:
    named = {"compressor": None, **cell}  # the plain model is the one that names none
    mine = [run for run in runs if all(run["config"][key] == value for key, value in named.items())]
    return {run["config"]["seed"]: float(run["epochs"][epoch - 1]["test_accuracy"]) for run in mine}


def _setting(run: Record) -> dict[str, Any]:
    varied = (*FREE, "mask", "compressor", "compressor_version", "eps", "path")
    return {key: value for key, value in run["config"].items() if key not in varied}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; give its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("new", type=Path, help="the folder of the reproduction")
    parser.add_argument("stored", type=Path, help="the folder of the runs that it repeats")
    options = parser.parse_args(arguments)
    finished = [[run for run in read_runs(folder) if is_finished(run)] for folder in (options.new, options.stored)]
    new, stored = ([run for run in runs if run["outcome"] != "diverged"] for runs in finished)
    diverged = [run for run in finished[0] if run["outcome"] == "diverged"]
    for run in diverged:
        config = run["config"]
        print(f"DISAGREES: {config['mask']} {config['compressor'] or 'plain'}, seed {config['seed']}, diverged")
    for folder, runs in ((options.new, new), (options.stored, stored)):
        if not runs:
            print(f"{folder} holds no finished run: name a results folder of lrbench.ablate", file=sys.stderr)
            return 1
    ours, theirs = _setting(new[0]), _setting(stored[0])
    other = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
    if other:
        print(f"note: the two differ in {', '.join(other)}, too, so they need not agree")
    found = agreements(new, stored)
    for each in found:
        print(f"{each.name}, difference in test accuracy after epoch {each.epoch}, points")
        for who, values in (("stored", each.stored), ("new", each.new)):
            by_seed = ", ".join(f"seed {seed}: {value:+.2f}" for seed, value in values.items())
            print(f"  {who}: {np.mean(list(values.values())):+.2f} ({by_seed})")
        agrees = "agrees" if each.tells else "CANNOT TELL, for no difference would agree as well"
        verdict = agrees if each.inside else "DISAGREES"
        print(f"  expected of {len(each.new)} new seeds, {LEVEL:.0%}: {each.low:+.2f} to {each.high:+.2f}: {verdict}")
    if not found:
        print("nothing can be compared: no comparison has runs here and two seeds there", file=sys.stderr)
    return int(bool(diverged) or not found or not all(each.inside and each.tells for each in found))


if __name__ == "__main__":
    sys.exit(main())
