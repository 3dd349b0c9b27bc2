"""How results are compared with what is promised, and with each other; which checks a compressor is excused from."""

import copy
import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lrbench.compressed import Compressed
from lrbench.compressors import Compressor
from lrbench.contract.oracles import relative_errors
from lrbench.factors import Factors, Origin

Make = Callable[..., Compressor]

TOLERANCES = (0.5, 0.3, 0.1, 0.03, 0.01, 1e-4, 1e-6)
SLACK = 1e-6
"""How much a requested tolerance may be overshot, relatively: by the rounding of the check."""
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-10}
"""How far two ways to the same approximation may differ, relative to the block."""

each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
each_half = pytest.mark.parametrize("half", ["bfloat16", "float16"])


def assert_promise_is_kept(compressor: Compressor, blocks: Tensor, factors: Compressed, name: str = "") -> None:
    """Measure the error in float64 and compare it with what the compressor's class promises."""
    errors = relative_errors(blocks, factors)
    bound = compressor.eps * (1 + SLACK) if compressor.uses_eps else 0.0
    if compressor.guarantee == "block":
        assert (errors <= bound).all(), f"{compressor}, {name}: {errors}, origins {factors.origin.tolist()}"
    elif compressor.guarantee == "batch" and len(blocks):
        # Not from the errors: that of a block beside which the batch is huge may be infinite, and counts for nothing.
        D, approximation = blocks.double(), factors.dense().double()
        top = D.abs().max() if bool(D.any()) else torch.ones(())
        assert (D / top - approximation / top).norm() <= bound * (D / top).norm(), f"{compressor}, {name}: {errors}"


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
    spoilt[place, -1, -1] = value
    factors = compressor.compress(spoilt, nonfinite="keep")
    assert factors.origin[place] == int(Origin.STORED)
    assert torch.equal(factors.dense()[place].nan_to_num(), spoilt[place].nan_to_num())
    others = torch.tensor([i for i in range(len(blocks)) if i != place], dtype=torch.int64)
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
