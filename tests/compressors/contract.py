"""The contract: what every compressor must do, whatever its method.

Test a class of your own by naming it to the contract::

    from contract import CompressorContract

    class TestMine(CompressorContract):
        @pytest.fixture
        def make(self):
            return Mine  # anything that gives a compressor when it is called with eps=...

A class that takes ``factors`` (see :class:`lrbench.Compressor`) is tested with it, too.

The checks read the class's traits, such as ``guarantee``, ``pooled`` and ``low_rank``, and hold it to what they say:
what there is to say of ranks is asked of low-rank methods only.
"""

import copy
import inspect
import math
from collections.abc import Callable

import pytest
import torch
from adversarial import FAMILIES, family, low_rank_plus_noise, photo_crops, with_singular_values
from oracles import eckart_young_rank, factor_pair, relative_errors, storage_bytes, unit_scaled
from torch import Tensor

import lrbench
import lrbench.compressors.base
from lrbench import Compressed, Compressor, EncodedInput, Factors, NonFiniteBlockError, Origin

Make = Callable[..., Compressor]

TOLERANCES = (0.5, 0.3, 0.1, 0.03, 0.01, 1e-4, 1e-6)
SLACK = 1e-6
"""How much a requested tolerance may be overshot, relatively: by the rounding of the check."""
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-10}
"""How far two ways to the same approximation may differ, relative to the block."""

each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
each_half = pytest.mark.parametrize("half", ["bfloat16", "float16"])


def decaying_blocks(dtype: torch.dtype = torch.float64, m: int = 24, n: int = 32) -> Tensor:
    """Blocks of different ranks, (6, m, n), their singular values well apart; the last but one is zero."""
    spectra = [[decay**k for k in range(min(m, n))] for decay in (0.3, 0.6, 0.15, 0.45, 0.8)]
    blocks = [with_singular_values(spectrum, m, n, seed) for seed, spectrum in enumerate(spectra)]
    blocks.insert(4, torch.zeros_like(blocks[0]))
    return torch.cat(blocks).to(dtype)


def image_blocks(dtype: torch.dtype = torch.float64, groups: int = 1) -> lrbench.Im2col:
    """Lowered crops of photographs; with groups, of as many channels more."""
    x = photo_crops(4).to(dtype)
    x = torch.cat([x.roll(shift, 0) for shift in range(groups)], 1)
    return lrbench.Im2col(x, 3, padding=1, groups=groups, padding_mode="reflect")


def assert_promise_is_kept(compressor: Compressor, blocks: Tensor, factors: Compressed) -> None:
    """Measure the error in float64 and compare it with what the compressor's class promises."""
    errors = relative_errors(blocks, factors)
    bound = compressor.eps * (1 + SLACK) if compressor.uses_eps else 0.0
    if compressor.guarantee == "block":
        assert (errors <= bound).all(), f"{compressor}: errors {errors}, origins {factors.origin.tolist()}"
    elif compressor.guarantee == "batch" and len(blocks):
        norms = torch.from_numpy(unit_scaled(blocks.double().numpy())[0]).norm(dim=(1, 2)).numpy()
        assert ((errors * norms) ** 2).sum() <= bound**2 * (norms**2).sum(), f"{compressor}: errors {errors}"


def assert_same_tensors(ours: Compressed, theirs: Compressed) -> None:
    """The same bits in every tensor."""
    for left, right in zip(ours.tensors(), theirs.tensors(), strict=True):
        assert left.dtype == right.dtype
        assert torch.equal(left.nan_to_num(nan=123.0), right.nan_to_num(nan=123.0))


def ranks_of(compressed: Compressed) -> list[int] | None:
    """The ranks, where there are any."""
    return None if compressed.ranks is None else compressed.ranks.tolist()


def assert_same_approximations(ours: Compressed, theirs: Compressed) -> None:
    """The same ranks and origins, and the same approximations up to rounding."""
    assert ranks_of(ours) == ranks_of(theirs)
    assert ours.origin.tolist() == theirs.origin.tolist()
    left, right = ours.dense().double(), theirs.dense().double()
    assert ((left - right).norm(dim=(1, 2)) <= ROUNDING[ours.dtype] * right.norm(dim=(1, 2))).all()


