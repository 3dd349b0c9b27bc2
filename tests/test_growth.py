"""The benchmark of how compression time grows: its fit, its inputs, and what it writes."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.image import imread

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # benchmarks are not installed
from benchmarks import growth
from benchmarks.speed import KEPT, Allocator
from lrbench.report.style import looks


def test_a_known_exponent_is_found_in_the_last_decade_and_a_flat_beginning_is_left_out() -> None:
    values = np.array([1, 2, 5, 10, 20, 50, 100])
    law = growth.fit(pd.Series(np.where(values < 10, 500.0, 3 * values**1.7), index=values))
    assert (law.start, law.stop) == (10, 100)
    assert (law.scale, law.exponent) == pytest.approx((3, 1.7))
    assert law.margin == pytest.approx(0, abs=1e-6)


def test_the_interval_holds_the_true_exponent_in_nineteen_cases_of_twenty() -> None:
    values, noise = np.array([10, 20, 50, 100]), np.random.default_rng(0)
    laws = [growth.fit(pd.Series(values**0.5 * np.exp(noise.normal(0, 0.2, 4)), index=values)) for _ in range(1000)]
    held = np.mean([abs(law.exponent - 0.5) <= law.margin for law in laws])
    assert held == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("ends", [[0.1, 0.5, 0.9], [0.5, 0.51, 0.52], [0.9, 0.95, 0.99, 1.0], [0.2, 0.93, 0.94]])
def test_exponents_stand_beside_their_lines_but_not_on_each_other_nor_on_the_heading(ends: list[float]) -> None:
    heights = growth.spread(ends)
    assert heights[-1] <= growth.TOP
    assert (np.diff(heights) >= growth.TEXT - 1e-9).all()
    assert np.abs(np.array(heights) - ends).max() <= len(ends) * growth.TEXT


def test_a_sweep_changes_what_it_says_and_no_image_comes_twice() -> None:
    draw = np.random.default_rng(0)
    shapes = {
        (name, value): tuple(sweep.images(value, draw).shape)
        for name, sweep in growth.SWEEPS.items()
        for value in (sweep.values[0], sweep.values[-1])
    }
    assert shapes["images", 160] == (160, 3, 32, 32)
    assert shapes["side", 256][1:] == (3, 256, 256)
    assert shapes["channels", 96][1:] == (96, 16, 16)
    assert growth.SWEEPS["1/eps"].eps(100) == 0.01
    crops = torch.cat([growth.SWEEPS["images"].images(50, draw) for _ in range(2)])
    assert len(crops.unique(dim=0)) == 100


def test_what_was_measured_is_written_in_full_and_can_be_drawn_again(tmp_path, monkeypatch, capsys) -> None:
    few = {name: sweep._replace(values=sweep.values[:3]) for name, sweep in growth.SWEEPS.items()}
    few["images"] = few["images"]._replace(values=(1, 2, 4))
    few["side"] = few["side"]._replace(values=(8, 9, 10), images=lambda side, draw: growth._crops(5, side, draw))
    monkeypatch.setattr(growth, "SWEEPS", {name: few[name] for name in ("images", "side")})

    def here(module: str, arguments: list[str], allocator: Allocator) -> str:
        assert (module, allocator) == ("benchmarks.growth", KEPT)
        growth.main([*arguments, "--into", str(tmp_path / "measured")])
        return (tmp_path / "measured").read_text()

    monkeypatch.setattr(growth, "run_apart", here)
    growth.main(["--rounds", "2", "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "growth.csv")
    assert len(table) == 2 * 3 * len(growth.COMPRESSORS) * 2
    assert capsys.readouterr().out.count("| a call |") == len(growth.COMPRESSORS)
    curves = {(name, kind): quartiles for name, kind, quartiles in growth._curves(table)}
    for name, value, images in (("images", 4, 1), ("side", 9, 5)):  # of a call, or of each of its images
        times = table[(table["sweep"] == name) & (table["value"] == value) & (table["compressor"] == "svd")]["seconds"]
        assert curves[name, "svd"].loc[value, 0.5] == pytest.approx(1e3 * times.median() / images)
    (tmp_path / "growth.png").unlink()
    growth.main(["--plot-only", "--out", str(tmp_path)])
    pixels = imread(tmp_path / "growth.png")[:, :, :3]
    for kind in growth.COMPRESSORS:
        colour = to_rgb(looks([kind])[kind].colour)
        assert (np.abs(pixels - colour).max(2) < 0.01).sum() > 100, kind
