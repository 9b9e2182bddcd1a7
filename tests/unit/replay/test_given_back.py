"""TensorFlow's allocator keeps what is freed; what a large state took goes back to the system all
the same, and nothing that is held is touched."""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np
import pytest

from nanreplay.limits import _status_bytes, give_up_pages
from nanreplay.records import VariableInfo
from nanreplay.replay.replay_state import LiveState

SHAPE, COUNT = (1024, 4096), 6
STATE_BYTES = COUNT * 4 * SHAPE[0] * SHAPE[1]

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux takes advice")


def test_the_memory_of_a_state_goes_back_and_what_was_read_of_it_stays() -> None:
    infos = [VariableInfo(f"weight_{i}", SHAPE, "float32", "other") for i in range(COUNT)]
    live = LiveState(infos)
    live.assign({i: np.full(SHAPE, i, "float32") for i in range(COUNT)})
    held = live.read()
    for variable in live.variables:
        variable.assign(variable + 1)
    before = _status_bytes("VmRSS")
    live.assign(held)
    live.give_back()
    assert before - _status_bytes("VmRSS") > STATE_BYTES / 2
    for index, value in held.items():
        assert (np.asarray(value) == index).all()


def test_pages_that_are_not_all_within_a_buffer_stay() -> None:
    size = 3 * mmap.PAGESIZE
    buffer = np.ones(size + mmap.PAGESIZE, np.uint8)
    start = -buffer.ctypes.data % mmap.PAGESIZE  # where its first whole page begins
    give_up_pages(buffer.ctypes.data + start + 1, 2 * mmap.PAGESIZE)
    kept = np.ones(size, bool)
    kept[mmap.PAGESIZE : 2 * mmap.PAGESIZE] = False
    assert ((buffer[start : start + size] == 1) == kept).all()
    give_up_pages(ctypes.addressof(ctypes.c_char()), 1)
