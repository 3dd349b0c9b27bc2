"""Groups of a table's rows as plain arrays: a frame for each of thousands takes far longer."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["Columns", "average", "first", "greatest", "least", "median", "part", "part_columns", "weighted"]

Column = NDArray[Any]
Columns = dict[str, Column]
"""Arrays of one length by name: numbers with NaN, text with None where something is missing."""


def part(rows: pd.DataFrame, by: Sequence[str], columns: Iterable[str]) -> Iterator[Columns]:
    """Part rows by the values of some columns, in the order in which they first appear; a missing value is in none."""
    numbers = rows.groupby(list(by), sort=False).ngroup().to_numpy()
    arrays = {name: _to_array(rows[name]) for name in dict.fromkeys([*by, *columns])}
    return part_columns(arrays, numbers)


def part_columns(columns: Columns, keys: Column) -> Iterator[Columns]:
    """Part columns by a number for each row, in the order of the numbers; rows with a negative one or NaN are left."""
    order = np.argsort(keys, kind="stable")
    order = order[keys[order] >= 0]
    if not len(order):
        return
    ends = [*(np.flatnonzero(np.diff(keys[order])) + 1), len(order)]
    sorted_columns = {name: column[order] for name, column in columns.items()}
    start = 0
    for end in ends:
        yield {name: column[start:end] for name, column in sorted_columns.items()}
        start = end


def _to_array(column: "pd.Series[Any]") -> Column:
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(np.float64, na_value=np.nan)
    return column.astype(object).where(column.notna(), None).to_numpy()


def first(column: Column) -> Any:
    """Return the first value that is not missing, or None."""
    return next((value for value in column.tolist() if value is not None and value == value), None)


def least(column: Column) -> float:
    """Return the least number, or NaN where all are missing."""
    return float(np.fmin.reduce(column))


def greatest(column: Column) -> float:
    """Return the greatest number, or NaN where all are missing."""
    return float(np.fmax.reduce(column))


def average(column: Column) -> float:
    """Average the numbers that are not missing; NaN where all are."""
    there = ~np.isnan(column)
    return float(np.where(there, column, 0.0).sum() / there.sum()) if there.any() else math.nan


def median(column: Column) -> float:
    """Return the median of the numbers that are not missing; NaN where all are."""
    there = column[~np.isnan(column)]
    return float(np.median(there)) if len(there) else math.nan


def weighted(column: Column, weights: Column) -> float | None:
    """Average a column with weights; None where one number is missing, or nothing has a weight."""
    if np.isnan(column).any() or not np.nansum(weights) > 0:
        return None
    return float(np.average(column, weights=weights))
