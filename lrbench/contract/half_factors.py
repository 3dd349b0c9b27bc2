"""Factors in a half precision."""

import itertools

import pytest
import torch

import lrbench
import lrbench.compressors.base
from lrbench.contract.adversarial import FAMILIES, family, image_blocks, low_rank_plus_noise, photo_crops
from lrbench.contract.comparing import (
    Make,
    assert_promise_is_kept,
    assert_same_tensors,
    can_halve,
    certified,
    each_dtype,
    each_half,
)
from lrbench.contract.oracles import relative_errors, storage_bytes
from lrbench.factors import Factors, Origin


class HalfFactorChecks:
    """Half the bytes, the same promise."""

    @each_half
    @pytest.mark.parametrize("source", ["matrices", "images"])
    def test_half_factors_take_about_half_the_bytes(self, make: Make, half: str, source: str) -> None:
        can_halve(make)
        for eps in (0.3, 0.1):
            blocks = low_rank_plus_noise(3, 60, 80, noise=1e-2).float() if source == "matrices" else image_blocks()
            whole, factors = make(eps=eps).compress(blocks), make(eps=eps, factors=half).compress(blocks)
            assert isinstance(whole, Factors)
            assert isinstance(factors, Factors)
            assert factors.U.dtype == factors.V.dtype == getattr(torch, half)
            assert factors.dtype == factors.dense().dtype == blocks.dtype
            assert factors.nbytes == storage_bytes(factors.tensors())
            if not len(whole.kept_index) and not len(factors.kept_index):
                numbers = factors.U.numel() + factors.V.numel()
                assert factors.U.nbytes + factors.V.nbytes == 2 * numbers
                assert numbers <= 1.1 * (whole.U.numel() + whole.V.numel()) + sum(blocks.shape[1:])

    @each_dtype
    @each_half
    def test_half_factors_keep_the_promise(self, make: Make, half: str, dtype: torch.dtype) -> None:
        can_halve(make)
        for name, eps in itertools.product(FAMILIES, (0.3, 0.03, 1e-4)):
            blocks = family(name, dtype, eps)
            compressor = make(eps=eps, factors=half)
            factors = compressor.compress(blocks)
            assert factors.dense().isfinite().all(), (name, eps)
            assert_promise_is_kept(compressor, blocks, factors, name)
            measured = lrbench.relative_error(blocks, factors).numpy()
            expected = relative_errors(blocks, factors)
            # What rounds to zero has no size left to be relative to.
            for ours, theirs, block in zip(measured, expected, blocks, strict=True):
                assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6) or not bool(block.any()), (name, eps)

    @each_half
    def test_half_factors_are_not_given_up_at_a_usual_tolerance(self, make: Make, half: str) -> None:
        can_halve(make)
        certified(make)
        crops = lrbench.Im2col(photo_crops(8, 24).float(), 3, padding=1)
        for eps in (0.3, 0.1):
            assert (make(eps=eps, factors=half).compress(crops).origin == int(Origin.OWN)).all()

    @each_half
    @pytest.mark.parametrize("groups", [1, 2])
    def test_half_factors_multiply_as_their_dense_form(self, make: Make, half: str, groups: int) -> None:
        can_halve(make)
        factors = make(eps=0.1, factors=half).compress(image_blocks(torch.float32, groups))
        N, m, n = factors.shape
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(groups, 4, m, generator=generator)
        grad = torch.randn(N, 4, n, generator=generator)
        D, group = factors.dense(), torch.arange(N) % groups
        torch.testing.assert_close(factors.matmul(weight.flatten(0, 1)), weight[group] @ D, rtol=1e-4, atol=1e-4)
        expected = torch.zeros_like(weight).index_add_(0, group, grad @ D.mT).flatten(0, 1)
        torch.testing.assert_close(factors.grad_weight(grad), expected, rtol=1e-4, atol=1e-3)
        again = factors.layout.restore(factors.tensors())
        assert_same_tensors(Factors.concatenate([again, again]).select(torch.arange(N)), factors)
        assert again.dtype == factors.dtype
