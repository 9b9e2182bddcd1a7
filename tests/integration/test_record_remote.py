"""A training whose capture goes to a URL: it is there, or a local copy is, and training never hangs
on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
import tensorflow as tf
from fsspec.implementations.memory import MemoryFileSystem

from nanreplay import AttachError, Capture, NonFiniteError, Recorder, Replay
from nanreplay.capture import storage


class BrokenFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """A store that takes nothing."""

    protocol = "broken"
    store: ClassVar[dict[str, Any]] = {}

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        raise OSError("no route to host")


@pytest.fixture(autouse=True)
def stores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    fsspec.register_implementation("broken", BrokenFileSystem, clobber=True)
    monkeypatch.setattr(storage, "UPLOAD_LIMIT_S", 0.2)
    monkeypatch.chdir(tmp_path)
    yield
    MemoryFileSystem.store.clear()


def train_into_nan(path: str) -> NonFiniteError:
    weight = tf.Variable([[0.5], [0.25]], name="weight")

    @tf.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.math.log(x @ weight))
        weight.assign_sub(0.01 * tape.gradient(loss, weight))
        return loss

    with Recorder(path) as recorder:
        recorded = recorder.wrap(step)
        recorded(tf.ones([4, 2]))
        with pytest.raises(NonFiniteError) as raised:
            recorded(-tf.ones([4, 2]))
        assert str(recorder.path) == raised.value.path
    return raised.value


def test_a_capture_is_written_to_a_url_and_replays_from_there(tmp_path: Path) -> None:
    error = train_into_nan("memory://runs/step-{step}.h5")
    assert error.path == "memory://runs/step-1.h5"
    assert list(MemoryFileSystem.store) == ["/runs/step-1.h5"]
    assert not list(tmp_path.iterdir())
    with Capture(error.path) as capture, Replay(capture) as replay:
        assert [result.finite for result in replay.run_window()] == [True, False]


def test_the_capture_is_kept_locally_when_its_place_fails(tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning,
        match=r"broken://runs/run\.h5: could not be written .*no route to host.*"
        r"kept in .*run-.*\.h5",
    ):
        error = train_into_nan("broken://runs/run.h5")
    (kept,) = tmp_path.iterdir()
    assert error.path == str(kept)
    assert f"Capture: {kept}" in str(error)
    with Capture(kept) as capture:
        assert capture.incident.step == 1


def test_a_url_that_nothing_can_write_to_is_refused_at_once() -> None:
    with pytest.raises(
        AttachError,
        match=r"Cannot write the capture to https://host/run\.h5: https can be read, not written",
    ):
        Recorder("https://host/run.h5")
    with pytest.raises(AttachError, match="nosuch"):
        Recorder("nosuch://host/run.h5")
