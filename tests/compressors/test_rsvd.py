"""The randomized SVD finds ranks that its first sketch does not hold, and draws from nobody else's generator."""

import pytest
import torch
from oracles import eckart_young_rank, relative_errors

import lrbench
from lrbench import Origin
from lrbench.compressors.draws import sketching_matrices
from lrbench.compressors.rsvd import RandomizedSVD
from lrbench.contract.adversarial import decaying_blocks, image_blocks, low_rank_plus_noise, with_singular_values
from lrbench.contract.comparing import SLACK, each_dtype
from lrbench.kernels.kernel_blocks import KernelBlocks


@each_dtype
@pytest.mark.parametrize("rank", [1, 4, 5, 11, 12, 16, 17, 33, 50])
def test_a_rank_beyond_the_first_sketch_is_found(rank: int, dtype: torch.dtype) -> None:
    D = low_rank_plus_noise(2, 96, 128, rank, noise=1e-6, seed=rank).to(dtype)
    for sketch in (4, 16):
        factors = RandomizedSVD(eps=1e-3, sketch=sketch).compress(D)
        assert factors.ranks.tolist() == [rank, rank]
        assert factors.origin.tolist() == [Origin.OWN, Origin.OWN]
        assert (relative_errors(D, factors) <= 1e-3 * (1 + SLACK)).all()


def test_blocks_that_need_more_columns_do_not_disturb_the_others() -> None:
    ranks = [3, 40, 0, 20, 2]
    D = torch.cat([low_rank_plus_noise(1, 96, 128, rank, noise=0, seed=rank) for rank in ranks])
    factors = RandomizedSVD(eps=1e-3, sketch=8).compress(D)
    assert factors.ranks.tolist() == ranks
    assert (relative_errors(D, factors) <= 1e-3).all()


@pytest.mark.parametrize(("decay", "eps"), [(0.8, 1e-3), (0.9, 0.1), (0.95, 0.3), (0.98, 0.5)])
def test_a_slow_spectrum_costs_few_ranks_more_than_the_best(decay: float, eps: float) -> None:
    D = with_singular_values([decay**k for k in range(90)], 96, 128)
    factors = RandomizedSVD(eps=eps).compress(D)
    best = eckart_young_rank(D[0].numpy(), eps)
    assert best > 16
    assert factors.origin.tolist() == [Origin.OWN]
    assert best <= int(factors.ranks[0]) <= best + 2


def test_a_tight_tolerance_does_not_store_what_has_a_low_rank() -> None:
    """The energy outside the sketch is a difference: below its rounding a block must not be taken for a full one."""
    for seed in range(5):
        D = low_rank_plus_noise(3, 40, 50, 3, noise=0, seed=seed)
        for eps in (1e-7, 1e-8, 1e-9, 1e-10):
            factors = RandomizedSVD(eps=eps).compress(D)
            assert (factors.origin != Origin.STORED).all(), eps
            assert (factors.ranks <= 4).all(), eps


def test_another_seed_is_another_sketch_and_the_same_result() -> None:
    for blocks in (decaying_blocks(), image_blocks()):
        first, second = (RandomizedSVD(eps=0.05, seed=seed, sketch=8).compress(blocks) for seed in (0, 1))
        assert not torch.equal(first.V, second.V)
        assert ((first.ranks - second.ranks).abs() <= 1).all()
        assert torch.equal(first.origin, second.origin)
        D = blocks if isinstance(blocks, torch.Tensor) else blocks.dense()
        for factors in (first, second):
            assert (relative_errors(D, factors) <= 0.05 * (1 + SLACK)).all()


def test_equal_blocks_have_equal_sketches_and_different_ones_different() -> None:
    D = lrbench.DenseBlocks(decaying_blocks()[[0, 1, 0, 2]])
    sketches = sketching_matrices(D, 0, 4)
    assert torch.equal(sketches[0], sketches[2])
    assert not torch.equal(sketches[0].sign(), sketches[1].sign())
    assert not torch.equal(sketches[1].sign(), sketches[3].sign())
    assert abs(float(sketches.mean())) < 0.2
    changed = D.dense()
    changed[0, 23, 31] += 1e-9
    assert not torch.equal(sketching_matrices(lrbench.DenseBlocks(changed), 0, 4)[0], sketches[0])


def test_a_negative_zero_is_a_zero() -> None:
    D = torch.zeros(1, 24, 32)
    D[0, 0, 0] = 1
    negative = torch.where(D == 0, -D, D)
    factors, same = RandomizedSVD().compress(D), RandomizedSVD().compress(negative)
    assert torch.equal(factors.U, same.U)
    assert torch.equal(factors.V, same.V)


@pytest.mark.parametrize("options", [{"sketch": 0}, {"sketch": -1}, {"oversampling": -1}], ids=str)
def test_a_sketch_without_columns_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"(sketch|oversampling) is .*: use a whole number of at least"):
        lrbench.get_compressor("rsvd", **options)


@pytest.mark.parametrize("options", [{"sketch": 1, "oversampling": 0}, {"sketch": 1}, {"sketch": 1000}], ids=str)
def test_any_sketch_keeps_the_tolerance(options: dict[str, int]) -> None:
    D = decaying_blocks()
    factors = lrbench.get_compressor("rsvd", eps=0.01, **options).compress(D)
    assert (relative_errors(D, factors) <= 0.01 * (1 + SLACK)).all()


@pytest.mark.parametrize("eps", [0.3, 0.1, 0.01, 1e-4])
@pytest.mark.parametrize("tall", [False, True], ids=["wide", "tall"])
def test_the_kernels_find_the_ranks_that_plain_torch_finds(
    eps: float, tall: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    D = torch.cat([decaying_blocks(m=40, n=90), low_rank_plus_noise(3, 40, 90, 22, noise=1e-6, seed=0)])
    D = D.mT if tall else D
    ours = RandomizedSVD(eps).compress(D)
    monkeypatch.setattr(KernelBlocks, "of", lambda blocks: None)
    theirs = RandomizedSVD(eps).compress(D)
    assert ((ours.ranks - theirs.ranks).abs() <= 1).all()
    assert ours.origin.tolist() == theirs.origin.tolist()
    best = torch.tensor([eckart_young_rank(d.numpy(), eps) for d in D])
    assert ((ours.ranks - best) <= 1).all()
