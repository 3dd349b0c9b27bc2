"""The images to train on: CIFAR-10, and crops of two photographs for where nothing can be downloaded.

``photos`` needs no network: scikit-learn ships the photographs. ``cifar10`` reads the official binary batches, whose
records are plain bytes, so nothing is unpickled. Every dataset says where it came from and carries a digest of what was
read, for two folders of the same layout may hold different images.
"""

import hashlib
import os
import shutil
import tarfile
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrbench.names import DATASETS

__all__ = [
    "Dataset",
    "DatasetError",
    "fetch_cifar10",
    "find_cifar10",
    "list_datasets",
    "load_dataset",
    "load_photos",
    "photo_crops",
    "read_cifar10",
    "read_records",
    "to_float",
]

SIDE = 32
RECORD_BYTES = 1 + 3 * SIDE * SIDE
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
CIFAR10_RECORDS = 10_000
"""Records in each of the six files."""
BATCHES = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILE = "test_batch.bin"
SEAL = "contents.sha256"
DATA_VARIABLE = "LRBENCH_DATA"
GIVE_A_FOLDER = f"give a folder that holds {BATCHES} with --data-dir or the environment variable {DATA_VARIABLE}"

# A photograph, 427 x 640 pixels, is cut into strips, the classes, and each strip into cells: nine to train on, three to
# test on, scattered so that both see all of the strip.
PHOTOS = ("china", "flower")
PHOTO_STRIPS = 5
CELL_ROWS, CELL_COLUMNS = 6, 2
CELL_HEIGHT, CELL_WIDTH = 71, 64
TRAIN_CROPS, TEST_CROPS = 200, 50  # of each class
PHOTO_SEED = 0


class DatasetError(ValueError):
    """A dataset is unknown, cannot be fetched, or is not what it should be."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with their labels, and which data they are.

    Attributes
    ----------
    name : str
        ``photos`` or ``cifar10``.
    source : str
        Where the images came from, to be read by a person; a folder is named without its path.
    sha256 : str
        Hexadecimal SHA-256 of training images, training labels, test images and test labels, in this order and a byte
        for each label: two datasets with the same digest hold the same data.
    train_images, test_images : Tensor
        Shape (N, 3, 32, 32), uint8, channels red, green, blue.
    train_labels, test_labels : Tensor
        Shape (N,), int64, each an index into `classes`.
    classes : tuple of str
        The classes' names.
    """

    name: str
    source: str
    sha256: str
    train_images: Tensor = field(repr=False)
    train_labels: Tensor = field(repr=False)
    test_images: Tensor = field(repr=False)
    test_labels: Tensor = field(repr=False)
    classes: tuple[str, ...]


def list_datasets() -> tuple[str, ...]:
    """Return the names that `load_dataset` accepts."""
    return DATASETS


def load_dataset(name: str, data_dir: Path | str | None = None) -> Dataset:
    """Load a dataset by its name.

    Parameters
    ----------
    name : str
        One of `list_datasets`.
    data_dir : Path or str, optional
        For ``cifar10``: the folder ``cifar-10-batches-bin`` or the one around it. Without it the environment variable
        ``LRBENCH_DATA`` names the folder, and without that either the official archive is downloaded, once.
        ``photos`` needs no folder and looks at none.

    Raises
    ------
    DatasetError
        If the name is unknown, the folder's files are not complete, or the archive cannot be fetched.
    """
    if name == "photos":
        return load_photos()
    if name == "cifar10":
        folder = find_cifar10(data_dir)
        return fetch_cifar10() if folder is None else read_cifar10(folder)
    raise DatasetError(f"unknown dataset {name!r}: choose one of {', '.join(list_datasets())}")


