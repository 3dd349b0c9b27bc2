"""A compressor may come from a file that is named with its class, wherever a name is taken."""

import hashlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import config, photos
from test_ablate import QUIET, SMALL
from torch import nn

import lrbench
from lrbench import UnknownCompressorError, ablate
from lrbench.compressors import compressor_class, named_files
from lrbench.grid import Grid, expand, load_policies
from lrbench.sizes import measure_sizes
from lrbench.store import read_runs, run_id

GOOD = """
import lrbench


@lrbench.register("projected")
class Mine(lrbench.Compressor):
    guarantee = "block"
    version = 3

    def factorize(self, blocks):
        return lrbench.get_compressor("gram", eps=self.eps).factorize(blocks)
"""

OTHERS = """
from lrbench import Compressor
from lrbench.compressors.svd import TruncatedSVD

NUMBER = 3


class Plain: ...
"""


pytestmark = pytest.mark.usefixtures("registry_of_its_own")


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(lrbench.__file__).parents[1]))  # of processes that are started here
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    return path


def name_of(path: Path, cls: str = "Mine") -> str:
    return f"{cls}@{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"


def test_a_class_of_a_file_is_made_by_its_place_and_called_by_its_name_and_its_code(mine: Path) -> None:
    for place in ("./mine.py:Mine", "mine.py:Mine", f"{mine}:Mine"):
        compressor = lrbench.get_compressor(place, eps=0.2)
        assert (compressor.name, compressor.eps, compressor.version) == (name_of(mine), 0.2, 3)
    assert type(lrbench.get_compressor(name_of(mine))) is compressor_class("./mine.py:Mine")
    assert name_of(mine) in lrbench.list_compressors("Mine*")
    assert named_files() == (f"{mine}:Mine",)


def test_changed_code_is_another_compressor(mine: Path) -> None:
    before = compressor_class("./mine.py:Mine")
    mine.write_text(GOOD + "# another line\n")
    after = compressor_class("./mine.py:Mine")
    assert before is not after
    assert before.name != after.name == name_of(mine)


def test_what_a_file_registers_is_not_taken_for_a_name_of_its_own(mine: Path) -> None:
    """A run of that name would not say what the code was."""
    compressor_class("./mine.py:Mine")
    assert lrbench.list_compressors("projected") == []


def test_it_wraps_a_model(mine: Path) -> None:
    model = lrbench.wrap(nn.Sequential(nn.Conv2d(2, 3, 3)), "1", compressor="./mine.py:Mine", eps=0.3)
    (layer,) = lrbench.compressed_layers(model).values()
    assert repr(layer.compressor) == "Mine(eps=0.3)"
    model(torch.rand(2, 2, 6, 6)).sum().backward()


def test_the_name_of_its_runs_holds_the_code_and_not_the_path(mine: Path) -> None:
    def runs(place: str) -> list[str]:
        found, _ = expand(Grid([place, "svd"], ["100000"], [0.1], ["both"], [0]), config(), classes=10)
        assert [run.compressor for run in found] == [name_of(mine), "svd"]
        assert found[0].compressor_version == 3
        return [run_id(run.to_json()) for run in found]

    first = runs("./mine.py:Mine")
    assert runs(f"{mine}:Mine") == first
    mine.write_text(GOOD + "# another line\n")
    again = runs("./mine.py:Mine")
    assert again[0] != first[0]
    assert again[1] == first[1]


def test_a_policy_takes_it_and_its_identity_holds_the_code(mine: Path) -> None:
    Path("tuned.toml").write_text('[layers.conv2]\ncompressor = "./mine.py:Mine"\neps = 0.3\n')

    def run() -> tuple[str, str]:
        (only,), _ = expand(Grid([], [], [0.1], ["both"], [0], load_policies([Path("tuned.toml")])), config(), 10)
        assert only.policy is not None
        return run_id(only.to_json()), only.policy

    name, policy = run()
    assert name_of(mine) in policy
    assert "mine.py" not in policy
    assert lrbench.Policy.from_identity(policy).layers["conv2"].make().name == name_of(mine)
    mine.write_text(GOOD + "# another line\n")
    assert run()[0] != name


