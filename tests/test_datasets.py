import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from cifar_files import COUNT, FILES, RECORD, small_files, write_small
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images

from lrbench.datasets import (
    BATCHES,
    Dataset,
    DatasetError,
    find_cifar10,
    list_datasets,
    load_dataset,
    photo_crops,
    read_cifar10,
    read_records,
    to_float,
)

REAL_DATA = os.environ.get("LRBENCH_DATA")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LRBENCH_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_small(tmp_path / "pictures" / BATCHES)


# --- names and pixels ---


def test_an_unknown_name_is_answered_with_those_allowed() -> None:
    with pytest.raises(DatasetError, match=r"'mnist'.*photos, cifar10"):
        load_dataset("mnist")
    assert list_datasets() == ("photos", "cifar10")


def test_pixels_are_scaled_and_nothing_else() -> None:
    scaled = to_float(torch.tensor([[0, 51, 255]], dtype=torch.uint8))
    assert scaled.dtype == torch.float32
    torch.testing.assert_close(scaled, torch.tensor([[0.0, 0.2, 1.0]]), rtol=0, atol=0)


def test_pixels_are_not_scaled_twice() -> None:
    with pytest.raises(TypeError, match="uint8"):
        to_float(torch.ones(3))


# --- photos ---


@pytest.fixture(scope="module")
def photos() -> Dataset:
    return load_dataset("photos")


def is_covered(crops: NDArray[np.int64]) -> NDArray[np.bool_]:
    mask = np.zeros((2, 427, 640), dtype=bool)
    for photo, top, left in crops:
        region = mask[photo, top : top + 32, left : left + 32]
        assert region.shape == (32, 32), "a crop leaves its photograph"
        region[:] = True
    return mask


def test_no_training_photo_shares_a_pixel_with_a_test_photo() -> None:
    train, test = photo_crops()
    train_mask, test_mask = is_covered(train), is_covered(test)
    assert not (train_mask & test_mask).any()
    assert 2 < train_mask.sum() / test_mask.sum() < 4
    for tested in test:  # once more without a mask: crops overlap where both offsets are less than their side
        same = train[train[:, 0] == tested[0], 1:]
        assert (np.abs(same - tested[1:]) >= 32).any(axis=1).all()


def test_photo_images_are_the_pixels_at_their_crops(photos: Dataset) -> None:
    photographs = load_sample_images().images
    for images, crops in zip((photos.train_images, photos.test_images), photo_crops(), strict=True):
        assert images.shape == (len(crops), 3, 32, 32)
        assert images.dtype == torch.uint8
        for image, (photo, top, left) in zip(images.numpy(), crops, strict=True):
            expected = photographs[photo][top : top + 32, left : left + 32]
            assert np.array_equal(image.transpose(1, 2, 0), expected)


def test_a_photo_label_is_the_strip_that_its_crop_lies_in(photos: Dataset) -> None:
    assert photos.classes[0] == "china 1"
    assert photos.classes[9] == "flower 5"
    for labels, crops in zip((photos.train_labels, photos.test_labels), photo_crops(), strict=True):
        assert labels.dtype == torch.int64
        strip, offset = np.divmod(crops[:, 2], 128)
        assert (offset <= 128 - 32).all(), "a crop reaches into the next class"
        assert labels.tolist() == (5 * crops[:, 0] + strip).tolist()


