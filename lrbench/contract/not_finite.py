"""Blocks that are not finite."""

import math

import pytest
import torch

from lrbench.compressors import NonFiniteBlockError
from lrbench.contract.adversarial import (
    decaying_blocks,
    image_blocks,
    with_singular_values,
)
from lrbench.contract.comparing import (
    Make,
    assert_neighbours_are_unchanged,
    each_dtype,
    independent,
)
from lrbench.factors import Origin


class NotFiniteChecks:
    """They are named, or kept, and leave their neighbours alone."""

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_blocks_that_are_not_finite_are_named(self, make: Make, value: float) -> None:
        blocks = decaying_blocks()
        blocks[2, 23, 31] = blocks[5, 0, 0] = value
        with pytest.raises(NonFiniteBlockError) as caught:
            make(eps=0.1).compress(blocks)
        assert caught.value.indices == [2, 5]
        assert "2, 5" in str(caught.value)
        grouped = image_blocks(groups=2)
        grouped.tensor[3, 0, 4, 4] = value
        with pytest.raises(NonFiniteBlockError) as caught:
            make(eps=0.1).compress(grouped)
        assert caught.value.indices == [3]

    @each_dtype
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize("place", [0, 4, 5])  # of a low rank, of a zero block, and of the highest rank of all
    def test_kept_blocks_leave_their_neighbours_alone(
        self, make: Make, place: int, value: float, dtype: torch.dtype
    ) -> None:
        independent(make)
        for eps in (0.1, 1e-3):
            assert_neighbours_are_unchanged(make(eps=eps), decaying_blocks(dtype, 64, 50), place, value)

    @each_dtype
    @pytest.mark.parametrize("shape", [(63, 49), (27, 81)], ids=str)
    def test_kept_blocks_leave_those_of_their_own_rank_alone(
        self, make: Make, shape: tuple[int, int], dtype: torch.dtype
    ) -> None:
        """Blocks that would be treated together move up by one place, and to memory of another alignment."""
        independent(make)
        spectra = [[decay**k for k in range(min(shape))] for decay in (0.3, 0.3, 0.5, 0.5, 0.2)]
        blocks = torch.cat([with_singular_values(values, *shape, seed) for seed, values in enumerate(spectra)])
        for eps in (0.1, 1e-3, 1e-6):
            for place in (0, 2):
                assert_neighbours_are_unchanged(make(eps=eps), blocks.to(dtype), place, math.nan)

    def test_images_that_are_not_finite_are_kept_as_images(self, make: Make) -> None:
        images = image_blocks()
        finite = make(eps=0.1).compress(images)
        images.tensor[2, 1, 4, 4] = math.nan
        factors = make(eps=0.1).compress(images, nonfinite="keep")
        spoilt = [i for i, origin in enumerate(factors.origin.tolist()) if origin == int(Origin.STORED)]
        assert 2 in spoilt
        if make(eps=0.1).guarantee is None:
            assert spoilt == [2]
        assert torch.equal(factors.dense()[2].nan_to_num(nan=7), images.dense()[2].nan_to_num(nan=7))
        others = torch.tensor([0, 1, 3])
        if not make(eps=0.1).pooled:
            pairs = zip(factors.select(others).tensors(), finite.select(others).tensors(), strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)
        product = factors.matmul(torch.ones(1, 27, dtype=torch.float64))
        assert product[others].isfinite().all()
        assert product[2].isnan().any()

    def test_a_batch_of_nothing_but_bad_blocks_is_kept(self, make: Make) -> None:
        blocks = torch.full((2, 3, 4), math.nan)
        factors = make(eps=0.1).compress(blocks, nonfinite="keep")
        assert factors.origin.tolist() == [int(Origin.STORED)] * 2
        assert factors.dense().isnan().all()
