"""Every registered compressor keeps the contract, and so does one that a reader might write."""

import pytest
import scipy.linalg
import torch

import lrbench
from lrbench.blocks import Blocks
from lrbench.contract import CompressorContract, Make
from lrbench.contract.adversarial import with_singular_values


class TestRegistered(CompressorContract):
    @pytest.fixture(params=lrbench.list_compressors())
    def make(self, request: pytest.FixtureRequest) -> Make:
        return lambda **options: lrbench.get_compressor(request.param, **options)


class PivotedQR(lrbench.Compressor):
    """Pivoted QR in the blocks' own precision, cut where the diagonal of R falls below eps: a heuristic."""

    guarantee = "block"

    def factorize(self, blocks: Blocks) -> lrbench.LowRank:
        parts = []
        for D in blocks.dense().numpy():
            Q, R, order = scipy.linalg.qr(D, mode="economic", pivoting=True)
            diagonal = abs(R.diagonal())
            rank = int((diagonal > self.eps * diagonal[0]).sum()) if diagonal[0] else 0
            V = torch.from_numpy(R[:rank])
            V[:, order.copy()] = V.clone()
            parts.append(lrbench.LowRank(torch.from_numpy(Q[:, :rank].T.copy()), V, torch.tensor([rank])))
        return lrbench.LowRank.concatenate(parts)


class TestThirdParty(CompressorContract):
    @pytest.fixture
    def make(self) -> Make:
        return PivotedQR

    def test_its_heuristic_needs_the_certificate(self, make: Make) -> None:
        blocks = with_singular_values([1.0] + [0.05] * 11, 24, 32)
        assert make(eps=0.1).compress(blocks).origin.tolist() == [int(lrbench.Origin.ESCALATED)]
