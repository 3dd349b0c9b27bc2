"""Named families of blocks on which a low-rank method, or the check of one, has reason to go wrong."""

from collections.abc import Callable

import numpy as np
import torch
from scipy.linalg import hilbert
from sklearn.datasets import load_sample_image
from torch import Tensor

from lrbench.im2col import Im2col

__all__ = [
    "FAMILIES",
    "decaying_blocks",
    "family",
    "image_blocks",
    "low_rank_plus_noise",
    "photo_crops",
    "with_singular_values",
]

Builder = Callable[[torch.dtype, float], Tensor]
"""Makes blocks (N, m, n) of a dtype, for a compressor that is asked for eps."""

FAMILIES: dict[str, Builder] = {}


def family(name: str, dtype: torch.dtype, eps: float) -> Tensor:
    """The blocks of a family, the same ones at each call."""
    return FAMILIES[name](dtype, eps)


def photo_crops(N: int = 3, size: int = 9) -> Tensor:
    """Crops of the photographs that scikit-learn ships, (N, 3, size, size) float64 in [0, 1]."""
    picture = np.array(load_sample_image("china.jpg"), dtype=np.float64) / 255
    corners = _generator("photo").integers(0, 400, (N, 2))
    crops = [picture[y : y + size, x : x + size].transpose(2, 0, 1) for y, x in corners]
    return torch.from_numpy(np.stack(crops))


def low_rank_plus_noise(
    N: int = 3, m: int = 20, n: int = 30, rank: int = 4, noise: float = 1e-3, seed: int = 0
) -> Tensor:
    """Gaussian blocks of some rank with noise on top, (N, m, n) float64."""
    g = np.random.default_rng(seed)
    smooth = g.standard_normal((N, m, rank)) @ g.standard_normal((N, rank, n))
    return torch.from_numpy(smooth + noise * g.standard_normal((N, m, n)))


def with_singular_values(values: list[float], m: int, n: int, seed: int = 0) -> Tensor:
    """One block (1, m, n), float64, with these singular values."""
    g = np.random.default_rng(seed)
    k = len(values)
    left = np.linalg.qr(g.standard_normal((m, k)))[0]
    right = np.linalg.qr(g.standard_normal((n, k)))[0]
    return torch.from_numpy(left * np.array(values) @ right.T)[None]


def decaying_blocks(dtype: torch.dtype = torch.float64, m: int = 24, n: int = 32) -> Tensor:
    """Blocks of different ranks, (6, m, n), their singular values well apart; the last but one is zero."""
    spectra = [[decay**k for k in range(min(m, n))] for decay in (0.3, 0.6, 0.15, 0.45, 0.8)]
    blocks = [with_singular_values(spectrum, m, n, seed) for seed, spectrum in enumerate(spectra)]
    blocks.insert(4, torch.zeros_like(blocks[0]))
    return torch.cat(blocks).to(dtype)


def image_blocks(dtype: torch.dtype = torch.float64, groups: int = 1) -> Im2col:
    """Lowered crops of photographs; with groups, of as many channels more."""
    x = photo_crops(4).to(dtype)
    x = torch.cat([x.roll(shift, 0) for shift in range(groups)], 1)
    return Im2col(x, 3, padding=1, groups=groups, padding_mode="reflect")


def _generator(name: str) -> np.random.Generator:
    return np.random.default_rng([ord(letter) for letter in name])


def _named(function: Callable[[np.random.Generator], Tensor]) -> Callable[[np.random.Generator], Tensor]:
    """List a family that depends on nothing but random numbers."""
    name = function.__name__
    FAMILIES[name] = lambda dtype, eps: function(_generator(name)).to(dtype)
    return function


