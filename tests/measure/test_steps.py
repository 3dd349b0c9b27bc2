from pathlib import Path

import pytest
import torch
from torch import nn

import lrbench
from lrbench.measure import steps
from lrbench.measure.steps import loaded_step, measure_step_peaks

MIB = 1 << 20
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc/self/clear_refs")


@linux
def test_gradients_count_as_the_steps_own():
    # They are left behind by the step before, and the next one lets go of them before anything else.
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2048), nn.Linear(2048, 10))
    gradients = sum(parameter.nbytes for parameter in model.parameters())
    assert gradients > 24 * MIB
    (peak,) = measure_step_peaks(model, torch.rand(2, 3, 32, 32), torch.tensor([0, 1]), processes=1)
    assert peak.added == pytest.approx(gradients, rel=0.1)


def test_the_peak_is_that_of_a_whole_period(monkeypatch, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    lrbench.wrap(model, "1", lrbench.get_compressor("warm", eps=0.3, refresh=3), path="backward")
    file = tmp_path / "step.pt"
    torch.save({"model": model, "x": torch.rand(2, 3, 8, 8), "y": torch.tensor([0, 1])}, file)
    taken = []
    take = steps.training_step
    monkeypatch.setattr(steps, "training_step", lambda *given: taken.append(take(*given)))
    threads = torch.get_num_threads()
    step, loaded = loaded_step({"file": str(file), "device": "cpu", "threads": threads, "files": [], "cudnn": {}})
    step()
    assert len(taken) == 3
    assert all(parameter.grad is None for parameter in loaded.parameters())
