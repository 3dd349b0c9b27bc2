import json
import re
from collections import Counter
from pathlib import Path

import pytest
from runs import config

from lrbench.grid import Grid, expand_all
from lrbench.models import own_widths
from lrbench.policy import Policy
from lrbench.presets import list_presets, load_preset
from lrbench.request import read_request

ROOT = Path(__file__).parents[1]


def runs_of(name):
    options = read_request(["--preset", name])
    policies = {policy: Policy.from_table(table) for policy, table in options.planned.items()}
    grids = [Grid(**axes, seeds=options.seeds, policies=policies) for axes in options.grids]
    base = config(model=options.model, widths=tuple(options.widths or own_widths(options.model)))
    return expand_all(grids, base, 10)[0]


@pytest.mark.parametrize("name", list_presets())
def test_a_preset_says_what_it_asks_and_every_comparison_is_of_cells_that_run(name):
    preset = load_preset(name)
    assert preset.title
    assert preset.question.endswith((".", "?"))
    runs = runs_of(name)
    for comparison in preset.comparisons:
        for cell in (comparison.cell, comparison.against):
            named = {"compressor": None, **cell}  # the plain model is the one that names none
            found = [run for run in runs if all(getattr(run, key) == value for key, value in named.items())]
            assert {run.seed for run in found} == set(preset.options["seeds"]), comparison
            kinds = {(run.mask, run.compressor, run.eps, run.path) for run in found}
            assert len(kinds) == 1, f"{comparison.name} names more than one cell: {kinds}"


def test_the_papers_preset_is_seven_cells_of_five_seeds_that_end_seed_by_seed():
    runs = runs_of("paper")
    assert len(runs) == 35
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert all(run.plain for run in runs[::7])


def test_the_masks_are_half_of_all_and_balanced_in_every_pair_of_layers():
    for name in ("masks", "masks-svd"):
        masks = sorted({run.mask for run in runs_of(name)})
        assert len(masks) == 32
        for a in range(6):
            for b in range(a):
                counts = Counter((mask[a], mask[b]) for mask in masks)
                assert sorted(counts.values()) == [8, 8, 8, 8]


def test_the_readme_says_how_many_cells_and_seeds_each_has_and_how_many_runs_are_done():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| (`[^|]*`) \|[^|]*\| (\d+) x (\d+) \| (\d+|none) \|$", readme, re.MULTILINE)
    assert len(told) == 8
    for names, cells, seeds, done in told:
        found = 0
        for name in re.findall("`([^`]*)`", names):
            runs = runs_of(name)
            assert len(runs) == int(cells) * int(seeds), name
            assert len({run.seed for run in runs}) == int(seeds), name
            sizes = load_preset(name).options
            folder = ROOT / "results" / ("paper" if name == "paper-ranks" else name)
            stored = [json.loads(file.read_text()) for file in folder.glob("runs/*.json")]
            finished = [run["config"] for run in stored if run["status"] == "finished"]
            found += len({told_apart(vars(run)) for run in runs} & {told_apart(r) for r in finished if fits(r, sizes)})
        assert done == (str(found) if found else "none"), names


def told_apart(config):
    return tuple(config[key] for key in ("mask", "compressor", "eps", "path", "seed", "model"))


def fits(config, options):
    """Whether a run is one of these epochs, images and widths."""
    images = options.get("train_size", 50000)
    sizes = (options["epochs"], images, options.get("widths", config["widths"]))
    return sizes == (config["epochs"], config["train_size"], list(config["widths"]))


def test_an_extending_preset_takes_the_rest_from_the_other():
    wide, paper = load_preset("paper-wide"), load_preset("paper")
    assert wide.options == {**paper.options, "seeds": [0], "widths": [32, 64, 128]}
    assert (wide.grids, wide.comparisons) == (paper.grids, paper.comparisons)
    assert {run.compressor for run in runs_of("masks-svd")} == {None, "svd"}


def test_an_unknown_preset_is_named_with_those_that_there_are():
    with pytest.raises(LookupError, match=r"no preset 'papre'.*paper"):
        load_preset("papre")


def test_the_readme_says_how_long_the_stored_runs_took():
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    told = re.search(
        r"took ([\d.]+) hours of one thread for `paper`.*?, ([\d.]+) for `frontier` and ([\d.]+) for", readme
    )
    for name, hours in zip(("paper", "frontier", "path"), told.groups(), strict=True):
        runs = [json.loads(file.read_text()) for file in (ROOT / "results" / name).glob("runs/*.json")]
        assert hours == f"{sum(run['seconds'] for run in runs) / 3600:.1f}", name
