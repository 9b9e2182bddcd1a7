"""Keras 2 (`tf_keras`): `fit` in its ways is recorded, named and replayed as that of Keras 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from trainings import BATCH, STEPS, data

from nanreplay import Capture, NonFiniteError, Recorder, explain

keras = pytest.importorskip("tf_keras")


class Spread(keras.layers.Layer):  # type: ignore[misc, name-defined]
    def call(self, x: Any) -> Any:
        return (x - tf.reduce_mean(x, -1, keepdims=True)) / tf.math.reduce_std(x, -1, keepdims=True)


class OwnStep(keras.Model):  # type: ignore[misc, name-defined]
    def train_step(self, batch: Any) -> Any:
        x, y = batch
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
        return {"loss": loss}


def model_of(
    kind: type[Any] = keras.Model, policy: str | None = None, dropout: float = 0.2, **compiled: Any
) -> Any:
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((3,))
    layers: list[Any] = [
        Spread(name="spread", dtype=policy),
        keras.layers.Dense(5, activation="relu", name="hidden", dtype=policy),
    ]
    for layer in [
        *layers,
        keras.layers.Dropout(dropout, name="drop"),
        keras.layers.Dense(1, name="out", dtype="float32"),
    ]:
        x = layer(x)
    model = kind(inputs, x)
    model.compile(**{"optimizer": "adam", "loss": "mse", **compiled})
    return model


def batches(bad_step: int | None) -> tuple[Any, Any]:
    x, y = data(None)
    if bad_step is not None:
        x[bad_step * BATCH + 2] = 1.0
    return x, y


def fit(path: Path, model: Any, bad_step: int | None = 3) -> Any:
    x, y = batches(bad_step)
    recorder = Recorder(path)
    return model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[recorder])


WAYS: dict[str, dict[str, Any]] = {
    "graph": {},
    "xla": {"jit_compile": True},
    "eager": {"run_eagerly": True},
    "own_train_step": {"kind": OwnStep},
}


def some(*slow: str) -> pytest.MarkDecorator:
    """All ways; those that are named are slow tests."""
    marked = [pytest.param(way, marks=[pytest.mark.slow] * (way in slow)) for way in WAYS]
    return pytest.mark.parametrize("way", marked)


@some("xla", "eager")
def test_fit_is_recorded_and_named(way: str, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError):
        fit(tmp_path / "run.h5", model_of(**WAYS[way]))
    report = explain(tmp_path / "run.h5", fixes="none")
    origin = report.findings.origin
    assert origin is not None, report.sentence
    assert (report.incident_step, origin.op_type, origin.layer, origin.rows) == (
        3,
        "RealDiv",
        "spread",
        (2,),
    ), report.sentence
    assert "Replays bit for bit" in report.sentence
    with Capture(tmp_path / "run.h5") as capture:
        paths = set(capture.variables()["path"])
        roles = dict(zip(capture.variables()["path"], capture.variables()["role"], strict=True))
    assert {"hidden/kernel", "out/bias"} <= {path.removeprefix("model/") for path in paths}
    assert list(roles.values()).count("trainable") == 4
    assert "optimizer" in roles.values()


@some("xla", "own_train_step")
def test_a_healthy_fit_trains_the_same_bits(way: str, tmp_path: Path) -> None:
    found = []
    for recorded in (False, True):
        model = model_of(
            **WAYS[way], dropout=0.0 if way == "xla" else 0.2
        )  # XLA's own random numbers have no seed there
        x, y = batches(None)
        callbacks = [Recorder(tmp_path / "run.h5")] if recorded else []
        history = model.fit(
            x, y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0, callbacks=callbacks
        ).history
        found.append(
            [
                *(variable.numpy() for variable in [*model.variables, *model.optimizer.variables]),
                np.array(history["loss"]),
            ]
        )
    assert [value.tobytes() for value in found[0]] == [value.tobytes() for value in found[1]]
    assert not list(tmp_path.iterdir())


def test_several_steps_in_one_call_name_the_iteration(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError):
        fit(tmp_path / "run.h5", model_of(steps_per_execution=2))
    report = explain(tmp_path / "run.h5", fixes="none")
    assert report.findings.origin is not None, report.sentence
    assert report.incident_step == 1
    assert [loop.iteration for loop in report.findings.origin.loop] == [1]
    assert "layer `spread`" in report.sentence


def test_a_skipped_update_of_loss_scaling_is_no_incident(tmp_path: Path) -> None:
    scaled = keras.mixed_precision.LossScaleOptimizer(
        keras.optimizers.SGD(1e-3), initial_scale=2.0**30
    )
    model = model_of(policy="mixed_float16", optimizer=scaled)
    x, y = batches(None)
    recorder = Recorder(tmp_path / "run.h5")
    model.fit(x, y, batch_size=BATCH, epochs=4, shuffle=False, verbose=0, callbacks=[recorder])
    assert recorder.path is None
    assert float(scaled.loss_scale) < 2.0**30
    capture = recorder.dump()
    assert capture is not None
    with Capture(capture) as held:
        timeline = held.timeline()
    assert len(timeline) == 4 * STEPS
    assert timeline["skipped"].any()
