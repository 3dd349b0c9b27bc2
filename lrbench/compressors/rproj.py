"""Random projection: an estimate of the weight's gradient that is right on average."""

import hashlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrbench.blocks import Blocks, scale_by_power_of_two
from lrbench.compressors import register
from lrbench.compressors.base import Compressor, scale_exponents, without
from lrbench.encoded import as_images
from lrbench.factors import Factors, Origin
from lrbench.im2col import Geometry, Im2col
from lrbench.sketched import Sketched


@register("rproj")
class RandomProjection(Compressor):
    """Keep D_i S for a random S (n x k) with E[S Sᵀ] = I, and take D_i S Sᵀ for D_i.

    The weight's gradient Σ G_i D̂_iᵀ is then right on average, with a variance that falls as 1/k: randomized automatic
    differentiation (D. Oktay, N. McGreivy, J. Aduol, A. Beatson and R. P. Adams, 2021, section 4.1), and XConv (A.
    Thatipelli, J. Sam, M. Louboutin, A. Siahkoohi, R. Wang and F. J. Herrmann, 2021) for convolutions. The entries of
    S are ±1/√k. All blocks of a call have S in common; each call draws a new one, from ``seed`` and the number of
    calls before.

    The error of a single D̂_i is large, about √(n / k) of ‖D_i‖ and more: it makes sense in the backward pass only.

    Parameters
    ----------
    eps : float
        Accepted for the sake of the common interface, and ignored.
    k : int
        Columns of S, at least 1.
    seed : int
        Of S, at least 0.
    """

    uses_eps = False
    forms_blocks = False
    version = 2
    stateful = True
    randomized = True

    def __init__(self, eps: float = 0.1, k: int = 16, seed: int = 0) -> None:
        super().__init__(eps)
        for what, value, least in (("k", k, 1), ("seed", seed, 0)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{what} is {value!r}: use a whole number of at least {least}")
        self.k, self.seed = k, seed
        self._calls = 0

    def skip(self, geometry: Geometry, size: tuple[int, int] | None, path: str) -> str | None:
        """It makes no sense where D̂ takes part in the forward pass."""
        return None if path == "backward" else "its estimate is unbiased in the backward pass only"

    def state_dict(self) -> dict[str, Any]:
        """How many calls there were."""
        return {"calls": self._calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self._calls = state.get("calls", 0)

    def _represent(self, blocks: Blocks, magnitude: Tensor, bad: Tensor | None) -> Sketched:
        if bad is not None:
            magnitude = torch.where(bad, magnitude.new_zeros(()), magnitude)
        exponent = scale_exponents(magnitude)
        finite = as_images(blocks if bad is None else without(blocks, bad))
        V = self._matrix(blocks.shape[2]).to(blocks.device, blocks.dtype)
        parts = [
            _projected(finite.select(part).scaled(-exponent[part]), V)
            for part in (slice(start, start + _PART) for start in range(0, len(blocks), _PART))
        ]
        U = scale_by_power_of_two(torch.cat(parts), exponent)
        origin = torch.full((len(blocks),), int(Origin.OWN), dtype=torch.uint8, device=blocks.device)
        kept: Factors | None = None
        # Sums of finite numbers may be beyond what the dtype holds.
        beyond = ~U.isfinite().flatten(1).all(1)
        if bool(beyond.any()):
            U = torch.where(beyond[:, None, None], U.new_zeros(()), U)
            bad = beyond if bad is None else bad | beyond
        if bad is not None:
            origin[bad] = int(Origin.STORED)
            kept = self._assemble(blocks, self._empty(blocks), origin)
        return Sketched(U, V, origin, blocks.groups, kept)

    def _represent_nothing(self, blocks: Blocks) -> Sketched:
        _, m, n = blocks.shape
        origin = torch.zeros(0, dtype=torch.uint8, device=blocks.device)
        V = self._matrix(n).to(blocks.device, blocks.dtype)
        return Sketched(V.new_empty(0, self.k, m), V, origin, blocks.groups)

    def _matrix(self, n: int) -> Tensor:
        """Sᵀ of the next call, (k, n) float64."""
        text = f"{self.seed}/{self._calls}"
        self._calls += 1
        generator = torch.Generator("cpu").manual_seed(
            int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
        )
        signs = torch.randint(2, (self.k, n), generator=generator, device="cpu", dtype=torch.float64)
        return (2 * signs - 1) / self.k**0.5


_PART = 32
"""Images that are convolved at a time: what their planes become is larger than the projections."""


def _projected(blocks: Im2col, V: Tensor) -> Tensor:
    """V D_iᵀ, (N, k, m): at a kernel's taps, the convolutions of the images with the vectors, taken for images."""
    (R, S), (N, C) = blocks.geometry.kernel_size, blocks.images.shape[:2]
    planes = blocks.geometry.pad(blocks.images).flatten(0, 1)[:, None]
    kernels = V.unflatten(1, blocks.output_size)[:, None]
    taps = F.conv2d(planes, kernels, stride=blocks.geometry.dilation, dilation=blocks.geometry.stride)
    return taps[:, :, :R, :S].unflatten(0, (N, C)).transpose(1, 2).reshape(N, len(V), C * R * S)
