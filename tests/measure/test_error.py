import math

import pytest
import torch
from torch import Tensor

import lrbench
from lrbench import Factors, Im2col, Origin, relative_error
from lrbench.measure.error import violations


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def low_rank_blocks(N: int = 4, m: int = 12, n: int = 20) -> Tensor:
    """Blocks of rank 3 with noise, which svd approximates by factors at eps 0.1."""
    return normal(N, m, 3) @ normal(N, 3, n, seed=1) + 0.02 * normal(N, m, n, seed=2)


def by_hand(U: list[Tensor], V: list[Tensor], stored: dict[int, Tensor] | None = None) -> Factors:
    """Factors from the pairs U_i (m, r_i), V_i (r_i, n), and the blocks that are kept as they are."""
    stored = stored or {}
    ranks = torch.tensor([0, *(len(v) for v in V)])
    origin = torch.zeros(len(V), dtype=torch.uint8)
    origin[list(stored)] = int(Origin.STORED)
    kept = lrbench.DenseBlocks(torch.stack(list(stored.values()))) if stored else None
    index = torch.tensor(list(stored), dtype=torch.int64)
    return Factors(torch.cat([u.mT for u in U]), torch.cat(V), ranks.cumsum(0), origin, index, kept)


def expected_errors(D: Tensor, factors: Factors) -> Tensor:
    """‖D_i − D̂_i‖ / ‖D_i‖ of dense matrices in float64, scaled so that no square leaves its range."""
    wide = Factors(
        factors.U.double(),
        factors.V.double(),
        factors.offsets,
        factors.origin,
        factors.kept_index,
        factors.kept,
        factors.groups,
    )
    unit = D.double().abs().amax((1, 2), keepdim=True)
    return ((D.double() - wide.dense()) / unit).norm(dim=(1, 2)) / (D.double() / unit).norm(dim=(1, 2))


