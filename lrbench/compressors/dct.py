"""The layer's input as JPEG keeps pictures: a cosine transform of small squares, coarser where it is finer."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lrbench.compressors import register
from lrbench.compressors.on_input import InputCompressor
from lrbench.encoded import Code

SIDE = 8
"""Pixels of a square, each way; all of an image that has fewer."""

LUMINANCE = (
    *(16, 11, 10, 16, 24, 40, 51, 61),
    *(12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56),
    *(14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77),
    *(24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101),
    *(72, 92, 95, 98, 112, 100, 103, 99),
)
"""JPEG's steps for luminance (ITU-T T.81, table K.1): rows are vertical frequencies, low ones first."""


@dataclass(frozen=True)
class _Coefficients(Code):
    """Coefficients other than zero, and where they are.

    Attributes
    ----------
    quality : int
        Of the steps.
    scales : Tensor
        (N, C) float32: the largest magnitude in each channel, which counts as 127.
    present : Tensor
        (N, C·squares·coefficients / 8, rounded up) uint8: a bit for each coefficient; the lowest of a byte comes first.
    counts : Tensor
        (N,) int64: how many are each image's.
    values : Tensor
        (Σ counts,) int8, in steps.
    """

    quality: int
    scales: Tensor
    present: Tensor
    counts: Tensor
    values: Tensor
    ragged = ("values",)

    def decode(self) -> Tensor:
        C, H, W = self.size
        down, across = min(SIDE, H), min(SIDE, W)
        lines, columns = -(-H // down), -(-W // across)
        bits = torch.stack([self.present >> place & 1 for place in range(8)], 2).flatten(1)
        bits = bits[:, : C * lines * columns * down * across].to(torch.bool)
        q = torch.zeros(bits.shape, dtype=self.dtype, device=bits.device)
        q = q.masked_scatter_(bits, self.values.to(self.dtype)).view(-1, C, lines, columns, down, across)
        steps = _steps(down, across, self.quality).to(q.device, self.dtype)
        q.mul_(steps).mul_((self.scales.to(self.dtype) / 127)[:, :, None, None, None, None])
        images = _transformed(q, _cosines(down).T, _cosines(across).T)
        return images.transpose(3, 4).flatten(4, 5).flatten(2, 3)[:, :, :H, :W].contiguous()


@register("dct")
class CosineTransform(InputCompressor):
    """Quantise the discrete cosine transform of squares of 8 x 8 pixels, and keep what does not become zero.

    The family of JPEG-ACT (R. D. Evans, L. Liu and T. M. Aamodt, 2020): each channel of an image is scaled by its
    largest magnitude to −127..127 and transformed in squares, the coefficients are rounded to multiples of a step that
    grows with the frequency, and those other than zero are kept in a byte each, beside a bit for every coefficient
    (its zero-value compression). The steps are JPEG's own instead of learned ones, times a factor that follows from
    ``quality`` as in the Independent JPEG Group's library, but no smaller than 8, so that a byte is enough. Images are
    filled up to whole squares with their edges; one of fewer than 8 lines or columns is cut along the other side only.

    Parameters
    ----------
    eps : float
        Accepted for the sake of the common interface, and ignored.
    quality : int
        From 1 (small) to 100 (the finest steps that a byte allows).
    """

    uses_eps = False

    def __init__(self, eps: float = 0.1, quality: int = 75) -> None:
        super().__init__(eps)
        if not isinstance(quality, int) or not 1 <= quality <= 100:
            raise ValueError(f"quality is {quality!r}: use a whole number from 1 to 100")
        self.quality = quality

    def encode(self, images: Tensor, weights: Tensor) -> Code:
        """Transform the images, and round the coefficients."""
        _, C, H, W = images.shape
        down, across = min(SIDE, H), min(SIDE, W)
        scales = images.abs().amax((2, 3)).to(torch.float32)
        scale = scales.to(images.dtype)[:, :, None, None]
        filled = F.pad(images, (0, -W % across, 0, -H % down), "replicate") * torch.where(scale > 0, 127 / scale, 0)
        squares = filled.unflatten(3, (-1, across)).unflatten(2, (-1, down)).transpose(3, 4)
        q = _transformed(squares, _cosines(down), _cosines(across))
        q = q.div_(_steps(down, across, self.quality).to(q.device, q.dtype)).round_().to(torch.int8).flatten(1)
        mask = q != 0
        bits = F.pad(mask, (0, -mask.shape[1] % 8)).unflatten(1, (-1, 8)).to(torch.uint8)
        present = bits[:, :, 0].clone()
        for place in range(1, 8):
            present |= bits[:, :, place] << place
        return _Coefficients((C, H, W), images.dtype, self.quality, scales, present, mask.sum(1), q[mask])


def _transformed(squares: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``left`` times every square times the transpose of ``right``: (..., d, a) -> the same, a copy."""
    left, right = (matrix.to(squares.device, squares.dtype) for matrix in (left, right))
    # The transform of the rows is a product with many rows, which libraries do best.
    rows = squares.reshape(-1, squares.shape[-1]) @ right.T
    rows = rows.view(squares.shape).transpose(-1, -2)
    return (rows.reshape(-1, squares.shape[-2]) @ left.T).view(rows.shape).transpose(-1, -2).contiguous()


@lru_cache(maxsize=16)
def _cosines(count: int) -> Tensor:
    """The orthonormal transform (N. Ahmed, T. Natarajan and K. R. Rao, 1974), (count, count) float64."""
    with torch.inference_mode(False), torch.device("cpu"):
        k = torch.arange(count, dtype=torch.float64)
        matrix = torch.cos(math.pi / count * (k + 0.5) * k[:, None]) * (2 / count) ** 0.5
        matrix[0] /= 2**0.5
        return matrix


@lru_cache(maxsize=16)
def _steps(down: int, across: int, quality: int) -> Tensor:
    """By what coefficients are divided, (down, across) float64."""
    with torch.inference_mode(False), torch.device("cpu"):
        table = torch.tensor(LUMINANCE, dtype=torch.float64).view(SIDE, SIDE)[:down, :across]
        factor = 50 / quality if quality < 50 else 2 - quality / 50
        return (table * factor).clamp(min=(down * across) ** 0.5)