def test_every_prefix_of_the_photos_is_balanced(photos: Dataset) -> None:
    for labels, total in ((photos.train_labels, 2000), (photos.test_labels, 500)):
        counts = torch.nn.functional.one_hot(labels, 10).cumsum(dim=0)
        assert (counts.amax(dim=1) - counts.amin(dim=1)).max() <= 1
        assert counts[-1].tolist() == [total // 10] * 10
    orders = photos.train_labels.view(-1, 10)
    assert len(orders.unique(dim=0)) > 190, "the classes take turns in a fixed order"


def test_no_photo_is_cut_twice() -> None:
    crops = np.concatenate(photo_crops())
    assert len(np.unique(crops, axis=0)) == 2500


def test_photos_are_the_same_every_time_and_leave_global_generators_alone(photos: Dataset) -> None:
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again = load_dataset("photos")
    assert torch.equal(torch.get_rng_state(), before)
    assert again.sha256 == photos.sha256
    assert torch.equal(again.train_images, photos.train_images)
    assert torch.equal(again.test_labels, photos.test_labels)
    assert photos.source == "scikit-learn's china.jpg and flower.jpg"


def test_photo_crops_are_those_of_published_results() -> None:
    """If NumPy changes its stream of random numbers, photos are other images and no results compare."""
    train, test = photo_crops()
    digest = hashlib.sha256(train.astype("<i8").tobytes() + test.astype("<i8").tobytes()).hexdigest()
    assert digest == "cfb6304631a03974fc984cebb0594bd9e33cd74bdd73b8881a3003dad535feb4"


# --- one file ---


def test_a_record_is_a_label_and_three_planes_row_by_row(tmp_path: Path) -> None:
    pixels = np.arange(2 * 3072) % 251
    path = tmp_path / "two.bin"
    path.write_bytes(bytes([7, *pixels[:3072].tolist(), 2, *pixels[3072:].tolist()]))
    for count in (2, None):
        images, labels = read_records(path, count)
        assert labels.tolist() == [7, 2]
        assert labels.dtype == torch.int64
        assert images.dtype == torch.uint8
        assert images.is_contiguous()
        assert np.array_equal(images.numpy(), pixels.reshape(2, 3, 32, 32))


@pytest.mark.parametrize("size", [0, 1, 3072, 3074, 9 * RECORD, 10 * RECORD - 1, 10 * RECORD + 1, 11 * RECORD])
def test_a_file_of_another_size_is_named_with_both_sizes(tmp_path: Path, size: int) -> None:
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(bytes(size))
    with pytest.raises(DatasetError, match=rf"data_batch_1\.bin.* expected 30,730 bytes .*found {size:,} bytes"):
        read_records(path, 10)


@pytest.mark.parametrize("size", [0, 1, 3072, 3074, 9220])
def test_a_file_without_whole_records_is_refused_whatever_their_number(tmp_path: Path, size: int) -> None:
    path = tmp_path / "some.bin"
    path.write_bytes(bytes(size))
    with pytest.raises(DatasetError, match=rf"some\.bin.* multiple of 3,073 bytes, found {size:,} bytes"):
        read_records(path)


def test_a_missing_file_is_named_with_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere\.bin is missing.* expected 30,730 bytes .*found no such file"):
        read_records(tmp_path / "nowhere.bin", 10)


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=tmp_path.name):
        read_records(tmp_path)


@pytest.mark.parametrize("label", [10, 200, 255])
def test_a_wrong_label_is_named_with_its_position(tmp_path: Path, label: int) -> None:
    content = bytearray(3 * RECORD)
    content[2 * RECORD] = label
    path = tmp_path / "test_batch.bin"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=rf"test_batch\.bin .*0 to 9 in record 2 .*byte 6,146.* found {label}$"):
        read_records(path, 3)


# --- a folder ---


def test_a_folder_is_read_in_the_order_of_its_files(small: Path) -> None:
    dataset = read_cifar10(small, records=COUNT)
    records = np.frombuffer(b"".join(small_files().values()), dtype=np.uint8).reshape(6 * COUNT, RECORD)
    train, test = records[: 5 * COUNT], records[5 * COUNT :]
    assert np.array_equal(dataset.train_images.numpy().reshape(-1, 3072), train[:, 1:])
    assert dataset.train_labels.tolist() == train[:, 0].tolist()
    assert np.array_equal(dataset.test_images.numpy().reshape(-1, 3072), test[:, 1:])
    assert dataset.test_labels.tolist() == test[:, 0].tolist()
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == torch.int64
    contents = b"".join(part.tobytes() for part in (train[:, 1:], train[:, 0], test[:, 1:], test[:, 0]))
    assert dataset.sha256 == hashlib.sha256(contents).hexdigest()
    assert dataset.name == "cifar10"
    assert " ".join(dataset.classes) == "airplane automobile bird cat deer dog frog horse ship truck"


@pytest.mark.parametrize("place", [0, 1, RECORD * COUNT - 1])
@pytest.mark.parametrize("name", [FILES[0], FILES[4], FILES[5]])
def test_the_digest_sees_every_byte(small: Path, name: str, place: int) -> None:
    before = read_cifar10(small, records=COUNT).sha256
    content = bytearray((small / name).read_bytes())
    content[place] ^= 1
    (small / name).write_bytes(content)
    assert read_cifar10(small, records=COUNT).sha256 != before