def _normal(g: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(g.standard_normal(shape))


@_named
def zero(g: np.random.Generator) -> Tensor:
    return torch.zeros(2, 6, 10, dtype=torch.float64)


@_named
def rank_one(g: np.random.Generator) -> Tensor:
    return _normal(g, 3, 12, 1) @ _normal(g, 3, 1, 17)


@_named
def noisy_low_rank(g: np.random.Generator) -> Tensor:
    return low_rank_plus_noise()


@_named
def zero_first_row(g: np.random.Generator) -> Tensor:
    """The paper's first pivot row has no pivot; in the second block neither have the next ten."""
    blocks = _normal(g, 2, 14, 5) @ _normal(g, 2, 5, 20)
    blocks[:, 0] = 0
    blocks[1, 1:11] = 0
    return blocks


@_named
def single_spike(g: np.random.Generator) -> Tensor:
    """One number in the last corner, alone and on a background that is a thousandth of it."""
    blocks = torch.zeros(2, 9, 16, dtype=torch.float64)
    blocks[1] = 1e-3 * _normal(g, 9, 16)
    blocks[:, -1, -1] = 1
    return blocks


@_named
def spikes(g: np.random.Generator) -> Tensor:
    """A few numbers of sizes far apart, each in a row and a column of its own, on nothing and on a faint background."""
    blocks = torch.zeros(2, 12, 20, dtype=torch.float64)
    blocks[1] = 1e-7 * _normal(g, 12, 20)
    for k, column in enumerate(g.permutation(20)[:6]):
        blocks[:, 2 * k, column] = 10.0**-k
    return blocks


@_named
def constant(g: np.random.Generator) -> Tensor:
    return torch.tensor([0.1, -3.0], dtype=torch.float64)[:, None, None].expand(2, 9, 25)


@_named
def disjoint_diagonal_blocks(g: np.random.Generator) -> Tensor:
    """Partial pivoting never leaves the first diagonal block; the second holds all but a little."""
    blocks = torch.zeros(2, 16, 24, dtype=torch.float64)
    blocks[:, :8, :12] = _normal(g, 2, 8, 2) @ _normal(g, 2, 2, 12)
    blocks[:, 8:, 12:] = 50 * _normal(g, 2, 8, 2) @ _normal(g, 2, 2, 12)
    return blocks


@_named
def orthogonal(g: np.random.Generator) -> Tensor:
    """Nothing can be left out: all singular values are equal."""
    return torch.from_numpy(np.linalg.qr(g.standard_normal((2, 12, 12)))[0])


@_named
def hilbert_matrix(g: np.random.Generator) -> Tensor:
    return torch.from_numpy(hilbert(24)[None])


@_named
def kahan_matrix(g: np.random.Generator) -> Tensor:
    """W. Kahan, 1966: pivoting hides the smallest singular value."""
    n, theta = 24, 1.2
    upper = np.triu(-np.cos(theta) * np.ones((n, n)), 1) + np.eye(n)
    return torch.from_numpy(np.sin(theta) ** np.arange(n)[:, None] * upper)[None]


@_named
def growth_matrix(g: np.random.Generator) -> Tensor:
    """J. H. Wilkinson, 1961: elimination doubles the last column in each step, for pivots along columns or rows."""
    n = 40
    matrix = np.eye(n) - np.tril(np.ones((n, n)), -1)
    matrix[:, -1] = 1
    return torch.from_numpy(np.stack([matrix, matrix.T]))


@_named
def one_row(g: np.random.Generator) -> Tensor:
    return _normal(g, 3, 1, 13)


@_named
def one_column(g: np.random.Generator) -> Tensor:
    return _normal(g, 3, 13, 1)


@_named
def one_number(g: np.random.Generator) -> Tensor:
    return torch.tensor([2.0, 0.0, -1e-3], dtype=torch.float64).view(3, 1, 1)


@_named
def no_blocks(g: np.random.Generator) -> Tensor:
    return torch.zeros(0, 5, 7, dtype=torch.float64)


@_named
def wide(g: np.random.Generator) -> Tensor:
    return _normal(g, 2, 5, 3) @ _normal(g, 2, 3, 300) + 0.01 * _normal(g, 2, 5, 300)


@_named
def tall(g: np.random.Generator) -> Tensor:
    return wide(g).mT.contiguous()


@_named
def photographs(g: np.random.Generator) -> Tensor:
    """im2col of lossless image crops, the blocks that the paper compresses."""
    return torch.nn.functional.unfold(photo_crops(), 3, padding=1)


@_named
def random_matrix(g: np.random.Generator) -> Tensor:
    return _normal(g, 2, 15, 22)


def _non_contiguous(dtype: torch.dtype, eps: float) -> Tensor:
    blocks = low_rank_plus_noise(4, 30, 36, seed=1).to(dtype)
    return blocks[::2, :, ::2].mT


def _clustered_at_eps(dtype: torch.dtype, eps: float) -> Tensor:
    """Equal small singular values, seven of which weigh exactly eps: whether they may go hangs on the last digit."""
    tail = eps / np.sqrt(1 - eps**2) if eps < 1 else 1.0
    inside = [1.0] + [tail / np.sqrt(7)] * 7
    return torch.cat([with_singular_values(inside, 18, 24), with_singular_values([*inside, *inside[-3:]], 18, 24)]).to(
        dtype
    )


def _scaled(factor: dict[torch.dtype, float]) -> Builder:
    return lambda dtype, eps: (low_rank_plus_noise(seed=2) * factor[dtype]).to(dtype)


def _mixed_scales(dtype: torch.dtype, eps: float) -> Tensor:
    """Huge, tiny and ordinary blocks as neighbours, and one block that is huge and tiny at once."""
    blocks = low_rank_plus_noise(5, seed=3)
    power = 30 if dtype == torch.float32 else 200
    scales = torch.tensor([power, -power, 0, 0, -power], dtype=torch.float64)
    blocks = blocks * (10.0**scales)[:, None, None]
    blocks[3, :10] *= 10.0**power
    blocks[3, 10:] *= 10.0**-power
    return blocks.to(dtype)


def _subnormal(dtype: torch.dtype, eps: float) -> Tensor:
    """Every number is a small whole multiple of the smallest there is."""
    g = _generator("subnormal")
    whole = np.round(5 * g.standard_normal((2, 12, 3)) @ g.standard_normal((2, 3, 18)))
    smallest = 2.0**-149 if dtype == torch.float32 else 2.0**-1074
    return torch.from_numpy(whole * smallest).to(dtype)


FAMILIES["non_contiguous"] = _non_contiguous
FAMILIES["clustered_at_eps"] = _clustered_at_eps
FAMILIES["huge"] = _scaled({torch.float32: 1e30, torch.float64: 1e200})
FAMILIES["tiny"] = _scaled({torch.float32: 1e-30, torch.float64: 1e-200})
FAMILIES["mixed_scales"] = _mixed_scales
FAMILIES["subnormal"] = _subnormal
