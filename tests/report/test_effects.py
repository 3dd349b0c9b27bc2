from itertools import product

import numpy as np
import pytest
from report_records import make_record, write_folder

from lrbench.report import write_report
from lrbench.report.effects import _with_intervals, estimate_effects
from lrbench.report.learning_listings import list_effects
from lrbench.report.tables import make_studies
from lrbench.report.wording import probability

MASKS = ["".join(bits) for bits in product("01", repeat=6) if bits.count("1") % 2 == 0]
COSTS = np.array([0.0, 0.002, 0.03, 0.0, 0.01, 0.0])
TOGETHER = 0.02
"""What the first and the third layer cost together beyond the sum."""


def accuracy(mask, seed, noise):
    bits = np.array([int(bit) for bit in mask])
    cost = COSTS @ bits + TOGETHER * bits[0] * bits[2]
    return 0.5 - cost + 0.03 * seed + noise.normal(0, 0.001)


def some(masks=MASKS, seeds=(0, 1)):
    noise = np.random.default_rng(1)
    return [make_record(mask, "aca-estimate", seed, accuracy(mask, seed, noise)) for mask in masks for seed in seeds]


def effects_of(records):
    (study,) = make_studies(records)
    return estimate_effects(study)


def test_main_effects_and_pairs_are_found_and_seeds_do_not_blur_them():
    (effects,) = effects_of(some())
    main = {effect.layers[0]: effect for effect in effects.main}
    expected = -100 * COSTS
    expected[[0, 2]] -= 100 * TOGETHER / 2  # the pair is there in half of the masks with either
    for effect, cost in zip(effects.main, expected, strict=True):
        assert effect.low <= cost <= effect.high
        assert effect.points == pytest.approx(cost, abs=0.1)
    assert main["features.4"].high < 0
    (pair,) = [effect for effect in effects.pairs if effect.layers == ("features.0", "features.4")]
    assert pair.points == pytest.approx(-100 * TOGETHER, abs=0.2)
    assert pair.high < 0
    others = [effect for effect in effects.pairs if effect is not pair]
    assert all(effect.low <= 0 <= effect.high for effect in others)
    assert effects.noise == pytest.approx(0.1, rel=0.4)
    assert effects.freedom == 64 - 6 - 15 - 2


def test_intervals_of_a_kind_hold_together():
    masks = np.array([[1.0 if bit == "1" else -1.0 for bit in mask] for mask in MASKS])
    draw, together = np.random.default_rng(0), 0
    true = 100 * np.array([0.5, -0.3, 0.2, 0.1, -0.2, 0.4])
    for _ in range(300):
        points = masks @ true / 2 + draw.normal(0, 1, len(MASKS))
        estimates = 2 * masks.T @ points / len(MASKS)
        residual = points - masks @ estimates / 2
        freedom = len(MASKS) - 6
        error = 2 * np.sqrt(residual @ residual / freedom / len(MASKS))
        found = _with_intervals([(str(k),) for k in range(6)], estimates, np.full(6, error), freedom)
        together += all(effect.low <= value <= effect.high for effect, value in zip(found, true, strict=True))
    assert 0.86 <= together / 300 <= 0.95


def test_p_is_adjusted_for_all_effects_of_a_kind():
    (effects,) = effects_of(some())
    by_size = sorted(effects.main, key=lambda effect: -abs(effect.points))
    assert [effect.p for effect in by_size] == sorted(effect.p for effect in by_size)
    assert by_size[0].p < 1e-6
    assert by_size[-1].p > 0.1


def test_no_p_reads_as_zero():
    (study,) = make_studies(some())
    listing = list_effects(study)
    shown = [row[listing.columns.index("p (Holm)")] for row in listing.rows]
    assert shown.count("< 0.001") > 1
    assert "0.000" not in shown
    assert [probability(p) for p in (None, 0.0, 0.00099, 0.001, 0.0149, 1.0)] == [
        *("–", "< 0.001", "< 0.001", "0.001", "0.015", "1.000"),
    ]


def test_runs_without_an_accuracy_are_named_beside_the_effects():
    records = some()
    lost = [made for made in records if made["config"]["mask"] == "111111" and made["config"]["seed"] == 1]
    lost[0].update(final=None, outcome="diverged")
    (study,) = make_studies(records)
    (effects,) = estimate_effects(study)
    assert effects.left_out == ("111111 with seed 1",)
    assert effects.freedom == 63 - 6 - 15 - 2
    assert "Left out, for they gave no accuracy: 111111 with seed 1" in list_effects(study).note
    assert effects_of(some())[0].left_out == ()


def test_masks_that_cannot_tell_effects_apart_give_none():
    assert effects_of(some(["000000", "100000", "101010"])) == []
    assert effects_of(some([mask for mask in MASKS if mask[0] == mask[1]])) == []


def test_a_report_on_a_design_of_masks_shows_its_effects_and_others_do_not(tmp_path):
    page = write_report(write_folder(tmp_path / "masks", some())).read_text()
    assert "Effects of compressing each layer" in page
    assert (tmp_path / "masks" / "figures" / "effects.svg").exists()
    few = write_report(write_folder(tmp_path / "few", some(["000000", "100000"]))).read_text()
    assert "Effects of compressing" not in few


def test_a_model_of_one_convolution_has_no_pairs_and_is_no_obstacle():
    records = [make_record(mask, seed=seed, accuracy=0.5 + 0.01 * seed) for mask in "01" for seed in (0, 1)]
    (study,) = make_studies(records)
    (effects,) = estimate_effects(study)
    assert (len(effects.main), effects.pairs) == (1, ())


def test_masks_of_several_lengths_are_no_design():
    records = [make_record(mask) for mask in ("00", "000", "100")]
    (study,) = make_studies(records)
    assert estimate_effects(study) == []
