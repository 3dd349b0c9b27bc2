"""What compression can bring in each convolution of a model, before any training: bytes, break-even ranks, flops.

python -m lrbench.plan paper --input 100,3,32,32
python -m lrbench.plan resnet50 --input 256,3,224,224 --out DIR
python -m lrbench.plan my_package.models:make_model --input 64,3,96,96
python -m lrbench.plan resnet20 --input 100,3,32,32 --measure DIR/test_batch.bin --weights FILE --eps 0.3 0.1

The forward pass is run in training mode on the meta device, where nothing is computed or allocated; with --measure once
more on the CPU.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrbench.files import write_atomically
from lrbench.names import MODELS
from lrbench.shell import interruptible, make_parser
from lrbench.store import ResultsFolderError

# What takes torch is imported where it is first needed: the command line answers at once.
if TYPE_CHECKING:
    import pandas as pd

__all__ = ["main"]

SAYS = """\
What compression can bring in each convolution of a model, before any training:
bytes, break-even ranks, flops. The model runs on the meta device, where nothing
is computed or allocated, and with --measure on the CPU."""
EXAMPLES = """\
lrbench plan paper --input 100,3,32,32
lrbench plan resnet50 --input 256,3,224,224 --out DIR
lrbench plan my_package.models:make_model --input 64,3,96,96
lrbench plan resnet20 --input 100,3,32,32 --measure test_batch.bin"""
WIDTH = 120
TOLERANCES = [0.3, 0.1, 0.03]


@interruptible
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns
    -------
    int
        Exit status: 0; 1 if something could not be written; 2 for a bad request.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = _options(arguments)
    try:
        table = _plan(options)
        print(_text(table, options, WIDTH))
        if options.out is not None:
            command = shlex.join(["python", "-m", "lrbench.plan", *arguments])
            _write(options.out, table, f"{_text(table, options, None)}\n`{command}`{_versions()}\n")
    except ResultsFolderError as error:
        print(f"lrbench.plan: {error}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"lrbench.plan: {error}", file=sys.stderr)
        return 2
    return 0


def _plan(options: argparse.Namespace) -> pd.DataFrame:
    import torch

    from lrbench.compressors import get_compressor
    from lrbench.models import build_model, build_on_meta
    from lrbench.needed import load_weights, needed_ranks, read_images
    from lrbench.planning import plan_model
    from lrbench.saved import PlanError

    for eps in options.eps:
        get_compressor("svd", eps=eps)
    if options.weights is not None and options.measure is None:
        raise PlanError("--weights changes no shape: give it together with --measure")
    table = plan_model(build_on_meta(options.model, options.widths, options.classes), options.input)
    if options.measure is None:
        return table
    images = read_images(options.measure, options.input, options.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = build_model(options.model, options.widths, options.classes)
    if options.weights is not None:
        load_weights(model, options.weights)
    totals = table.attrs
    table = table.merge(needed_ranks(model, images, options.eps, options.seed), on=["layer", "call"], how="left")
    table.attrs = {**totals, "measured": len(images)}
    return table


def _text(table: pd.DataFrame, options: argparse.Namespace, width: int | None) -> str:
    """The plan in Markdown; cells are shortened, names first, until a line fits ``width`` characters."""
    shape = "x".join(map(str, options.input))
    records = table.to_dict("records")
    lines = [f"# {options.model}, a batch of {shape}: {table['bit'].nunique()} convolutions", ""]
    named = [(str(row["bit"]), _called(row)) for row in records]
    rows = [(*name, row["geometry"], *_sizes(row)) for name, row in zip(named, records, strict=True)]
    head: Sequence[str] = (
        "bit",
        "layer",
        "geometry",
        "block m x n",
        "blocks",
        "im2col",
        "input",
        "flops W·D",
        "flops/rank",
    )
    lines += [*_table(head, rows, width, left=(1, 2), short=(1,)), ""]
    against = [[_rank(row[f"rank_{of}"]) for of in _AGAINST] for row in records]
    said = [row["verdict"] if width is None else _in_brief(row) for row in records]
    held = [row["holders"] or "–" for row in records]
    rows = [(*name, who, *ranks, what) for name, who, ranks, what in zip(named, held, against, said, strict=True)]
    head = ("bit", "layer", "also held by", *_AGAINST.values(), "compression pays")
    lines += [*_table(head, rows, width, left=(1, 2, 7), short=(2, 7, 1)), "", *_wrapped(_LEGEND, width), ""]
    if "measured" in table.attrs:
        lines += [*_measured(table, named, options, width), ""]
    lines += [*_wrapped(_summary(table), width), ""]
    return "\n".join(lines)


_AGAINST = {"im2col": "im2col", "input": "input", "saved": "saved", "unaliased": "bits"}

_LEGEND = (
    "Break-even ranks: factors of r·(m + n) numbers are as large there as im2col; as the layer's input; as what their "
    "use frees of what autograd keeps (saved); and as what it would free if every ReLU among the holders kept one bit "
    "for each number, as lrbench.lean makes it, and every convolution among them were compressed, too, each within its "
    "share (bits). The flops of W·D and of (W·U)·V, compressing not counted, meet at the rank of im2col."
)


def _measured(
    table: pd.DataFrame, named: list[tuple[str, str]], options: argparse.Namespace, width: int | None
) -> list[str]:
    import pandas as pd

    tolerances = list(dict.fromkeys(options.eps))
    weights = "weights as drawn" if options.weights is None else f"weights {options.weights.name}"
    said = (
        f"Mean ranks of the truncated SVD, and the bytes of its factors over those of the input (a block that is "
        f"stored counts as of full rank, and with the bytes of its image), in training mode, "
        f"{table.attrs['measured']} images of {options.measure.name}, {weights}, seed {options.seed}; where a layer's "
        "blocks are many or large, of some of the images:"
    )
    lines = _wrapped(said, width)
    for start in range(0, len(tolerances), 5):
        part = tolerances[start : start + 5]
        rows = []
        for name, row in zip(named, table.to_dict("records"), strict=True):
            met = pd.notna(row["images"])
            cells = [f"{row[f'rank_{e:g}']:.1f} ({row[f'bytes_{e:g}']:.2f})" if met else "–" for e in part]
            rows.append((*name, f"{row['images']:.0f}" if met else "–", _rank(row["rank_input"]), *cells))
        head = ("bit", "layer", "images", "break-even, input", *(f"eps {e:g}" for e in part))
        lines += ["", *_table(head, rows, width, left=(1,), short=(1,))]
    return lines


def _summary(table: pd.DataFrame) -> str:
    # A convolution that is called more than once counts by its best call.
    order = ("as it is", "alias removed", "never")
    counts = Counter(min(calls, key=order.index) for _, calls in table.groupby("bit")["pays"])
    totals = {name: _bytes(nbytes) for name, nbytes in table.attrs["totals"].items()}
    return (
        f"Compression can pay as it is in {counts['as it is']} of {table['bit'].nunique()} convolutions, with "
        f"aliases removed in {counts['alias removed']} more, and never in {counts['never']}. All of them "
        f"together, each storage once: im2col {totals['im2col']}, input {totals['input']}, kept by autograd "
        f"{totals['kept']} (of {totals['model']} that the model keeps), of which compressing all would free, "
        f"less the factors, {totals['freed']} as it is and {totals['unaliased']} if ReLUs kept bits."
    )


def _sizes(row: dict[Any, Any]) -> tuple[str, ...]:
    """Cells of what follows from the shapes alone."""
    if row["call"] == 0:
        return ("–",) * 6
    block = f"{row['m']}x{row['n']}"
    sizes = (_bytes(row["im2col_bytes"]), _bytes(row["input_bytes"]))
    return block, f"{row['blocks']:,}", *sizes, _flops(row["dense_flops"]), _flops(row["flops_per_rank"])


def _in_brief(row: dict[Any, Any]) -> str:
    """The verdict, without the names of holders that stand beside it."""
    return f"unaliased: to rank {row['max_rank']}" if row["pays"] == "alias removed" else row["verdict"]


def _called(row: dict[Any, Any]) -> str:
    name = row["layer"] or "the model"
    return f"{name}, call {row['call']}" if row["call"] > 1 else name


def _rank(rank: float) -> str:
    return "–" if rank != rank else f"{rank:.1f}"


def _bytes(count: int) -> str:
    return _scaled(count, ((1e9, " GB"), (1e6, " MB"), (1e3, " kB"), (1, " B")))


def _flops(count: int) -> str:
    return _scaled(count, ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1, "")))


def _scaled(count: int, units: Sequence[tuple[float, str]]) -> str:
    """Three digits, or all of a number below a thousand."""
    size, unit = next((pair for pair in units if count >= pair[0]), units[-1])
    value = count / size
    return f"{value:,.{0 if size == 1 or value >= 100 else 1 if value >= 10 else 2}f}{unit}"


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None, left: Sequence[int], short: Sequence[int]
) -> list[str]:
    """Lines of a Markdown table, padded; columns ``short`` are shortened, the widest first, to fit ``width``."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(head))]
    while width is not None and sum(widths) + 3 * len(widths) + 1 > width:
        widest = max(short, key=lambda i: widths[i])
        if widths[widest] <= 6:
            break
        widths[widest] -= 1
    ruler = ["-" * size if i in left else "-" * (size - 1) + ":" for i, size in enumerate(widths)]
    lines = []
    for row in (cells[0], ruler, *cells[1:]):
        fitted = [_shortened(cell, size) for cell, size in zip(row, widths, strict=True)]
        padded = [c.ljust(s) if i in left else c.rjust(s) for i, (c, s) in enumerate(zip(fitted, widths, strict=True))]
        lines.append(f"| {' | '.join(padded)} |")
    return lines


