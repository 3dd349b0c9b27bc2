"""What a result may depend on, and what not."""

import pytest
import torch
from torch import Tensor

import lrbench
import lrbench.compressors.base
from lrbench.blocks import Blocks
from lrbench.contract.adversarial import decaying_blocks, image_blocks, photo_crops
from lrbench.contract.comparing import (
    ROUNDING,
    Make,
    assert_promise_is_kept,
    assert_same_approximations,
    assert_same_tensors,
    each_dtype,
    independent,
    ranks_of,
)


class DependenceChecks:
    """Scale, neighbours, layout, random numbers and earlier calls do not show."""

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
        sources: tuple[Blocks | Tensor, ...] = (decaying_blocks(dtype), image_blocks(dtype, groups=2))
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
        make(eps=0.05).compress(decaying_blocks(m=23, n=37))  # of a shape whose numbers nobody has drawn before
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
