"""The tolerance that is promised."""

import itertools

import pytest
import torch

from lrbench.contract.adversarial import (
    FAMILIES,
    decaying_blocks,
    family,
)
from lrbench.contract.comparing import (
    SLACK,
    TOLERANCES,
    Make,
    assert_promise_is_kept,
    certified,
    each_dtype,
    low_rank,
    ranks_of,
)
from lrbench.contract.oracles import eckart_young_rank
from lrbench.factors import Factors, Origin


class ToleranceChecks:
    """No error above what is promised, and no bytes beyond those of the block."""

    @each_dtype
    @pytest.mark.parametrize("eps", TOLERANCES)
    def test_the_promised_tolerance_is_kept(self, make: Make, eps: float, dtype: torch.dtype) -> None:
        for name in FAMILIES:
            blocks = family(name, dtype, eps)
            compressor = make(eps=eps)
            factors = compressor.compress(blocks)
            assert factors.shape == blocks.shape, name
            assert factors.dense().isfinite().all(), name
            assert_promise_is_kept(compressor, blocks, factors, name)

    @each_dtype
    def test_no_rank_is_below_eckart_and_youngs(self, make: Make, dtype: torch.dtype) -> None:
        certified(make)
        low_rank(make)
        names = ["rank_one", "noisy_low_rank", "photographs", "wide", "tall", "hilbert_matrix", "clustered_at_eps"]
        for name, eps in itertools.product(names, TOLERANCES):
            blocks = family(name, dtype, eps)
            factors = make(eps=eps).compress(blocks)
            for D, rank in zip(blocks.double().numpy(), ranks_of(factors) or [], strict=True):
                assert rank >= eckart_young_rank(D, eps * (1 + SLACK)), (name, eps)

    @each_dtype
    def test_a_tolerance_beyond_the_dtype_is_never_broken(self, make: Make, dtype: torch.dtype) -> None:
        certified(make)
        for eps in (1e-7, 1e-8, 1e-12, 1e-16, 1e-300):
            for blocks in (decaying_blocks(dtype), family("rank_one", dtype, eps), family("random_matrix", dtype, eps)):
                compressor = make(eps=eps)
                assert_promise_is_kept(compressor, blocks, compressor.compress(blocks))

    def test_factors_are_never_larger_than_the_block(self, make: Make) -> None:
        certified(make)
        low_rank(make)
        for name in FAMILIES:
            for eps in (0.1, 1e-4):
                factors = make(eps=eps).compress(family(name, torch.float32, eps))
                assert isinstance(factors, Factors)
                m, n = factors.shape[1:]
                own = factors.origin != int(Origin.STORED)
                if make(eps=0.1).pooled:
                    assert factors.U.numel() + factors.V.numel() <= own.sum() * m * n, (name, eps)
                else:
                    assert (factors.ranks[own] * (m + n) <= m * n).all(), (name, eps)
                assert factors.kept_index.tolist() == (~own).nonzero()[:, 0].tolist(), (name, eps)

    def test_without_a_promise_nothing_is_escalated_or_stored(self, make: Make) -> None:
        if make(eps=0.1).guarantee is not None:
            pytest.skip("it promises something")
        for name in FAMILIES:
            for eps in TOLERANCES:
                factors = make(eps=eps).compress(family(name, torch.float64, eps))
                assert (factors.origin == int(Origin.OWN)).all(), name

    def test_a_code_is_never_larger_than_the_images(self, make: Make) -> None:
        compressor = make(eps=0.1)
        if not compressor.on_input or compressor.guarantee is None or not compressor.uses_eps:
            pytest.skip("it encodes no input to a tolerance")
        for name in FAMILIES:
            for eps in (0.1, 1e-4):
                blocks = family(name, torch.float32, eps)
                compressed = make(eps=eps).compress(blocks)
                # Beside the numbers there are the origin, the exponent, a count or an index of every image.
                assert compressed.nbytes <= blocks.numel() * 4 + 20 * len(blocks), (name, eps)

    @each_dtype
    def test_a_zero_block_has_rank_and_error_zero(self, make: Make, dtype: torch.dtype) -> None:
        for eps in (1.0, 0.1, 1e-6):
            compressor = make(eps=eps)
            factors = compressor.compress(decaying_blocks(dtype))
            assert factors.dense()[4].count_nonzero() == 0
            zeros = compressor.compress(torch.zeros(2, 3, 4, dtype=dtype))
            assert not zeros.dense().any()
            if compressor.uses_eps and factors.ranks is not None:
                assert factors.ranks[4] == 0
                assert factors.origin[4] == int(Origin.OWN)
                assert ranks_of(zeros) == [0, 0]

    def test_eps_one_asks_for_nothing(self, make: Make) -> None:
        certified(make)
        for name in FAMILIES:
            factors = make(eps=1).compress(family(name, torch.float64, 0.5))
            assert factors.ranks is None or not factors.ranks.any(), name
            assert not factors.dense().any(), name
            assert (factors.origin == int(Origin.OWN)).all(), name
