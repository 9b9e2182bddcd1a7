"""Truncated, damaged, foreign and hostile files give one clear error; never a traceback, never
other numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_contents import same_bits, sample_contents

from nanreplay import Capture
from nanreplay.capture import write_capture
from nanreplay.capture.arrays import read_array, write_array
from nanreplay.capture.format import VERSION
from nanreplay.errors import CaptureError, CaptureNotFoundError, FormatError, VersionError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A capture in good order."""
    write_capture(tmp_path / "run.h5", sample_contents())
    return tmp_path / "run.h5"


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a capture."""
    file = tmp_path_factory.mktemp("healthy") / "run.h5"
    write_capture(file, sample_contents())
    return file.read_bytes()


def read_all(path: Path) -> Any:
    """Everything that a reader may ask for."""
    with Capture(path) as capture:
        for name in capture.programs:
            capture.signature(name)
            capture.ops(name)
        capture.timeline()
        return capture.contents()


fuzz = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def same_or_error(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    message, found = None, None
    try:
        found = read_all(path)
    except CaptureError as error:
        message = str(error)
    if message is None:
        assert same_bits(found, sample_contents())
    else:
        assert message.startswith(str(path))
        assert "\n" not in message


@given(data=st.data())
@fuzz
def test_flipped_bits_are_noticed_or_did_no_harm(
    data: st.DataObject, healthy: bytes, tmp_path: Path
) -> None:
    damaged = bytearray(healthy)
    for position in data.draw(
        st.lists(st.integers(0, len(healthy) * 8 - 1), min_size=1, max_size=8)
    ):
        damaged[position // 8] ^= 1 << position % 8
    same_or_error(tmp_path / "run.h5", bytes(damaged))


@given(data=st.data())
@fuzz
def test_truncated_files_are_noticed(data: st.DataObject, healthy: bytes, tmp_path: Path) -> None:
    length = data.draw(st.integers(0, len(healthy) - 1))
    same_or_error(tmp_path / "run.h5", healthy[:length])


@given(data=st.data())
@fuzz
def test_a_page_of_other_bytes_is_noticed_or_did_no_harm(
    data: st.DataObject, healthy: bytes, tmp_path: Path
) -> None:
    start = data.draw(st.integers(0, len(healthy) - 1))
    junk = data.draw(st.binary(min_size=1, max_size=512))
    same_or_error(
        tmp_path / "run.h5", (healthy[:start] + junk + healthy[start + len(junk) :])[: len(healthy)]
    )


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(CaptureNotFoundError, match="no such file"):
        Capture(tmp_path / "nope.h5")


def test_a_folder_is_no_capture(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="is a folder"):
        Capture(tmp_path)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89HDF\r\n\x1a\n", b"\0" * 4096])
def test_other_files_are_no_captures(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "other.h5").write_bytes(data)
    with pytest.raises(FormatError):
        Capture(tmp_path / "other.h5")


def test_another_hdf5_file_is_no_capture(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["kernel"] = np.ones(3)
    with pytest.raises(FormatError, match="an HDF5 file, but not a nanreplay capture"):
        Capture(tmp_path / "weights.h5")


def test_a_newer_version_asks_for_an_upgrade(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = VERSION + 1
    with pytest.raises(VersionError, match="Upgrade nanreplay"):
        Capture(path)


def test_a_file_that_was_not_written_to_its_end_is_refused(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file.attrs["complete"]
    with pytest.raises(FormatError, match="was not written to its end"):
        Capture(path)


def every_name(healthy: bytes, folder: Path) -> list[str]:
    (folder / "names.h5").write_bytes(healthy)
    names: list[str] = []
    with h5py.File(folder / "names.h5", "r") as file:
        file.visit(names.append)
    return names


def test_each_missing_part_is_noticed(healthy: bytes, tmp_path: Path) -> None:
    for name in every_name(healthy, tmp_path):
        path = tmp_path / "run.h5"
        path.write_bytes(healthy)
        with h5py.File(path, "r+") as file:
            del file[name]
        try:
            found = read_all(path)
        except CaptureError:
            continue
        assert same_bits(found, sample_contents()), name


@pytest.mark.parametrize(
    "value", [np.int64(3), np.zeros((2, 2)), np.frombuffer(b"not deflated", np.uint8)]
)
def test_a_table_of_something_else_is_noticed(value: Any, path: Path) -> None:
    with h5py.File(path, "r+") as file:
        for name in ("contents", "incident", "program/p0/ops", "sources/frames"):
            kept = file[name][()]
            del file[name]
            file[name] = value
            file.flush()
            with pytest.raises(FormatError, match="cannot be read"):
                read_all(path)
            del file[name]
            file[name] = kept


def test_a_huge_array_that_is_not_stored_is_not_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("it", shape=(10**12,), dtype="f4", chunks=(10**6,))
        with pytest.raises(FormatError, match="larger than what is stored"):
            read_array(file["it"])


def test_numbers_of_another_file_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"0123")
    with h5py.File(tmp_path / "linked.h5", "w") as file:
        file.create_dataset(
            "it", shape=(4,), dtype="u1", external=[(str(tmp_path / "secret"), 0, 4)]
        )
        with pytest.raises(FormatError, match="from another file"):
            read_array(file["it"])


def test_a_changed_number_is_noticed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "array.h5", "w") as file:
        write_array(file, "it", np.arange(3.0))
        file["it"][1] = 7
        with pytest.raises(FormatError, match="checksum"):
            read_array(file["it"])
