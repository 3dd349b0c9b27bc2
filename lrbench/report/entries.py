"""What a report says of one cell, layer or variant: the rows behind its verdicts, tables and figures."""

from dataclasses import dataclass

__all__ = ["Cell", "Comparison", "Gradients", "Held", "Kept", "Peak", "Size", "Spread", "Timing"]


@dataclass(frozen=True)
class Cell:
    """What was run: the words that name it in a study, and the settings behind them."""

    mask: str
    label: str
    name: str
    condition: str
    compressor: str
    eps: float | None
    path: str | None


@dataclass(frozen=True)
class Spread:
    """A median with the lowest and highest of the bounds that its runs reported."""

    middle: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Last-epoch test accuracy of a cell beside the plain model's, as trained and paired by seed.

    Attributes
    ----------
    accuracy, exact
        Mean over the cell's finished runs, in [0, 1]: evaluated as trained, and with exact convolutions.
    differences
        By seed, cell minus plain model, in points (hundredths of the test images).
    mean, low, high
        Mean difference and its paired t 90 % interval; the interval is None with fewer than two pairs.
    runs
        Finished runs of the cell.
    diverged, chance, failed, unpaired
        Seeds whose run diverged, ended at chance level or failed, and seeds whose plain run has no accuracy.
    plain_chance
        Seeds of the pairs whose plain run ended at chance level or diverged.
    test_images
        Images behind one accuracy.
    """

    cell: Cell
    accuracy: float | None
    exact: float | None
    differences: dict[int, float]
    mean: float | None
    low: float | None
    high: float | None
    runs: int
    diverged: tuple[int, ...]
    chance: tuple[int, ...]
    failed: tuple[int, ...]
    unpaired: tuple[int, ...]
    plain_chance: tuple[int, ...]
    test_images: int | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends of the interval."""
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class Gradients:
    """How far a cell's weight gradients are from the plain model's: means over runs of the worst weight's figures."""

    cell: Cell
    runs: int
    error: float
    cosine: float


@dataclass(frozen=True)
class Kept:
    """How one variant kept its tolerance, over all layers, masks and seeds of the study; a policy, each of its own."""

    label: str
    compressor: str
    eps: float
    guarantee: str | None
    blocks: int
    violations: int
    worst: float | None
    escalated: float | None
    stored: float | None


@dataclass(frozen=True)
class Size:
    """Bytes of one cell's layer, scaled to a batch of 100 images, with ranks and true errors.

    Attributes
    ----------
    method, eps, path
        What was done to the layer: the cell's compressor, or what its policy says.
    n, break_even_rank
        None where the layer's calls differ in them.
    saved_bytes, held_bytes, freed_bytes, claimed_bytes
        What the layer without compression keeps of its input and nobody else does; what it holds now; what is freed
        for real; and by the input's bytes minus the formula's. None where the ledgers were not taken.
    cut_saved
        1 - held / saved; None where nothing is saved, too.
    kept_by
        Who keeps the layer's input, too; None where nobody does.
    unrealised
        Why less is freed than claimed.
    """

    cell: Cell
    method: str
    eps: float | None
    path: str | None
    layer: str
    index: int
    m: int
    n: int | None
    runs: int
    blocks: int
    rank_mean: float | None
    break_even_rank: float | None
    im2col_bytes: float | None
    input_bytes: float | None
    factor_bytes: float | None
    cut_im2col: float | None
    cut_input: float | None
    error_mean: float | None
    error_max: float | None
    violations: int | None
    guarantee: str | None
    own: float | None
    escalated: float | None
    stored: float | None
    saved_bytes: float | None
    held_bytes: float | None
    freed_bytes: float | None
    claimed_bytes: float | None
    cut_saved: float | None
    kept_by: str | None
    unrealised: str | None


@dataclass(frozen=True)
class Held:
    """What one training step of a cell holds when its forward pass ends, in bytes of one batch, over the seeds.

    Attributes
    ----------
    images
        Of the batch.
    formula, held
        By arithmetic from shapes and ranks (None where a module has no formula), and as the ledger finds it.
    plain
        Held by the plain model.
    lean_freed, freed
        What bits or checkpointing and, beyond them, compression frees for real; negative where they add.
    claimed
        What the formula says that compression frees of the layers' inputs.
    hidden
        Alive, though autograd did not save it.
    unrealised
        Layers that claim to free something and free less, with the reason.
    """

    cell: Cell
    runs: int
    images: int | None
    formula: float | None
    held: float
    plain: float
    lean_freed: float
    freed: float
    claimed: float
    hidden: float
    unrealised: dict[str, str]


@dataclass(frozen=True)
class Timing:
    """Time of a training step in a cell and in the plain model, in milliseconds; ratio is wrapped over plain."""

    cell: Cell
    runs: int
    rounds: int | None
    wrapped: Spread
    plain: Spread
    ratio: Spread
    lowering: float | None
    compressing: float | None
    rest: float | None


@dataclass(frozen=True)
class Peak:
    """Peak memory that a step adds in a cell and in the plain model, in bytes; low and high are the extremes seen.

    The totals are those of the whole process, and None where they were not recorded.
    """

    cell: Cell
    runs: int
    processes: int | None
    wrapped: Spread
    plain: Spread
    wrapped_total: Spread | None
    plain_total: Spread | None

    @property
    def ratio(self) -> float:
        """Wrapped over plain."""
        return self.wrapped.middle / self.plain.middle
