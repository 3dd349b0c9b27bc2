"""What is imported when: a help text waits for none of what only a run needs."""

import subprocess
import sys

import pytest

import lrbench
from lrbench.datasets import list_datasets
from lrbench.models import list_models

HEAVY = {"torch", "numpy", "numba", "pandas", "matplotlib", "seaborn", "sklearn", "scipy"}

EACH_FIRST = """
import importlib, pkgutil, sys
import lrbench
for module in list(pkgutil.walk_packages(lrbench.__path__, "lrbench.")):
    if module.name.startswith("lrbench.report"):  # takes seconds, and little of the rest
        continue
    for name in [name for name in sys.modules if name.split(".")[0] == "lrbench"]:
        del sys.modules[name]
    importlib.import_module(module.name)
    print(module.name)
"""

PUBLIC = """
import sys
import lrbench
assert "torch" not in sys.modules
assert set(lrbench.__all__) <= set(dir(lrbench))
for name in lrbench.__all__:
    assert getattr(lrbench, name) is vars(lrbench)[name], name
from lrbench import *
print(wrap.__module__, Im2col.__module__)
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("command", ["ablate", "report", "plan", "sizes", "catalogue"])
def test_a_commands_help_imports_nothing_heavy(command: str) -> None:
    done = python("-X", "importtime", "-m", f"lrbench.{command}", "--help")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"lrbench", "lrbench.shell"} <= imported
    assert not HEAVY & {name.split(".")[0] for name in imported}


def test_the_ablations_help_names_every_dataset_and_model() -> None:
    said = python("-m", "lrbench.ablate", "--help").stdout
    assert f"{{{','.join(list_datasets())}}}" in said
    for name in list_models():
        assert name in said


def test_every_public_name_is_there_when_it_is_asked_for_and_only_then() -> None:
    assert python("-c", PUBLIC).stdout.split() == ["lrbench.conv", "lrbench.im2col"]


def test_a_name_that_lrbench_has_not_is_refused_as_by_any_module() -> None:
    with pytest.raises(AttributeError, match="'lrbench' has no attribute 'compres'"):
        lrbench.compres  # noqa: B018
    with pytest.raises(ImportError, match="compres"):
        from lrbench import compres  # noqa: F401


def test_every_module_can_be_the_first_that_is_imported() -> None:
    """Nothing is imported before it any more, which could hide a circle."""
    assert {"lrbench.blocks", "lrbench.kernels.crosses"} <= set(python("-c", EACH_FIRST).stdout.split())