def origins(factors: Factors) -> set[Origin]:
    return {Origin(value) for value in factors.origin.tolist()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("compressor", ["svd", "aca-estimate", "none"])
def test_the_error_is_that_of_the_factors_as_they_are_stored(compressor: str, dtype: torch.dtype) -> None:
    D = low_rank_blocks().to(dtype)
    factors = lrbench.get_compressor(compressor, eps=0.1).compress(D)
    assert origins(factors) == {Origin.OWN}
    result = relative_error(D, factors)
    assert result.dtype == torch.float64
    assert result.shape == (4,)
    torch.testing.assert_close(result, expected_errors(D, factors), rtol=1e-9, atol=1e-12)
    if compressor == "none":
        assert not result.any()
    else:
        assert result.min() > 0.001


def test_rounding_of_the_stored_factors_is_seen() -> None:
    D = normal(2, 6, 3) @ normal(2, 3, 9, seed=1)
    U, S, V = torch.linalg.svd(D, full_matrices=False)
    pairs = [(u[:, :3], s[:3, None] * v[:3]) for u, s, v in zip(U, S, V, strict=True)]
    exact = by_hand([u for u, _ in pairs], [v for _, v in pairs])
    single = by_hand([u.float() for u, _ in pairs], [v.float() for _, v in pairs])
    assert relative_error(D, exact).max() < 1e-14
    rounded = relative_error(D, single)
    assert (1e-9 < rounded).all()
    assert (rounded < 1e-6).all()


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("eps", [0.3, 1e-6])
def test_blocks_of_images_and_of_every_group_have_their_own_error(groups: int, eps: float) -> None:
    smooth = normal(3, 4, 12, 14).cumsum(2).cumsum(3)
    blocks = Im2col(smooth, kernel_size=3, padding=1, groups=groups, padding_mode="reflect")
    factors = lrbench.get_compressor("svd", eps=eps).compress(blocks)
    assert (Origin.STORED in origins(factors)) == (eps < 0.1)
    result = relative_error(blocks, factors)
    assert len(result) == 3 * groups
    torch.testing.assert_close(result, expected_errors(blocks.dense(), factors), rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(relative_error(blocks.dense(), factors), result, rtol=1e-9, atol=1e-14)


def test_pixels_that_no_window_reaches_do_not_count() -> None:
    x = normal(2, 1, 5, 5)
    x[:, :, 4] = float("inf")
    x[:, :, :, 4] = 1e300
    blocks = Im2col(x, kernel_size=2, stride=2)
    factors = lrbench.get_compressor("svd", eps=0.5).compress(blocks)
    torch.testing.assert_close(relative_error(blocks, factors), expected_errors(blocks.dense(), factors))


def test_own_escalated_and_stored_blocks_are_measured_alike() -> None:
    D = normal(3, 6, 8)
    kept = D[1] + 0.25 * normal(6, 8, seed=5)
    u, v = normal(6, 2, seed=3), normal(2, 8, seed=4)
    nothing = (D.new_zeros(6, 0), D.new_zeros(0, 8))
    factors = by_hand([u, nothing[0], nothing[0]], [v, nothing[1], nothing[1]], stored={1: kept})
    factors.origin[0] = int(Origin.ESCALATED)
    expected = [(D[0] - u @ v).norm() / D[0].norm(), (D[1] - kept).norm() / D[1].norm(), 1.0]
    torch.testing.assert_close(relative_error(D, factors), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("size", [1.0, 1e-100, 1e-200])
def test_zero_blocks_are_without_error_unless_something_stands_for_them(size: float) -> None:
    D = torch.zeros(4, 3, 5, dtype=torch.float64)
    nothing = (D.new_zeros(3, 0), D.new_zeros(0, 5))
    pairs = [nothing, (D.new_zeros(3, 1), normal(1, 5)), (size * normal(3, 1), normal(1, 5, seed=1)), nothing]
    factors = by_hand([u for u, _ in pairs], [v for _, v in pairs], stored={3: D[3] + size})
    assert relative_error(D, factors).tolist() == [0.0, 0.0, math.inf, math.inf]
    for name in ("svd", "aca", "none"):
        assert relative_error(D, lrbench.get_compressor(name).compress(D)).tolist() == [0.0] * 4


@pytest.mark.parametrize("compressor", ["svd", "none"])
@pytest.mark.parametrize(
    ("scale", "dtype"),
    [
        *((scale, torch.float32) for scale in (1e30, 1e-30, 1e-42)),
        *((scale, torch.float64) for scale in (1e200, 1e-200, 1e-310)),
    ],
    ids=str,
)
def test_the_error_does_not_depend_on_the_scale(scale: float, dtype: torch.dtype, compressor: str) -> None:
    D = (low_rank_blocks() * scale).to(dtype)
    factors = lrbench.get_compressor(compressor, eps=0.1).compress(D)
    result = relative_error(D, factors)
    torch.testing.assert_close(result, expected_errors(D, factors), rtol=1e-6, atol=1e-12)
    assert result.max() <= 0.1


def test_blocks_of_very_different_scales_do_not_disturb_each_other() -> None:
    scales = torch.tensor([1e30, 1e-30, 1.0, 0.0])[:, None, None]
    D = (low_rank_blocks() * scales).to(torch.float32)
    factors = lrbench.get_compressor("svd", eps=0.1).compress(D)
    result = relative_error(D, factors)
    torch.testing.assert_close(result[:3], expected_errors(D[:3], factors_of(factors, 3)), rtol=1e-6, atol=0)
    assert result[3] == 0


def factors_of(factors: Factors, count: int) -> Factors:
    """The first blocks alone."""
    part = factors.low_rank(torch.arange(count))
    return Factors(part.U, part.V, part.offsets, factors.origin[:count])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("compressor", ["svd", "none"])
def test_blocks_that_are_not_finite_have_no_error_and_leave_the_others_theirs(compressor: str, value: float) -> None:
    D = low_rank_blocks()
    clean = relative_error(D, lrbench.get_compressor(compressor, eps=0.1).compress(D))
    D[2, 4, 5] = value
    factors = lrbench.get_compressor(compressor, eps=0.1).compress(D, nonfinite="keep")
    result = relative_error(D, factors)
    assert result.isnan().tolist() == [False, False, True, False]
    assert torch.equal(result[[0, 1, 3]], clean[[0, 1, 3]])


def test_factors_that_are_not_finite_are_never_taken_for_good_ones() -> None:
    D = low_rank_blocks(2)
    u, v = normal(12, 1), normal(1, 20)
    bad = v.clone()
    bad[0, 3] = math.nan
    result = relative_error(D, by_hand([u, u], [bad, v]))
    assert math.isnan(result[0])
    assert math.isfinite(result[1])


def test_an_empty_batch_has_no_errors() -> None:
    for blocks in (torch.zeros(0, 12, 20), Im2col(torch.zeros(0, 2, 4, 4), kernel_size=3)):
        result = relative_error(blocks, lrbench.get_compressor("svd").compress(blocks))
        assert result.shape == (0,)
        assert result.dtype == torch.float64


@pytest.mark.parametrize("shape", [(3, 12, 20), (4, 11, 20), (4, 12, 21), (4, 20, 12)], ids=str)
def test_factors_of_other_blocks_are_refused(shape: tuple[int, int, int]) -> None:
    factors = lrbench.get_compressor("svd").compress(low_rank_blocks())
    with pytest.raises(ValueError, match=r"and what stands for them \(4, 12, 20\): they must agree"):
        relative_error(torch.zeros(shape), factors)


def test_what_was_given_is_left_as_it_was() -> None:
    D = low_rank_blocks()
    factors = lrbench.get_compressor("none").compress(D)
    before = [D.clone(), *(tensor.clone() for tensor in factors.tensors())]
    relative_error(D, factors)
    assert all(torch.equal(a, b) for a, b in zip([D, *factors.tensors()], before, strict=True))


def test_violations_are_counted_and_what_is_no_number_is_one() -> None:
    errors = torch.tensor([0.0, 0.05, 0.1, 0.1 * (1 + 1e-15), 0.1001, math.nan, math.inf], dtype=torch.float64)
    assert violations(errors, 0.1) == 3
