"""The factors of a model's fixed inputs, computed once: an epoch compresses what the one before has compressed."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lrbench.compressed import Compressed
from lrbench.conv import Given, compressed_layers
from lrbench.im2col import Geometry, Im2col

__all__ = ["KeptInput"]


class KeptInput:
    """Compress the images that a wrapped layer meets again and again, and give their factors to its forward passes.

    Only the layer that works on the images themselves can have them: its input never changes. ::

        kept = lrbench.KeptInput(model, images)
        for index in torch.randperm(len(images)).split(100):
            with kept.batch(index) as x:
                loss(model(x)).backward()

    Parameters
    ----------
    model : torch.nn.Module
        Wrapped.
    images : Tensor
        (N, C, H, W), as the layer will meet them, and on its device.
    layer : str, optional
        The layer's name; the first wrapped one without it.
    batch_size : int
        Images that are compressed at a time.

    Attributes
    ----------
    nbytes : int
        Of the factors, which stay in memory as long as this object.

    Raises
    ------
    ValueError
        If the layer is not wrapped, or none is.
    """

    def __init__(self, model: nn.Module, images: Tensor, layer: str | None = None, batch_size: int = 500) -> None:
        layers = compressed_layers(model)
        name = next(iter(layers), None) if layer is None else layer
        if name is None or name not in layers:
            shown = ", ".join(layers) or "none"
            raise ValueError(f"layer is {layer!r}: name a wrapped one, of which this model has {shown}")
        self._layer = layers[name]
        geometry = Geometry.of(self._layer.conv)
        compress = copy.deepcopy(self._layer.compressor).compress  # training's own state is left as it is
        self._factors = Compressed.concatenate([compress(Im2col.of(x, geometry)) for x in images.split(batch_size)])
        self.nbytes = self._factors.nbytes
        seeded = torch.Generator().manual_seed(0)
        self._signs = torch.randint(2, (images[0].numel(),), generator=seeded).mul(2).sub(1).to(images.device)
        self._marks = torch.cat([self._marks_of(x) for x in images.split(batch_size)])
        self._nothing = images.new_full((1, 1, 1, 1), torch.nan).expand(1, *images.shape[1:])

    @contextmanager
    def batch(self, index: Tensor) -> Iterator[Tensor]:
        """Within it the layer takes the factors of the images ``index``, (B,) int64, as those of its input.

        They are read where they are: nothing large is copied.

        Yields
        ------
        Tensor
            (B, C, H, W): what may be given to the model in place of these images where nobody reads them, on path
            ``both`` in a model whose only way in is the layer. They need not be gathered then. All of it is one NaN,
            so that whoever does read it cannot go on unnoticed: the layer itself refuses any other input than this
            tensor and the images, with a ValueError.
        """
        g = self._layer.conv.groups
        blocks = index if g == 1 else (index[:, None] * g + torch.arange(g, device=index.device)).flatten()
        nothing = self._nothing.expand(len(index), -1, -1, -1)

        def belongs_to(x: Tensor) -> bool:
            if x.shape != nothing.shape:
                return False
            if x.data_ptr() == nothing.data_ptr():
                return True
            marks = self._marks[index]
            # Rounding may differ where images are prepared on the way; another layer's output differs altogether.
            return bool(((self._marks_of(x) - marks).abs() <= 1e-3 * marks[:, :1]).all())

        self._layer.given = Given(self._factors.view(blocks), belongs_to)
        try:
            yield nothing
        finally:
            self._layer.given = None

    @torch.no_grad()
    def _marks_of(self, x: Tensor) -> Tensor:
        """What images, (B, C, H, W), are known by: their norms, and sums of pixels of random signs, (B, 2)."""
        rows = x.flatten(1).to(torch.promote_types(x.dtype, torch.float32))
        return torch.stack([torch.linalg.vector_norm(rows, dim=1), rows @ self._signs.to(rows.dtype)], 1)
