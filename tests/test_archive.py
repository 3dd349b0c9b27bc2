"""CIFAR-10's archive: fetched once, checked, and unpacked where nothing else is touched."""

import dataclasses
import hashlib
import io
import shutil
import socket
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO

import pytest
import torch
from cifar_files import COUNT, FILES, small_files, write_small

from lrbench.datasets import (
    BATCHES,
    CIFAR10_MD5,
    CIFAR10_RECORDS,
    CIFAR10_URL,
    Dataset,
    DatasetError,
    fetch_cifar10,
    load_dataset,
    read_cifar10,
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LRBENCH_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_small(tmp_path / "pictures" / BATCHES)


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
    extractfile, opened = tarfile.TarFile.extractfile, []

    def interrupt(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes] | None:
        opened.append(member.name)
        if len(opened) == 4:
            shutil.copytree(cache, killed)  # what a kill would leave, for nothing cleans up after it
            raise KeyboardInterrupt
        return extractfile(tar, member)

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extractfile", interrupt)
        with pytest.raises(KeyboardInterrupt):
            server.fetch(cache)
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
    extractfile = tarfile.TarFile.extractfile

    def overtaken(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes] | None:
        monkeypatch.setattr(tarfile.TarFile, "extractfile", extractfile)
        server.fetch(tmp_path)
        return extractfile(tar, member)

    monkeypatch.setattr(tarfile.TarFile, "extractfile", overtaken)
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