def _shortened(text: str, size: int) -> str:
    """The text, its middle left out where it is too long: names differ at their ends."""
    if len(text) <= size:
        return text
    return f"{text[: (size - 1) // 2]}…{text[len(text) - size + 1 + (size - 1) // 2 :]}"


def _wrapped(text: str, width: int | None) -> list[str]:
    import textwrap

    return [text] if width is None else textwrap.wrap(text, width)


def _versions() -> str:
    from lrbench.environment import environment

    made_by = environment()
    return f", lrbench {made_by['lrbench']}, commit {made_by['commit']}, torch {made_by['torch']}."


def _write(folder: Path, table: pd.DataFrame, text: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "plan.csv", table.to_csv(index=False))
        write_atomically(folder / "plan.md", text)
    except OSError as error:
        raise ResultsFolderError(f"{folder} cannot be written ({error.strerror}): name another") from error


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = make_parser("plan", SAYS, EXAMPLES, "MODEL --input N,C,H,W [options]")
    add = parser.add_argument
    add("model", metavar="MODEL", help=f"{', '.join(MODELS)}, or package.module:function")
    add("--input", type=_shape, required=True, metavar="N,C,H,W", help="the shape of a batch")
    add("--widths", type=int, nargs="+", metavar="W", help="of a model named above; its own without them")
    add("--classes", type=int, default=10, metavar="N", help="for a model that takes them (10)")
    add(
        "--measure",
        type=Path,
        metavar="FILE",
        help="images to take ranks of: .pt or .npy (N, C, H, W), or CIFAR's .bin",
    )
    add("--weights", type=Path, metavar="FILE", help="a state dictionary for --measure")
    add(
        "--eps",
        type=float,
        nargs="+",
        default=TOLERANCES,
        metavar="EPS",
        help="for --measure (0.3 0.1 0.03)",
    )
    add("--seed", type=int, default=0, metavar="N", help="for --measure: of weights, dropout and chosen images")
    add("--out", type=Path, metavar="DIR", help="where plan.csv and plan.md go; else it is printed only")
    return parser.parse_args(arguments)


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        shape = ()
    if len(shape) != 4 or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"it is {text!r}: give four positive numbers, such as 100,3,32,32")
    return shape


if __name__ == "__main__":
    sys.exit(main())
