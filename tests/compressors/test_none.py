"""No compression is the exact block, at the price of the whole block."""

import pytest
import torch

import lrbench
from lrbench import Origin
from lrbench.contract.adversarial import decaying_blocks, image_blocks
from lrbench.contract.comparing import each_dtype


@each_dtype
@pytest.mark.parametrize("groups", [1, 2])
def test_every_number_is_kept(groups: int, dtype: torch.dtype) -> None:
    for blocks in (lrbench.DenseBlocks(decaying_blocks(dtype), groups), image_blocks(dtype, groups)):
        for eps in (1.0, 0.1, 1e-6):
            factors = lrbench.get_compressor("none", eps=eps).compress(blocks)
            N, m, n = blocks.shape
            assert torch.equal(factors.dense(), blocks.dense())
            assert factors.ranks.tolist() == [min(m, n)] * N
            assert factors.origin.tolist() == [Origin.OWN] * N
            assert factors.nbytes == N * m * n * dtype.itemsize + 8 * (N + 1) + N + 8 * N
            assert factors.groups == groups


def test_the_blocks_are_copied() -> None:
    blocks = decaying_blocks()
    factors = lrbench.get_compressor("none").compress(blocks)
    before = factors.dense()
    blocks.zero_()
    assert torch.equal(factors.dense(), before)


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 5, 3)], ids=["wide", "tall"])
def test_its_factors_are_the_block_and_an_identity(shape: tuple[int, ...]) -> None:
    D = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    low_rank = lrbench.get_compressor("none").factorize(lrbench.DenseBlocks(D))
    assert low_rank.ranks.tolist() == [3, 3]
    product = low_rank.U.unflatten(0, (2, 3)).mT @ low_rank.V.unflatten(0, (2, 3))
    assert torch.equal(product, D)


def test_bad_blocks_are_marked_as_stored() -> None:
    blocks = decaying_blocks()
    blocks[2, 0, 0] = float("nan")
    factors = lrbench.get_compressor("none").compress(blocks, nonfinite="keep")
    assert factors.origin.tolist() == [0, 0, int(Origin.STORED), 0, 0, 0]
