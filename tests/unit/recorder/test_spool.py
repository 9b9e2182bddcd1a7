"""Keyframes on disk come back bit for bit, in as many places as there are, and leave nothing."""

from __future__ import annotations

import gc
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf

from nanreplay import limits
from nanreplay.capture.arrays import as_array, read_array, write_array
from nanreplay.recorder import room as room_module
from nanreplay.recorder.room import Room
from nanreplay.recorder.settings import Settings
from nanreplay.recorder.spool import Spool, SpooledValue, spool_folder

STATE = {
    0: tf.constant(np.random.default_rng(0).normal(size=(50, 70)).astype("float32")),
    1: tf.cast(tf.random.stateless_normal([3000], [1, 2]), tf.bfloat16),
    2: tf.constant(7, tf.int64),
    3: tf.constant(["a", "b"]),
    4: tf.constant(np.arange(2000, dtype="uint8").reshape(40, 50), tf.uint8),
}
SIZE = 2**16


def test_values_come_back_as_they_were_for_numpy_and_for_tensorflow(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 2)
    first = spool.write(STATE.items(), SIZE)
    spool.write({0: tf.zeros([50, 70])}.items(), SIZE)
    assert isinstance(first[0], SpooledValue)
    assert isinstance(first[1], SpooledValue)
    for index, value in STATE.items():
        np.testing.assert_array_equal(as_array(first[index]), as_array(value))
        assert first[index].dtype == value.dtype
    variable = tf.Variable(tf.identity(first[1]))
    assert variable.dtype == tf.bfloat16
    np.testing.assert_array_equal(tf.convert_to_tensor(first[0]), STATE[0])


def test_a_place_is_free_once_its_keyframe_is_let_go_of(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1)
    held = spool.write(STATE.items(), SIZE)
    with pytest.raises(OSError, match="no place"):
        spool.write(STATE.items(), SIZE)
    del held
    gc.collect()
    assert spool.write(STATE.items(), SIZE)


def test_the_file_has_no_name_and_outlives_the_spool_as_long_as_it_is_read(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1)
    held = spool.write(STATE.items(), SIZE)
    assert not list(tmp_path.iterdir())
    spool.close()
    np.testing.assert_array_equal(held[0].numpy(), STATE[0])


def test_no_folder_in_memory_nor_one_without_room_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert spool_folder(tmp_path, 1) is not None
    assert spool_folder(tmp_path, 2**60) is None
    monkeypatch.setattr(limits, "is_local_disk", lambda folder: folder != tmp_path)
    assert spool_folder(tmp_path, 1) != tmp_path
    monkeypatch.setattr(limits, "is_local_disk", lambda folder: False)
    assert spool_folder(tmp_path, 1) is None


GIB = 2**30


@pytest.mark.parametrize(
    ("state", "batch", "free", "expected"),
    [
        (10 * 2**20, 2**20, 64 * GIB, GIB + 24 * 2**20),
        (GIB, 2**20, 64 * GIB, 3 * GIB + 4 * 2**20),
        (2**20, 500 * 2**20, 64 * GIB, GIB + 2002 * 2**20),
        (8 * GIB, 2**20, 20 * GIB, 10 * GIB),
        (2**20, 2**20, GIB, GIB // 2),
    ],
)
def test_memory_follows_the_state_and_the_batch_and_never_takes_more_than_half_of_what_is_free(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    state: int,
    batch: int,
    free: int,
    expected: int,
) -> None:
    monkeypatch.setattr(limits, "free_memory", lambda: free)
    room = Room(Settings(str(tmp_path / "run.h5")))
    room.look(0, state, batch)
    assert room.memory_bytes == expected


def test_what_is_held_already_counts_as_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room(Settings(str(tmp_path / "run.h5")))
    monkeypatch.setattr(limits, "free_memory", lambda: 3 * GIB)
    room.look(5 * GIB, 4 * GIB, 0)
    assert room.memory_bytes == 4 * GIB


def test_a_file_is_a_gib_or_1_75_times_a_larger_state_and_never_more_than_the_disk_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room_module, "LOOK_AGAIN_S", -1.0)
    room = Room(Settings(str(tmp_path / "run.h5")))
    monkeypatch.setattr(limits, "free_disk", lambda folder: 100 * GIB)
    assert room.disk_bytes(2**20, 0) == GIB
    assert room.disk_bytes(4 * GIB, 0) == 7 * GIB
    assert room.spool_places(4 * GIB, 0) == 2
    monkeypatch.setattr(limits, "free_disk", lambda folder: 10 * GIB)
    assert room.disk_bytes(8 * GIB, 0) == 9 * GIB
    assert room.spool_places(8 * GIB, 0) == 0
    assert Room(Settings(str(tmp_path / "run.h5"), disk_limit=GIB)).disk_bytes(8 * GIB, 0) == GIB


def test_of_a_large_state_the_failing_step_alone_is_written_whole(tmp_path: Path) -> None:
    path = str(tmp_path / "run.h5")
    assert Room(Settings(path)).full_steps(2**20) == 3
    assert Room(Settings(path)).full_steps(GIB) == 1
    assert Room(Settings(path, full_steps=3)).full_steps(GIB) == 3


@pytest.mark.parametrize("shape", [(50, 70), (3500,), (1, 3500), (7, 5, 100)])
def test_a_large_value_is_written_into_a_file_without_being_read_as_a_whole(
    shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = tf.reshape(STATE[0], shape)
    spooled = Spool(tmp_path, 1).write([(0, value)], SIZE)[0]
    monkeypatch.setattr("nanreplay.capture.arrays.PIECE_BYTES", 3000)
    monkeypatch.delattr(SpooledValue, "numpy")
    with h5py.File(tmp_path / "pieces.h5", "w") as file:
        size = write_array(file, "pieces", spooled)
        assert size == write_array(file, "plain", value)
        assert file["pieces"].attrs["crc32"] == file["plain"].attrs["crc32"]
        assert file["pieces"].dtype == file["plain"].dtype
        np.testing.assert_array_equal(read_array(file["pieces"]), value)
