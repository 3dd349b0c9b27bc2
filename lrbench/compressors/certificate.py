"""The check: how far factors are, as stored, from the blocks that they stand for."""

from typing import NamedTuple

import torch
from torch import Tensor

from lrbench.blocks import Blocks, aligned_copy, aligned_product, scale_by_power_of_two
from lrbench.kernels.kernel_blocks import KernelBlocks
from lrbench.kernels.prefix import packed_rows, row_energies
from lrbench.low_rank import Basis, Crosses, LowRank, RowSubset, SharedBasis

__all__ = ["Checked", "check", "projection_slack", "residual_norms", "stored", "unscaled"]

IDENTITY_LIMIT = 1e-6
"""Below this eps the residual is formed; above, the loss of a projection may be told from its factors."""


_SINGLE_LIMIT = 1e-3
"""From this eps on a residual is formed in float32 first, whose rounding is far below it."""


_USUAL_RANK = 8


class Checked(NamedTuple):
    """Factors as they are to be stored, and what they lose.

    Attributes
    ----------
    factors : LowRank
        In the scale of the original blocks.
    kept : Tensor
        (N,) bool: whether ‖D − UV‖_F ≤ eps ‖D‖_F.
    """

    factors: LowRank
    kept: Tensor


def check(
    blocks: Blocks,
    proposal: LowRank | Basis | SharedBasis | Crosses,
    exponent: Tensor,
    eps: float,
    dtype: torch.dtype | None = None,
) -> Checked:
    """Round what a method proposes to what will be stored, and find out in float64 whether that keeps a tolerance.

    Parameters
    ----------
    blocks : Blocks
        The blocks D_i, scaled to a largest magnitude near one.
    proposal : LowRank, Basis, SharedBasis or Crosses
        Of these blocks.
    exponent : Tensor
        (N,) int64: the original blocks are 2**e_i times as large.
    eps : float
        The tolerance, in (0, 1].
    dtype : torch.dtype, optional
        Of the factors, as :func:`stored` takes it.
    """
    if isinstance(proposal, LowRank | Crosses) or dtype not in (None, blocks.dtype):
        if isinstance(proposal, Crosses) and dtype in (None, blocks.dtype) and eps >= _SINGLE_LIMIT:
            factors, squared, energy = _found(blocks, proposal, exponent, measured=True)
        else:
            factors = stored(blocks, proposal, exponent, dtype)
            squared, energy = _residuals(blocks, factors, exponent, single=eps >= _SINGLE_LIMIT)
        kept = squared <= eps**2 * energy
        if eps >= _SINGLE_LIMIT:
            _decide(blocks, factors, exponent, eps, kept)
        return Checked(factors, kept)
    if isinstance(proposal, SharedBasis):
        factors, squared, energy = _shared(blocks, proposal, exponent)
    else:
        factors, squared, energy = _projected(blocks, proposal, exponent, single=_leaves_room(blocks, proposal, eps))
    kept = squared <= eps**2 * energy
    # Where rounding might decide, and where squares no longer tell, the residual decides.
    _decide(blocks, factors, exponent, eps, kept, every=eps < IDENTITY_LIMIT)
    return Checked(factors, kept)


def _decide(blocks: Blocks, factors: LowRank, exponent: Tensor, eps: float, kept: Tensor, every: bool = False) -> None:
    """Let the residual, formed in float64, say of blocks that are not ``kept``, or of ``every`` one, if they are."""
    if every or not bool(kept.all()):
        index = (torch.ones_like(kept) if every else ~kept).nonzero()[:, 0]
        squared, energy = _residuals(blocks.select(index), factors.select(index), exponent[index])
        kept[index] = squared <= eps**2 * energy


def _leaves_room(blocks: Blocks, basis: Basis, eps: float) -> bool:
    """Whether rounding in float32 leaves few blocks whose verdict it could turn, at ranks such as compression is for.

    The answer must be the same for all blocks of a shape, whatever their ranks: it decides the last bits of factors.
    """
    if blocks.dtype != torch.float32:
        return False
    slack = projection_slack(basis.vectors.shape[2], _USUAL_RANK, torch.float32)
    # The energy lost is spread over as much as the last vector holds, about the allowance divided by the rank.
    return slack * _USUAL_RANK <= 0.015 * eps**2


