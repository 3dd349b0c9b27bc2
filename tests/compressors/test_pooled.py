"""Compressors with one basis for many blocks: what is shared is kept once, and each block is checked by itself."""

from typing import Any

import pytest
import torch
from oracles import relative_errors
from torch import Tensor

import lrbench
from lrbench import Origin
from lrbench.compressors import certificate
from lrbench.compressors.certificate import check, projection_slack
from lrbench.contract.adversarial import low_rank_plus_noise, photo_crops
from lrbench.contract.comparing import SLACK, each_dtype
from lrbench.low_rank import SharedBasis

POOLED = pytest.mark.parametrize("name", ["shared", "warm"])


def crops(count: int, start: int = 0) -> lrbench.Im2col:
    return lrbench.Im2col(photo_crops(start + count)[start:].float(), 3, padding=1)


@POOLED
def test_blocks_of_one_column_space_share_one_basis(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    D = common @ torch.randn(50, 3, 30, generator=generator, dtype=torch.float64)
    factors = lrbench.get_compressor(name, eps=1e-3).compress(D)
    assert factors.U.shape == (3, 40)
    assert factors.ranks.max() == 3
    assert factors.starts is not None
    assert (factors.origin == Origin.OWN).all()
    assert (relative_errors(D, factors) <= 1e-3 * (1 + SLACK)).all()


@POOLED
def test_each_block_takes_no_more_of_the_basis_than_it_needs(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    common, _ = torch.linalg.qr(torch.randn(40, 6, generator=generator, dtype=torch.float64))
    ranks = [1, 6, 0, 3]
    D = torch.stack(
        [common[:, :r] @ torch.randn(r, 200, generator=generator, dtype=torch.float64) for r in ranks]
    ).repeat(4, 1, 1)
    factors = lrbench.get_compressor(name, eps=0.01).compress(D)
    assert factors.ranks.max() == 6
    assert (factors.ranks[2::4] == 0).all()
    assert (factors.ranks[0::4] < factors.ranks[1::4]).all()


@POOLED
@pytest.mark.parametrize("eps", [0.3, 0.1])
def test_images_need_no_escalation(name: str, eps: float) -> None:
    compressor = lrbench.get_compressor(name, eps=eps)
    for start in (0, 60):
        blocks = crops(60, start)
        factors = compressor.compress(blocks)
        assert (factors.origin == Origin.OWN).all()
        assert (relative_errors(blocks.dense(), factors) <= eps * (1 + SLACK)).all()


@POOLED
def test_an_outlier_that_does_not_fit_gets_factors_of_its_own(name: str) -> None:
    """With two blocks a basis that both share is no gain: factors of their own are smaller."""
    D = torch.cat([low_rank_plus_noise(1, 60, 80, 20, noise=0, seed=seed) for seed in (0, 1)])
    factors = lrbench.get_compressor(name, eps=1e-4).compress(D)
    assert (factors.origin != Origin.STORED).all()
    assert factors.U.numel() + factors.V.numel() < D.numel()
    assert (relative_errors(D, factors) <= 1e-4 * (1 + SLACK)).all()


def test_a_warm_basis_is_extended_for_what_it_does_not_span() -> None:
    generator = torch.Generator().manual_seed(0)
    old, new = torch.linalg.qr(torch.randn(2, 40, 3, generator=generator, dtype=torch.float64))[0]
    compressor = lrbench.get_compressor("warm", eps=0.01)

    def batch(basis: Tensor) -> Tensor:
        return basis @ torch.randn(30, basis.shape[1], 25, generator=generator, dtype=torch.float64)

    assert len(compressor.compress(batch(old)).U) == 3
    D = batch(torch.cat([old, new], 1))
    factors = compressor.compress(D)
    assert len(factors.U) == 6
    assert (factors.origin == Origin.OWN).all()
    assert (relative_errors(D, factors) <= 0.01 * (1 + SLACK)).all()
    assert len(compressor.state_dict()["basis"]) >= 6


def test_a_warm_basis_forgets_what_is_not_used() -> None:
    generator = torch.Generator().manual_seed(0)
    wide, _ = torch.linalg.qr(torch.randn(40, 12, generator=generator, dtype=torch.float64))
    compressor = lrbench.get_compressor("warm", eps=0.01, refresh=2)

    def compress(rank: int) -> None:
        compressor.compress(wide[:, :rank] @ torch.randn(30, rank, 25, generator=generator, dtype=torch.float64))

    compress(12)
    assert len(compressor.state_dict()["basis"]) == 12
    for _ in range(4):
        compress(3)
    assert len(compressor.state_dict()["basis"]) == 3


def test_a_warm_basis_of_other_blocks_is_not_used() -> None:
    compressor = lrbench.get_compressor("warm", eps=0.1)
    compressor.compress(torch.rand(20, 12, 30))
    D = torch.rand(20, 15, 30)
    assert (relative_errors(D, compressor.compress(D)) <= 0.1 * (1 + SLACK)).all()


def test_a_refresh_is_every_so_many_calls() -> None:
    with pytest.raises(ValueError, match="refresh is 0: use a whole number of at least 1"):
        lrbench.get_compressor("warm", refresh=0)


@each_dtype
def test_a_wrong_projection_is_found_out(dtype: torch.dtype) -> None:
    """The certificate trusts coefficients to be the projection; a basis that falls short of the tolerance is not."""
    blocks = lrbench.DenseBlocks(low_rank_plus_noise(4, 30, 50, 6, noise=0, seed=0).to(dtype))
    Q = torch.linalg.svd(blocks.tensor.double().movedim(0, 1).flatten(1), full_matrices=False)[0].T.to(dtype)
    exponent = torch.zeros(4, dtype=torch.int64)
    ranks = torch.tensor([24, 24, 2, 0])
    kept = check(blocks, SharedBasis(Q[:24], Q @ blocks.tensor, ranks), exponent, 0.01).kept
    assert kept.tolist() == [True, True, False, False]


def test_a_loss_that_rounding_of_the_projection_hides_is_found_out() -> None:
    """Energies of float32 coefficients tell a loss to 1e-7 of the block; near the tolerance the residual decides."""
    g = torch.Generator().manual_seed(0)
    hidden = 0
    for _ in range(20):
        left, _ = torch.linalg.qr(torch.randn(40, 30, generator=g, dtype=torch.float64))
        D = (left * 0.3 ** torch.arange(30)) @ torch.randn(30, 64, generator=g, dtype=torch.float64)
        D = (D / D.abs().max())[None].float()
        Q = left[:, :6].T.float().contiguous()
        V = Q @ D
        exact = (D.double() - Q.T.double() @ V.double()).square().sum()
        told = D.double().square().sum() - V.double().square().sum()
        between = float(((exact + told) / 2 / D.double().square().sum()).sqrt())
        kept = check(
            lrbench.DenseBlocks(D), SharedBasis(Q, V, torch.tensor([6])), torch.zeros(1, dtype=torch.int64), between
        ).kept
        assert kept.tolist() == [bool(exact < told)]
        hidden += bool(told < exact)
    assert 3 < hidden < 17, "else there is nothing to find out"


@each_dtype
@pytest.mark.parametrize(("m", "r"), [(27, 6), (288, 100), (1152, 200)])
def test_rounding_in_a_projection_stays_within_its_bound(dtype: torch.dtype, m: int, r: int) -> None:
    generator = torch.Generator().manual_seed(m)
    Q, _ = torch.linalg.qr(torch.randn(m, r, generator=generator, dtype=torch.float64))
    Q, D = Q.to(dtype), (torch.rand(m, 64, generator=generator, dtype=torch.float64) - 0.2).to(dtype)
    V = (Q.T @ D).double()
    exact = (D.double() - Q.double() @ V).square().sum()
    told = D.double().square().sum() - V.square().sum()
    skew = torch.linalg.matrix_norm(Q.double().T @ Q.double() - torch.eye(r, dtype=torch.float64))
    bound = (projection_slack(m, r, dtype) + float(skew)) * D.double().square().sum()
    assert abs(exact - told) <= bound
    assert bound < 0.01 * D.double().square().sum()


@pytest.mark.parametrize("setting", ["mkldnn", "precision"])
def test_a_projection_that_may_be_computed_otherwise_is_not_trusted(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a convolution may take transforms or a lower precision, the residual is formed."""
    formed = []
    original = certificate._residuals

    def watched(*arguments: Any, **options: Any) -> Any:
        formed.append(True)
        return original(*arguments, **options)

    monkeypatch.setattr(certificate, "_residuals", watched)
    compressor = lrbench.get_compressor("shared", eps=0.3)
    blocks = crops(30)
    compressor.compress(blocks)
    assert not formed
    if setting == "mkldnn":
        with torch.backends.mkldnn.flags(enabled=False):
            compressor.compress(blocks)
    else:
        torch.set_float32_matmul_precision("medium")
        try:
            compressor.compress(blocks)
        finally:
            torch.set_float32_matmul_precision("highest")
    assert formed


@pytest.mark.parametrize("name", ["shared", "warm"])
def test_those_that_are_left_to_share_a_basis_pay_for_it(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(27, 27, generator=generator, dtype=torch.float64))[0]
    blocks = torch.stack([Q[:, :22] @ torch.randn(22, 64, generator=generator, dtype=torch.float64) for _ in range(21)])
    noise = torch.randn(20, 5, 64, generator=generator, dtype=torch.float64)
    blocks[1:] += 0.15 * Q[:, 22:] @ noise  # too much for the basis: only the first block fits on it
    factors = lrbench.get_compressor(name, eps=0.015).compress(blocks)
    own = (factors.origin != int(Origin.STORED)).nonzero()[:, 0]
    numbers = factors.U.numel() + factors.V.numel()
    assert numbers <= len(own) * 27 * 64
    assert (relative_errors(blocks, factors) <= 0.015 * (1 + SLACK)).all()
