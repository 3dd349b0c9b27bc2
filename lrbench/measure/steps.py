"""The peak memory of a training step of any model: handed to fresh processes in a file."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrbench.compressors import compressor_class, named_files
from lrbench.measure.memory import Peak, PeakUnavailableError, measure_peak
from lrbench.measure.time import period_of
from lrbench.training import training_step

__all__ = ["loaded_step", "measure_step_peaks"]


def measure_step_peaks(model: nn.Module, x: Tensor, y: Tensor, processes: int = 5) -> list[Peak]:
    """Measure the peak memory of a training step, with model, batch and the state of Adam resident before it.

    Gradients are the step's own: they are not there before it. Where the work of a compressor repeats after some steps,
    it is the highest peak of so many.

    Parameters
    ----------
    model : torch.nn.Module
        Wrapped or plain, of classes that can be imported: it is pickled. It is left as it was.
    x, y : Tensor
        A batch: inputs and class labels.
    processes : int
        How many fresh processes measure it; as many as there are cores side by side.

    Returns
    -------
    list of Peak
        With the workspaces of each convolution.

    Raises
    ------
    PeakUnavailableError
        If the model cannot be pickled, or the peak cannot be measured here.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "step.pt"
        try:
            torch.save({"model": model, "x": x, "y": y}, file)
        except Exception as error:
            raise PeakUnavailableError(f"the model cannot be handed to another process: {error}") from error
        argument = {
            "file": str(file),
            "device": str(x.device),
            "threads": torch.get_num_threads(),
            "files": named_files(),
            "cudnn": {name: getattr(torch.backends.cudnn, name) for name in _CUDNN},
        }
        return measure_peak(f"{__name__}:loaded_step", argument, processes, at_once=os.cpu_count() or 1)


_CUDNN = ("allow_tf32", "deterministic", "benchmark")
"""Settings on which the workspaces of a GPU's convolutions depend: the measuring process takes this one's."""


def loaded_step(argument: dict[str, Any]) -> tuple[Callable[[], object], nn.Module]:
    """Make the step, or a period of them, in the process that measures it."""
    torch.set_num_threads(argument["threads"])
    for place in argument["files"]:
        compressor_class(place)
    for name, value in argument["cudnn"].items():
        setattr(torch.backends.cudnn, name, value)
    # It was written by this user a moment ago, in a folder of its own.
    given = torch.load(argument["file"], weights_only=False, map_location=argument["device"])
    model, x, y = given["model"].train(), given["x"], given["y"]
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    period = period_of(model)

    def step() -> None:
        for _ in range(period):
            training_step(model, optimizer, x, y)
        # What a step leaves behind would be there before the next one, which lets go of it first of all.
        optimizer.zero_grad(set_to_none=True)

    return step, model