def stored(
    blocks: Blocks,
    proposal: LowRank | Basis | SharedBasis | Crosses,
    exponent: Tensor,
    dtype: torch.dtype | None = None,
) -> LowRank:
    """What a method proposes, in the scale of the original blocks.

    Parameters
    ----------
    blocks, proposal, exponent
        As :func:`check` takes them.
    dtype : torch.dtype, optional
        Of the factors: the blocks' own without it, or a half precision. What is too large for that becomes infinite.
    """
    if dtype not in (None, blocks.dtype):
        if isinstance(proposal, Basis):
            proposal = _projected_in_half(blocks, proposal, exponent, dtype)
        return stored(blocks, proposal, exponent).to(dtype)
    if isinstance(proposal, SharedBasis):
        V = packed_rows(proposal.coefficients, proposal.ranks, exponent)
        # A copy: the factors must not hold the memory of vectors that they do not use.
        return LowRank(proposal.vectors.clone(), V, proposal.ranks, torch.zeros_like(proposal.ranks))
    if isinstance(proposal, Basis):
        return _projected(blocks, proposal, exponent)[0]
    if isinstance(proposal, Crosses):
        return _found(blocks, proposal, exponent, measured=False)[0]
    rounded = proposal.to(blocks.dtype)
    if isinstance(proposal, RowSubset):
        return LowRank(rounded.U, _times_powers(rounded.V, exponent, rounded.ranks), rounded.ranks)
    return unscaled(rounded, exponent)


def _projected(blocks: Blocks, basis: Basis, exponent: Tensor, single: bool = False) -> tuple[LowRank, Tensor, Tensor]:
    """The factors that a basis gives, bounds of ‖D − UV‖_F², and the ‖D‖_F²."""
    view = KernelBlocks.of(blocks)
    if view is not None:
        U, V, squared, energy = view.project(basis.side, basis.vectors, basis.ranks, exponent, single)
        return LowRank(U, V, basis.ranks), squared, energy

    def project(index: Tensor, r: int) -> tuple[Tensor, Tensor]:
        # Rounded first: what is projected on is what is stored.
        vectors = aligned_copy(basis.vectors[index, :r].to(blocks.dtype))
        some = blocks.select(index)
        if basis.side == "rows":
            return vectors.mT, some.left_product(vectors.mT)
        return some.right_product(vectors), vectors

    factors = stored(blocks, LowRank.by_rank(basis.ranks, project), exponent)
    return factors, *_residuals(blocks, factors, exponent)


def _found(blocks: Blocks, rule: Crosses, exponent: Tensor, measured: bool) -> tuple[LowRank, Tensor, Tensor]:
    """The crosses of a rule, bounds of ‖D − UV‖_F², and the ‖D‖_F²; nothing of these unless ``measured``."""
    view = KernelBlocks.of(blocks)
    assert view is not None, "kernels find these crosses"
    U, V, ranks, squared, energy = view.pivoted(rule, exponent, measured)
    return LowRank(U, V, ranks), squared, energy


def _projected_in_half(blocks: Blocks, basis: Basis, exponent: Tensor, dtype: torch.dtype) -> LowRank:
    """Factors of which the basis has numbers of a half precision already, and the rest makes the best of that.

    With the pseudoinverse in place of the transpose, what rounding did to the lengths of the basis vectors and to the
    angles between them does no harm.
    """
    half = exponent.div(2, rounding_mode="floor")
    power = half if basis.side == "rows" else exponent - half
    k = int(basis.ranks.max())
    vectors = scale_by_power_of_two(basis.vectors[:, :k].to(torch.float64), power).to(dtype)
    vectors = scale_by_power_of_two(vectors.to(torch.float64), -power)
    duals = torch.zeros_like(vectors)
    for r in basis.ranks.unique().tolist():
        index = (basis.ranks == r).nonzero()[:, 0]
        some = aligned_copy(vectors[index, :r])
        angles = aligned_product(some, some.mT)
        # Where numbers were too large or vanished nothing is projected, which the certificate does not let pass.
        sound = (angles.isfinite().all((1, 2)) & (angles.diagonal(dim1=1, dim2=2) > 0.5).all(1))[:, None, None]
        identity = torch.eye(r, dtype=torch.float64, device=some.device)
        inverse, _ = torch.linalg.inv_ex(torch.where(sound, angles, identity))
        duals[index, :r] = torch.where(sound, aligned_product(aligned_copy(inverse), some), 0.0)
    found, _, _ = _projected(blocks, Basis(basis.side, duals, basis.ranks), torch.zeros_like(exponent))
    rounded = vectors[torch.arange(k, device=vectors.device) < basis.ranks[:, None]]
    if basis.side == "rows":
        return LowRank(rounded, found.V, basis.ranks)
    return LowRank(found.U, rounded, basis.ranks)


