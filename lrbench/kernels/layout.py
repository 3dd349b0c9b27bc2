"""How a kernel sees blocks: as images that are padded, scaled and widened to float64 one at a time, never lowered.

Row (c, r, s) of a block is the image of channel c, shifted: it begins at ``c·plane + r·dilation·pitch + s·dilation`` of
the padded image and reads on through whole lines, so that between the H'·W' numbers of a row lie those of the columns
that padding added. Products run over all of them, and what belongs to those columns is left out at the end.
"""

from typing import Any, NamedTuple

import numpy as np

from lrbench.kernels.lanes import load, store, width
from lrbench.kernels.loops import compiled, exact

__all__ = ["Layout", "counts", "offsets", "pad", "read", "squared_norm", "widen"]


class Layout(NamedTuple):
    """The geometry of a convolution of stride 1, in whole numbers.

    Attributes
    ----------
    channels, height, width : int
        Of an image.
    R, S : int
        Kernel size.
    p, q : int
        Dilation.
    top, left : int
        Zeros in front of the image.
    lines, columns : int
        Of the output: H' and W'.
    pitch : int
        Numbers from one line of a padded image to the next.
    plane : int
        Numbers in a channel of a padded image.
    """

    channels: int
    height: int
    width: int
    R: int
    S: int
    p: int
    q: int
    top: int
    left: int
    lines: int
    columns: int
    pitch: int
    plane: int

    @classmethod
    def of(
        cls,
        image: tuple[int, int, int],
        kernel: tuple[int, int] = (1, 1),
        dilation: tuple[int, int] = (1, 1),
        frame: tuple[int, int] = (0, 0),
        output: tuple[int, int] | None = None,
    ) -> "Layout":
        """Images (C, H, W), their zeros in front (top, left) and their output (H', W'), the image's without one."""
        lines, columns = output or image[1:]
        pitch = columns + (kernel[1] - 1) * dilation[1]
        plane = (lines + (kernel[0] - 1) * dilation[0]) * pitch
        return cls(*image, *kernel, *dilation, *frame, lines, columns, pitch, plane)


def offsets(layout: Layout) -> np.ndarray[Any, Any]:
    """Where each row of a block begins in the padded image: (m,) int64."""
    c, r, s = np.ogrid[: layout.channels, : layout.R, : layout.S]
    return np.ascontiguousarray(
        (c * layout.plane + r * layout.p * layout.pitch + s * layout.q).reshape(-1), dtype=np.int64
    )


def counts(layout: Layout) -> np.ndarray[Any, Any]:
    """How often each number of a padded channel occurs in a block: (plane,) float64."""
    out = np.zeros((layout.plane // layout.pitch, layout.pitch))
    for r in range(layout.R):
        for s in range(layout.S):
            y, x = r * layout.p, s * layout.q
            out[y : y + layout.lines, x : x + layout.columns] += 1
    return out.reshape(-1)


@exact
def pad(
    image: Any, f: float, g: float, pitch: int, plane: int, top: int, left: int, P: Any
) -> None:  # pragma: no cover (compiled)
    """Write an image (C, H, W) times f·g into P, whose frame of zeros stays as it is."""
    C, H, W = image.shape
    for c in range(C):
        for y in range(H):
            at = c * plane + (y + top) * pitch + left
            line, into = image[c, y], P[at : at + W]
            if f == 1 and g == 1:  # as for images whose largest number is near one
                for t in range(W):
                    into[t] = line[t]
            else:
                for t in range(W):
                    into[t] = (line[t] * f) * g


@compiled
def read(P: Any, start: int, pitch: int, columns: int, row: Any) -> None:  # pragma: no cover (compiled)
    """A row of a block, from where it begins in the padded image: its lines, without what lies between them."""
    w = width(P)
    lines, vectors = len(row) // columns, columns // w
    for y in range(lines):
        at, into = start + y * pitch, y * columns
        for j in range(vectors):
            store(row, (into + j * w,), load(P, (at + j * w,)))
        for t in range(vectors * w, columns):
            row[into + t] = P[at + t]


@exact
def widen(stored: Any, g: float, columns: int, pitch: int, out: Any) -> None:  # pragma: no cover (compiled)
    """A row times g, its lines put ``pitch`` apart; what lies between them stays."""
    factor = out.dtype.type(g)  # an exponent of half a number's own range
    if pitch == columns:
        columns = len(stored)  # as a single line: each costs as much to begin as a dozen numbers
    for y in range(len(stored) // columns):
        line, into = stored[y * columns : (y + 1) * columns], out[y * pitch : y * pitch + columns]
        for t in range(columns):
            into[t] = line[t] * factor


@compiled
def squared_norm(P: Any, counts: Any) -> float:  # pragma: no cover (compiled)
    """‖D‖_F²: pixels squared, each as often as it occurs."""
    plane = len(counts)
    total = 0.0
    for c in range(len(P) // plane):
        pixels = P[c * plane : (c + 1) * plane]
        for t in range(plane):
            total += counts[t] * pixels[t] * pixels[t]
    return total
