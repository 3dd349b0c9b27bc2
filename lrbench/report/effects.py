"""What each layer's compression does to accuracy over many masks: main effects and pairs, by least squares.

Masks are a two-level design, one factor a layer. With both levels coded −1 and 1, a main effect is the mean accuracy of
the masks with the layer minus that of the others; a pair's, what compressing both does beyond the sum of what each does
alone, y11 − y10 − y01 + y00, twice what is usually called an interaction. Half of all masks, those with an even number
of ones, tell main effects and pairs apart from each other.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from lrbench.report.contrasts import holm
from lrbench.report.entries import Cell
from lrbench.report.summaries import LEVEL, cell_of
from lrbench.report.tables import Study

__all__ = ["Effect", "Effects", "estimate_effects"]


@dataclass(frozen=True)
class Effect:
    """One main effect, or one pair's, in points of accuracy.

    The interval holds for all of its kind at once, which those of Holm's steps would not (Bonferroni); p is adjusted
    for all of its kind (Holm 1979).
    """

    layers: tuple[str, ...]
    points: float
    low: float
    high: float
    p: float

    @property
    def name(self) -> str:
        """The layers in words."""
        return " × ".join(self.layers)


@dataclass(frozen=True)
class Effects:
    """The effects of one compressor, eps and path over the masks of a study.

    Attributes
    ----------
    cell : Cell
        The compressor, eps and path; its mask means nothing.
    masks, seeds : int
        How many there are; seeds are blocks.
    freedom : int
        Degrees of freedom of the residual.
    noise : float
        Its standard deviation, in points: what masks and seeds do beyond main effects and pairs.
    left_out : tuple of str
        Runs that gave no accuracy to fit, by mask and seed.
    main, pairs : tuple of Effect
    """

    cell: Cell
    masks: int
    seeds: int
    freedom: int
    noise: float
    left_out: tuple[str, ...]
    main: tuple[Effect, ...]
    pairs: tuple[Effect, ...]


@lru_cache(maxsize=1)
def estimate_effects(study: Study) -> list[Effects]:
    """Estimate the effects of every variant whose masks, the plain model's among them, suffice to tell them apart."""
    runs = study.runs[study.runs["policy"].isna()]
    plain = runs[runs["plain"]]
    found = (_estimate(study, rows, plain) for _, rows in runs[~runs["plain"]].groupby("label", sort=False))
    return [effects for effects in found if effects is not None]


def _estimate(study: Study, rows: pd.DataFrame, plain: pd.DataFrame) -> Effects | None:
    names = _layer_names(study, len(str(rows["mask"].iloc[0])))
    used = pd.concat([plain[plain["seed"].isin(rows["seed"])], rows])
    fits = (used["status"] == "finished") & used["accuracy_as_trained"].notna()
    lost = used[~fits].sort_values(["mask", "seed"])
    used = used[fits]
    if used["plain"].all():
        return None
    seeds = sorted(set(used["seed"][~used["plain"]]))
    used = used[used["seed"].isin(seeds)]
    if used["mask"].str.len().nunique() > 1:
        return None
    levels = np.array([[1.0 if bit == "1" else -1.0 for bit in mask] for mask in used["mask"]])
    pairs = list(combinations(range(len(names)), 2))
    blocks = np.array([[float(seed == other) for other in seeds] for seed in used["seed"]])
    design = np.hstack([levels, *(levels[:, [a]] * levels[:, [b]] for a, b in pairs), blocks])
    freedom = len(design) - design.shape[1]
    if freedom < 1 or np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    points = 100 * used["accuracy_as_trained"].to_numpy(float)
    inverse = np.linalg.inv(design.T @ design)
    coefficients = inverse @ design.T @ points
    noise = float(np.sqrt(np.sum((points - design @ coefficients) ** 2) / freedom))
    effects, errors = 2 * coefficients, 2 * noise * np.sqrt(np.diag(inverse))  # from level −1 to level 1
    count = len(names)
    main = _with_intervals([(name,) for name in names], effects[:count], errors[:count], freedom)
    both = _with_intervals(
        [(names[a], names[b]) for a, b in pairs],
        2 * effects[count : -len(seeds)],
        2 * errors[count : -len(seeds)],
        freedom,
    )
    left_out = tuple(f"{mask} with seed {seed}" for mask, seed in zip(lost["mask"], lost["seed"], strict=True))
    return Effects(cell_of(rows.iloc[0]), used["mask"].nunique(), len(seeds), freedom, noise, left_out, main, both)


def _with_intervals(
    names: list[tuple[str, ...]], effects: "np.ndarray[tuple[int], np.dtype[np.float64]]",
    errors: "np.ndarray[tuple[int], np.dtype[np.float64]]", freedom: int,
) -> tuple[Effect, ...]:  # fmt: skip
    half = stats.t.isf((1 - LEVEL) / 2 / max(1, len(names)), freedom) * errors
    scores = np.divide(np.abs(effects), errors, out=np.full(len(names), np.inf), where=errors > 0)
    adjusted = holm((2 * stats.t.sf(np.where(effects == 0, 0, scores), freedom)).tolist())
    return tuple(
        Effect(n, float(e), float(e - h), float(e + h), float(p or 0))
        for n, e, h, p in zip(names, effects, half, adjusted, strict=True)
    )


def _layer_names(study: Study, bits: int) -> list[str]:
    known = study.layers.drop_duplicates("index").set_index("index")["layer"]
    return [str(known.get(index, f"bit {index}")) for index in range(bits)]
