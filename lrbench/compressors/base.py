"""What a compressor is, and what it promises.

A compressor proposes factors; this module checks them. The check is made on the factors as stored, for every block of
every batch, against a bound that counts rounding, and in float64 where that leaves a doubt: see
:mod:`lrbench.compressors.certificate`.
"""

import math
from numbers import Real
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from lrbench.blocks import Blocks, ScaledBlocks, as_blocks
from lrbench.compressed import Compressed, full_precision
from lrbench.compressors.certificate import check, stored
from lrbench.compressors.spectral import largest_rank, truncated_svd
from lrbench.factors import Factors, Origin
from lrbench.im2col import Geometry
from lrbench.kernels.kernel_blocks import KernelBlocks
from lrbench.low_rank import Basis, Crosses, LowRank, SharedBasis, ranges

__all__ = ["Compressor", "Guarantee", "NonFiniteBlockError", "UnknownCompressorError", "scale_exponents", "without"]

Guarantee = Literal["block", "batch"] | None
_Blocks = TypeVar("_Blocks", bound=Blocks)

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""The half precisions in which factors may be stored, by name."""

WORKSPACE_BYTES = {"cpu": 16 << 20}
"""Blocks are compressed in slices whose dense form and Gram matrix, in float64, take this much (elsewhere 1 GiB)."""


class UnknownCompressorError(LookupError):
    """No compressor has that name."""


class NonFiniteBlockError(ValueError):
    """Blocks hold NaN or infinity.

    Attributes
    ----------
    indices : list of int
        Which blocks.
    """

    def __init__(self, indices: list[int]) -> None:
        self.indices = indices
        shown = ", ".join(map(str, indices[:8])) + (", …" if len(indices) > 8 else "")
        super().__init__(
            f"{len(indices)} of the blocks hold NaN or infinity (indices {shown}): mend the data, or call "
            'compress(..., nonfinite="keep") to store them as they are'
        )

    def __reduce__(self) -> tuple[type, tuple[list[int]]]:
        return type(self), (self.indices,)


class Compressor:
    """A method that replaces blocks by something smaller.

    A subclass gives :meth:`factorize`; :meth:`compress` calls it with finite blocks, scaled by a power of two to a
    largest magnitude in (1/2, 1], and certifies what it returns if the class says ``guarantee = "block"``.

    Parameters
    ----------
    eps : float
        Requested relative Frobenius error, in (0, 1].
    factors : {None, "bfloat16", "float16"}
        In which U and V are stored: the blocks' dtype (None), or a half precision, from which they are lifted to be
        computed with. What is promised holds for the factors as stored.

    Attributes
    ----------
    guarantee : {"block", "batch", None}
        ``block``: ‖D_i − D̂_i‖_F ≤ eps ‖D_i‖_F for every finite block, checked. ``batch``: the same for the batch as a
        whole. None: no promise.
    uses_eps : bool
        Whether ``eps`` changes the result.
    forms_blocks : bool
        Whether ``factorize`` may form all blocks that it is given, even on a CPU: they come in smaller slices then.
    pooled : bool
        Whether a block's factors depend on the other blocks of the batch.
    stateful : bool
        Whether they depend on earlier calls: see :meth:`state_dict`.
    period : int
        Calls after which its work repeats. What one takes is the mean over so many, however much one of them takes.
    randomized : bool
        Whether they depend on random numbers, which a parameter ``seed`` fixes.
    low_rank : bool
        Whether what is returned are factors, with a rank for each block.
    on_input : bool
        Whether it is the layer's input x that is replaced, by an x̂ of which D̂ is the lowering.
    version : int
        Of the algorithm: raised whenever its results change, so that stored results are not taken for new ones.
    name : str
        Under which the class is registered.
    """

    guarantee: ClassVar[Guarantee] = None
    uses_eps: ClassVar[bool] = True
    forms_blocks: bool = True
    pooled: ClassVar[bool] = False
    stateful: ClassVar[bool] = False
    period: int = 1
    randomized: ClassVar[bool] = False
    low_rank: ClassVar[bool] = True
    on_input: ClassVar[bool] = False
    version: ClassVar[int] = 1
    name: ClassVar[str] = ""

    def __init__(self, eps: float = 0.1, factors: str | None = None) -> None:
        given: object = eps
        # Compared before it is converted: an integer may be larger, and a fraction smaller, than any float.
        number = isinstance(given, Real) and not isinstance(given, bool)
        if not number or not 0 < eps <= 1 or float(eps) == 0:
            raise ValueError(f"eps is {eps!r}: it must be a number in (0, 1]")
        if factors is not None and not self.low_rank:
            raise ValueError(f"factors is {factors!r}, but {self.name} has none: leave it out")
        if factors not in (None, *HALVES):
            raise ValueError(f"factors is {factors!r}: use None, {' or '.join(map(repr, HALVES))}")
        self.eps, self.factors = float(eps), factors

    @property
    def aim(self) -> float:
        """The tolerance that :meth:`factorize` is to keep: eps, less what the rounding of factors may take of it."""
        if self.factors is None:
            return self.eps
        # Typically each side is rounded by 0.4 of half a unit in the last place, and errors add in squares.
        rounding = torch.finfo(HALVES[self.factors]).eps / 2
        return math.sqrt(max(self.eps**2 - rounding**2, self.eps**2 / 4))

    def __repr__(self) -> str:
        half = "" if self.factors is None else f", factors={self.factors!r}"
        return f"{type(self).__name__}(eps={self.eps:g}{half})"

    def factorize(self, blocks: Blocks) -> LowRank | Basis | SharedBasis | Crosses:
        """Approximate blocks by factors, to the relative error :attr:`aim`.

        Parameters
        ----------
        blocks : Blocks
            N finite blocks (N >= 1) in float32 or float64, each zero or of largest magnitude in (1/2, 1].

        Returns
        -------
        LowRank, Basis, SharedBasis or Crosses
            The factors, in the blocks' dtype or a wider one; or one side of them alone, if the other is its projection;
            or columns that all blocks have in common; or, where kernels find them, the rule of crosses alone.
        """
        raise NotImplementedError(f"{type(self).__name__} gives no factors: give it a method factorize(blocks)")

    def compress(self, blocks: Blocks | Tensor, *, nonfinite: Literal["raise", "keep"] = "raise") -> Compressed:
        """Replace a batch of blocks by factors.

        Parameters
        ----------
        blocks : Im2col or Tensor
            N blocks m x n: :class:`lrbench.Im2col`, or a floating tensor (N, m, n) on any device, contiguous or not.
            Half precisions are lifted to float32.
        nonfinite
            What to do with blocks that hold NaN or infinity: ``raise``, or ``keep`` them as they are, which leaves
            the factors of the other blocks as they would have been.

        Returns
        -------
        Compressed
            On the blocks' device, in their dtype (float32 for half precisions), but U and V as ``factors`` says;
            :class:`lrbench.Factors` where ``low_rank``.

        Raises
        ------
        NonFiniteBlockError
            If a block is not finite and ``nonfinite`` is ``raise``.
        """
        if nonfinite not in ("raise", "keep"):
            raise ValueError(f"nonfinite is {nonfinite!r}: use 'raise' or 'keep'")
        blocks = as_blocks(blocks)
        blocks = self._lifted(blocks)
        if len(blocks) == 0:
            return self._represent_nothing(blocks)
        magnitude = blocks.abs_max()
        finite = magnitude < torch.inf
        bad = None if bool(finite.all()) else ~finite
        if bad is not None and nonfinite == "raise":
            raise NonFiniteBlockError(bad.nonzero()[:, 0].tolist())
        with full_precision(blocks.device.type):
            return self._represent(blocks, magnitude, bad)

    def largest_rank(self, blocks: Blocks) -> int:
        """The rank above which a block's factors take more memory than the block."""
        itemsize = blocks.dtype.itemsize if self.factors is None else HALVES[self.factors].itemsize
        return largest_rank(blocks.shape[1], blocks.shape[2], blocks.dtype.itemsize / itemsize)

    def skip(self, geometry: Geometry, size: tuple[int, int] | None, path: str) -> str | None:
        """Say why the method makes no sense in a layer, or nothing.

        Parameters
        ----------
        geometry : Geometry
            Of the layer's convolution.
        size : tuple of int or None
            Height and width of its input; None where they are not known.
        path : {"forward", "backward", "both"}
            Where the approximation would act.

        Returns
        -------
        str or None
            A clause such as "its estimate is unbiased in the backward pass only", for tables and errors; None where
            nothing speaks against it.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """What the compressor carries from one call to the next: tensors, numbers, strings; nothing by default."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        if state:
            raise ValueError(f"{self.name} carries no state, but was given {sorted(state)}")

    def _lifted(self, blocks: Blocks) -> Blocks:
        """The blocks in a dtype that the method computes in."""
        return blocks if blocks.dtype.itemsize >= 4 else blocks.like(blocks.tensor.to(torch.float32))

    def _represent_nothing(self, blocks: Blocks) -> Compressed:
        """What stands for a batch of no blocks."""
        return self._assemble(blocks, self._empty(blocks), torch.zeros(0, dtype=torch.uint8, device=blocks.device))

    def _represent(self, blocks: Blocks, magnitude: Tensor, bad: Tensor | None) -> Compressed:
        """Scale, factorize and certify finite blocks, a bounded slice at a time."""
        N, m, n = blocks.shape
        if bad is not None:
            finite = without(blocks, bad)
            magnitude = torch.where(bad, magnitude.new_zeros(()), magnitude)
        else:
            finite = blocks
        exponent = scale_exponents(magnitude)
        limit = WORKSPACE_BYTES.get(blocks.device.type, 1 << 30)
        in_place = not self.forms_blocks and blocks.device.type == "cpu" and not KernelBlocks.form(blocks)
        formed = 0 if in_place else m * n
        step = N if self.pooled else max(1, limit // (8 * (formed + min(m, n) ** 2)))
        if step >= N:
            factors, origin = self._certified(finite.select(slice(N)), exponent)
        else:
            cuts = [slice(start, min(start + step, N)) for start in range(0, N, step)]
            parts = [self._certified(finite.select(cut), exponent[cut]) for cut in cuts]
            factors, origin = LowRank.concatenate([part for part, _ in parts]), torch.cat([part for _, part in parts])
        if bad is not None:
            origin[bad] = int(Origin.STORED)
        return self._assemble(blocks, factors, origin)

    def _certified(self, blocks: Blocks, exponent: Tensor) -> tuple[LowRank, Tensor]:
        """Factors of some blocks that keep the tolerance, or none where a block is to be stored, and the origins."""
        back = -exponent
        work = ScaledBlocks(blocks, back)
        origin = torch.full((len(work),), int(Origin.OWN), dtype=torch.uint8, device=work.device)
        if self.eps == 1 and self.guarantee == "block":
            return self._empty(work), origin
        dtype = work.dtype if self.factors is None else HALVES[self.factors]
        # The method gets blocks of its own: it may work in place, and the check must not see what it left.
        proposal = self.factorize(ScaledBlocks(blocks, back))
        if self.guarantee != "block":
            factors = stored(work, proposal, exponent, dtype)
            if self.factors is not None:
                origin[~_finite(factors)] = int(Origin.STORED)
            return factors, origin
        factors, kept = check(work, proposal, exponent, self.eps, dtype)
        fits = _fits(factors, work)
        if factors.starts is None and bool((fits & kept).all()):
            return factors, origin
        if factors.starts is not None:
            # Where a shared basis is too large for these blocks, one of their own need not be.
            kept, fits = kept & fits, torch.ones_like(fits)
        # The SVD again, ever further inside the tolerance, where rounding to the stored dtype broke it.
        for inside in (1.0, 0.99, 0.9, 0.5, 0.1):
            failed = (fits & ~kept).nonzero()[:, 0]
            if len(failed) == 0:
                break
            again = work.select(failed)
            proposal = truncated_svd(again, inside * self.aim)
            better = check(again, proposal, exponent[failed], self.eps, dtype)
            factors = factors.replace(failed, better.factors)
            origin[failed] = int(Origin.ESCALATED)
            fits[failed] = _fits(better.factors, work)
            kept[failed] = better.kept
        origin[~_fit_alone(factors, work, fits & kept)] = int(Origin.STORED)
        return factors, origin

    def _assemble(self, blocks: Blocks, low_rank: LowRank, origin: Tensor) -> Factors:
        """Copy the blocks that are to be stored, and drop their factors."""
        stored, kept = None, None
        if bool(origin.any()):  # not all of them by the compressor's own method
            stored = (origin == int(Origin.STORED)).nonzero()[:, 0]
            if len(stored):
                kept = blocks.select(stored)
                low_rank = low_rank.replace(stored, self._empty(kept))
        packed = (low_rank.U, low_rank.V, low_rank.offsets)
        return Factors(*packed, origin, stored, kept, blocks.groups, low_rank.starts, blocks.dtype)

    def _empty(self, blocks: Blocks) -> LowRank:
        """Factors of rank 0."""
        N, m, n = blocks.shape
        dtype = blocks.dtype if self.factors is None else HALVES[self.factors]
        ranks = torch.zeros(N, dtype=torch.int64, device=blocks.device)
        U, V = (torch.empty(0, side, dtype=dtype, device=blocks.device) for side in (m, n))
        return LowRank(U, V, ranks)


def without(blocks: _Blocks, bad: Tensor) -> _Blocks:
    """Blocks with zeros in the places of some, (N,) bool: the batch's shape stays, and so the others' arithmetic."""
    shape = (-1,) + (1,) * (blocks.tensor.ndim - 1)
    return blocks.like(torch.where(bad.view(shape), blocks.tensor.new_zeros(()), blocks.tensor))


def scale_exponents(magnitude: Tensor) -> Tensor:
    """Exponents e, (N,) int64, with which 2**(−e) brings finite largest magnitudes into (1/2, 1]; of zeros 0.

    A magnitude of one, which many an image has, stays as it is: nothing has to be scaled back.
    """
    if magnitude.device.type == "cpu" and magnitude.dtype in (torch.float32, torch.float64):
        # As below: of so few numbers most of the time goes into calls, which NumPy's take less of.
        m, e = np.frexp(magnitude.detach().numpy())
        return torch.from_numpy(np.asarray(e.astype(np.int64) - (m == 0.5)))
    mantissa, exponent = torch.frexp(magnitude)
    return exponent.to(torch.int64) - (mantissa == 0.5).to(torch.int64)


def _fits(factors: LowRank, blocks: Blocks) -> Tensor:
    """Whether factors take no more memory than their block: r (m + n) <= m n, or with a part of what is shared."""
    N, m, n = blocks.shape
    if factors.starts is None:
        return factors.ranks <= largest_rank(m, n, blocks.dtype.itemsize / factors.V.itemsize)
    return (factors.ranks * n + len(factors.U) * m / N) * factors.V.itemsize <= m * n * blocks.dtype.itemsize


def _fit_alone(factors: LowRank, blocks: Blocks, kept: Tensor) -> Tensor:
    """Which of the blocks that are to be kept, (N,) bool, take no more memory than they have, once those alone are."""
    if factors.starts is None:
        return kept
    _, m, n = blocks.shape
    while True:
        # What is shared is paid for by those that are left to share it.
        index = kept.nonzero()[:, 0]
        ranks = factors.ranks[index]
        rows = ranges(factors.starts[index], ranks)
        shares = 1 / torch.bincount(rows, minlength=len(factors.U)).clamp(min=1).double()
        owner = torch.arange(len(index), device=rows.device).repeat_interleave(ranks)
        paid = shares.new_zeros(len(index)).index_add_(0, owner, shares[rows]) * m + ranks * n
        dear = paid * factors.V.itemsize > m * n * blocks.dtype.itemsize * (1 + 1e-12)
        if not bool(dear.any()):
            return kept
        kept = kept.clone()
        kept[index[dear]] = False


def _finite(factors: LowRank) -> Tensor:
    """Whether all numbers of a block's factors are finite, (N,) bool."""
    packed = factors.packed()
    bad = ~(packed.U.isfinite().all(1) & packed.V.isfinite().all(1))
    owner = torch.arange(len(packed.ranks), device=bad.device).repeat_interleave(packed.ranks)
    finite = torch.ones(len(packed.ranks), dtype=torch.bool, device=bad.device)
    finite[owner[bad]] = False
    return finite