def test_another_process_finds_it_in_what_is_handed_to_it(mine: Path) -> None:
    (run,), _ = expand(Grid(["./mine.py:Mine"], ["100000"], [0.1], ["both"], [0]), config(), classes=10)
    Path("run.pickle").write_bytes(pickle.dumps(run))
    code = """
import pickle, lrbench
from lrbench.training import make_model
model = make_model(pickle.load(open("run.pickle", "rb")), 10)
print(*(layer.compressor.name for layer in lrbench.compressed_layers(model).values()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.stderr) == (name_of(mine), "")


def test_an_ablation_trains_it_measures_it_and_reports_it_by_name(mine: Path, capsys: pytest.CaptureFixture) -> None:
    grid = ["--compressors", "./mine.py:Mine", "--masks", "100000", "--eps", "0.3", "--out", "out"]
    small = [*SMALL, *QUIET, "--epochs", "1", "--peak-processes", "1"]
    assert ablate.main([*small, *grid]) == 0
    (record,) = read_runs(Path("out"))
    assert record["config"]["compressor"] == name_of(mine)
    assert record["layers"][0]["guarantee"] == "block"
    if sys.platform == "linux":
        assert record["peak_reason"] is None, "the process that measures loads the file, too"
    page, table = Path("out/report.html").read_text(), Path("out/runs.csv").read_text()
    for text in (page, table):
        assert name_of(mine) in text
    assert f">{mine}" not in page
    capsys.readouterr()
    assert ablate.main([*small, *grid, "--dry-run"]) == 0
    assert f"finished  100000 {name_of(mine)} 0.3 both, seed 0" in capsys.readouterr().out


def test_the_byte_table_takes_it(mine: Path) -> None:
    table = measure_sizes(photos().train_images[:100], ["./mine.py:Mine"], [0.3])
    assert table["compressor"].tolist() == [name_of(mine)]


@pytest.mark.parametrize(
    ("code", "place", "error", "message"),
    [
        (None, "./mine.py:Mine", UnknownCompressorError, r"'./mine.py:Mine': .*mine.py cannot be read \(No such file"),
        (GOOD, "./mine.py:Mime", UnknownCompressorError, "no class Mime in .*mine.py: its compressors are Mine"),
        (OTHERS, "./mine.py:Mine", UnknownCompressorError, "no class Mine in .*mine.py: it defines no compressor"),
        (GOOD, "./mine.py", UnknownCompressorError, "write ./mine.py:CLASS; its compressors are Mine"),
        (GOOD, "./mine.py:", UnknownCompressorError, "write ./mine.py:CLASS"),
        (OTHERS, "./mine.py:Plain", TypeError, r"Plain of .*mine.py is no compressor: derive it from lrbench.Comp"),
        (OTHERS, "./mine.py:NUMBER", TypeError, "NUMBER of .* is no compressor"),
        (OTHERS, "./mine.py:Compressor", TypeError, r"Compressor of .* is imported from lrbench\.compressors\.base"),
        (OTHERS, "./mine.py:TruncatedSVD", TypeError, r"imported from lrbench\.compressors\.svd: name a class that"),
        (
            "\nimport no_such\n",
            "./mine.py:Mine",
            ValueError,
            "mine.py, line 2, cannot be run: ModuleNotFoundError: No mod",
        ),
        ("\n\nclass Mine(\n", "./mine.py:Mine", ValueError, "mine.py, line 3, cannot be run: SyntaxError: "),
        ("raise SystemExit(0)\n", "./mine.py:Mine", ValueError, "mine.py, line 1, cannot be run: SystemExit: 0"),
    ],
)
def test_a_file_that_gives_no_compressor_is_refused_in_one_sentence(
    mine: Path, code: str | None, place: str, error: type[Exception], message: str, capsys: pytest.CaptureFixture
) -> None:
    if code is None:
        mine.unlink()
    else:
        mine.write_text(code)
    with pytest.raises(error, match=message) as caught:
        lrbench.get_compressor(place)
    assert "\n" not in str(caught.value)
    assert compressor_class("svd").name == "svd"
    assert not lrbench.Compressor.name
    assert not named_files()
    assert ablate.main([*SMALL, "--compressors", place, "--dry-run", "--out", "out"]) == 2
    assert capsys.readouterr().err == f"lrbench.ablate: {caught.value}\n"


def test_options_that_it_does_not_take_are_refused(mine: Path) -> None:
    with pytest.raises(TypeError, match=r"'\./mine.py:Mine' does not take sketch: it takes eps"):
        lrbench.get_compressor("./mine.py:Mine", sketch=3)


def test_a_file_is_run_only_where_it_is_named(mine: Path) -> None:
    mine.write_text(GOOD + 'open("it_ran", "w")\n')
    lrbench.list_compressors()
    with pytest.raises(UnknownCompressorError):
        lrbench.get_compressor("mine")
    assert not Path("it_ran").exists()
    lrbench.get_compressor("mine.py:Mine")
    assert Path("it_ran").exists()
