"""What the first layer's factors take, by formula and for real: the paper's table 4.1, for any compressor and images.

python -m lrbench.sizes --records DIR/data_batch_1.bin --out results/table-4.1
python -m lrbench.sizes --dataset photos --compressors svd aca --eps 0.1

Nothing is trained. Images, pixels in [0, 1], are lowered by a 3x3 kernel with zero padding 1 and compressed in batches
of 100; the bytes are means over the batches.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from lrbench import paper
from lrbench.files import write_atomically
from lrbench.names import DATASETS
from lrbench.shell import interruptible, make_parser
from lrbench.store import ResultsFolderError

# What takes torch is imported where it is first needed: the command line answers at once.
if TYPE_CHECKING:
    import pandas as pd
    import torch

    from lrbench.compressed import Compressed

__all__ = ["main", "measure_sizes"]

SAYS = """\
What the first layer's factors take, by formula and for real: the paper's table
4.1, for any compressor and images. Nothing is trained."""
EXAMPLES = """\
lrbench sizes --dataset photos --compressors svd aca --eps 0.1
lrbench sizes --records DIR/data_batch_1.bin --out results/table-4.1"""
BATCH = 100


def measure_sizes(images: torch.Tensor, compressors: Sequence[str], tolerances: Sequence[float]) -> pd.DataFrame:
    """Compress the first layer's blocks of all images with every compressor at every tolerance.

    Parameters
    ----------
    images : Tensor
        (N, C, H, W) uint8, N a multiple of 100.
    compressors : sequence of str
        Names, or files and classes as in ``./mine.py:Mine``.
    tolerances : sequence of float
        Requested relative errors, in (0, 1]; a compressor without a tolerance takes the first one only.
        One that makes no sense here, by its own word, is left out.

    Returns
    -------
    pandas.DataFrame
        A row for each pair: compressor, eps, guarantee, images; mean_rank (NaN where ranks do not apply); UV_bytes (the
        numbers of U and V, and of what is stored; all that is held where there are none), held_bytes, im2col_bytes,
        input_bytes and saved_bytes (what of the input nobody else keeps: 0, for it is the batch, which the caller
        holds), each the mean over batches of 100; cut_im2col and cut_input of UV_bytes, cut_saved, which is None where
        nothing is saved; error_median, error_max,
        violations; share_own, share_escalated, share_stored.

    Raises
    ------
    ValueError
        If there is no whole batch.
    """
    import pandas as pd
    import torch

    from lrbench.compressors import get_compressor
    from lrbench.datasets import to_float
    from lrbench.factors import Origin
    from lrbench.im2col import Geometry, Im2col
    from lrbench.measure.error import relative_error, violations

    if len(images) == 0 or len(images) % BATCH:
        raise ValueError(f"there are {len(images)} images: give a positive multiple of {BATCH}")
    cells = [(name, eps) for name in compressors for eps in tolerances]
    cells = [(name, eps) for name, eps in cells if get_compressor(name).uses_eps or eps == tolerances[0]]
    geometry, size = Geometry.parse(kernel_size=3, padding=1), (images.shape[2], images.shape[3])
    cells = [(name, eps) for name, eps in cells if get_compressor(name).skip(geometry, size, "backward") is None]
    rows = []
    for name, eps in tqdm(cells, unit="cell", disable=None):
        compressor = get_compressor(name, eps=eps) if get_compressor(name).uses_eps else get_compressor(name)
        seen: list[tuple[torch.Tensor, ...]] = []
        sizes: list[dict[str, int]] = []
        for batch in images.split(BATCH):
            blocks = Im2col(to_float(batch), kernel_size=3, padding=1)
            compressed = compressor.compress(blocks)
            ranks = compressed.ranks
            sizes.append(
                {
                    "UV_bytes": _numbers_bytes(compressed),
                    "held_bytes": compressed.nbytes,
                    "im2col_bytes": blocks.shape.numel() * blocks.dtype.itemsize,
                    "input_bytes": blocks.tensor.nbytes,
                    "saved_bytes": 0,
                }
            )
            none = torch.full((len(blocks),), torch.nan)
            error = relative_error(blocks, compressed)
            seen.append((none if ranks is None else ranks, error, compressed.origin))
        bytes_ = {str(key): round(mean) for key, mean in pd.DataFrame(sizes).mean().items()}
        ranks, errors, origins = (torch.cat(part) for part in zip(*seen, strict=True))
        rows.append(
            {
                "compressor": compressor.name,
                "eps": eps if compressor.uses_eps else None,
                "guarantee": compressor.guarantee,
                "images": len(images),
                "mean_rank": ranks.double().mean().item(),
                **bytes_,
                "cut_im2col": 1 - bytes_["UV_bytes"] / bytes_["im2col_bytes"],
                "cut_input": 1 - bytes_["UV_bytes"] / bytes_["input_bytes"],
                "cut_saved": None,
                "error_median": errors.median().item(),
                "error_max": errors.max().item(),
                "violations": violations(errors, eps) if compressor.uses_eps else None,
                **{f"share_{o.name.lower()}": (origins == int(o)).double().mean().item() for o in Origin},
            }
        )
    return pd.DataFrame(rows)


def _numbers_bytes(compressed: Compressed) -> int:
    """Bytes of the numbers that stand for the blocks: of U and V, and of what is kept; else all that is held."""
    from lrbench.factors import Factors

    if not isinstance(compressed, Factors):
        return compressed.nbytes
    kept = 0 if compressed.kept is None else compressed.kept.tensor.nbytes
    return compressed.U.nbytes + compressed.V.nbytes + kept


def _markdown(table: pd.DataFrame, source: str, command: str, cifar: bool) -> str:
    import pandas as pd

    from lrbench.environment import environment
    from lrbench.factors import Origin

    lines = [
        "# Bytes of layer 1, for 100 images",
        "",
        f"{table['images'].iloc[0]} images of {source}, pixels in [0, 1], blocks 27 x 1024, float32.",
        "",
        "| compressor | eps | mean rank | U and V, or the code, bytes | cut vs im2col | cut vs the input "
        "| median error | worst error | above eps | own / escalated / stored |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in table.to_dict("records"):
        counted = "–" if pd.isna(row["violations"]) else f"{row['violations']:.0f} of {row['images']}"
        shares = " / ".join(f"{100 * row[f'share_{origin.name.lower()}']:.1f}" for origin in Origin)
        eps = "–" if pd.isna(row["eps"]) else f"{row['eps']:g}"
        rank = "–" if pd.isna(row["mean_rank"]) else f"{row['mean_rank']:.2f}"
        lines.append(
            f"| {row['compressor']} | {eps} | {rank} | {row['UV_bytes']:,} | {row['cut_im2col']:.3f} "
            f"| {row['cut_input']:.2f} | {row['error_median']:.4f} | {row['error_max']:.4f} | {counted} | {shares} % |"
        )
    if cifar:  # of other images the paper says nothing
        cuts = [1 - paper.FACTOR_BYTES / whole for whole in (paper.IM2COL_BYTES, paper.INPUT_BYTES)]
        lines.append(
            f"| the paper's ACA | {paper.EPS} | – | {paper.FACTOR_BYTES:,} | {cuts[0]:.3f} | {cuts[1]:.2f} "
            "| – | – | – | – |"
        )
    lines += [
        "",
        "A cut is 1 − bytes / denominator; below 0 the factors are larger than the input, which is what PyTorch's own "
        "convolution keeps. A stored block is counted with the numbers of its image; a method without ranks, with all "
        "that it holds.",
        "",
        "Cut vs saved: nothing to save. The input of layer 1 is the batch itself, which the caller holds through the "
        "step whatever the layer keeps, so compressing it frees nothing in training: the factors come on top.",
        "",
        f"`{command}`, lrbench {environment()['lrbench']}, commit {environment()['commit']}, "
        f"torch {environment()['torch']}.",
        "",
    ]
    return "\n".join(lines)


@interruptible
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; give its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = make_parser("sizes", SAYS, EXAMPLES)
    add = parser.add_argument
    add("--records", type=Path, metavar="FILE", help="a file in CIFAR-10's binary layout")
    add("--dataset", choices=DATASETS, default="photos", help="else its training images (photos)")
    add("--data-dir", type=Path, metavar="DIR", help="for cifar10; else $LRBENCH_DATA, or downloaded")
    add("--compressors", nargs="+", metavar="NAME", help="names, or ./FILE.py:CLASS (all)")
    add("--eps", type=float, nargs="+", default=[0.3, 0.1, 0.03, 0.01], metavar="EPS", help="(0.3 0.1 0.03 0.01)")
    add("--out", type=Path, metavar="DIR", help="where sizes.csv and sizes.md go; else printed only")
    options = parser.parse_args(arguments)
    command = shlex.join(["python", "-m", "lrbench.sizes", *arguments])

    from lrbench.compressors import list_compressors

    try:
        images, source = _images(options)
        table = measure_sizes(
            images[: len(images) // BATCH * BATCH], options.compressors or list_compressors(), options.eps
        )
        text = _markdown(table, source, command, cifar=options.records is not None or options.dataset == "cifar10")
        print(text)
        if options.out is not None:
            try:
                options.out.mkdir(parents=True, exist_ok=True)
                write_atomically(options.out / "sizes.csv", table.to_csv(index=False))
                write_atomically(options.out / "sizes.md", text)
            except OSError as error:
                raise ResultsFolderError(f"{options.out} cannot be written ({error.strerror}): name another") from error
    except ResultsFolderError as error:
        print(f"lrbench.sizes: {error}", file=sys.stderr)
        return 1
    except (ValueError, LookupError, TypeError) as error:
        print(f"lrbench.sizes: {error.args[0] if error.args else error}", file=sys.stderr)
        return 2
    return 0


def _images(options: argparse.Namespace) -> tuple[torch.Tensor, str]:
    """Give the images, and where they are from in words."""
    from lrbench.datasets import load_dataset, read_records

    if options.data_dir is not None and options.dataset != "cifar10":
        raise ValueError("--data-dir is of CIFAR-10: give it with --dataset cifar10, or leave it out")
    if options.records is not None:
        images, _ = read_records(options.records)
        path: Path = options.records.resolve()
        folder = path.parent.parent if path.parent.name == "cifar-10-batches-bin" else path.parent
        digest: Any = hashlib.sha256(path.read_bytes()).hexdigest()
        return images, f"{path.name} of the folder {folder.name} (SHA-256 {digest})"
    data = load_dataset(options.dataset, options.data_dir)
    return data.train_images, f"{data.name}, {data.source} (SHA-256 {data.sha256})"


if __name__ == "__main__":
    sys.exit(main())
