import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from report_records import make_record

from lrbench.report.facets import NothingToDraw
from lrbench.report.labels import name_points
from lrbench.report.price_figure import draw_prices
from lrbench.report.prices import KINDS, judge_prices, list_prices, plain_stands, price_cells, unbeaten
from lrbench.report.style import RC
from lrbench.report.tables import make_studies

PEAK, TIME = KINDS


def study_of(cells, seeds=(0, 1, 2), jitter=0.001, spread=0.0, plain=0.5):
    """Make a study of cells by name: difference in points, ratio of peaks, ratio of times; None where not measured.

    ``spread`` is how far, relatively, extremes and quartiles lie from the medians.
    """
    records = [make_record("000000", seed=seed, accuracy=plain) for seed in seeds]
    for name, (points, peak, time) in cells.items():
        for seed in seeds:
            changes = {"peak": None, "step": None}
            if peak is not None:
                changes["peak"] = make_record("111111", name)["peak"] | {
                    "wrapped_bytes": around(5e8 * peak, spread, "min", "max"),
                    "plain_bytes": around(5e8, spread, "min", "max"),
                }
            if time is not None:
                ratio = around(time, spread, "q25", "q75")
                changes["step"] = make_record("111111", name)["step"] | {"ratio": ratio}
            accuracy = plain + points / 100 + jitter * (seed - 1)
            records.append(make_record("111111", name, seed, accuracy, **changes))
    (study,) = make_studies(records)
    return study


def around(middle, spread, low, high):
    return {"median": middle, low: middle * (1 - spread), high: middle * (1 + spread)}


def names(cells):
    return [cell.comparison.cell.name for cell in cells]


def test_a_cell_stands_among_the_best_where_no_other_and_not_the_plain_model_beats_it():
    draw = np.random.default_rng(0)
    for _ in range(20):
        ratios = [0.5, 0.8, 1.0, 1.5]
        cells = {f"m{k}": (*draw.integers(-2, 3, 1).tolist(), *draw.choice(ratios, 2)) for k in range(7)}
        prices = price_cells(study_of(cells, seeds=(0,), jitter=0))
        for kind, index in ((PEAK, 1), (TIME, 2)):
            spots = {name: (cell[0], cell[index]) for name, cell in cells.items()} | {"plain": (0, 1.0)}

            def beats(one, other):
                return one[0] >= other[0] and one[1] <= other[1] and one != other

            best = unbeaten(prices, kind)
            expected = {name for name, spot in spots.items() if not any(beats(o, spot) for o in spots.values())}
            assert {*names(best), *(["plain"] if plain_stands(best, kind) else [])} == expected
            assert [kind.price(cell) for cell in best] == sorted(kind.price(cell) for cell in best)


@pytest.mark.parametrize(
    ("cells", "tone", "subject", "said"),
    [
        ({"svd": (-3, 0.5, 2.0), "aca": (0, 0.8, 2.0)}, "good", "aca", "cells with a lower peak than the plain model: "
         "2 of 2; of these shown to cost nothing (a 90 % interval within ±1 point, or above zero): 1. Beaten by none: "
         "svd, mask 111111 (0.50×, −3.0) and aca, mask 111111 (0.80×, 0.0)."),
        ({"svd": (-3, 0.5, 2.0), "aca": (-0.5, 0.8, 2.0)}, "open", "aca", "or above zero): none."),
        ({"svd": (-3, 0.5, 2.0), "aca": (-4, 0.8, 2.0)}, "open", "svd", "or above zero): none."),
        ({"svd": (3, 1.2, 2.0), "aca": (-4, 1.1, 2.0)}, "bad", "aca", "no cell has a lower peak than the plain model. "
         "Beaten by none: svd, mask 111111 (1.20×, +3.0) and the plain model."),
    ],
)  # fmt: skip
def test_whether_it_pays_is_said_in_a_sentence(cells, tone, subject, said):
    peak, time = judge_prices(study_of(cells))
    assert (peak.tone, peak.subject) == (tone, subject)
    assert said in peak.text
    assert time.tone == "bad"
    assert "no cell has a shorter step than the plain model." in time.text


