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


def study_of(cells, seeds=(0, 1, 2), jitter=0.001):
    """Make a study of cells by name: difference in points, ratio of peaks, ratio of times; None where not measured."""
    records = [make_record("000000", seed=seed, accuracy=0.5) for seed in seeds]
    for name, (points, peak, time) in cells.items():
        for seed in seeds:
            changes = {}
            if peak is None:
                changes["peak"] = None
            else:
                wrapped = dict.fromkeys(("median", "min", "max"), 500000000.0 * peak)
                plain = dict.fromkeys(("median", "min", "max"), 500000000.0)
                changes["peak"] = {
                    "wrapped_bytes": wrapped, "plain_bytes": plain, "wrapped_total_bytes": None,
                    "plain_total_bytes": None, "processes": 3,
                }  # fmt: skip
            whole = make_record("111111", name)["step"]
            changes["step"] = None if time is None else whole | {"ratio": {"median": time, "q25": time, "q75": time}}
            accuracy = 0.5 + points / 100 + jitter * (seed - 1)
            records.append(make_record("111111", name, seed, accuracy, **changes))
    (study,) = make_studies(records)
    return study


def names(cells):
    return [cell.comparison.cell.name for cell in cells]


def test_a_cell_stands_among_the_best_where_no_other_and_not_the_plain_model_beats_it():
    draw = np.random.default_rng(0)
    for _ in range(20):
        cells = {f"m{k}": (*draw.integers(-3, 3, 1).tolist(), *draw.choice([0.5, 0.8, 1.5, 2.0], 2)) for k in range(7)}
        prices = price_cells(study_of(cells, seeds=(0,), jitter=0))
        for kind, index in ((PEAK, 1), (TIME, 2)):
            points = [(round(cell[0], 6), cell[index]) for cell in cells.values()] + [(0, 1.0)]

            def beats(one, other):
                return one[0] >= other[0] and one[1] <= other[1] and one != other

            best = unbeaten(prices, kind)
            expected = {point for point in points if not any(beats(other, point) for other in points)}
            found = {(round(cell.points, 6), kind.price(cell)) for cell in best}
            assert found == expected - {(0, 1.0)}
            assert plain_stands(best, kind) == ((0, 1.0) in expected)
            assert [kind.price(cell) for cell in best] == sorted(kind.price(cell) for cell in best)


@pytest.mark.parametrize(
    ("cells", "tone", "subject", "said"),
    [
        ({"svd": (-3, 0.5, 2.0), "aca": (0, 0.8, 2.0)}, "good", "aca", "2 of 2 cells have a lower peak than the plain "
         "model, and 1 of them is shown to cost no accuracy"),
        ({"svd": (-3, 0.5, 2.0), "aca": (-4, 0.8, 2.0)}, "open", "svd", "and none of them is shown to cost no"),
        ({"svd": (3, 1.2, 2.0), "aca": (-4, 1.1, 2.0)}, "bad", "aca", "none of 2 cells has a lower peak than the plain "
         "model. Beaten by none: svd, mask 111111 (1.20×, +3.0) and the plain model."),
    ],
)  # fmt: skip
def test_whether_it_pays_is_said_in_a_sentence(cells, tone, subject, said):
    peak, time = judge_prices(study_of(cells))
    assert (peak.tone, peak.subject) == (tone, subject)
    assert said in peak.text
    assert time.tone == "bad"
    assert "none of 2 cells has a shorter step than the plain model." in time.text


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
