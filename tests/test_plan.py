import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from runs import photos

import lrbench
import lrbench.plan as plan
from lrbench.datasets import to_float
from lrbench.models import build_model
from lrbench.needed import needed_ranks


def run(*arguments):
    return plan.main(["paper", "--input", "20,3,32,32", *map(str, arguments)])


def test_the_command_prints_what_fits_a_terminal_and_writes_the_whole(tmp_path, capsys):
    assert plan.main(["resnet50", "--input", "256,3,224,224", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 120
    written = (tmp_path / "plan.md").read_text()
    assert "only if layer1.2.relu3 kept bits and layer2.0.downsample.0 were compressed, too: up to rank 114" in written
    assert "`python -m lrbench.plan resnet50 --input 256,3,224,224 --out" in written
    for text in (printed, written):
        assert "as it is in 0 of 53 convolutions, with aliases removed in 52 more, and never in 1" in " ".join(
            text.split()
        )
    table = pd.read_csv(tmp_path / "plan.csv")
    assert table["max_rank"].tolist() == lrbench.plan_model("resnet50", (256, 3, 224, 224))["max_rank"].tolist()


@pytest.mark.parametrize("suffix", ["pt", "npy", "bin"])
def test_ranks_are_measured_on_images_of_any_of_three_kinds(tmp_path, capsys, suffix):
    pixels = photos().train_images[:20]
    path = tmp_path / f"images.{suffix}"
    if suffix == "pt":
        torch.save(to_float(pixels), path)
    elif suffix == "npy":
        np.save(path, to_float(pixels).double().numpy())
    else:
        path.write_bytes(torch.cat([pixels.new_zeros(20, 1), pixels.flatten(1)], 1).numpy().tobytes())
    torch.manual_seed(3)
    model = build_model("paper", (4, 4, 4), 10)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    options = ["--measure", path, "--weights", tmp_path / "weights.pt", "--eps", 0.3, "--widths", 4, 4, 4]
    assert run(*options, "--out", tmp_path) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 120
    assert f"20 images of images.{suffix}, weights weights.pt, seed 0" in " ".join(printed.split())
    expected = needed_ranks(model, to_float(pixels), [0.3])
    table = pd.read_csv(tmp_path / "plan.csv")
    assert table["rank_0.3"].tolist() == pytest.approx(expected["rank_0.3"].tolist())
    assert table["images"].tolist() == [20] * 6


def refused(capsys, *arguments):
    assert plan.main([*map(str, arguments)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("lrbench.plan: ")
    assert "\n" not in error
    return error


HOSTILE = """
import sys

number = 3
def leaves(): sys.exit(0)
def needs(argument): pass
def wrong(): return "no module"
def fails(): raise RuntimeError("one line\\nand another")
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lenet", "there is no model 'lenet'"),
        ("", "there is no model ''"),
        (":", "use paper"),
        ("a:b:c", "use paper"),
        ("../a:b", "use paper"),
        (".relative:f", "use paper"),
        ("hostile:f()", "use paper"),
        ("hostile:", "use paper"),
        ("no_such_module_here:f", "cannot be imported (ModuleNotFoundError"),
        ("hostile:absent", "cannot be imported (AttributeError"),
        ("exits:f", "cannot be imported (SystemExit"),
        ("hostile:number", "is a int"),
        ("hostile:leaves", "gives no model when it is called with no argument (SystemExit"),
        ("hostile:needs", "gives no model when it is called with no argument (TypeError"),
        ("hostile:wrong", "gives a str"),
        ("hostile:fails", "(RuntimeError: one line)"),
    ],
)
def test_a_name_that_gives_no_model_is_refused_in_one_sentence(name, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "hostile.py").write_text(HOSTILE)
    (tmp_path / "exits.py").write_text("raise SystemExit(0)")
    monkeypatch.syspath_prepend(tmp_path)
    assert message in refused(capsys, name, "--input", "1,3,8,8")


def test_a_function_of_ones_own_gives_the_model(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text("from torch import nn\ndef make(): return nn.Sequential(nn.Conv2d(3, 5, 3))\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert plan.main(["mine:make", "--input", "1,3,8,8"]) == 0
    assert "3→5 3x3" in capsys.readouterr().out


def test_a_convolution_that_is_called_twice_is_counted_once(capsys):
    assert plan.main(["test_planning:Twice", "--input", "2,3,16,16"]) == 0
    assert "as it is in 1 of 2 convolutions, with aliases removed in 0 more, and never in 1" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--measure", "absent.pt"], "absent.pt cannot be read"),
        (["--measure", "absent.bin"], "absent.bin is missing"),
        (["--measure", "list.pt"], "holds a list"),
        (["--measure", "small.pt"], "holds an array (2, 3, 8, 8): give images (N, 3, 32, 32)"),
        (["--measure", "whole.npy"], "holds torch.int64"),
        (["--measure", "nan.pt"], "meets NaN or infinity"),
        (["--measure", "none.pt"], "holds no image"),
        (["--measure", "images.jpg"], "give images as .pt, .npy or .bin"),
        (["--measure", "good.pt", "--weights", "list.pt"], "holds a list"),
        (["--measure", "good.pt", "--weights", "other.pt"], "does not fit the model"),
        (["--measure", "good.pt", "--eps", "2"], "(0, 1]"),
        (["--weights", "other.pt"], "together with --measure"),
        (["--widths", "4", "4"], "three positive numbers"),
    ],
    ids=str,
)
def test_a_bad_file_is_refused_in_one_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save([1, 2], "list.pt")
    torch.save(torch.rand(2, 3, 8, 8), "small.pt")
    torch.save(torch.full((2, 3, 32, 32), torch.nan), "nan.pt")
    torch.save(torch.rand(0, 3, 32, 32), "none.pt")
    torch.save(torch.rand(2, 3, 32, 32), "good.pt")
    torch.save({"conv1.weight": torch.rand(3)}, "other.pt")
    np.save("whole.npy", np.zeros((2, 3, 32, 32), np.int64))
    assert message in refused(capsys, "paper", "--input", "2,3,32,32", *arguments)


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run("--out", tmp_path / "file") == 1
    assert "file cannot be written" in capsys.readouterr().err


def test_help_waits_for_nothing_heavy():
    code = "import sys, lrbench.plan as p\ntry: p.main(['--help'])\nexcept SystemExit: print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "--measure FILE" in done.stdout
    loaded = done.stdout.rpartition("[")[2]
    assert not [name for name in ("torch", "numpy", "pandas", "numba") if f"'{name}'" in loaded]