def test_a_price_that_extremes_or_quartiles_do_not_tell_from_the_plain_models_is_not_called_lower():
    for verdict in judge_prices(study_of({"svd": (0, 0.97, 0.97)}, spread=0.05)):
        assert verdict.tone == "open"
        assert "cannot be told" in verdict.text


def test_what_did_not_learn_beats_nothing_and_is_named():
    diverged = make_record("111111", "aca", 1, None, outcome="diverged", final=None)
    records = [*study_of({"svd": (-1, 0.5, 0.5), "aca": (1, 0.4, 0.4)}).records]
    records = [r for r in records if (r["config"]["compressor"], r["config"]["seed"]) != ("aca", 1)]
    (study,) = make_studies([*records, diverged])
    peak, _ = judge_prices(study)
    assert "Left out, for it did not learn, or the plain model did not: aca, mask 111111." in peak.text
    for kind in KINDS:
        assert names(unbeaten(price_cells(study), kind)) == ["svd"]
    assert [row[-1] for row in list_prices(study).rows] == ["did not learn", "peak and time"]


def test_cells_are_compared_over_the_seeds_that_all_have():
    records = study_of({"svd": (-1, 0.5, 0.5), "aca": (1, 0.4, 0.4)}, jitter=0.1).records

    def without(*runs):
        left = [r for r in records if (r["config"]["compressor"], r["config"]["seed"]) not in runs]
        (study,) = make_studies(left)
        return study

    study = without(("aca", 2))
    by_name = {cell.comparison.cell.name: cell for cell in price_cells(study)}
    assert by_name["svd"].comparison.differences == pytest.approx({0: -11.0, 1: -1.0})
    assert by_name["svd"].points == pytest.approx(-6.0)
    assert "over 2 seeds, 0 and 1:" in list_prices(study).note
    assert price_cells(without(("aca", 0), ("aca", 1), ("svd", 2))) == []


def test_one_seed_cannot_show_that_a_cell_costs_nothing():
    peak, _ = judge_prices(study_of({"svd": (0, 0.5, 2.0)}, seeds=(0,)))
    assert peak.tone == "open"


def test_a_price_that_was_not_measured_is_neither_judged_nor_drawn():
    study = study_of({"svd": (0, 0.5, None), "aca": (-1, None, None), "rsvd": (-1, 0.4, None)})
    assert names(price_cells(study)) == ["svd", "rsvd"]
    assert len(judge_prices(study)) == 1
    fig, _ = draw_prices(study)
    assert [ax.get_title() for ax in fig.axes] == ["accuracy and peak memory of a step"]
    rows = list_prices(study).rows
    assert [(row[1], *row[6:]) for row in rows] == [("rsvd", "0.40", "–", "peak"), ("svd", "0.50", "–", "peak")]
    with pytest.raises(NothingToDraw):
        draw_prices(study_of({"svd": (0, None, None), "aca": (0, None, None)}))


def test_names_cover_neither_each_other_nor_points_and_stay_inside():
    with mpl.rc_context(RC):
        fig = Figure(layout="constrained")
        ax = fig.subplots()
        points = [(0.0, 0.0), (0.02, 0.0), (0.0, 0.03), (1.0, 1.0), (0.98, 1.0), (1.0, 0.0), (0.5, 0.5), (0.5, 0.52)]
        ax.plot(*zip(*points, strict=True), "o")
        name_points(ax, [(x, y, f"the {k}th name") for k, (x, y) in enumerate(points)])
        fig.draw_without_rendering()
        boxes = [Text.get_window_extent(note) for note in ax.texts]
        frame = ax.get_window_extent()
        for k, box in enumerate(boxes):
            assert frame.x0 <= box.x0
            assert box.x1 <= frame.x1
            assert frame.y0 <= box.y0
            assert box.y1 <= frame.y1
            assert not any(box.overlaps(other) for other in boxes[k + 1 :])
            assert not any(box.contains(*ax.transData.transform(point)) for point in points)
