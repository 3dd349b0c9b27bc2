"""No compression: the lowered blocks, kept whole. The paper's baseline, and every other method's."""

import torch
from torch import Tensor

from lrbench.blocks import Blocks, DenseBlocks
from lrbench.compressors import register
from lrbench.compressors.base import Compressor
from lrbench.factors import Factors, Origin
from lrbench.low_rank import LowRank


@register("none")
class Uncompressed(Compressor):
    """Keep D_i itself: rank min(m, n), error 0, m·n numbers a block.

    Parameters
    ----------
    eps : float
        Accepted for the sake of the common interface, and ignored.
    """

    guarantee = "block"
    uses_eps = False

    def __init__(self, eps: float = 0.1) -> None:
        super().__init__(eps)

    def factorize(self, blocks: Blocks) -> LowRank:
        """D = I·D or D·I, whichever identity is the smaller; :meth:`compress` keeps D alone."""
        N, m, n = blocks.shape
        identity = torch.eye(min(m, n), dtype=blocks.dtype, device=blocks.device).expand(N, -1, -1)
        ranks = torch.full((N,), min(m, n), device=blocks.device)
        D = blocks.dense()
        return LowRank.from_padded(identity, D, ranks) if m <= n else LowRank.from_padded(D, identity, ranks)

    def _represent(self, blocks: Blocks, magnitude: Tensor, bad: Tensor | None) -> Factors:
        N, m, n = blocks.shape
        D = blocks.dense()
        origin = torch.full((N,), int(Origin.OWN), dtype=torch.uint8, device=D.device)
        if bad is not None:
            origin[bad] = int(Origin.STORED)
        offsets = torch.zeros(N + 1, dtype=torch.int64, device=D.device)
        everything = torch.arange(N, device=D.device)
        return Factors(D.new_empty(0, m), D.new_empty(0, n), offsets, origin, everything, DenseBlocks(D), blocks.groups)