def assert_neighbours_are_unchanged(compressor: Compressor, blocks: Tensor, place: int, value: float) -> None:
    """Spoil one block with a value that is not finite: it is kept, and no other has another bit than before."""
    finite = copy.deepcopy(compressor).compress(blocks)
    spoilt = blocks.clone()
    spoilt[place, 3, 5] = value
    factors = compressor.compress(spoilt, nonfinite="keep")
    assert factors.origin[place] == int(Origin.STORED)
    assert torch.equal(factors.dense()[place].nan_to_num(), spoilt[place].nan_to_num())
    others = torch.tensor([i for i in range(len(blocks)) if i != place])
    assert torch.equal(factors.origin[others], finite.origin[others])
    if not isinstance(factors, Factors) or not isinstance(finite, Factors):
        assert torch.equal(factors.dense()[others], finite.dense()[others])
        assert_same_tensors(factors.select(others), finite.select(others))
        return
    assert factors.ranks[place] == min(blocks.shape[1:])
    assert torch.equal(factors.ranks[others], finite.ranks[others])
    ours, theirs = factors.low_rank(others), finite.low_rank(others)
    assert torch.equal(ours.U, theirs.U), f"{compressor}: U by {(ours.U - theirs.U).abs().max():.1e}"
    assert torch.equal(ours.V, theirs.V), f"{compressor}: V by {(ours.V - theirs.V).abs().max():.1e}"


def certified(make: Make) -> None:
    """Skip what only a compressor that works to a tolerance, and keeps it for every block, can do."""
    compressor = make(eps=0.1)
    if compressor.guarantee != "block":
        pytest.skip(f"{compressor.name or compressor} promises no tolerance for each block")
    if not compressor.uses_eps:
        pytest.skip(f"{compressor.name or compressor} does not work to a tolerance")


def low_rank(make: Make) -> None:
    """Skip what only a compressor that gives factors can do."""
    if not make(eps=0.1).low_rank:
        pytest.skip("it has no ranks")


def independent(make: Make) -> None:
    """Skip what only a compressor that takes every block by itself can do."""
    compressor = make(eps=0.1)
    if compressor.pooled or compressor.guarantee == "batch":
        pytest.skip(f"{compressor.name or compressor} treats the batch as one")


def can_halve(make: Make) -> None:
    """Skip what only a compressor with the option ``factors`` can do."""
    if "factors" not in inspect.signature(type(make(eps=0.1))).parameters:
        pytest.skip(f"{make(eps=0.1)} stores no factors in a half precision")


