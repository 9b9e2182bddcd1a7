"""A loss is called what the step calls it: the key under which it is returned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from trainings import replayed

from nanreplay import Capture, Recorder
from nanreplay.report.explain import explain

pytestmark = pytest.mark.filterwarnings("ignore:nanreplay. step")
X = np.linspace(0.5, 1.5, 32, dtype="float32").reshape(8, 4)


class TwoLosses(keras.Model):
    """Two models that are trained in turn; the second loss is the one that fails."""

    def __init__(self, *, returns_means: bool) -> None:
        super().__init__()
        self.first, self.second = keras.layers.Dense(1), keras.layers.Dense(1)
        self.means = [keras.metrics.Mean(), keras.metrics.Mean()] if returns_means else None

    def train_step(self, x: Any) -> Any:
        losses = []
        for layer, power in ((self.first, 2.0), (self.second, 0.5)):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(layer(x) ** 2) * tf.reduce_mean(x) ** power
            gradients = tape.gradient(loss, layer.trainable_variables)
            for variable, gradient in zip(layer.trainable_variables, gradients, strict=True):
                variable.assign_sub(0.01 * gradient)
            losses.append(loss)
        if self.means is not None:
            for mean, loss in zip(self.means, losses, strict=True):
                mean.update_state(loss)
            losses = [mean.result() for mean in self.means]
        return {"a_loss": losses[0], "z_loss": losses[1]}


@pytest.mark.parametrize(
    ("returns_means", "is_eager"), [(False, False), (True, False), (False, True)]
)
def test_one_of_several_losses_is_told_by_its_key(
    tmp_path: Path, returns_means: bool, is_eager: bool
) -> None:
    model = TwoLosses(returns_means=returns_means)
    model.compile(jit_compile=False, run_eagerly=is_eager)
    data, path = np.concatenate([X, X, -X]), tmp_path / "run.h5"
    recorder = Recorder(path, on_nan="stop")
    model.fit(data, batch_size=len(X), shuffle=False, verbose=0, callbacks=[recorder])
    with Capture(path) as capture:
        trigger = capture.incident.trigger
        assert (trigger.what, trigger.name, trigger.value) == ("loss", "z_loss", "nan")
    nonfinite = replayed(path)[-1].nonfinite
    assert nonfinite is not None
    assert nonfinite.name == "z_loss"
    if not returns_means:
        assert "reached the loss `z_loss`" in explain(path, fixes="none").sentence


def test_of_several_compiled_losses_that_of_the_op_is_told(tmp_path: Path) -> None:
    x = keras.Input((4,))
    model = keras.Model(x, {"a": keras.layers.Dense(1)(x), "b": keras.layers.Dense(1)(x)})
    losses = {"a": "mse", "b": keras.losses.Poisson(reduction="sum")}
    model.compile("sgd", losses, jit_compile=False)
    model.layers[-1].kernel.assign(-np.ones((4, 1)))
    recorder = Recorder(tmp_path / "run.h5", on_nan="stop")
    y = np.ones((len(X), 1), "float32")
    model.fit(X, {"a": y, "b": y}, batch_size=len(X), verbose=0, callbacks=[recorder])
    report = explain(tmp_path / "run.h5", fixes="none")
    assert report.findings.origin is not None
    assert report.findings.origin.part is not None
    assert report.findings.origin.part.code == "Poisson"
    assert "; the loss is `Poisson`." in report.sentence
