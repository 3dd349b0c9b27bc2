import dataclasses
import hashlib
import io
import os
import shutil
import socket
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images

from lrbench.datasets import (
    BATCHES,
    CIFAR10_MD5,
    CIFAR10_RECORDS,
    CIFAR10_URL,
    Dataset,
    DatasetError,
    fetch_cifar10,
    find_cifar10,
    list_datasets,
    load_dataset,
    photo_crops,
    read_cifar10,
    read_records,
    to_float,
)

REAL_DATA = os.environ.get("LRBENCH_DATA")
FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
COUNT = 10  # records in each file of the small data
RECORD = 3073


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LRBENCH_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


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


# --- the archive ---


@dataclasses.dataclass
class Server:
    url: str
    body: bytes = b""
    declared: int | None = None  # Content-Length, where it is not the truth
    status: int = 200
    requests: int = 0

    @property
    def md5(self) -> str:
        return hashlib.md5(self.body).hexdigest()

    def fetch(self, cache: Path, md5: str | None = None) -> Dataset:
        return fetch_cifar10(self.url, md5 or self.md5, cache, COUNT)


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests += 1
            self.send_response(state.status)
            self.send_header("Content-Length", str(len(state.body) if state.declared is None else state.declared))
            self.end_headers()
            self.wfile.write(state.body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state = Server(f"http://127.0.0.1:{http.server_port}/cifar-10-binary.tar.gz")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        http.shutdown()
        thread.join()


def pack(files: dict[str, bytes], *extra: tarfile.TarInfo) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{BATCHES}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in extra:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return stream.getvalue()


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_the_official_archive_is_what_is_fetched_by_default() -> None:
    assert CIFAR10_URL == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert CIFAR10_MD5 == "c32a1d4ab5d03f1284b67883e8d87530"
    assert CIFAR10_RECORDS == 10_000


def test_a_good_archive_is_fetched_once(server: Server, small: Path, tmp_path: Path) -> None:
    server.body = pack(small_files())
    cache = tmp_path / "a" / "cache"
    first = server.fetch(cache)
    assert first.sha256 == read_cifar10(small, records=COUNT).sha256
    assert first.source == f"the official binary archive (MD5 {server.md5})"
    assert server.requests == 1
    assert contents(cache) == sorted([f"cifar-10-{server.md5}", "cifar-10-binary.tar.gz"])
    again = server.fetch(cache)
    assert again.source == first.source
    assert torch.equal(again.train_images, first.train_images)
    (cache / "cifar-10-binary.tar.gz").unlink()  # the unpacked files are enough
    server.fetch(cache)
    assert server.requests == 1


def test_a_download_shows_its_progress(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.body = pack(small_files())
    server.fetch(tmp_path)
    assert "100%" in capsys.readouterr().err


@pytest.mark.parametrize("honest", [True, False])
def test_a_truncated_archive_is_refused_and_removed(server: Server, tmp_path: Path, honest: bool) -> None:
    whole = pack(small_files())
    server.body = whole[: len(whole) // 2]
    server.declared = None if honest else len(whole)
    with pytest.raises(DatasetError, match="--data-dir"):
        server.fetch(tmp_path, hashlib.md5(whole).hexdigest())
    assert contents(tmp_path) == []
    server.body, server.declared = whole, None  # and the next try is a fresh one
    server.fetch(tmp_path)
    assert server.requests == 2


def test_an_archive_with_another_md5_is_removed_and_both_are_named(server: Server, tmp_path: Path) -> None:
    server.body = pack(small_files())
    with pytest.raises(DatasetError, match=rf"removed.*--data-dir.*{'0' * 32}.*{server.md5}"):
        server.fetch(tmp_path, "0" * 32)
    assert contents(tmp_path) == []


def test_an_archive_damaged_in_the_cache_is_fetched_again(server: Server, tmp_path: Path) -> None:
    server.body = pack(small_files())
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(server.body[:1000])
    server.fetch(tmp_path)
    assert server.requests == 1


@pytest.mark.parametrize("status", [404, 503])
def test_a_server_that_refuses_is_answered_with_the_way_out(server: Server, tmp_path: Path, status: int) -> None:
    server.body, server.status = b"sorry", status
    with pytest.raises(DatasetError, match=rf"cannot download {server.url} .*--data-dir.*LRBENCH_DATA"):
        server.fetch(tmp_path)
    assert contents(tmp_path) == []


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_without_a_network_one_sentence_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DatasetError, match=rf"^cannot download {CIFAR10_URL} .*--data-dir.*LRBENCH_DATA$") as caught:
        load_dataset("cifar10")
    assert "\n" not in str(caught.value)


def test_a_cache_that_cannot_be_written_is_named(server: Server, tmp_path: Path) -> None:
    server.body = pack(small_files())
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DatasetError, match=rf"{tmp_path}/file/cache .*--data-dir"):
        server.fetch(tmp_path / "file" / "cache")


def hostile(kind: str, outside: Path) -> list[tarfile.TarInfo]:
    evil = tarfile.TarInfo("../../../evil")
    evil.size = 9
    if kind == "absolute":
        evil.name = str(outside / "evil")
    if kind == "device":
        evil.name, evil.size, evil.type, evil.devmajor, evil.devminor = "null", 0, tarfile.CHRTYPE, 1, 3
    if kind not in ("symlink", "hardlink"):
        return [evil]
    link = tarfile.TarInfo("link")
    link.type = tarfile.SYMTYPE if kind == "symlink" else tarfile.LNKTYPE
    link.linkname = str(outside) if kind == "symlink" else "../../../secret"
    evil.name = "link/evil" if kind == "symlink" else "link"
    return [link, evil]


@pytest.mark.parametrize("kind", ["parent", "absolute", "symlink", "hardlink", "device"])
def test_an_archive_that_writes_outside_its_folder_is_refused(server: Server, tmp_path: Path, kind: str) -> None:
    (tmp_path / "secret").write_text("as it was")
    server.body = pack(small_files(), *hostile(kind, tmp_path))
    with pytest.raises(DatasetError, match=r"cannot unpack .*--data-dir"):
        server.fetch(tmp_path / "cache")
    assert contents(tmp_path) == ["cache", "secret"]
    assert (tmp_path / "secret").read_text() == "as it was"
    assert contents(tmp_path / "cache") == ["cifar-10-binary.tar.gz"]


@pytest.mark.parametrize("kind", ["no tar", "cut gzip"])
def test_an_archive_that_cannot_be_read_leaves_nothing_unpacked(server: Server, tmp_path: Path, kind: str) -> None:
    server.body = b"no archive" if kind == "no tar" else pack(small_files())[:100_000]
    with pytest.raises(DatasetError, match=r"cannot unpack .*--data-dir"):
        server.fetch(tmp_path)
    assert contents(tmp_path) == ["cifar-10-binary.tar.gz"]


def test_an_archive_without_one_of_the_files_is_refused(server: Server, tmp_path: Path) -> None:
    files = small_files()
    del files["data_batch_5.bin"]
    server.body = pack(files)
    with pytest.raises(DatasetError, match=r"data_batch_5\.bin is missing"):
        server.fetch(tmp_path)
    assert contents(tmp_path) == ["cifar-10-binary.tar.gz"]


def test_an_interrupted_unpacking_is_never_taken_for_data(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.body = pack(small_files())
    cache, killed = tmp_path / "cache", tmp_path / "killed"
    extractall = tarfile.TarFile.extractall

    def interrupt(tar: tarfile.TarFile, path: Path, **options: object) -> None:
        extractall(tar, path, members=tar.getmembers()[:3], filter="data")
        shutil.copytree(cache, killed)  # what a kill would leave, for nothing cleans up after it
        raise KeyboardInterrupt

    monkeypatch.setattr(tarfile.TarFile, "extractall", interrupt)
    with pytest.raises(KeyboardInterrupt):
        server.fetch(cache)
    monkeypatch.setattr(tarfile.TarFile, "extractall", extractall)
    assert contents(cache) == ["cifar-10-binary.tar.gz"]
    assert len(contents(killed)) == 2
    assert list(killed.rglob("data_batch_3.bin"))
    for folder in (cache, killed):
        assert len(server.fetch(folder).train_labels) == 5 * COUNT
    assert server.requests == 1


def test_another_process_may_unpack_at_the_same_time(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.body = pack(small_files())
    extractall = tarfile.TarFile.extractall

    def overtaken(tar: tarfile.TarFile, path: Path, **options: object) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(tarfile.TarFile, "extractall", extractall)
            server.fetch(tmp_path)
        extractall(tar, path, filter="data")

    monkeypatch.setattr(tarfile.TarFile, "extractall", overtaken)
    assert len(server.fetch(tmp_path).train_labels) == 5 * COUNT
    assert contents(tmp_path) == sorted([f"cifar-10-{server.md5}", "cifar-10-binary.tar.gz"])


@pytest.mark.parametrize("change", ["pixel", "truncated", "seal"])
def test_unpacked_files_that_changed_do_not_pass_for_the_archive(server: Server, tmp_path: Path, change: str) -> None:
    server.body = pack(small_files())
    server.fetch(tmp_path)
    folder = tmp_path / f"cifar-10-{server.md5}"
    path = folder / BATCHES / FILES[1]
    content = path.read_bytes()
    if change == "pixel":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif change == "truncated":
        path.write_bytes(content[:-1])
    else:
        (folder / "contents.sha256").unlink()
    with pytest.raises(DatasetError, match=rf"{folder} was changed .*remove it and start again"):
        server.fetch(tmp_path)
    shutil.rmtree(folder)
    server.fetch(tmp_path)


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
