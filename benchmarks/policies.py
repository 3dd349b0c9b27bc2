"""Policies for the frontier of accuracy against memory, tuned on training images that its runs do not train on.

``python -m benchmarks.policies --data-dir DIR --out results/frontier/policies`` trains the network of the preset
``frontier`` for an epoch on the preset's training images, and lets ``lrbench.tune`` choose by batches of those that
follow: one policy for each least cosine of the weights' gradients, named by it, and written if no stricter cosine gave
the same. It wants the machine to itself.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

import lrbench
from benchmarks.inputs import trained_network
from lrbench.datasets import load_dataset, to_float
from lrbench.environment import environment
from lrbench.files import write_atomically
from lrbench.presets import load_preset
from lrbench.tuning import Tuned

COSINES = (0.99, 0.95, 0.9)


def main(arguments: Sequence[str] | None = None) -> None:
    """Tune, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="a cifar-10-batches-bin folder; else downloaded")
    parser.add_argument("--processes", type=int, default=3, help="fresh processes for each peak (default 3)")
    parser.add_argument("--out", type=Path, help="folder for a TOML file of each policy, and policies.md")
    options = parser.parse_args(arguments)
    preset = load_preset("frontier").options
    torch.set_num_threads(preset["threads"])
    data = load_dataset(preset["dataset"], options.data_dir)
    used, size = preset["train_size"], preset["batch_size"]
    model = trained_network(to_float(data.train_images[:used]), data.train_labels[:used], preset["widths"])
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as runs have it: workspaces differ
    held_out = [slice(used + k * size, used + (k + 1) * size) for k in range(2)]
    batch, check = ((to_float(data.train_images[part]), data.train_labels[part]) for part in held_out)
    lines = [
        "# Policies that were tuned",
        "",
        f"On images {used:,} to {held_out[-1].stop - 1:,} of the training images of {data.source}, SHA-256",
        f"{data.sha256}. Peaks are medians; commit {environment()['commit']}.",
        "",
        "| policy | least cosine asked | least had | held, MiB | peak, MiB | peak / native | layers |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    names: dict[str, str] = {}
    for cosine in COSINES:
        tuned = lrbench.tune(model, batch, check=check, cosine=cosine, processes=options.processes, progress=print)
        name = f"tuned-{round(100 * cosine)}"
        policy = tuned.policy.to_toml()
        same = names.setdefault(policy, name)
        lines.append(f"| {name if same == name else f'{name}, which is {same}'} | {cosine:g} {_row(tuned)}")
        if options.out is not None and same == name:
            write_atomically(options.out / f"{name}.toml", policy)
        elif options.out is not None:
            (options.out / f"{name}.toml").unlink(missing_ok=True)
    text = "\n".join([*lines, ""])
    print(text)
    if options.out is not None:
        write_atomically(options.out / "policies.md", text)


def _row(tuned: Tuned) -> str:
    plain, ours = (sorted(peak.added for peak in peaks) for peaks in (tuned.plain_peaks, tuned.peaks))
    native, peak = plain[len(plain) // 2], ours[len(ours) // 2]
    layers = ", ".join(
        f"{name} {layer.compressor}" + ("" if layer.eps is None else f" {layer.eps:g}")
        for name, layer in tuned.policy.layers.items()
    )
    return (
        f"| {tuned.gradients['cosine'].min():.3f} | {tuned.held / 2**20:.1f} | {peak / 2**20:.1f} "
        f"| {peak / native:.2f} | {layers} |"
    )


if __name__ == "__main__":
    main()