def projection_slack(m: int, rank: int, dtype: torch.dtype) -> float:
    """What rounding can do to the energy that a projection holds, relative to ‖D‖_F².

    V = UᵀD is computed with an error E of at most γ_m |U|ᵀ|D|, whatever the order of summation (N. J. Higham, 2002,
    section 3.5), so that ‖E‖_F ≤ γ_m √r ‖D‖_F, and ‖D − UV‖² = ‖D‖² − ‖V‖² + 2⟨E, V⟩ but for what U lacks in
    orthogonality.

    Parameters
    ----------
    m : int
        Length of the columns.
    rank : int
        The number r of orthonormal vectors.
    dtype : torch.dtype
        Of the arithmetic.
    """
    rounding = m * torch.finfo(dtype).eps / 2
    return 2 * rounding / (1 - rounding) * rank**0.5 * 1.001 + 4 * rank * torch.finfo(dtype).eps


def _shared(blocks: Blocks, shared: SharedBasis, exponent: Tensor) -> tuple[LowRank, Tensor, Tensor]:
    """The factors that a shared basis gives, bounds of ‖D − UV‖_F², and the ‖D‖_F²."""
    factors = stored(blocks, shared, exponent)
    k, m = shared.vectors.shape
    energy = blocks.squared_norm()
    if not _sums_plainly(blocks):
        return factors, torch.full_like(energy, torch.inf), energy
    owner = torch.arange(len(energy), device=energy.device).repeat_interleave(factors.ranks)
    held = torch.zeros_like(energy).index_add_(0, owner, row_energies(factors.V[:, None])[:, 0])
    held = torch.ldexp(held, -2 * exponent)
    Q = shared.vectors.to(torch.float64)
    skew = torch.linalg.matrix_norm(Q @ Q.T - torch.eye(k, dtype=torch.float64, device=Q.device))
    slack = projection_slack(m, k, shared.vectors.dtype) * energy + skew * held
    # The two sums have their own rounding errors, each at most a unit for each of their terms.
    terms = m * factors.V.shape[1] + k * factors.V.shape[1] + m * k
    slack += terms * 1.2e-16 * (energy + held)
    # In its own scale: a coefficient that rounding to a subnormal number changed is found by the residual.
    plain = exponent.abs() < 100
    return factors, torch.where(plain, energy - held + slack, torch.inf), energy


def _sums_plainly(blocks: Blocks) -> bool:
    """Whether products with blocks are sums of their terms in the blocks' own precision, in whatever order."""
    if blocks.device.type != "cpu" or blocks.dtype not in (torch.float32, torch.float64):
        return False
    if blocks.dtype == torch.float64:
        return True
    mkldnn = torch.backends.mkldnn
    # Without oneDNN another library may convolve by transforms; with it, a setting may lower the precision.
    settings = [getattr(part, "fp32_precision", "none") for part in (getattr(mkldnn, "conv", None), mkldnn)]
    plain = torch.get_float32_matmul_precision() == "highest" and set(settings) <= {"none", "ieee"}
    return plain and mkldnn.is_available() and bool(mkldnn.enabled)


