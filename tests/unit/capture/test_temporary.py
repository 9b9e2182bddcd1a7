"""A file that replaces another once it is whole, and what writers that died left behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import posix
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanreplay.capture import temporary
from nanreplay.capture.temporary import UNTOUCHED_S, remove_stale, replacing

ANY = re.compile(r"run\.h5")


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size`, as a full disk does."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("hurried", [False, True])
def test_the_new_file_replaces_the_old_one_when_it_is_whole(tmp_path: Path, hurried: bool) -> None:
    target = tmp_path / "run.h5"
    target.write_bytes(b"old")
    with replacing(target, hurried=hurried) as file:
        assert file.write(b"new and more") == 12
        file.truncate(5)
        assert target.read_bytes() == b"old"
        assert (file.seek(0), file.read(3), file.tell()) == (0, b"new", 3)
        rest = bytearray(9)
        assert (file.readinto(rest), rest[:2]) == (2, b" a")
    assert target.read_bytes() == b"new a"
    assert os.listdir(tmp_path) == ["run.h5"]


@pytest.mark.parametrize("hurried", [False, True])
def test_content_is_synced_before_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hurried: bool
) -> None:
    """A crash of the machine leaves the old file or the new one; not so in a hurry."""
    target, synced = tmp_path / "run.h5", []

    def fsync(descriptor: int) -> None:
        posix.fsync(descriptor)
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append(("folder" if is_folder else "content", target.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with replacing(target, hurried=hurried) as file:
        file.write(b"new")
    assert synced == [("content", hurried), ("folder", True)]


def test_an_error_of_the_writer_leaves_the_old_file_alone(tmp_path: Path) -> None:
    def write() -> None:
        with replacing(tmp_path / "run.h5") as file:
            file.write(b"half")
            raise ZeroDivisionError

    (tmp_path / "run.h5").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError):
        write()
    assert (tmp_path / "run.h5").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["run.h5"]


def test_hdf5_hears_of_no_error_and_the_first_one_is_raised_at_the_end(tmp_path: Path) -> None:
    def write() -> None:
        with replacing(tmp_path / "run.h5") as file:
            with largest_file(1000):
                assert file.write(bytes(5000)) == 5000
            first = file.error
            assert file.write(b"after") == 5
            assert file.truncate(7) == 7
            assert file.error is first
            assert file.seek(0, os.SEEK_END) == 1000  # nothing was written after the error

    with pytest.raises(OSError, match="too large"):
        write()
    assert os.listdir(tmp_path) == []


def test_a_size_that_cannot_be_set_is_an_error_like_any_other(tmp_path: Path) -> None:
    def write() -> None:
        with replacing(tmp_path / "run.h5") as file:
            with largest_file(1000):
                assert file.truncate(5000) == 5000
            assert file.write(b"after") == 5

    with pytest.raises(OSError, match="too large"):
        write()
    assert os.listdir(tmp_path) == []


def left_behind(folder: Path, host: str | None = None, *, target: str = "run.h5") -> Path:
    path = folder / f".{target}.{host or temporary._host()}.1.0.tmp"
    path.write_bytes(b"half")
    return path


def test_what_a_dead_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    left = left_behind(tmp_path)
    of_another_target = left_behind(tmp_path, target="other.h5")
    not_ours = tmp_path / ".run.h5.tmp"
    not_ours.touch()
    remove_stale(tmp_path, ANY)
    assert not left.exists()
    assert of_another_target.exists()
    assert not_ours.exists()


def test_the_file_of_a_writer_that_lives_stays(tmp_path: Path) -> None:
    with left_behind(tmp_path).open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        remove_stale(tmp_path, ANY)
        assert len(os.listdir(tmp_path)) == 1
    with replacing(tmp_path / "run.h5") as file:
        remove_stale(tmp_path, ANY)
        file.write(b"whole")
    assert (tmp_path / "run.h5").read_bytes() == b"whole"


@pytest.mark.parametrize(("age_s", "stays"), [(0.0, True), (2 * UNTOUCHED_S, False)])
def test_a_file_of_another_host_is_left_behind_when_nobody_wrote_to_it_for_long(
    tmp_path: Path, age_s: float, stays: bool
) -> None:
    path = left_behind(tmp_path, "00000000")
    written = path.stat().st_mtime - age_s
    os.utime(path, (written, written))
    remove_stale(tmp_path, ANY)
    assert path.exists() is stays


def test_a_number_that_a_dead_process_had_is_no_obstacle(tmp_path: Path) -> None:
    taken = tmp_path / f".run.h5.{temporary._host()}.{os.getpid()}.0.tmp"
    taken.write_bytes(b"of a dead process")
    with replacing(tmp_path / "run.h5") as file:
        file.write(b"whole")
    assert (tmp_path / "run.h5").read_bytes() == b"whole"
    assert taken.read_bytes() == b"of a dead process"
