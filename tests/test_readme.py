"""README and guide show what is so: their examples run, their tables stand in the results that they name."""

import re
from pathlib import Path

import pytest
import torch

import lrbench
from lrbench import compressors

pytestmark = pytest.mark.usefixtures("young_heap")

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "GUIDE.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README + GUIDE, re.DOTALL)


@pytest.fixture(autouse=True)
def _registry_as_it_was():
    lrbench.list_compressors()
    before = dict(compressors._classes)
    yield
    compressors._classes.clear()
    compressors._classes.update(before)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.strip().splitlines()[-1][:40])
def test_an_example_runs_as_it_stands(example):
    exec(compile(example, "README.md", "exec"), {})


def test_the_quick_start_comes_first_and_is_short():
    section = README[README.index("\n## Use it") :]
    quick = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert "quick start" in section[: quick.start()]
    assert quick.group(1) == EXAMPLES[0]
    assert len(EXAMPLES[0].strip().splitlines()) <= 15


def test_the_network_that_the_readme_wraps_learns_in_a_few_steps():
    (text,) = [example for example in EXAMPLES if "resnet18" in example]
    assert len(text.strip().splitlines()) < 30
    names = {}
    exec(compile(text, "README.md", "exec"), names)
    assert names["losses"][-1] < names["losses"][0]
    expected = ["conv1", "layer2.0.conv1", "layer2.1.conv1"]
    assert list(lrbench.compressed_layers(names["model"])) == expected


def test_the_compressor_that_the_readme_adds_is_short_and_keeps_its_promise_by_its_own_means():
    (text,) = [example for example in EXAMPLES if "lrbench.register" in example]
    assert len(text.strip().splitlines()) < 25
    exec(compile(text, "README.md", "exec"), {})
    torch.manual_seed(0)
    images = torch.rand(20, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    blocks = lrbench.Im2col(images, 3, padding=1)
    factors = lrbench.get_compressor("longest-columns", eps=0.2).compress(blocks)
    assert lrbench.relative_error(blocks, factors).max() <= 0.2
    assert (factors.origin == lrbench.Origin.OWN).all()


def rows_of(text):
    lines = text.splitlines()
    heads = {k for k, line in enumerate(lines[:-1]) if lines[k + 1].startswith("| ---")}
    return {line.strip() for k, line in enumerate(lines) if k not in heads and re.match(r"\| [^`]*\d", line)}


def test_every_row_of_numbers_stands_in_the_results_that_the_readme_names():
    named = [ROOT / path for path in re.findall(r"\]\((results/[^)]*\.md)\)", README)]
    assert len(named) >= 2
    results = set().union(*(rows_of(path.read_text(encoding="utf-8")) for path in named))
    rows = rows_of(README)
    assert len(rows) > 6
    assert rows <= results


FIGURE = re.compile(r"[−+-]?\d[\d,]*(?:\.\d+)?")


def findings():
    """Return what is found, by bold or section title: prose, tables, commands and examples."""
    sections = dict(part.split("\n", 1) for part in README.split("\n## ")[1:])
    parts = re.split(r"^\*\*(.*?)\*\*", sections["What was found"], flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True)) | {"Does it pay?": sections["Does it pay?"]}


def measured(text):
    """Return the figures of a finding's prose that are measured: with a decimal point, or of three digits and more."""
    prose = re.sub(r"```.*?```|`[^`]*`|\[results/[^]]*\]|\([^()]*\.md\)|^\|.*?$", " ", text, flags=re.S | re.M)
    return {figure for figure in figures(prose) if re.search(r"\.|\d{3}", figure)}


def figures(text):
    return {figure.strip(",").replace(",", "").replace("-", "−") for figure in FIGURE.findall(text)}


@pytest.mark.parametrize("title", findings())
def test_every_figure_of_a_finding_stands_in_the_results_that_it_names(title):
    text = findings()[title]
    named = re.findall(r"\]\((results/[^)]*\.md)\)", text)
    assert named, f"{title} names no results"
    known = set().union(*(figures((ROOT / path).read_text(encoding="utf-8")) for path in named))
    known |= {figure.lstrip("+−") for figure in known}  # a loss of 4.2 points is a difference of −4.2
    assert measured(text) <= known


def test_every_file_and_command_that_they_name_is_there():
    for path in re.findall(r"\]\(((?!http)[^)]*)\)", README + GUIDE):
        assert (ROOT / path).exists(), path
    for module in set(re.findall(r"python -m (lrbench\.\w+)", README + GUIDE)):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists() or (
            ROOT / module.replace(".", "/") / "__main__.py"
        ).exists(), module
    for name in compressors._classes:
        assert f"`{name}`" in README or name.startswith("test"), name
