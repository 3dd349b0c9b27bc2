"""What is returned."""

import math

import pytest
import torch

import lrbench
import lrbench.compressors.base
from lrbench.contract.adversarial import (
    decaying_blocks,
    image_blocks,
)
from lrbench.contract.comparing import (
    ROUNDING,
    Make,
    assert_same_approximations,
    each_dtype,
    low_rank,
    ranks_of,
)
from lrbench.contract.oracles import factor_pair, storage_bytes
from lrbench.encoded import EncodedInput
from lrbench.factors import Factors, Origin


class ResultChecks:
    """What is returned, and by what it multiplies."""

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("source", ["matrices", "images"])
    def test_the_form_of_the_result(self, make: Make, dtype: torch.dtype, source: str) -> None:
        blocks = decaying_blocks(dtype) if source == "matrices" else image_blocks(dtype)
        factors = make(eps=0.1).compress(blocks)
        N, m, n = blocks.shape
        kept = dtype if dtype.itemsize >= 4 else torch.float32
        assert factors.shape == factors.dense().shape == (N, m, n)
        assert factors.dtype == factors.dense().dtype == kept
        assert all(tensor.device == blocks.device for tensor in factors.tensors())
        assert (factors.ranks is not None) == make(eps=0.1).low_rank
        assert isinstance(factors, EncodedInput) == make(eps=0.1).on_input
        if factors.ranks is not None:
            assert factors.ranks.dtype == torch.int64
            assert factors.ranks.shape == (N,)
            # Directions that blocks have in common may be more than a single block has, and random ones, too.
            bounded = isinstance(factors, Factors)
            most = (m if make(eps=0.1).pooled else min(m, n)) if bounded else math.inf
            assert ((factors.ranks >= 0) & (factors.ranks <= most)).all()
        if isinstance(factors, Factors):
            assert factors.U.dtype == factors.V.dtype == kept
        assert factors.origin.dtype == torch.uint8
        assert set(factors.origin.tolist()) <= {int(origin) for origin in Origin}
        assert factors.nbytes == storage_bytes(factors.tensors())
        assert factors.groups == 1

    def test_half_precisions_are_lifted_exactly(self, make: Make) -> None:
        for dtype in (torch.float16, torch.bfloat16):
            half = decaying_blocks(dtype)
            ours, theirs = make(eps=0.1).compress(half), make(eps=0.1).compress(half.float())
            assert_same_approximations(ours, theirs)
            assert torch.equal(ours.dense(), theirs.dense())

    @each_dtype
    def test_dense_multiplies_the_factors(self, make: Make, dtype: torch.dtype) -> None:
        low_rank(make)
        factors = make(eps=0.1).compress(decaying_blocks(dtype))
        if not isinstance(factors, Factors):
            pytest.skip("its factors are of another form")
        kept = factors.kept_index.tolist()
        for i, block in enumerate(factors.dense().double()):
            if i not in kept:
                U, V = factor_pair(factors, i)
                torch.testing.assert_close(block, torch.from_numpy(U @ V), rtol=0, atol=ROUNDING[dtype])

    @pytest.mark.parametrize("groups", [1, 2, 3])
    @pytest.mark.parametrize("eps", [0.3, 1e-6])
    def test_products_are_those_of_the_dense_approximations(self, make: Make, eps: float, groups: int) -> None:
        factors = make(eps=eps).compress(image_blocks(groups=groups))
        N, m, n = factors.shape
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(groups, 4, m, generator=generator, dtype=torch.float64)
        grad = torch.randn(N, 4, n, generator=generator, dtype=torch.float64)
        D, group = factors.dense(), torch.arange(N) % groups
        torch.testing.assert_close(factors.matmul(weight.flatten(0, 1)), weight[group] @ D)
        expected = torch.zeros_like(weight).index_add_(0, group, grad @ D.mT).flatten(0, 1)
        torch.testing.assert_close(factors.grad_weight(grad), expected)
        of_weight, of_bias = factors.gradients(grad)
        torch.testing.assert_close(of_weight, expected)
        sums = torch.zeros(groups, 4, dtype=torch.float64).index_add_(0, group, grad.sum(2))
        torch.testing.assert_close(of_bias, sums.flatten())

    def test_an_empty_batch_gives_empty_factors(self, make: Make) -> None:
        for blocks in (torch.zeros(0, 3, 4), lrbench.Im2col(torch.zeros(0, 2, 4, 4), 3, padding=1, groups=2)):
            factors = make(eps=0.1).compress(blocks)
            assert factors.shape == factors.dense().shape == blocks.shape
            assert factors.origin.tolist() == []
            assert ranks_of(factors) == ([] if make(eps=0.1).low_rank else None)
            groups, K = factors.groups, 3 * factors.groups
            weight, grad = torch.ones(K, blocks.shape[1]), torch.ones(0, K // groups, blocks.shape[2])
            assert factors.matmul(weight).shape == grad.shape
            assert not factors.grad_weight(grad).any()
            assert factors.gradients(grad)[1].tolist() == [0.0] * K

    def test_what_holds_no_blocks_is_refused(self, make: Make) -> None:
        with pytest.raises(ValueError, match=r"\(N, m, n\)"):
            make(eps=0.1).compress(torch.zeros(3, 4))
        with pytest.raises(TypeError, match="int64"):
            make(eps=0.1).compress(torch.zeros(1, 3, 4, dtype=torch.int64))
        with pytest.raises(ValueError, match="nonfinite is 'drop'"):
            make(eps=0.1).compress(torch.zeros(1, 3, 4), nonfinite="drop")  # type: ignore[arg-type]
