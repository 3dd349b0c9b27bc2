"""Adaptive cross approximation with partial pivoting, stopped on the true residual."""

from lrbench.blocks import Blocks
from lrbench.compressors import register
from lrbench.compressors.base import Compressor
from lrbench.compressors.crosses import cross_approximation
from lrbench.low_rank import Crosses, LowRank


@register("aca")
class ACA(Compressor):
    """Partially pivoted ACA (M. Bebendorf, 2000; M. Bebendorf and S. Rjasanow, 2003, algorithm 4.2), carried on to eps.

    Pivots are chosen as the paper's variant chooses them, from row 0 on. The stopping rule is another one: the
    Frobenius norm of the residual itself, so that no part of a block that the pivots have not met goes unseen. Where
    the pivoting runs dry before the residual is small, it starts again at the first row that is not yet represented.

    Parameters
    ----------
    eps : float
        Requested relative Frobenius error, in (0, 1].
    factors : {None, "bfloat16", "float16"}
        As :class:`~lrbench.compressors.base.Compressor` takes it.
    """

    guarantee = "block"
    forms_blocks = False
    version = 3

    def factorize(self, blocks: Blocks) -> LowRank | Crosses:
        """See :func:`lrbench.compressors.crosses.cross_approximation`."""
        return cross_approximation(blocks, self.aim, stop="residual", most=self.largest_rank(blocks))


@register("aca-estimate")
class EstimatedACA(Compressor):
    """The paper's ACA: partial pivoting from row 0, stopped by ‖u_k‖‖v_k‖ ≤ eps ‖U_k V_k‖_F.

    The size of the last cross is taken for the size of the residual, of which it is no bound. Nothing is promised,
    nothing is escalated, and nothing stored but what a half precision cannot hold.

    Parameters
    ----------
    eps : float
        Tolerance of the stopping rule, in (0, 1].
    factors : {None, "bfloat16", "float16"}
        As :class:`~lrbench.compressors.base.Compressor` takes it.
    """

    guarantee = None
    forms_blocks = False
    version = 3

    def factorize(self, blocks: Blocks) -> LowRank:
        """See :func:`lrbench.compressors.crosses.cross_approximation`."""
        return cross_approximation(blocks, self.eps, stop="estimate")
