"""Models of others, by the name of what makes them."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from runs import config
from torch import nn

import lrbench
from lrbench import ablate, plan
from lrbench.foreign import structure_of
from lrbench.models import build_model, build_on_meta
from lrbench.store import read_runs
from lrbench.training import make_model

SMALL = ["--dataset", "photos", "--train-size", "40", "--test-size", "20", "--epochs", "1", "--batch-size", "20"]
SMALL += ["--threads", "1", "--timed-steps", "0", "--compressors", "svd", "--eps", "0.3"]

MINE = """
from torch import nn

class Mine(nn.Module):
    def __init__(self, classes, width):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.second = nn.Conv2d(width, 8, 3, stride=2)
        self.head = nn.Linear(8, classes)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.head(self.second(self.relu(self.first(x))).mean((2, 3)))

def make(classes):
    return Mine(classes, WIDTH)

def torchvisions(num_classes=1000):
    return Mine(num_classes, WIDTH)

def fixed():
    return Mine(1000, WIDTH)

def unused(classes):
    made = Mine(classes, WIDTH)
    made.aux = nn.Conv2d(3, 4, 3)
    return made

def told(classes):
    import torch
    return Mine(classes, int(torch.tensor(4.0).item()))
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write the module ``mine`` into the present folder, of a width, in place of an earlier one."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PYTHONPATH", str(Path(lrbench.__file__).parents[1]))  # of processes that measure
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(width=4):
        Path("mine.py").write_text(MINE.replace("WIDTH", str(width)))
        sys.modules.pop("mine", None)
        importlib.invalidate_caches()

    write()
    yield write
    sys.modules.pop("mine", None)


def run(out, *more, model="mine:make"):
    return ablate.main([*SMALL, "--model", model, *more, "--out", str(out)])


def test_a_module_in_the_present_folder_is_ablated_and_measured_by_its_layers_names(module, tmp_path):
    assert run(tmp_path, "--masks", "second", "--peak-processes", "1") == 0
    (record,) = read_runs(tmp_path)
    assert record["config"]["mask"] == "01"
    assert [layer["layer"] for layer in record["layers"]] == ["second"]
    assert (record["config"]["model"], record["config"]["widths"]) == ("mine:make", [])
    assert len(record["config"]["structure"]) == 16
    assert record["peak_reason"] in (None, "the step is too small to add a page of memory")
    assert record["savings"] is not None, record["savings_reason"]
    assert "mine:make model, structure " in (tmp_path / "summary.md").read_text()


def test_a_convolution_that_is_not_called_is_no_obstacle(module, tmp_path):
    quiet = ["--masks", "101", "--path", "backward", "--peak-processes", "0"]
    assert run(tmp_path / "out", *quiet, model="mine:unused") == 0
    (record,) = [made for made in read_runs(tmp_path / "out") if made["config"]["mask"] == "101"]
    assert (record["status"], [layer["layer"] for layer in record["layers"]]) == ("finished", ["first"])


def test_another_model_under_the_same_name_is_another_run(module, tmp_path, capsys):
    quiet = ["--masks", "00", "--peak-processes", "0"]
    assert run(tmp_path, *quiet) == 0
    capsys.readouterr()
    assert run(tmp_path, *quiet) == 0
    assert "1 of 1 runs are done already" in capsys.readouterr().out
    module(width=5)
    assert run(tmp_path, *quiet, "--dry-run") == 0
    assert "missing" in capsys.readouterr().out


def test_what_layers_say_of_themselves_tells_models_apart():
    made = [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(p), nn.BatchNorm2d(4, momentum=m), nn.MaxPool2d(k))
        for p, m, k in ((0.1, 0.1, 2), (0.5, 0.1, 2), (0.1, 0.2, 2), (0.1, 0.1, 3), (0.1, 0.1, 2))
    ]
    assert len({structure_of(model) for model in made}) == 4


def test_a_model_that_changes_under_way_is_not_trained_under_the_old_name(module):
    begun = config(model="mine:make", widths=(), structure=structure_of(build_model("mine:make", None, 10)), mask="00")
    assert make_model(begun, 10)(torch.rand(2, 3, 8, 8)).shape == (2, 10)
    module(width=5)
    with pytest.raises(ValueError, match="mine:make has changed since the command began"):
        make_model(begun, 10)


@pytest.mark.parametrize("name", ["make", "torchvisions", "told"])
def test_the_number_of_classes_is_given_to_a_function_that_takes_it(module, name):
    assert build_model(f"mine:{name}", None, 7)(torch.rand(2, 3, 16, 16)).shape == (2, 7)
    on_meta = build_on_meta(f"mine:{name}", None, 7)
    assert {parameter.device.type for parameter in on_meta.parameters()} == {"meta"}
    assert structure_of(on_meta) == structure_of(build_model("mine:make", None, 7))


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ("mine:fixed", [], "mine:fixed gives (2, 1000) for 2 images of 10 classes"),
        ("mine:make", ["--widths", "4"], "mine:make takes none"),
        ("mine:absent", [], "mine:absent cannot be imported (AttributeError"),
        ("mine:Mine", [], "gives no model when it is called with classes=10 (TypeError"),
        ("mine", [], "there is no model 'mine': use paper"),
        ("torchvision:", [], "use paper"),
    ],
)
def test_what_is_no_model_for_the_data_is_refused_in_one_sentence(module, tmp_path, capsys, model, more, message):
    assert run(tmp_path, "--masks", "00", *more, model=model) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_a_plan_gives_the_number_of_classes_too(module, capsys):
    assert plan.main(["mine:make", "--input", "8,3,16,16", "--classes", "7"]) == 0
    assert "2 convolutions" in capsys.readouterr().out


def test_the_structure_is_that_of_layers_shapes_and_convolutions_not_of_weights():
    def model(width=4, stride=1, activation=nn.ReLU):
        return nn.Sequential(nn.Conv2d(3, width, 3, stride), activation())

    first = structure_of(model())
    assert structure_of(model()) == first
    assert (
        len({first, structure_of(model(5)), structure_of(model(stride=2)), structure_of(model(activation=nn.ELU))}) == 4
    )
    assert structure_of(lrbench.wrap(model(), "0", "svd")) == first
    circular = nn.Sequential(nn.Conv2d(3, 4, 3, padding_mode="circular"), nn.ReLU())
    assert structure_of(circular) != first


def zoo(package):
    """Skip where a package is missing, or does not work beside this torch, and say so."""
    try:
        importlib.import_module(package)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        pytest.skip(f"{package} cannot be imported beside torch {torch.__version__} ({reason}): adapter not run")


@pytest.mark.parametrize(("package", "count"), [("torchvision", 20), ("timm", 20)])
def test_a_model_zoo_is_taken_by_name(package, count, tmp_path, capsys):
    zoo(package)
    model = f"{package}:resnet18"
    assert build_model(model, None, 7)(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    assert plan.main([model, "--input", "8,3,64,64"]) == 0
    assert f"{count} convolutions" in capsys.readouterr().out
    assert run(tmp_path, "--masks", "layer2.*", "--peak-processes", "0", model=model) == 0
    (record,) = read_runs(tmp_path)
    assert (record["status"], len(record["layers"])) == ("finished", 5)
    assert ablate.main([*SMALL, "--model", f"{package}:no_such_net", "--out", str(tmp_path)]) == 2
    assert "no_such_net" in capsys.readouterr().err
