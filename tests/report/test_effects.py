from itertools import product

import numpy as np
import pytest
from report_records import make_record, write_folder

from lrbench.report import write_report
from lrbench.report.effects import estimate_effects
from lrbench.report.tables import make_studies

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
    assert pair.points == pytest.approx(-100 * TOGETHER / 2, abs=0.1)
    assert pair.high < 0
    others = [effect for effect in effects.pairs if effect is not pair]
    assert all(effect.low <= 0 <= effect.high for effect in others)
    assert effects.noise == pytest.approx(0.1, rel=0.4)
    assert effects.freedom == 64 - 6 - 15 - 2


def test_the_clearest_effect_has_the_widest_interval_of_its_kind():
    (effects,) = effects_of(some())
    widths = {effect.name: effect.high - effect.low for effect in effects.main}
    clearest = max(effects.main, key=lambda effect: abs(effect.points))
    assert widths[clearest.name] == max(widths.values())


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
