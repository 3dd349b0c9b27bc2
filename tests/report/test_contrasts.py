import numpy as np
import pytest
from report_records import make_failure, make_record, write_folder
from scipy import stats

from lrbench.presets import load_preset
from lrbench.report import write_report
from lrbench.report.contrast_figure import draw_contrasts
from lrbench.report.contrasts import compare_cells, holm, judge_contrast, two_way_interval
from lrbench.report.learning_listings import list_compared, list_contrasts
from lrbench.report.tables import make_studies
from lrbench.report.verdicts import judge
from lrbench.store import run_id

LABELS = "0123456789" * 50
SETTING = {"train_size": 50_000, "test_size": 10_000, "widths": [16, 32, 64], "epochs": 8}
"""The presets' of the paper."""


def answers(accuracy, seed):
    """Predictions of which so many are right."""
    wrong = np.random.default_rng(seed).permutation(500)[round(accuracy * 500) :]
    given = list(LABELS)
    for image in wrong:
        given[image] = str((int(given[image]) + 1) % 10)
    return "".join(given)


def record(mask, compressor, seed, accuracy, preset="paper"):
    predictions = answers(accuracy, seed)
    final = {"loss": 1.4, "accuracy": accuracy, "predictions": predictions}
    made = make_record(mask, compressor, seed, accuracy, config=SETTING)
    environment = {**made["environment"], "preset": preset}
    return made | {"final": {"as_trained": final, "exact": final, "labels": LABELS}, "environment": environment}


def some(seeds=(0, 1, 2)):
    cells = {("000000", None): 0.5, ("101010", "svd"): 0.5, ("101010", "aca-estimate"): 0.4}
    steps = {0: 0.0, 1: 0.02, 2: 0.01}
    return [
        record(mask, name, seed, accuracy + steps[seed] * (1 + (name == "aca-estimate")))
        for (mask, name), accuracy in cells.items()
        for seed in seeds
    ]


def contrasts(records):
    (study,) = make_studies(records)
    return {contrast.name: contrast for contrast in compare_cells(study)}


def test_the_comparisons_are_those_of_the_preset_made_or_not():
    found = contrasts(some())
    assert list(found) == [comparison.name for comparison in load_preset("paper").comparisons]
    made = [contrast for contrast in found.values() if contrast.mean is not None]
    assert [(contrast.cell, contrast.against) for contrast in made] == [
        ("101010 aca-estimate", "000000 plain"),
        ("101010 svd", "000000 plain"),
    ]
    assert {judge_contrast(contrast) for contrast in found.values() if contrast.mean is None} == {"not run"}


def test_a_comparison_is_paired_by_seed_with_students_interval():
    contrast = contrasts(some())["the paper's every other layer"]
    differences = [-10.0, -8.0, -9.0]
    assert contrast.differences == pytest.approx(dict(enumerate(differences)))
    expected = stats.t.interval(0.9, 2, np.mean(differences), stats.sem(differences))
    assert (contrast.low, contrast.high) == pytest.approx(expected)
    assert judge_contrast(contrast) == "worse"
    # Of seven, although only two could be made.
    assert contrast.p == pytest.approx(7 * stats.ttest_1samp(differences, 0).pvalue)
    assert contrast.missing == (3, 4)


def test_what_is_clear_by_itself_only_is_not_called_worse():
    steps = {("000000", None): (0.5, 0.5, 0.5), ("101010", "aca-estimate"): (0.48, 0.43, 0.455)}
    records = [record(*cell, seed, accuracy) for cell, by in steps.items() for seed, accuracy in enumerate(by)]
    contrast = contrasts(records)["the paper's every other layer"]
    assert contrast.high < 0
    assert 0.1 < contrast.p < 0.7
    assert judge_contrast(contrast) == "worse by itself, not as one of 7 comparisons"


def test_seeds_that_did_not_learn_are_not_dropped_in_silence():
    records = some()
    for made in records:
        if made["config"]["mask"] == "101010" and made["config"]["compressor"] == "svd" and made["config"]["seed"] < 2:
            made.update(final=None, outcome="diverged")
    found = contrasts(records)
    assert judge_contrast(found["every other layer, its tolerance kept"]) == "101010 svd did not learn on seeds 0, 1"
    assert judge_contrast(found["the paper's every other layer"]) == "worse"
    (study,) = make_studies(records)
    told = {verdict.subject: verdict for verdict in judge(study) if verdict.topic == "Comparisons"}
    assert told["every other layer, its tolerance kept"].tone == "bad"