def to_float(images: Tensor) -> Tensor:
    """Scale uint8 pixels to float32 in [0, 1].

    No mean is subtracted: that would change the ranks of the lowered blocks.

    Raises
    ------
    TypeError
        If the images are not uint8, and so may have been scaled already.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"pixels must be uint8 to be scaled to [0, 1], not {images.dtype}")
    return images.to(torch.float32) / 255


def find_cifar10(data_dir: Path | str | None = None) -> Path | None:
    """Find the CIFAR-10 folder that `data_dir`, or without it ``LRBENCH_DATA``, names; None if neither names any.

    Raises
    ------
    DatasetError
        If a folder was named and holds no batches; the message says by which of the two it was named.
    """
    named_by = "--data-dir" if data_dir else DATA_VARIABLE
    named = data_dir or os.environ.get(DATA_VARIABLE)
    if not named:
        return None
    folder = Path(named).expanduser()
    if (folder / BATCHES).is_dir():
        return folder / BATCHES
    if folder.name == BATCHES or any((folder / file).exists() for file in (*TRAIN_FILES, TEST_FILE)):
        return folder
    found = f"it holds no {BATCHES}" if folder.is_dir() else "there is no such folder"
    raise DatasetError(f"{named_by} names {folder}, but {found}: {GIVE_A_FOLDER} (the binary version, not the pickles)")


def read_records(path: Path, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Read one file of CIFAR-10's binary version.

    Parameters
    ----------
    path : Path
        Records of 3,073 bytes each: the label, then the planes of red, green and blue, row by row.
    count : int, optional
        The records that the file must hold; by default any positive number.

    Returns
    -------
    images : Tensor
        Shape (count, 3, 32, 32), uint8.
    labels : Tensor
        Shape (count,), int64, in 0 to 9.

    Raises
    ------
    DatasetError
        If the file is missing, unreadable or of another size, or holds another label; the message names the file, what
        was expected and what was found.
    """
    if count is None:
        expected = f"a positive multiple of {RECORD_BYTES:,} bytes"
    else:
        expected = f"{count * RECORD_BYTES:,} bytes ({count:,} records of {RECORD_BYTES:,})"
    try:
        size = path.stat().st_size
        whole = size > 0 and size % RECORD_BYTES == 0
        if not (whole if count is None else size == count * RECORD_BYTES):
            raise DatasetError(f"{path} is damaged, replace it: expected {expected}, found {size:,} bytes")
        records = np.fromfile(path, dtype=np.uint8).reshape(-1, RECORD_BYTES)
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing, supply it: expected {expected}, found no such file") from error
    except OSError as error:
        raise DatasetError(
            f"{path} cannot be read, replace it: expected {expected}, found {error.strerror or error}"
        ) from error
    labels = records[:, 0].astype(np.int64)
    wrong = np.flatnonzero(labels >= len(CIFAR10_CLASSES))
    if wrong.size:
        first = int(wrong[0])
        raise DatasetError(
            f"{path} is mislabelled, replace it: expected a label from 0 to {len(CIFAR10_CLASSES) - 1} "
            f"in record {first:,} (counted from 0; byte {first * RECORD_BYTES:,}), found {labels[first]}"
        )
    images = np.ascontiguousarray(records[:, 1:]).reshape(-1, 3, SIDE, SIDE)
    return torch.from_numpy(images), torch.from_numpy(labels)


def read_cifar10(folder: Path, source: str | None = None, records: int = CIFAR10_RECORDS) -> Dataset:
    """Read CIFAR-10 from a folder of its binary version.

    Parameters
    ----------
    folder : Path
        Holds ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``.
    source : str, optional
        Which data this is. By default the folder's name, or its parent's where the folder has the archive's own name.
    records : int
        The records that each of the six files must hold.

    Raises
    ------
    DatasetError
        If a file is missing, truncated, oversized or mislabelled.
    """
    if source is None:
        place = folder.resolve()
        source = f"folder {(place.parent.name if place.name == BATCHES else None) or place.name}"
    images, labels = zip(*(read_records(folder / file, records) for file in TRAIN_FILES), strict=True)
    train = torch.cat(images), torch.cat(labels)
    return _assemble("cifar10", source, train, read_records(folder / TEST_FILE, records), CIFAR10_CLASSES)


def fetch_cifar10(
    url: str = CIFAR10_URL, md5: str = CIFAR10_MD5, cache: Path | None = None, records: int = CIFAR10_RECORDS
) -> Dataset:
    """Read CIFAR-10 from the official archive, which is downloaded and unpacked on first use.

    The data's digest is written down when the archive is unpacked and compared at every use: files that were changed
    since then never pass for the archive's.

    Parameters
    ----------
    url : str
        Where the archive is; 170,052,171 bytes for the default.
    md5 : str
        The archive's published MD5, 32 hexadecimal digits.
    cache : Path, optional
        The folder for the archive and its contents; by default the user's cache, as `pooch.os_cache` knows it.
    records : int
        The records that each of the six files must hold.

    Raises
    ------
    DatasetError
        If the archive cannot be downloaded, has another MD5 (it is then removed), cannot be unpacked safely or lacks a
        file, or if the unpacked files were changed later.
    """
    import pooch

    folder = (pooch.os_cache("lrbench") if cache is None else cache) / f"cifar-10-{md5}"
    if not folder.exists():
        _unpack(_download(url, md5, folder.parent), folder, records)
    changed = f"{folder} was changed since the archive was unpacked there, remove it and start again"
    try:
        dataset = read_cifar10(folder / BATCHES, f"the official binary archive (MD5 {md5})", records)
        sealed = (folder / SEAL).read_bytes()
    except (DatasetError, OSError) as error:
        raise DatasetError(f"{changed}: {error}") from error
    if sealed != dataset.sha256.encode():
        raise DatasetError(f"{changed}: its data now has the SHA-256 {dataset.sha256}, not the one in {SEAL}")
    return dataset


