"""A healthy step of `fit` is short to read: it passes through few files, and few calls."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import keras
import numpy as np
import pytest

import nanreplay
from nanreplay import Recorder

pytestmark = pytest.mark.xdist_group("healthy step")  # one worker traces the steps
PACKAGE = f"{Path(nanreplay.__file__).parent}/"
MOST_FILES, MOST_MOVES, MOST_CALLS = 8, 20, 45
FIRST, LAST = 40, 80
"""Steps that are looked at: by then all has been traced and planned."""


@dataclass
class Way:
    """What one step passes through in the package: the file of each call, and of its caller."""

    calls: list[tuple[str, str]] = field(default_factory=list)

    def note(self, frame: FrameType, event: str, argument: Any) -> None:
        """Python calls this as a function begins or ends."""
        if event == "call" and _is_ours(frame):
            caller = frame.f_back
            while caller is not None and not _is_ours(caller):
                caller = caller.f_back
            self.calls.append((_file(frame), "" if caller is None else _file(caller)))

    @property
    def files(self) -> frozenset[str]:
        """The files that it enters."""
        return frozenset(file for file, _ in self.calls)

    @property
    def moves(self) -> int:
        """How often it goes from one file of the package into another."""
        return sum(1 for file, caller in self.calls if caller not in ("", file))


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(PACKAGE)


def _file(frame: FrameType) -> str:
    return frame.f_code.co_filename.removeprefix(PACKAGE)


class Begin(keras.callbacks.Callback):
    """Stands before the recorder, and begins to look."""

    def __init__(self) -> None:
        super().__init__()
        self.ways: list[Way] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if FIRST <= batch < LAST:
            self.ways.append(Way())
            sys.setprofile(self.ways[-1].note)


class End(keras.callbacks.Callback):
    """Stands after the recorder."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        sys.setprofile(None)


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> list[Way]:
    """What the steps of a healthy training pass through."""
    recorder = Recorder(tmp_path_factory.mktemp("healthy") / "run.h5")
    x = np.random.default_rng(1).normal(size=(4 * LAST, 3)).astype(np.float32)
    model = keras.Sequential([keras.layers.Dense(4, activation="relu"), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    begin = Begin()
    callbacks = [begin, recorder, End()]
    model.fit(x, x[:, :1], batch_size=4, verbose=0, shuffle=False, callbacks=callbacks)
    assert recorder.path is None
    return begin.ways


def test_a_healthy_step_is_read_in_few_files(ways: list[Way]) -> None:
    files, count = Counter(way.files for way in ways).most_common(1)[0]
    assert count > len(ways) / 2, "most steps go the same way"
    assert len(files) <= MOST_FILES, sorted(files)


def test_a_healthy_step_goes_to_and_fro_but_little(ways: list[Way]) -> None:
    usual = Counter(way.files for way in ways).most_common(1)[0][0]
    way = next(way for way in ways if way.files == usual)
    assert way.moves <= MOST_MOVES
    assert len(way.calls) <= MOST_CALLS