def test_seeds_are_named_in_the_order_of_numbers():
    records = [
        record(mask, name, seed, 0.5) for mask, name in (("000000", None), ("101010", "svd")) for seed in (2, 10)
    ]
    lost = [made | {"final": None, "outcome": "diverged"} for made in records[2:]]
    contrast = contrasts([*records[:2], *lost])["every other layer, its tolerance kept"]
    assert judge_contrast(contrast) == "101010 svd did not learn on seeds 2, 10"


def test_seeds_that_failed_are_named_and_not_called_to_come():
    records = some()
    for k, made in enumerate(records):
        if made["config"]["compressor"] == "svd" and made["config"]["seed"] == 1:
            failure = make_failure(mask="101010", compressor="svd", seed=1, config=SETTING)
            records[k] = failure | {"environment": made["environment"], "outcome": None, "final": None}
    contrast = contrasts(records)["every other layer, its tolerance kept"]
    assert judge_contrast(contrast) == "101010 svd failed on seed 1"
    assert sorted(contrast.differences) == [0, 2]
    assert contrast.missing == (3, 4)


def test_runs_of_another_eps_or_path_than_the_presets_are_no_part_of_its_comparisons():
    other = [
        {**record("101010", "svd", seed, 0.1), "config": config}
        for seed in (0, 1, 2)
        for change in ({"eps": 0.3}, {"path": "backward"})
        for config in [make_record("101010", "svd", seed, config=SETTING | change)["config"]]
    ]
    other = [made | {"id": run_id(made["config"])} for made in other]
    alone, together = (contrasts(runs)["every other layer, its tolerance kept"] for runs in (some(), some() + other))
    assert together == alone
    assert judge_contrast(contrasts([*some()[:3], *other])["every other layer, its tolerance kept"]) == "not run"


def test_the_table_says_when_comparisons_were_written_and_what_is_still_to_come():
    (study,) = make_studies(some())
    note = list_contrasts(study).note
    assert "Those of preset paper were written down before the runs." in note
    assert "Planned, and not there yet: seeds 3 and 4 of “the paper's every other layer”" in note
    (study,) = make_studies(
        [made | {"environment": made["environment"] | {"preset": "paper-ranks"}} for made in some()]
    )
    assert "after seeds 0 and 1 of the preset paper, so what they find is exploratory" in list_contrasts(study).note


def test_runs_of_other_settings_than_the_presets_are_not_said_to_be_what_was_written_down():
    records = []
    for made in some():
        config = made["config"] | {"widths": [4, 4, 4], "train_size": 40}
        records.append(made | {"config": config, "id": run_id(config)})
    found = contrasts(records)
    assert list(found) == ["the paper's every other layer", "every other layer, its tolerance kept"]
    contrast = found["the paper's every other layer"]
    assert contrast.missing == ()
    assert contrast.p == pytest.approx(2 * stats.ttest_1samp([-10.0, -8.0, -9.0], 0).pvalue)
    (study,) = make_studies(records)
    note = list_contrasts(study).note
    assert note.startswith("Those of preset paper, run with other settings than the preset's: train size and widths. ")
    assert "written down" not in note
    assert "Planned" not in note


def test_the_compared_cells_are_listed_with_their_ranks_and_errors():
    (study,) = make_studies(some())
    rows = list_compared(study).rows
    assert [row[:2] for row in rows] == [("101010", "svd"), ("101010", "aca-estimate")]
    assert all(row[5].startswith("features.0") for row in rows)
    (study,) = make_studies([make_record("000000"), make_record()])
    assert list_compared(study).rows == ()


def versioned(version, seed=0):
    made = record("101010", "svd", seed, 0.5)
    config = made["config"] | {"compressor_version": version}
    return made | {"config": config, "id": run_id(config)}