class CompressorContract:
    """Override the fixture ``make`` and inherit every check."""

    @pytest.fixture
    def make(self) -> Make:
        """What gives a compressor when it is called with ``eps=...``."""
        raise NotImplementedError("override the fixture make: it gives a compressor when called with eps=...")

    # What is returned

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

    def test_what_holds_no_blocks_is_refused(self, make: Make) -> None:
        with pytest.raises(ValueError, match=r"\(N, m, n\)"):
            make(eps=0.1).compress(torch.zeros(3, 4))
        with pytest.raises(TypeError, match="int64"):
            make(eps=0.1).compress(torch.zeros(1, 3, 4, dtype=torch.int64))
        with pytest.raises(ValueError, match="nonfinite is 'drop'"):
            make(eps=0.1).compress(torch.zeros(1, 3, 4), nonfinite="drop")  # type: ignore[arg-type]

    # The tolerance

    @each_dtype
    @pytest.mark.parametrize("name", FAMILIES)
    def test_the_promised_tolerance_is_kept(self, make: Make, name: str, dtype: torch.dtype) -> None:
        for eps in TOLERANCES:
            blocks = family(name, dtype, eps)
            compressor = make(eps=eps)
            factors = compressor.compress(blocks)
            assert factors.shape == blocks.shape
            assert factors.dense().isfinite().all()
            assert_promise_is_kept(compressor, blocks, factors)

    @each_dtype
    @pytest.mark.parametrize(
        "name", ["rank_one", "noisy_low_rank", "photographs", "wide", "tall", "hilbert_matrix", "clustered_at_eps"]
    )
    def test_no_rank_is_below_eckart_and_youngs(self, make: Make, name: str, dtype: torch.dtype) -> None:
        certified(make)
        low_rank(make)
        for eps in TOLERANCES:
            blocks = family(name, dtype, eps)
            factors = make(eps=eps).compress(blocks)
            for D, rank in zip(blocks.double().numpy(), factors.ranks.tolist(), strict=True):
                assert rank >= eckart_young_rank(D, eps * (1 + SLACK)), eps

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

    # What the result may depend on

    @each_dtype
    @pytest.mark.parametrize("eps", [0.1, 1e-3])
    def test_a_power_of_two_scales_the_result_exactly(self, make: Make, eps: float, dtype: torch.dtype) -> None:
        blocks = decaying_blocks(dtype)
        factors = make(eps=eps).compress(blocks)
        for power in (1, -7, 40, -40) if dtype == torch.float32 else (3, -150, 600, -600):
            scaled = make(eps=eps).compress(torch.ldexp(blocks, torch.tensor(power)))
            assert ranks_of(scaled) == ranks_of(factors)
            assert torch.equal(scaled.origin, factors.origin)
            assert torch.equal(scaled.dense(), torch.ldexp(factors.dense(), torch.tensor(power))), power

    @each_dtype
    @pytest.mark.parametrize("eps", [0.1, 1e-3])
    def test_a_block_does_not_depend_on_its_neighbours(self, make: Make, eps: float, dtype: torch.dtype) -> None:
        independent(make)
        blocks = decaying_blocks(dtype)
        whole = make(eps=eps).compress(blocks)
        order = torch.tensor([3, 0, 5, 2, 4, 1])
        shuffled = make(eps=eps).compress(blocks[order])
        assert ranks_of(shuffled) == ranks_of(whole.select(order))
        assert torch.equal(shuffled.origin, whole.origin[order])
        scale = ROUNDING[dtype] * blocks.double().norm(dim=(1, 2))
        assert ((shuffled.dense() - whole.dense()[order]).double().norm(dim=(1, 2)) <= scale[order]).all()
        for i in range(len(blocks)):
            alone = make(eps=eps).compress(blocks[i : i + 1])
            assert ranks_of(alone) == ranks_of(whole.select(torch.tensor([i])))
            assert alone.origin[0] == whole.origin[i]
            assert (alone.dense()[0] - whole.dense()[i]).double().norm() <= scale[i]

    @each_dtype
    def test_the_slicing_of_a_large_batch_does_not_show(
        self, make: Make, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        independent(make)
        sources = (decaying_blocks(dtype), image_blocks(dtype, groups=2))
        whole = [make(eps=0.03).compress(blocks) for blocks in sources]
        _, m, n = sources[0].shape
        for limit in (1, 2 * 8 * (m * n + min(m, n) ** 2)):
            monkeypatch.setattr(lrbench.compressors.base, "WORKSPACE_BYTES", {"cpu": limit})
            for blocks, factors in zip(sources, whole, strict=True):
                assert_same_approximations(make(eps=0.03).compress(blocks), factors)

    @each_dtype
    @pytest.mark.parametrize("groups", [1, 3])
    def test_images_and_their_lowered_blocks_agree(self, make: Make, groups: int, dtype: torch.dtype) -> None:
        images = image_blocks(dtype, groups)
        dense = images.dense()
        for eps in (0.3, 0.03):
            compressor = make(eps=eps)
            lazy, formed = make(eps=eps).compress(images), make(eps=eps).compress(dense)
            assert (lazy.groups, formed.groups) == (groups, 1)
            assert_promise_is_kept(compressor, dense, lazy)
            if lazy.ranks is None or formed.ranks is None:
                continue  # the blocks are another input than the images
            # A random method may key its sketch by the images, and then finds other factors as good as these.
            assert ((lazy.ranks - formed.ranks).abs() <= 1).all()
            difference = (lazy.dense() - formed.dense()).double().norm(dim=(1, 2))
            slack = 0.05 * eps if compressor.uses_eps else ROUNDING[dtype]
            assert (difference <= slack * dense.double().norm(dim=(1, 2))).all()

    def test_the_layout_of_a_tensor_does_not_matter(self, make: Make) -> None:
        blocks = decaying_blocks()
        factors = make(eps=0.1).compress(blocks)
        padded = torch.nn.functional.pad(blocks, (1, 2, 3, 4))[:, 3:-4, 1:-2]
        for same in (blocks.mT.contiguous().mT, padded, blocks.permute(1, 2, 0).contiguous().permute(2, 0, 1)):
            assert not same.is_contiguous()
            assert_same_approximations(make(eps=0.1).compress(same), factors)

    @each_dtype
    def test_the_same_call_gives_the_same_bits(self, make: Make, dtype: torch.dtype) -> None:
        for blocks in (decaying_blocks(dtype), image_blocks(dtype)):
            compressor, again = make(eps=0.05), make(eps=0.05)
            torch.manual_seed(1)
            factors = compressor.compress(blocks)
            torch.manual_seed(2)
            assert_same_tensors(again.compress(blocks), factors)
            if not compressor.stateful:
                assert_same_tensors(compressor.compress(blocks), factors)

    def test_torchs_global_generator_is_left_alone(self, make: Make) -> None:
        before = torch.get_rng_state()
        make(eps=0.05).compress(decaying_blocks())
        assert torch.equal(torch.get_rng_state(), before)

    @each_dtype
    def test_the_input_is_left_as_it_is(self, make: Make, dtype: torch.dtype) -> None:
        ordinary = image_blocks(dtype)
        ordinary.tensor[:, 0, 0, 0] = 1  # nothing has to be scaled, so that nothing is copied for its sake
        for blocks in (decaying_blocks(dtype), image_blocks(dtype), ordinary):
            numbers = blocks if isinstance(blocks, Tensor) else blocks.tensor
            numbers[1, 0, 0] = float("inf")
            before = numbers.clone()
            make(eps=0.05).compress(blocks, nonfinite="keep")
            assert torch.equal(numbers, before)
            numbers[1, 0, 0] = 0
            before = numbers.clone()
            make(eps=0.05).compress(blocks)
            assert torch.equal(numbers, before)

    def test_the_result_carries_no_graph(self, make: Make) -> None:
        x = photo_crops(2).requires_grad_()
        for blocks in (decaying_blocks().requires_grad_(), lrbench.Im2col(x, 3)):
            factors = make(eps=0.1).compress(blocks)
            assert not any(tensor.requires_grad for tensor in factors.tensors())

    def test_a_carried_state_can_be_taken_back(self, make: Make) -> None:
        compressor, other = make(eps=0.1), make(eps=0.1)
        blocks = decaying_blocks()
        compressor.compress(blocks)
        other.load_state_dict(compressor.state_dict())
        assert_same_tensors(compressor.compress(blocks), other.compress(blocks))

    # Factors in a half precision

    @each_half
    @pytest.mark.parametrize("source", ["matrices", "images"])
    def test_half_factors_take_about_half_the_bytes(self, make: Make, half: str, source: str) -> None:
        can_halve(make)
        for eps in (0.3, 0.1):
            blocks = low_rank_plus_noise(3, 60, 80, noise=1e-2).float() if source == "matrices" else image_blocks()
            whole, factors = make(eps=eps).compress(blocks), make(eps=eps, factors=half).compress(blocks)
            assert factors.U.dtype == factors.V.dtype == getattr(torch, half)
            assert factors.dtype == factors.dense().dtype == blocks.dtype
            assert factors.nbytes == storage_bytes(factors.tensors())
            if not len(whole.kept_index) and not len(factors.kept_index):
                numbers = factors.U.numel() + factors.V.numel()
                assert factors.U.nbytes + factors.V.nbytes == 2 * numbers
                assert numbers <= 1.1 * (whole.U.numel() + whole.V.numel()) + sum(blocks.shape[1:])

    @each_dtype
    @each_half
    @pytest.mark.parametrize("name", FAMILIES)
    def test_half_factors_keep_the_promise(self, make: Make, name: str, half: str, dtype: torch.dtype) -> None:
        can_halve(make)
        for eps in TOLERANCES:
            blocks = family(name, dtype, eps)
            compressor = make(eps=eps, factors=half)
            factors = compressor.compress(blocks)
            assert factors.dense().isfinite().all()
            assert_promise_is_kept(compressor, blocks, factors)
            measured = lrbench.relative_error(blocks, factors).numpy()
            expected = relative_errors(blocks, factors)
            # What rounds to zero has no size left to be relative to.
            for ours, theirs, block in zip(measured, expected, blocks, strict=True):
                assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6) or not bool(block.any())

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

    # Blocks that are not finite

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
            assert torch.equal(factors.dense()[others], finite.dense()[others])
        product = factors.matmul(torch.ones(1, 27, dtype=torch.float64))
        assert product[others].isfinite().all()
        assert product[2].isnan().any()

    def test_a_batch_of_nothing_but_bad_blocks_is_kept(self, make: Make) -> None:
        blocks = torch.full((2, 3, 4), math.nan)
        factors = make(eps=0.1).compress(blocks, nonfinite="keep")
        assert factors.origin.tolist() == [int(Origin.STORED)] * 2
        assert factors.dense().isnan().all()
