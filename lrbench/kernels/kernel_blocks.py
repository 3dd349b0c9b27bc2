"""From blocks to what the kernels read, and calls of the kernels on all of torch's threads."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrbench.blocks import Blocks, DenseBlocks, ScaledBlocks
from lrbench.im2col import Im2col
from lrbench.kernels import crosses, deflation, interpolative, keys, project, ranges, residual, sketch, spectral
from lrbench.kernels.gram import rows_doubt
from lrbench.kernels.layout import Layout, counts, offsets
from lrbench.kernels.loops import for_parts
from lrbench.kernels.pivots import by_gram
from lrbench.kernels.turns import UNKNOWN
from lrbench.low_rank import Crosses

__all__ = ["KernelBlocks"]

Array = NDArray[Any]

_GRAM_TELLS = {4: 5e-7, 8: 5e-11}
"""From which tolerance of squared norms on a float64 Gram matrix tells the size of a residual whose rows are computed
in numbers of 4, or of 8, bytes as well as the residual does."""

_FEW = 400
"""So many times what rounding may do to a Gram matrix in float32 is to be lost at least, for it seldom to decide."""


class KernelBlocks(NamedTuple):
    """Blocks on a CPU as the kernels read them.

    Attributes
    ----------
    images : array
        (N, C, H, W), contiguous, float32 or float64. A plain block m x n is an image of m channels and one line.
    exponent : array
        (N,) int64: the blocks are 2**exponent times what the images are lowered to.
    layout : Layout
    """

    images: Array
    exponent: Array
    layout: Layout

    @classmethod
    def of(cls, blocks: Blocks) -> "KernelBlocks | None":
        """Read blocks, if they are on a CPU and in a dtype that the kernels take."""
        if blocks.device.type != "cpu" or blocks.dtype not in (torch.float32, torch.float64):
            return None
        exponent = np.zeros(len(blocks), np.int64)
        while isinstance(blocks, ScaledBlocks):
            exponent += blocks.exponent.numpy()
            blocks = blocks.original
        if isinstance(blocks, Im2col) and not cls.form(blocks):
            g = blocks.geometry
            natural = g.padding_mode == "zeros" and min(g.padding) >= 0
            # A Gram matrix is made of whole lines: what no window reaches would cancel, or be NaN.
            source = blocks.reached()
            images = (source if natural else g.pad(source)).contiguous().numpy()
            left, _, top, _ = g.padding if natural else (0, 0, 0, 0)
            layout = Layout.of(images.shape[1:], g.kernel_size, g.dilation, (top, left), blocks.output_size)
        else:
            values = blocks.tensor if isinstance(blocks, DenseBlocks) else blocks.dense()
            images = values.contiguous().unsqueeze(2).numpy()
            layout = Layout.of(images.shape[1:])
        return cls(images, exponent, layout)

    @staticmethod
    def form(blocks: Blocks) -> bool:
        """Whether :meth:`of` forms the blocks: those of a tensor never, those of images where the stride is above 1."""
        while isinstance(blocks, ScaledBlocks):
            blocks = blocks.original
        return not isinstance(blocks, DenseBlocks) and not (
            isinstance(blocks, Im2col) and blocks.geometry.stride == (1, 1)
        )

    def bases(
        self, side: Literal["rows", "columns"], eps: float | Tensor, ranks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Leading singular vectors: see :mod:`lrbench.kernels.spectral`.

        Parameters
        ----------
        side
            The shorter one.
        eps : float or Tensor
            In (0, 1): what the blocks' projections on the least number of vectors keep; of all, or (N,) of each.
        ranks : Tensor, optional
            (N,) int64: numbers of vectors that are to be found whatever is lost.

        Returns
        -------
        tuple
            (N, k, k) float64, of which the leading ``ranks[i]`` rows are block i's, and the ranks, (N,) int64, below
            zero where the iteration failed.
        """
        N, size = len(self.images), _shape(self.layout)[0 if side == "rows" else 1]
        bases = np.empty((N, size, size))
        counts = np.full(N, spectral.ANY) if ranks is None else ranks.numpy().copy()
        tolerances = eps.numpy() if isinstance(eps, Tensor) else np.full(N, eps)
        power = _powers(np.zeros_like(self.exponent), self.exponent)

        # Found by trial: a full decomposition is dearer for larger matrices, the more so the fewer vectors are wanted.
        together = size <= (64 if not isinstance(eps, Tensor) and eps <= 0.2 else 48)
        work = self._gram_dtype(eps**2 if ranks is None and not isinstance(eps, Tensor) else 0.0)

        def part(start: int, stop: int) -> None:
            cut = slice(start, stop)
            source, target = (self.images[cut], power[cut], self.layout), (tolerances[cut], bases[cut], counts[cut])
            if side == "rows":
                spectral.rows_bases(*source, work, together, *target)
            else:
                spectral.columns_bases(*source, together, *target)

        for_parts(N, part)
        return torch.from_numpy(bases), torch.from_numpy(counts)

    def keys(self, weights: Tensor) -> Tensor:
        """Sums of the scaled images' bits times weights, (C·H·W,) int64, modulo 2**64: (N,) int64."""
        numbers = self.images.reshape(len(self.images), -1)
        out, w = np.empty(len(numbers), np.int64), weights.numpy()
        power = _powers(np.zeros_like(self.exponent), self.exponent)

        def part(start: int, stop: int) -> None:
            row = np.empty(numbers.shape[1], numbers.dtype)
            bits = row.view(f"i{row.itemsize}")
            keys.keys(numbers[start:stop], power[start:stop], w, row, bits, out[start:stop])

        for_parts(len(numbers), part)
        return torch.from_numpy(out)

    def sketched(
        self, side: Literal["rows", "columns"], tests: Tensor, words: Tensor, eps: float, spare: int
    ) -> tuple[Tensor, Tensor]:
        """Bases from random sketches: see :mod:`lrbench.kernels.sketch`.

        Parameters
        ----------
        side
            ``rows`` where m <= n.
        tests : Tensor
            (k, n) for ``rows``, else (k, m): a test matrix, transposed, that all blocks share.
        words : Tensor
            (N, .) int64, a bit for each of n, or m: the signs that a block multiplies its rows by.
        eps : float
            In (0, 1).
        spare : int
            Columns that must remain unused.

        Returns
        -------
        tuple
            (N, k, m), or (N, k, n), float64, of which the leading ``ranks[i]`` rows are block i's, and the ranks, (N,)
            int64, negative where k columns are too few.
        """
        kernel = sketch.rows_sketched if side == "rows" else sketch.columns_sketched
        return self._from_tests(kernel, side, tests, words, (eps, spare))

    def grown(
        self,
        side: Literal["rows", "columns"],
        tests: Tensor,
        words: Tensor,
        eps: float,
        enough: float,
        width: int,
        steps: int,
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`sketched`, from sketches that grow: see :func:`lrbench.kernels.ranges.rows_grown`."""
        kernel = ranges.rows_grown if side == "rows" else ranges.columns_grown
        return self._from_tests(kernel, side, tests, words, (eps, enough, width, steps))

    def within(
        self, side: Literal["rows", "columns"], given: Tensor, counts: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Bases within spans of ``counts[i]`` vectors each, packed: see :func:`lrbench.kernels.ranges.rows_within`."""
        N, size = len(self.images), given.shape[1]
        # Room for the most that there can be, not for the most that there are: that would depend on the batch.
        bases, ranks = np.empty((N, min(_shape(self.layout)), size)), np.empty(N, np.int64)
        ends = np.concatenate([np.zeros(1, np.int64), counts.numpy().cumsum()])
        power, vectors = _powers(np.zeros_like(self.exponent), self.exponent), given.contiguous().numpy()
        kernel = ranges.rows_within if side == "rows" else ranges.columns_within

        def part(start: int, stop: int) -> None:
            cut = slice(start, stop)
            source = (self.images[cut], power[cut], self.layout)
            kernel(*source, vectors, ends[start : stop + 1], eps, bases[cut], ranks[cut])

        for_parts(N, part)
        return torch.from_numpy(bases), torch.from_numpy(ranks)

    def _from_tests(
        self, kernel: Any, side: Literal["rows", "columns"], tests: Tensor, words: Tensor, settings: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor]:
        """Run a kernel that finds bases from test matrices."""
        m, n = _shape(self.layout)
        at, _ = _addresses(self.layout)
        bases = np.empty((len(self.images), len(tests), m if side == "rows" else n))
        ranks = np.empty(len(self.images), np.int64)
        power = _powers(np.zeros_like(self.exponent), self.exponent)
        given, bits = tests.numpy().astype(self.images.dtype), words.numpy()
        if side == "rows":
            given = self._widened(given)

        def part(start: int, stop: int) -> None:
            cut = slice(start, stop)
            source = (self.images[cut], power[cut], self.layout, at)
            kernel(*source, given, bits[cut], *settings, bases[cut], ranks[cut])

        for_parts(len(ranks), part)
        return torch.from_numpy(bases), torch.from_numpy(ranks)

    def _widened(self, rows: Array) -> Array:
        """Rows of n numbers, their lines standing where those of a padded image are, zeros between."""
        lines, columns, pitch = self.layout.lines, self.layout.columns, self.layout.pitch
        out = np.zeros((len(rows), lines, pitch), rows.dtype)
        out[:, :, :columns] = rows.reshape(len(rows), lines, columns)
        return out.reshape(len(rows), -1)[:, : (lines - 1) * pitch + columns].copy()

    def project(
        self, side: Literal["rows", "columns"], vectors: Tensor, ranks: Tensor, exponent: Tensor, single: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Store one side of the factors and compute the other: see :func:`lrbench.kernels.project.project_rows`.

        Parameters
        ----------
        side, vectors, ranks
            As :meth:`bases` gives them.
        exponent : Tensor
            (N,) int64: the factors are stored 2**exponent times as large, in the images' dtype.
        single : bool
            Whether to compute in float32 where the images are float32.

        Returns
        -------
        tuple
            U and V, packed; bounds of ‖D − UV‖_F² and the ‖D‖_F², (N,) float64, of the blocks as they are here.
        """
        m, n = _shape(self.layout)
        at, number = _addresses(self.layout)
        ends = np.concatenate([np.zeros(1, np.int64), ranks.numpy().cumsum()])
        U, V = (np.empty((ends[-1], width), self.images.dtype) for width in (m, n))
        squared, norms, basis = np.empty(len(ranks)), np.empty(len(ranks)), vectors.numpy()
        power = _powers(exponent.numpy(), self.exponent)
        kernel = project.project_rows if side == "rows" else project.project_columns
        work = self._work(single)

        def part(start: int, stop: int) -> None:
            cut = slice(start, stop)
            source = (self.images[cut], power[cut], self.layout, at, number)
            kernel(*source, basis[cut], ends[start : stop + 1], work, U, V, squared[cut], norms[cut])

        for_parts(len(ranks), part)
        return torch.from_numpy(U), torch.from_numpy(V), torch.from_numpy(squared), torch.from_numpy(norms)

    def crosses(
        self, stop: Literal["residual", "estimate"], tolerance: float, floor: float, limit: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Crosses in the images' dtype: see :mod:`lrbench.kernels.crosses`, also for what the numbers mean.

        Returns
        -------
        tuple
            U and V, packed, and the ranks, (N,) int64.
        """

        def kernel(source: Any, U: Array, V: Array, ranks: Array) -> tuple[Array, Array]:
            row = np.empty(V.shape[1], V.dtype)
            target = (U, V, row, ranks)
            if stop == "residual":
                return crosses.by_residual(*source, tolerance, floor, limit, *target)
            return crosses.by_estimate(*source, tolerance, limit, *target)

        return self._packed(kernel, limit)

    def tells_pivots(self, tolerance: float) -> bool:
        """Whether Gram matrices tell residuals' sizes, and cost less than the passes over residuals that they spare."""
        return tolerance >= _GRAM_TELLS[self.images.itemsize] and self._of_few_channels()

    def _of_few_channels(self) -> bool:
        m, n = _shape(self.layout)
        return self.layout.channels <= 4 and 16 * m <= n

    def pivoted(self, rule: Crosses, exponent: Tensor, check: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Crosses that a residual stops, stored and checked one block after the other.

        See :mod:`lrbench.kernels.pivots`.

        Parameters
        ----------
        rule : Crosses
        exponent : Tensor
            (N,) int64: the factors are stored 2**exponent times as large.
        check : bool
            Whether what is told of the blocks is to be read.

        Returns
        -------
        tuple
            U and V, packed, in the images' dtype; the ranks, (N,) int64; bounds of ‖D − UV‖_F² and the ‖D‖_F², (N,)
            float64, of the blocks as they are here.
        """
        N, dtype = len(self.images), self.images.dtype
        m, n = _shape(self.layout)
        at, number = _addresses(self.layout)
        power, gram = _powers(exponent.numpy(), self.exponent), self._gram_dtype(rule.tolerance)
        source, settings = (self.images, power, self.layout, at, number), (*rule, gram, check)
        squared, norms = np.empty((2, N))
        ranks, ends = np.full(N, UNKNOWN), np.full(N + 1, UNKNOWN)
        usual = _usual_rank(self.layout, rule)
        U, V = (_with_room(np.empty((0, side), dtype), 0, _room(N, usual[0], rule.limit)) for side in (m, n))
        ends[0] = 0

        def attempt(done: int, U: Array, V: Array) -> None:
            turn = np.array([done])

            def part(*_: int) -> None:
                by_gram(*source, *settings, turn, done, ranks, ends, U, V, squared, norms)

            for_parts(torch.get_num_threads(), part)

        attempt(0, U, V)
        while (end := int(ends[N])) == UNKNOWN:  # there was no room for all of them
            done = int(np.argmin(ends)) - 1
            end, ranks[done:] = int(ends[done]), UNKNOWN
            more = _room(N - done, end / done if done else float(rule.limit), rule.limit)
            U, V = (_with_room(packed, end, end + more) for packed in (U, V))
            attempt(done, U, V)
        usual[0] = end / N
        # What nothing was written to goes back; the rest stays where it is.
        for packed in (U, V):
            packed.resize((end, packed.shape[1]), refcheck=False)
        told = torch.from_numpy(ranks), torch.from_numpy(squared), torch.from_numpy(norms)
        return torch.from_numpy(U), torch.from_numpy(V), *told

    def deflated(
        self, by: Literal["crosses", "columns"], tolerance: float, limit: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rank-one updates in float64, as they are stored: see :mod:`lrbench.kernels.deflation`; as :meth:`crosses`."""

        def kernel(source: Any, U: Array, V: Array, ranks: Array) -> tuple[Array, Array]:
            R = np.empty((U.shape[1], V.shape[1]))
            if by == "crosses":
                return deflation.by_crosses(*source, tolerance, limit, U, V, R, R.view(np.int64), ranks)
            return deflation.by_columns(*source, tolerance, limit, U, V, R, ranks)

        return self._packed(kernel, limit)

    def interpolated(self, tolerance: float, limit: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of the blocks and their coefficients: see :mod:`lrbench.kernels.interpolative`; as :meth:`crosses`."""

        def kernel(source: Any, U: Array, V: Array, ranks: Array) -> tuple[Array, Array]:
            return interpolative.by_rows(*source, tolerance, limit, U, V, ranks)

        return self._packed(kernel, limit)

    def _packed(
        self, kernel: Callable[[Any, Array, Array, Array], tuple[Array, Array]], limit: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run a kernel that finds factors of ranks that nobody knows before, and pack what its parts return."""
        N = len(self.images)
        m, n = _shape(self.layout)
        at, _ = _addresses(self.layout)
        power = _powers(np.zeros_like(self.exponent), self.exponent)
        ranks = np.empty(N, np.int64)
        found: dict[int, tuple[Array, Array]] = {}

        def part(start: int, end: int) -> None:
            cut = slice(start, end)
            # Memory that is never touched costs nothing, moving to a larger place does.
            room = min(limit * (end - start), (end - start) + (64 << 20) // (self.images.itemsize * (m + n)))
            U, V = (np.empty((room, side), self.images.dtype) for side in (m, n))
            found[start] = kernel((self.images[cut], power[cut], self.layout, at), U, V, ranks[cut])

        for_parts(N, part)
        ends = np.concatenate([np.zeros(1, np.int64), ranks.cumsum()])
        starts = sorted(found)
        packed = [np.empty((ends[-1], side), self.images.dtype) for side in (m, n)]

        def place(start: int, end: int) -> None:
            for k in range(start, end):
                first, last = ends[starts[k]], ends[starts[k + 1] if k + 1 < len(starts) else N]
                for whole, piece in zip(packed, found.pop(starts[k]), strict=True):
                    whole[first:last] = piece[: last - first]

        for_parts(len(starts), place)
        return torch.from_numpy(packed[0]), torch.from_numpy(packed[1]), torch.from_numpy(ranks)

    def residuals(
        self, U: Tensor, V: Tensor, ranks: Tensor, exponent: Tensor, single: bool = False
    ) -> tuple[Tensor, Tensor]:
        """‖D − UV‖_F² and ‖D‖_F², (N,) float64, of factors that are stored 2**exponent times as large.

        With ``single`` what is float32 is computed in it, and the first of the two are bounds.
        """
        at, number = _addresses(self.layout)
        ends = np.concatenate([np.zeros(1, np.int64), ranks.numpy().cumsum()])
        squared, norms = np.empty(len(ranks)), np.empty(len(ranks))
        power = _powers(exponent.numpy(), self.exponent)
        u, v = U.contiguous().numpy(), V.contiguous().numpy()
        work = self._work(single and u.itemsize == v.itemsize == 4)

        def part(start: int, stop: int) -> None:
            cut = slice(start, stop)
            source = (self.images[cut], power[cut], self.layout, at, number)
            residual.residuals(*source, ends[start : stop + 1], work, u, v, squared[cut], norms[cut])

        for_parts(len(ranks), part)
        return torch.from_numpy(squared), torch.from_numpy(norms)

    def _gram_dtype(self, allowed: float) -> Array:
        """Empty, of the dtype that Gram matrices of rows are to be computed in where so much of the trace may be lost.

        It is the images', if matrices are made of many products, and rounding is far below what may be lost.
        """
        layout, single = self.layout, np.empty(0, np.float32)
        rounding = rows_doubt(1.0, layout, single) / (layout.R * layout.S)
        return self._work(layout.R * layout.S > 1 and rounding * _FEW <= allowed)

    def _work(self, single: bool) -> Array:
        return np.empty(0, self.images.dtype if single else np.float64)


def _shape(layout: Layout) -> tuple[int, int]:
    return layout.channels * layout.R * layout.S, layout.lines * layout.columns


@lru_cache(maxsize=256)
def _addresses(layout: Layout) -> tuple[Array, Array]:
    return offsets(layout), counts(layout)


@lru_cache(maxsize=256)
def _usual_rank(layout: Layout, rule: Crosses) -> list[float]:
    """Of the last blocks of that shape, for the size of memory that is asked for, and nothing else."""
    return [rule.limit / 2]


def _room(blocks: int, rank: float, limit: int) -> int:
    """For how many crosses there is to be room, if blocks have that rank on average, or some more."""
    return min(blocks * limit, int(1.05 * rank * blocks) + limit)


def _with_room(packed: Array, used: int, rows: int) -> Array:
    """A copy of the first rows, with room for as many as are asked for."""
    # glibc keeps the pages of what is no larger than the largest piece that was given back, and ours shrink before they
    # are: a piece as large is given back at once, untouched.
    np.empty((rows, packed.shape[1]), packed.dtype)
    out = np.empty((rows, packed.shape[1]), packed.dtype)
    out[:used] = packed[:used]
    return out


def _powers(stored: Array, read: Array) -> Array:
    """The powers of two of :func:`lrbench.kernels.project.project_rows`: (N, 6).

    Each exponent is halved, because 2**±1074 is out of range though what comes of it is not.
    """
    if not (stored.any() or read.any()):  # as for images whose largest number is near one
        return np.ones((len(read), 6))
    half, u = read // 2, stored // 2
    v = stored - u
    return np.stack([np.ldexp(1.0, e) for e in (half, read - half, u, -u, v, -v)], axis=1)