def test_cells_with_runs_of_two_versions_are_said_not_to_be_compared():
    plain = [made for made in some() if made["config"]["mask"] == "000000"]
    found = contrasts([*plain, *(versioned(version, seed) for version in (3, 4) for seed in (0, 1))])
    (mixed,) = (contrast for contrast in found.values() if contrast.cell == "101010 svd")
    assert mixed.mean is None
    assert judge_contrast(mixed) == "not compared: 101010 svd has runs of svd v3 and of svd v4"


def test_a_comparison_that_is_not_made_says_what_is_missing():
    plain = [made for made in some((0,)) if made["config"]["mask"] == "000000"]

    def said(*runs):
        (missing,) = (c for c in contrasts([*plain, *runs]).values() if c.cell == "101010 svd")
        return judge_contrast(missing)

    assert said() == "not run"
    assert said(versioned(4, seed=7)) == "not compared: no seed has both runs"
    assert said(versioned(4) | {"final": None, "outcome": "diverged"}) == "101010 svd did not learn on seed 0"


def test_one_seed_gives_no_interval_and_no_verdict():
    contrast = contrasts(some((1,)))["the paper's every other layer"]
    assert (contrast.mean, contrast.low, contrast.images, contrast.p) == (pytest.approx(-8.0), None, None, None)
    assert judge_contrast(contrast) == "one seed gives no interval"


@pytest.mark.parametrize("lost", [0.1, 0.0])
def test_equal_differences_are_not_taken_for_certainty(lost):
    plain = {0: 0.5, 1: 0.52}  # the differences are equal but for rounding
    records = [record("000000", None, seed, accuracy) for seed, accuracy in plain.items()]
    records += [record("101010", "aca-estimate", seed, accuracy - lost) for seed, accuracy in plain.items()]
    contrast = contrasts(records)["the paper's every other layer"]
    assert contrast.mean == pytest.approx(-100 * lost)
    assert contrast.p is None
    assert judge_contrast(contrast) == "2 seeds with equal differences cannot warrant an interval of no width"


def test_the_interval_over_images_needs_the_labels_and_both_runs_predictions():
    records = some()
    contrast = contrasts(records)["the paper's every other layer"]
    low, high = contrast.images
    assert low < contrast.mean < high
    del records[0]["final"]["labels"]
    assert contrasts(records)["the paper's every other layer"].images is None


def test_the_two_way_interval_has_the_spread_of_seeds_and_of_images_together():
    draw = np.random.default_rng(0)
    seeds, images = 40, 3000
    by_seed, by_image = draw.normal(0, 0.05, (seeds, 1)), draw.normal(0, 0.6, (1, images))
    low, high = two_way_interval(by_seed + by_image)
    expected = 2 * 100 * np.hypot(1.685 * 0.05 / seeds**0.5, 1.645 * 0.6 / images**0.5)
    assert high - low == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_two_way_interval_holds_what_it_says_with_few_seeds(seeds):
    draw = np.random.default_rng(seeds)
    inside = 0
    for k in range(200):
        right = draw.normal(0, 0.03, (seeds, 1)) + draw.normal(0, 0.4, (1, 300))
        low, high = two_way_interval(right, resamples=400, seed=k)
        inside += low <= 0 <= high
    assert 0.84 <= inside / 200 <= 0.97


def test_holm_multiplies_the_smallest_most_and_keeps_the_order():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.04, None, 0.01, 0.03]) == pytest.approx([0.09, None, 0.04, 0.09], nan_ok=True)
    assert holm([0.6, 0.9]) == [1.0, 1.0]


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_the_figures_legend_names_intervals_only_where_some_are_drawn(seeds):
    (study,) = make_studies(some(seeds))
    fig, caption = draw_contrasts(study)
    said = [text.get_text() for legend in fig.legends for text in legend.get_texts()]
    several = len(seeds) > 1
    assert ("mean, paired t 90 % over seeds" in said) == several
    assert ("One seed has no interval" in caption) != several
    images = any(contrast.images is not None for contrast in compare_cells(study))
    assert ("90 % over seeds and images" in said) == images


def test_runs_of_no_preset_have_no_such_section(tmp_path):
    page = write_report(write_folder(tmp_path, [make_record("000000"), make_record()])).read_text()
    assert "was run for" not in page
    page = write_report(write_folder(tmp_path / "paper", some())).read_text()
    assert "the comparisons that the experiment was run for" in page.lower()
    assert (tmp_path / "paper" / "figures" / "contrasts.png").exists()
