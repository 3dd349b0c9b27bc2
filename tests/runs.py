"""Small runs on the photographs, for the tests of everything that trains."""

import subprocess
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import lrbench.datasets
from lrbench.datasets import Dataset
from lrbench.training import Config


@cache
def photos() -> Dataset:
    return lrbench.datasets.load_dataset("photos")


def config(**changes) -> Config:
    small = Config(
        dataset="photos",
        data_sha256=photos().sha256,
        train_size=60,
        test_size=40,
        model="paper",
        widths=(4, 4, 4),
        epochs=3,
        batch_size=20,
        learning_rate=1e-3,
        seed=0,
        mask="101010",
        compressor="svd",
        compressor_version=1,
        eps=0.3,
        path="both",
        device="cpu",
        threads=1,
    )
    return replace(small, **changes)


PLAIN = {"mask": "000000", "compressor": None, "compressor_version": None, "eps": None, "path": None}
POLICY = {"compressor": "tuned", "compressor_version": None, "eps": None, "path": None}


def signal_when_there(file: Path, process: "subprocess.Popen[str]", sent: int) -> str:
    """Send a signal to a process once a file is there, or it ended, and give what it wrote on its standard error."""
    deadline = time.monotonic() + 600
    while not file.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(sent)
    return process.communicate(timeout=60)[1]
