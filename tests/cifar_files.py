"""Small files in the layout of CIFAR-10, for the tests of everything that reads them."""

from pathlib import Path

import numpy as np

FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
COUNT = 10  # records in each file of the small data
RECORD = 3073


def small_files(seed: int = 0) -> dict[str, bytes]:
    rng = np.random.default_rng(seed)
    files = {}
    for name in FILES:
        records = rng.integers(256, size=(COUNT, RECORD), dtype=np.uint8)
        records[:, 0] = rng.permutation(COUNT)
        files[name] = records.tobytes()
    return files


def write_small(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    for name, content in small_files(seed).items():
        (folder / name).write_bytes(content)
    return folder
