"""Captures by URL: read in ranges, written whole or not at all, kept locally when their place
fails."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import h5py
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile
from sample_contents import same_bits, sample_contents

from nanreplay import Capture
from nanreplay.capture import storage, write_capture
from nanreplay.capture.storage import RemotePath, check_uploads, location, publish
from nanreplay.errors import CaptureNotFoundError, FormatError, StorageError
from nanreplay.report.inventory import inventory

SAMPLES = Path(__file__).parents[3] / "sample_runs"


class CountedFile(AbstractBufferedFile):  # type: ignore[misc]
    def _fetch_range(self, start: int, end: int) -> bytes:
        CountingFileSystem.read_bytes += end - start
        return CountingFileSystem.files[self.path][start:end]


class CountingFileSystem(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """Files of which ranges are read, and counted, as from a bucket."""

    protocol = "counted"
    files: ClassVar[dict[str, bytes]] = {}
    read_bytes = 0

    def _open(self, path: str, mode: str = "rb", **options: Any) -> CountedFile:
        if path not in self.files:
            raise FileNotFoundError(path)
        return CountedFile(self, path, mode, size=len(self.files[path]), **options)

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        return {"name": path, "size": len(self.files[path]), "type": "file"}


class FlakyFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """A store that fails some times, loses bytes, or never answers."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    failures = 0
    loses = 0
    hangs: threading.Event | None = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.replace("flaky://", "memory://")))

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        kind = type(self)
        if kind.hangs is not None:
            kind.hangs.wait(60)
        data = Path(lpath).read_bytes()
        if kind.failures > 0:
            kind.failures -= 1
            self.pipe_file(rpath, data[:100])
            raise OSError("connection reset")
        if kind.loses > 0:
            kind.loses -= 1
            data = data[:-1]
        self.pipe_file(rpath, data)


@pytest.fixture(autouse=True)
def stores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fsspec.register_implementation("counted", CountingFileSystem, clobber=True)
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    (
        CountingFileSystem.read_bytes,
        FlakyFileSystem.failures,
        FlakyFileSystem.loses,
        FlakyFileSystem.hangs,
    ) = 0, 0, 0, None
    monkeypatch.setattr(storage, "_FIRST_PAUSE_S", 0.001)
    yield
    FlakyFileSystem.store.clear()
    MemoryFileSystem.store.clear()


@pytest.fixture
def local(tmp_path: Path) -> Path:
    write_capture(tmp_path / "run.h5", sample_contents())
    return tmp_path / "run.h5"


def test_a_capture_in_memory_reads_like_a_file(local: Path) -> None:
    fsspec.filesystem("memory").put_file(str(local), "/runs/run.h5")
    with Capture("memory://runs/run.h5") as capture:
        assert str(capture.path) == "memory://runs/run.h5"
        assert capture.size_bytes == local.stat().st_size
        assert same_bits(capture.contents(), sample_contents())


def test_a_file_url_is_a_file(local: Path) -> None:
    assert location(f"file://{local}") == local
    with Capture(f"file://{local}") as capture:
        assert capture.path == local


def test_the_tables_of_a_large_remote_capture_are_read_without_the_rest() -> None:
    padded = io.BytesIO((SAMPLES / "log_of_zero.h5").read_bytes())
    with h5py.File(padded, "r+") as file:
        file["padding"] = np.zeros(100 * 2**20, np.uint8)
    CountingFileSystem.files = {"bucket/run.h5": padded.getvalue()}
    with Capture("counted://bucket/run.h5") as capture:
        assert inventory(capture)["incident"]["step"] == capture.incident.step
        assert capture.size_bytes > 100 * 2**20
    assert 0 < CountingFileSystem.read_bytes < 2 * 2**20


def test_no_such_remote_file() -> None:
    for url in ("memory://nope.h5", "counted://bucket/nope.h5"):
        with pytest.raises(CaptureNotFoundError, match=f"{url}: no such file"):
            Capture(url)


def test_a_host_that_does_not_answer_is_not_taken_for_a_missing_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: Any, path: str, mode: str = "rb", **options: Any) -> Any:
        raise FileNotFoundError(path) from ConnectionRefusedError("connection refused")

    monkeypatch.setattr(CountingFileSystem, "_open", refuse)
    with pytest.raises(
        StorageError,
        match=r"counted://bucket/run\.h5: cannot be read: ConnectionRefusedError: "
        r"connection refused",
    ):
        Capture("counted://bucket/run.h5")


def test_something_else_behind_a_url_is_no_capture() -> None:
    fsspec.filesystem("memory").pipe_file("/page.html", b"<html>")
    with pytest.raises(FormatError, match=r"memory://page\.html: not an HDF5 file"):
        Capture("memory://page.html")


def test_an_unknown_protocol_is_one_clear_line() -> None:
    with pytest.raises(StorageError, match=r"^nosuch://x: .*nosuch"):
        Capture("nosuch://x")


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(StorageError, match=r"URLs need fsspec: pip install 'nanreplay\[remote\]'"):
        Capture("s3://bucket/run.h5")


@pytest.mark.parametrize(
    ("url", "package"), [("s3://b/run.h5", "s3fs"), ("gs://b/run.h5", "gcsfs")]
)
def test_a_missing_store_is_named_with_what_installs_it(
    url: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(StorageError, match=rf"^{url}: needs {package}: pip install {package}\.$"):
        check_uploads(RemotePath(url))


def test_what_can_only_be_read_is_no_target() -> None:
    with pytest.raises(StorageError, match="can be read, not written"):
        check_uploads(RemotePath("https://host/run.h5"))


def test_an_upload_that_fails_is_tried_again_and_leaves_nothing_half(local: Path) -> None:
    FlakyFileSystem.failures, FlakyFileSystem.loses = 2, 1
    publish(local, RemotePath("flaky://runs/run.h5"))
    assert list(FlakyFileSystem.store) == ["/runs/run.h5"]
    assert fsspec.filesystem("flaky").cat_file("/runs/run.h5") == local.read_bytes()


def test_an_upload_that_never_works_ends_in_time_and_leaves_nothing(local: Path) -> None:
    FlakyFileSystem.failures = 10**9
    with pytest.raises(
        StorageError, match=r"flaky://runs/run\.h5: could not be written within .*connection reset"
    ):
        publish(local, RemotePath("flaky://runs/run.h5"), within_s=0.2)
    assert not [name for name in FlakyFileSystem.store if name.endswith("/run.h5")]


def test_an_upload_that_hangs_is_left_to_itself(local: Path) -> None:
    FlakyFileSystem.hangs = threading.Event()
    try:
        with pytest.raises(StorageError, match="could not be written within"):
            publish(local, RemotePath("flaky://runs/run.h5"), within_s=0.1)
    finally:
        FlakyFileSystem.hangs.set()
        for thread in threading.enumerate():
            if thread.name == "nanreplay upload":
                thread.join(10)


def test_an_upload_replaces_an_older_capture(local: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/runs/run.h5", b"older")
    publish(local, RemotePath("memory://runs/run.h5"))
    with Capture("memory://runs/run.h5") as capture:
        assert capture.incident.step == sample_contents().incident.step


def test_pauses_between_attempts_grow(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    wait = threading.Event.wait
    monkeypatch.setattr(
        threading.Event,
        "wait",
        lambda self, timeout=None: pauses.append(timeout or 0) or wait(self, timeout),
    )
    FlakyFileSystem.failures = 4
    publish(local, RemotePath("flaky://run.h5"))
    attempts = [pause for pause in pauses if 0 < pause < 0.1]
    assert attempts == [0.001, 0.002, 0.004, 0.008]
