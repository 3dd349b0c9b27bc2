"""Drawn blocks: shapes, spectra, scales and pathologies that nobody thought of."""

import math

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lrbench.contract.adversarial import with_singular_values
from lrbench.contract.comparing import Make, assert_neighbours_are_unchanged, assert_promise_is_kept

SPECTRA = {
    "equal": lambda k: np.ones(k),
    "halving": lambda k: 0.5 ** np.arange(k),
    "falling": lambda k: 1 / (1.0 + np.arange(k)) ** 2,
    "cliff": lambda k: np.where(np.arange(k) < (k + 1) // 2, 1.0, 1e-9),
    "one": lambda k: np.where(np.arange(k) < 1, 1.0, 0.0),
    "none": lambda k: np.zeros(k),
}
PATHOLOGIES = ("none", "zero rows", "equal columns", "spike", "whole numbers", "graded rows")
SCALES = {torch.float32: (-44, -30, -10, 0, 10, 30), torch.float64: (-320, -200, -30, 0, 30, 200)}
"""Powers of ten, the first of them below the smallest normal number."""


@st.composite
def blocks_of_all_kinds(draw: st.DrawFn) -> Tensor:
    """Up to four blocks of one shape and dtype, each of a spectrum, a pathology and a scale of its own."""
    m, n = draw(st.integers(1, 12)), draw(st.integers(1, 16))
    dtype = draw(st.sampled_from(list(SCALES)))
    blocks = []
    for seed in range(draw(st.integers(1, 4))):
        spectrum = SPECTRA[draw(st.sampled_from(list(SPECTRA)))](min(m, n))
        block = _spoilt(with_singular_values(spectrum.tolist(), m, n, seed), draw(st.sampled_from(PATHOLOGIES)))
        blocks.append(block * 10.0 ** draw(st.sampled_from(SCALES[dtype])))
    return torch.cat(blocks).to(dtype)


def _spoilt(block: Tensor, pathology: str) -> Tensor:
    m, n = block.shape[1:]
    if pathology == "zero rows":
        block[:, ::2] = 0
    elif pathology == "equal columns":
        block = block[:, :, :1].expand(1, m, n).clone()
    elif pathology == "spike":
        block[0, m // 2, n // 3] = 1e4
    elif pathology == "whole numbers":
        block = (8 * block).round()
    elif pathology == "graded rows":
        block = block * torch.logspace(0, -20, m, dtype=torch.float64)[:, None]
    return block


drawn = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
"""The fixture ``make`` remembers nothing from one example to the next."""


class DrawnChecks:
    """The promise, and the neighbours of what is not finite, on blocks that hypothesis draws."""

    @drawn
    @given(blocks=blocks_of_all_kinds(), eps=st.sampled_from([0.5, 0.1, 0.01, 1e-4, 1e-6]))
    def test_the_promise_is_kept_on_drawn_blocks(self, make: Make, blocks: Tensor, eps: float) -> None:
        compressor = make(eps=eps)
        compressed = compressor.compress(blocks)
        assert compressed.shape == blocks.shape
        assert compressed.dense().isfinite().all()
        assert_promise_is_kept(compressor, blocks, compressed)

    @drawn
    @given(blocks=blocks_of_all_kinds(), value=st.sampled_from([math.nan, math.inf, -math.inf]), data=st.data())
    def test_what_is_not_finite_leaves_drawn_neighbours_alone(
        self, make: Make, blocks: Tensor, value: float, data: st.DataObject
    ) -> None:
        compressor = make(eps=0.1)
        if not compressor.pooled and compressor.guarantee != "batch":
            place = data.draw(st.integers(0, len(blocks) - 1))
            assert_neighbours_are_unchanged(compressor, blocks, place, value)