def test_the_source_names_the_folder_and_not_its_path(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_cifar10(small, records=COUNT).source == "folder pictures"
    renamed = small.rename(tmp_path / "other-name")
    assert read_cifar10(renamed, records=COUNT).source == "folder other-name"
    monkeypatch.chdir(renamed)
    assert read_cifar10(Path(), records=COUNT).source == "folder other-name"


@pytest.mark.parametrize("name", FILES)
def test_each_file_is_needed_in_full(small: Path, name: str) -> None:
    content = (small / name).read_bytes()
    for wrong in (content[:-1], content + bytes(1), content[:-RECORD], content + content[:RECORD], b""):
        (small / name).write_bytes(wrong)
        with pytest.raises(DatasetError, match=rf"{name} .*expected 30,730 bytes.*found {len(wrong):,} bytes"):
            read_cifar10(small, records=COUNT)
    (small / name).write_bytes(bytes([10]) + content[1:])
    with pytest.raises(DatasetError, match=rf"{name} is mislabelled"):
        read_cifar10(small, records=COUNT)
    (small / name).unlink()
    with pytest.raises(DatasetError, match=rf"{name} is missing"):
        read_cifar10(small, records=COUNT)


def test_full_size_files_are_asked_for_by_default(tmp_path: Path) -> None:
    folder = tmp_path / "sparse" / BATCHES
    folder.mkdir(parents=True)
    for label, name in enumerate(FILES):
        with (folder / name).open("wb") as file:
            file.write(bytes([label]))
            file.truncate(30_730_000)
    dataset = load_dataset("cifar10", tmp_path / "sparse")
    assert dataset.train_images.shape == (50_000, 3, 32, 32)
    assert dataset.train_labels[::10_000].tolist() == [0, 1, 2, 3, 4]
    assert dataset.test_images.shape == (10_000, 3, 32, 32)
    assert dataset.test_labels[:2].tolist() == [5, 0]
    with (folder / FILES[3]).open("r+b") as file:
        file.truncate(30_729_999)
    with pytest.raises(DatasetError, match=r"data_batch_4\.bin .*expected 30,730,000 bytes.*found 30,729,999 bytes"):
        load_dataset("cifar10", folder)


# --- which folder ---


def test_the_folder_may_be_the_one_with_the_batches_or_the_one_around_it(small: Path, tmp_path: Path) -> None:
    assert find_cifar10(small) == small
    assert find_cifar10(small.parent) == small
    assert find_cifar10(str(small.parent)) == small
    renamed = small.rename(tmp_path / "other-name")
    assert find_cifar10(renamed) == renamed


def test_the_parameter_wins_over_the_variable(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = write_small(tmp_path / "other" / BATCHES, seed=1)
    monkeypatch.setenv("LRBENCH_DATA", str(small.parent))
    assert find_cifar10() == small
    assert find_cifar10(other) == other
    with pytest.raises(DatasetError, match=f"{small}/data_batch_1.bin .*30,730,000"):  # small, hence refused
        load_dataset("cifar10")
    with pytest.raises(DatasetError, match=f"{other}/data_batch_1.bin .*30,730,000"):
        load_dataset("cifar10", other.parent)


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_cifar10() is None
    monkeypatch.setenv("LRBENCH_DATA", "")
    assert find_cifar10() is None


def test_a_named_folder_without_batches_is_never_replaced_by_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DatasetError, match=rf"^--data-dir names {tmp_path}, but it holds no {BATCHES}"):
        load_dataset("cifar10", tmp_path)
    monkeypatch.setenv("LRBENCH_DATA", str(tmp_path / "typo"))
    with pytest.raises(DatasetError, match=r"^LRBENCH_DATA names .*typo, but there is no such folder"):
        load_dataset("cifar10")


def test_photos_need_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: Dataset) -> None:
    monkeypatch.setenv("LRBENCH_DATA", "/nowhere")
    assert load_dataset("photos", tmp_path).sha256 == photos.sha256


# --- the real data, where there is some ---


@pytest.mark.skipif(not REAL_DATA, reason="LRBENCH_DATA names no folder of CIFAR-10")
def test_the_real_data_are_balanced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRBENCH_DATA", str(REAL_DATA))
    folder = find_cifar10()
    assert folder is not None
    if not (folder / "test_batch.bin").exists():
        pytest.skip(f"{folder} holds a part of CIFAR-10 only")
    dataset = load_dataset("cifar10")
    assert dataset.train_images.shape == (50_000, 3, 32, 32)
    assert dataset.test_images.shape == (10_000, 3, 32, 32)
    assert dataset.train_labels.bincount().tolist() == [5_000] * 10
    assert dataset.test_labels.bincount().tolist() == [1_000] * 10
    assert dataset.source.startswith("folder ")
    assert "/" not in dataset.source
