"""One pytest line holds a class of one's own to the contract."""

import subprocess
import sys
from pathlib import Path

import pytest

import lrbench

CODE = """
import lrbench


class Good(lrbench.Compressor):
    guarantee = "block"

    def factorize(self, blocks):
        return lrbench.get_compressor("gram", eps=self.eps).factorize(blocks)


class Remembering(Good):
    calls = 0

    def factorize(self, blocks):
        Remembering.calls += 1
        return lrbench.get_compressor("gram", eps=self.eps / Remembering.calls).factorize(blocks)


class Silent(Good):
    def compress(self, blocks, *, nonfinite="raise"):
        return super().compress(blocks, nonfinite="keep")
"""


def held_to_the_contract(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    (folder / "mine.py").write_text(CODE)
    line = ["-m", "pytest", "--pyargs", "lrbench.contract", "-q", *more]
    path = f"{Path(lrbench.__file__).parents[1]}"
    environment = {"PYTHONPATH": path, "PATH": "", "HOME": str(folder)}
    return subprocess.run(
        [sys.executable, *line], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


FEW = ["-k", "same_call or are_named or eps_one or drawn_neighbours"]
"""All of them take half a minute."""


@pytest.mark.parametrize(
    ("cls", "failed"),
    [
        ("Good", set()),
        ("Remembering", {"test_the_same_call_gives_the_same_bits"}),
        ("Silent", {"test_blocks_that_are_not_finite_are_named"}),
    ],
)
def test_a_good_class_passes_and_a_bad_one_is_told_what_it_breaks(tmp_path: Path, cls: str, failed: set[str]) -> None:
    done = held_to_the_contract(tmp_path, "-p", "lrbench.contract", "--compressor", f"./mine.py:{cls}", *FEW)
    found = {line.rpartition("::")[2].partition("[")[0] for line in done.stdout.splitlines() if line[:6] == "FAILED"}
    assert failed <= found
    assert bool(found) == bool(failed) == (done.returncode != 0), done.stdout
    assert " passed" in done.stdout


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-p", "lrbench.contract"], "no compressor is named: give --compressor NAME"),
        (["-p", "lrbench.contract", "--compressor", "./mine.py:God"], "its compressors are Good, Remembering, Silent"),
        (["-p", "lrbench.contract", "--compressor", "svf"], "there is no compressor 'svf': did you mean svd"),
    ],
)
def test_a_line_that_names_no_compressor_is_refused_at_once(tmp_path: Path, more: list[str], message: str) -> None:
    done = held_to_the_contract(tmp_path, *more)
    assert done.returncode == 4
    assert message in done.stderr
    assert "passed" not in done.stdout


def test_lrbench_needs_no_pytest() -> None:
    code = "import sys, lrbench; lrbench.list_compressors(); print({'pytest', 'hypothesis'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "set()"
