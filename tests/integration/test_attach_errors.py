"""What cannot be recorded is said when the recorder is attached, not hours later."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import keras
import pytest
from trainings import data, mlp

from nanreplay import AttachError, Recorder


def test_a_model_that_is_not_compiled(tmp_path: Path) -> None:
    with pytest.raises(AttachError, match="not compiled"):
        Recorder(tmp_path / "run.h5").set_model(keras.Sequential([keras.layers.Dense(1)]))


def test_a_model_of_keras_2(tmp_path: Path) -> None:
    model = type("Model", (), {"__module__": "tf_keras.src.engine.training"})()
    with pytest.raises(AttachError, match="Keras 2"):
        Recorder(tmp_path / "run.h5").set_model(model)


def test_another_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(AttachError, match="KERAS_BACKEND=tensorflow"):
        mlp().fit(*data(None), callbacks=[Recorder(tmp_path / "run.h5")], verbose=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 0}, "window"),
        ({"window": 2.5}, "window"),
        ({"keyframe_every": "often"}, "keyframe_every"),
        ({"memory_limit": "lots"}, "memory_limit"),
        ({"memory_limit": 0}, "memory_limit"),
        ({"on_nan": "explode"}, "on_nan"),
        ({"sources": "all"}, "sources"),
    ],
)
def test_arguments_are_checked_by_name(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(AttachError, match=message):
        Recorder(tmp_path / "run.h5", **arguments)


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(AttachError, match="does not exist"):
        Recorder(tmp_path / "missing" / "run.h5")
    with pytest.raises(AttachError, match="is a folder"):
        Recorder(tmp_path)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if os.access(closed, os.W_OK):
        pytest.skip("this user may write anywhere")
    with pytest.raises(AttachError, match="no permission"):
        Recorder(closed / "run.h5")
