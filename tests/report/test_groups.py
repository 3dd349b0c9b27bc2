"""Rows parted into arrays give what pandas gives, whatever is missing."""

import numpy as np
import pandas as pd
import pytest

from lrbench.report.groups import average, first, greatest, least, median, part, part_columns, weighted

TABLE = pd.DataFrame(
    {"key": ["b", "a", None, "b"], "value": [1, None, 3, 5], "text": ["x", None, "y", "z"]}
).astype({"key": "string", "value": "Int64", "text": "string"})  # fmt: skip


def test_groups_come_in_the_order_of_their_rows_without_those_of_no_group() -> None:
    one, other = part(TABLE, ("key",), ("value", "text"))
    assert (list(one["key"]), list(one["value"]), list(one["text"])) == (["b", "b"], [1.0, 5.0], ["x", "z"])
    assert list(other["text"]) == [None]
    assert np.isnan(other["value"]).all()


def test_columns_are_parted_in_the_order_of_the_numbers() -> None:
    keys = np.array([2.0, np.nan, 0.0, 2.0])
    parts = list(part_columns({"key": keys, "row": np.arange(4)}, keys))
    assert [list(rows["row"]) for rows in parts] == [[2], [0, 3]]
    assert list(part_columns({"key": keys[1:2]}, keys[1:2])) == []


@pytest.mark.parametrize("values", [[], [np.nan], [2.0, np.nan, 0.1, 0.7], list(np.geomspace(1, 1e9, 301))])
def test_what_is_missing_is_left_out_as_pandas_does(values: list[float]) -> None:
    column, series = np.array(values, float), pd.Series(values, dtype=float)
    found = [
        average(column),
        median(column),
        least(column) if values else np.nan,
        greatest(column) if values else np.nan,
    ]
    assert np.array_equal(found, [series.mean(), series.median(), series.min(), series.max()], equal_nan=True)


def test_a_weighted_average_needs_every_number_and_some_weight() -> None:
    assert weighted(np.array([1.0, 4.0]), np.array([2.0, 1.0])) == 2.0
    assert weighted(np.array([1.0, np.nan]), np.array([2.0, 1.0])) is None
    assert weighted(np.array([1.0]), np.array([0.0])) is None


def test_the_first_is_that_which_is_not_missing() -> None:
    assert first(np.array([None, "x", "y"], object)) == "x"
    assert first(np.array([np.nan, 0.0])) == 0.0
    assert first(np.array([np.nan])) is None
