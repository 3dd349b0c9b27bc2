"""Marks of figures mean what their legends say."""

from itertools import pairwise

import pytest
from matplotlib.collections import LineCollection
from report_records import make_record

from lrbench.report.block_figures import draw_cuts, draw_ranks
from lrbench.report.cost_figures import draw_differences
from lrbench.report.style import looks, panels, plain_ticks
from lrbench.report.tables import make_studies


def study(*records):
    (found,) = make_studies(records)
    return found


def some():
    return [
        make_record(mask, name, seed, 0.5 - 0.02 * seed - 0.1 * (name == "aca-estimate"))
        for mask, name in (("000000", "svd"), ("101010", "svd"), ("101010", "aca-estimate"))
        for seed in (0, 1)
    ]


def test_two_intervals_have_the_two_colours_of_their_compressors():
    fig, _ = draw_differences(study(*some()))
    (bars,) = [made for ax in fig.axes for made in ax.collections if isinstance(made, LineCollection)]
    assert len({tuple(colour[:3]) for colour in bars.get_colors()}) == 2


def test_no_two_names_of_a_figure_look_alike():
    names = ["none", "svd", "rsvd", "aca", "aca-estimate", *(f"name{k:02}" for k in range(35))]
    found = looks(names)
    assert len({(look.colour, look.marker) for look in found.values()}) == len(names)
    assert len({(look.colour, str(look.line)) for look in found.values()}) == len(names)
    assert all(found[name] == looks([])[name] for name in names[:5])


def test_layers_that_are_mostly_stored_are_outlined():
    records = some()
    for record in records:
        for layer in record["layers"]:
            layer["share_stored"] = 0.9 if record["config"]["compressor"] == "svd" else 0.0
    fig, _ = draw_cuts(study(*records))
    said = [text.get_text() for legend in fig.legends for text in legend.get_texts()]
    assert "more than half of the blocks stored as they are" in said
    colour = looks(["svd", "aca-estimate"])["svd"].colour
    outlined = [line for line in fig.axes[0].lines if line.get_color() == colour and len(line.get_xdata())]
    assert outlined
    assert all(line.get_markerfacecolor() != colour for line in outlined)


def test_the_names_of_many_layers_do_not_cover_each_other():
    record = make_record("101010")
    first = record["layers"][0]
    record["layers"] = [first | {"layer": f"layer{k}.0.conv1", "index": k} for k in range(19)]
    for layer in record["layers"]:
        layer.pop("saved_bytes", None)  # "not measured" is written over each
    fig, _ = draw_cuts(study(record))
    fig.canvas.draw()
    for ax in fig.axes:
        words = [label for label in ax.get_xticklabels() if label.get_text()]
        assert len(words) == 19
        for said in (words, [text for text in ax.texts if text.get_text() != "no saving below zero"]):
            boxes = [text.get_window_extent() for text in said]
            assert not any(a.overlaps(b) for a, b in pairwise(boxes))


@pytest.mark.parametrize("limits", [(0.095, 0.146), (0.02, 0.9), (1e-4, 1)])
def test_a_logarithmic_axis_has_labels_enough_to_be_read(limits):
    _, (ax,) = panels([""], 1, 2)
    ax.set(xscale="log", xlim=limits)
    plain_ticks(ax.xaxis, log=True)
    ax.figure.canvas.draw()
    low, high = limits
    assert len([tick for tick in ax.get_xticks() if low <= tick <= high]) >= 3


def test_mean_ranks_are_of_all_blocks_not_of_those_that_are_kept():
    records = some()
    for record in records:
        for layer in record["layers"]:
            layer["rank_mean"] = 7.0
    fig, _ = draw_ranks(study(*records))
    means = {text.get_text() for ax in fig.axes for text in ax.texts if "mean" in text.get_text()}
    assert means == {"mean 7.0"}


def test_what_has_no_blocks_is_remarked_in_the_order_of_its_names():
    # An order that hangs on the process would give the same runs other bytes.
    names = ["aca", "aca-estimate", "rsvd", "qr-svd", "cpqr", "id"]
    alone = [make_record("100000", name) for name in names]
    fig, _ = draw_ranks(study(make_record("000000"), make_record("101010", "svd"), *alone))
    for ax in fig.axes[1:3]:
        places = [text.get_position()[1] for text in ax.texts if text.get_text() == "no blocks here"]
        assert len(places) == len(names)
        assert places == sorted(places)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    from matplotlib import pyplot

    pyplot.close("all")
