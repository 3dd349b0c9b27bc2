import pytest
from matplotlib.axes import Axes
from report_records import make_policy_record, make_record

from lrbench.report.facets import NothingToDraw
from lrbench.report.gradient_figure import draw_chain
from lrbench.report.tables import make_studies


def chain(*records):
    (study,) = make_studies([make_record("000000"), *records])
    return draw_chain(study)[0].axes


def points(ax: Axes) -> list[tuple[float, float]]:
    return [(float(x[0]), float(y[0])) for x, y in (line.get_data() for line in ax.lines) if len(x) == 1]


def test_a_cell_stands_at_the_largest_error_of_its_gradients_and_the_accuracy_that_it_costs():
    weak = make_record("101010", "aca-estimate", accuracy=0.44)
    weak["gradients"] = [row | {"error": 0.2 + 0.1 * k} for k, row in enumerate(weak["gradients"])]
    left, right = chain(weak)
    assert points(right) == [(pytest.approx(0.4), pytest.approx(-6.0))]
    (cloud,) = [line for line in left.lines if line.get_linestyle() == "None"]
    assert list(cloud.get_ydata()) == pytest.approx([0.2, 0.3, 0.4])


def named(*records):
    _, right = chain(*records)
    return [label.get_text() for label in right.texts]


def test_a_cell_is_named_by_its_mask_or_where_all_have_one_by_what_compresses():
    one = [make_record("101010", "svd"), make_record("101010", "aca-estimate")]
    assert named(*one) == ["svd", "aca-estimate"]
    tuned = make_policy_record("tuned", {"features.4": {"compressor": "svd", "eps": 0.3, "path": "backward"}})
    assert sorted(named(*one, tuned)) == ["aca-estimate", "svd", "tuned"]
    assert sorted(named(*one, make_record("100000", "svd"))) == ["100000", "101010", "101010"]


def test_what_approximates_nothing_is_left_out():
    _, right = chain(make_record("100000", "svd"), make_record("100000", "none", eps=None))
    assert len(points(right)) == 1
    with pytest.raises(NothingToDraw, match="nothing was approximated"):
        chain(make_record("100000", "none", eps=None))
    with pytest.raises(NothingToDraw, match="errors of gradients"):
        chain(make_record("100000", "svd", gradients=None))