def load_photos() -> Dataset:
    """Cut the photographs that scikit-learn ships into 2,000 training and 500 test images of ten classes.

    A class is a strip of one photograph. No training image shares a pixel with a test image, and the classes take turns
    at random, so that every prefix holds as many of each, give or take one.
    """
    from sklearn.datasets import load_sample_image

    photographs = [load_sample_image(f"{photo}.jpg") for photo in PHOTOS]

    def cut(crops: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        images = np.stack([photographs[photo][top : top + SIDE, left : left + SIDE] for photo, top, left in crops])
        labels = crops[:, 0] * PHOTO_STRIPS + crops[:, 2] // (CELL_COLUMNS * CELL_WIDTH)
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)

    train, test = photo_crops()
    classes = tuple(f"{photo} {strip}" for photo in PHOTOS for strip in range(1, PHOTO_STRIPS + 1))
    return _assemble("photos", "scikit-learn's china.jpg and flower.jpg", cut(train), cut(test), classes)


def photo_crops() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Say where the images of ``photos`` lie: the same places at every call, none of them twice.

    Returns
    -------
    train : ndarray
        Shape (2000, 3), int64. Each row is an image's photograph (0 or 1), its topmost row and its leftmost column.
    test : ndarray
        Shape (500, 3), likewise, from other cells of the photographs.
    """
    rng = np.random.default_rng(PHOTO_SEED)
    cells = [(row, column) for row in range(CELL_ROWS) for column in range(CELL_COLUMNS)]
    test_cells = [(row, column) for row, column in cells if (row + 2 * column) % 4 == 1]
    train_cells = [cell for cell in cells if cell not in test_cells]
    return _draw_crops(rng, train_cells, TRAIN_CROPS), _draw_crops(rng, test_cells, TEST_CROPS)


def _draw_crops(rng: np.random.Generator, cells: list[tuple[int, int]], count: int) -> NDArray[np.int64]:
    """Draw `count` places from the given cells of each strip: photograph, top, left, one class after the other."""
    places = (len(cells), CELL_HEIGHT - SIDE + 1, CELL_WIDTH - SIDE + 1)
    crops = np.empty((len(PHOTOS) * PHOTO_STRIPS, count, 3), dtype=np.int64)
    for label, of_class in enumerate(crops):
        photo, strip = divmod(label, PHOTO_STRIPS)
        cell, down, right = np.unravel_index(rng.choice(np.prod(places), count, replace=False), places)
        row, column = np.array(cells)[cell].T
        of_class[:, 0] = photo
        of_class[:, 1] = row * CELL_HEIGHT + down
        of_class[:, 2] = (strip * CELL_COLUMNS + column) * CELL_WIDTH + right
    turns = rng.permuted(np.tile(np.arange(len(crops)), (count, 1)), axis=1)  # each round has every class once
    shuffled: NDArray[np.int64] = crops[turns, np.arange(count)[:, None]].reshape(-1, 3)
    return shuffled


def _assemble(
    name: str, source: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: tuple[str, ...]
) -> Dataset:
    """Put images and labels together with the digest of both."""
    digest = hashlib.sha256()
    for images, labels in (train, test):
        digest.update(images.numpy().data)
        digest.update(labels.to(torch.uint8).numpy().data)
    return Dataset(name, source, digest.hexdigest(), *train, *test, classes)


def _download(url: str, md5: str, cache: Path) -> Path:
    """Return the archive in `cache`, after downloading it if it is not there; its MD5 has been checked."""
    import pooch

    downloader = pooch.HTTPDownloader(progressbar=True, chunk_size=1 << 16, timeout=30)
    try:
        archive = pooch.retrieve(url, f"md5:{md5}", url.rpartition("/")[2], cache, downloader=downloader)
    except OSError as error:  # what requests raises, and a cache that cannot be written
        raise DatasetError(f"cannot download {url} to {cache} ({type(error).__name__}): {GIVE_A_FOLDER}") from error
    except ValueError as error:
        mismatch = str(error).partition(". ")[0]
        raise DatasetError(f"what came from {url} was removed, try again or {GIVE_A_FOLDER}: {mismatch}") from error
    return Path(archive)


def _unpack(archive: Path, folder: Path, records: int) -> None:
    """Unpack the archive as `folder`, with the digest of its data beside it: completely or not at all."""
    try:
        with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent) as staging:
            part = Path(staging, "part")
            with tarfile.open(archive, "r:gz") as tar:
                for member in tar:
                    _copy(tar, member, part)
            (part / SEAL).write_text(read_cifar10(part / BATCHES, records=records).sha256, encoding="ascii")
            try:
                part.rename(folder)
            except OSError:
                if not folder.exists():  # otherwise another process was faster, which is as good
                    raise
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DatasetError(f"cannot unpack {archive} ({error}): {GIVE_A_FOLDER}") from error


def _copy(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Copy a file out of an archive; refuse all that could be written outside `folder`, and anything but files.

    tarfile has filters for that only from Python 3.11.4 on.
    """
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise tarfile.TarError(f"{member.name} is outside of its folder")
    if member.isdir():
        return
    source = tar.extractfile(member) if member.isfile() else None
    if source is None:
        raise tarfile.TarError(f"{member.name} is no file")
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with source, target.open("xb") as copy:
        shutil.copyfileobj(source, copy)