def _residuals(blocks: Blocks, factors: LowRank, exponent: Tensor, single: bool = False) -> tuple[Tensor, Tensor]:
    """‖D − 2**(−e) UV‖_F² and ‖D‖_F², (N,) float64; with ``single`` the former may be bounds."""
    factors = factors.packed()
    if factors.U.dtype.itemsize < 4:
        factors = factors.to(blocks.dtype)
    view = KernelBlocks.of(blocks)
    if view is not None:
        return view.residuals(factors.U, factors.V, factors.ranks, exponent, single)
    energy = blocks.squared_norm()
    return _rounded(_formed(blocks, factors, exponent), energy, factors, exponent), energy


def _rounded(squared: Tensor, energy: Tensor, factors: LowRank, exponent: Tensor) -> Tensor:
    """Squared residuals with a bound of what rounding can have hidden, where the kernel adds it in float64."""
    lengths = [torch.linalg.vector_norm(packed.to(torch.float64), dim=1) for packed in (factors.U, factors.V)]
    blocks = torch.arange(len(squared), device=squared.device).repeat_interleave(factors.ranks)
    sizes = energy.sqrt().index_add(0, blocks, scale_by_power_of_two(lengths[0] * lengths[1], -exponent[blocks]))
    unit = (factors.ranks + 2) * 2.0**-53
    hidden = unit / (1 - unit) * sizes
    return torch.where(hidden <= 1e-12 * energy.sqrt(), squared, (squared.sqrt() + hidden) ** 2)


def residual_norms(blocks: Blocks, low_rank: LowRank, exponent: Tensor) -> Tensor:
    """Frobenius norms of D_i − 2**(−e_i) U_i V_i, computed in float64 from the factors as they are stored.

    The residual itself is formed, a part at a time: no identity with a cancellation in it stands between the
    factors and the verdict. What rounding can hide is below 1e-12 ‖D_i‖, or is counted, as it is of factors that
    cancel one another out.

    Parameters
    ----------
    blocks : Blocks
        The blocks D_i, scaled to a largest magnitude near one.
    low_rank : LowRank
        The factors, in any dtype and in the scale of the original blocks.
    exponent : Tensor
        (N,) int64: the original blocks are 2**e_i times as large as ``blocks``.

    Returns
    -------
    Tensor
        (N,) float64; NaN or infinite where a factor is.
    """
    return _residuals(blocks, low_rank, exponent)[0].sqrt()


def _formed(blocks: Blocks, low_rank: LowRank, exponent: Tensor) -> Tensor:
    """Squared norms of the residuals, in plain torch."""
    total = torch.zeros(len(blocks), dtype=torch.float64, device=blocks.device)
    ranks, offsets = low_rank.ranks, low_rank.offsets.tolist()
    held = slice(0, 0)
    U = V = total
    for part, columns, D in blocks.strips("columns"):
        if part != held:
            held = part
            rows = slice(offsets[part.start], offsets[part.stop])
            U, V = _padded(low_rank.U[rows], low_rank.V[rows], ranks[part])
            V = scale_by_power_of_two(V, -exponent[part])
        D.baddbmm_(U.mT, V[:, :, columns], alpha=-1)
        total[part] += D.square_().sum((1, 2))
    return total


def unscaled(low_rank: LowRank, exponent: Tensor) -> LowRank:
    """Factors of 2**e_i D_i from factors of D_i; both share the exponent, so that neither leaves its dtype's range."""
    half = exponent.div(2, rounding_mode="floor")
    return LowRank(
        _times_powers(low_rank.U, half, low_rank.ranks),
        _times_powers(low_rank.V, exponent - half, low_rank.ranks),
        low_rank.ranks,
    )


def _times_powers(packed: Tensor, exponent: Tensor, ranks: Tensor) -> Tensor:
    """Scale each block's rows; what needs no scaling is not touched."""
    if not bool(exponent.any()):
        return packed
    return scale_by_power_of_two(packed, exponent.repeat_interleave(ranks))


def _padded(U: Tensor, V: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Packed factors as float64 (N, r, m) and (N, r, n), filled up with zeros to the largest rank."""
    largest = int(ranks.max()) if len(ranks) else 0
    filled = torch.arange(largest, device=ranks.device) < ranks[:, None]
    out = []
    for packed in (U, V):
        full = torch.zeros(len(ranks), largest, packed.shape[1], dtype=torch.float64, device=packed.device)
        full[filled] = packed.to(torch.float64)
        out.append(full)
    return out[0], out[1]
