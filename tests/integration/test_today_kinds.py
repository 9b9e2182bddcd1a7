"""All kinds of trainings through today's code: unchanged code gives the recorded numbers and fails,
mended code is finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from trainings import as_dataset, data, record

from nanreplay import Capture, NonFiniteError, Recorder, ReplayError, replay_with
from nanreplay.capture import write_capture

pytestmark = pytest.mark.slow


def clean(x: Any) -> Any:
    return tf.where(tf.math.is_nan(x), tf.zeros_like(x), x)


class Net(keras.Model):
    """Not built before its first batch; `mended` cleans its input."""

    def __init__(self, mended: bool) -> None:
        super().__init__(name="net")
        self.mended = mended
        self.hidden = keras.layers.Dense(5, activation="tanh", name="hidden")
        self.norm = keras.layers.BatchNormalization(name="norm")
        self.drop = keras.layers.Dropout(0.2)
        self.out = keras.layers.Dense(1, name="out")

    def call(self, inputs: Any, training: bool = False) -> Any:
        x = inputs["x"] if isinstance(inputs, dict) else inputs
        return self.out(
            self.drop(self.norm(self.hidden(clean(x) if self.mended else x)), training=training)
        )


def net(mended: bool, **options: Any) -> Any:
    keras.utils.set_random_seed(3)
    model = Net(mended)
    model.compile(**{"optimizer": "adam", "loss": "mse", "jit_compile": False, **options})
    return model


def check(path: Path, make: Callable[[bool], Any], **options: Any) -> Any:
    """Unchanged code fails as it did; mended code does not."""
    result = replay_with(path, lambda: make(False), **options)
    assert result.exit_code == 1, result.sentence
    assert all(step.bit_exact for step in result.steps), [step.differences for step in result.steps]
    mended = replay_with(path, lambda: make(True), **options)
    assert (mended.exit_code, mended.fixed) == (0, True), mended.sentence
    return mended


@pytest.mark.parametrize(
    "options", [{}, {"run_eagerly": True}, {"jit_compile": True}, {"optimizer": "schedule"}]
)
def test_fit_of_a_subclass_that_is_not_built(options: dict[str, Any], tmp_path: Path) -> None:
    def make(mended: bool) -> Any:
        if options.get("optimizer") == "schedule":
            return net(
                mended,
                optimizer=keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 9)),
            )
        return net(mended, **options)

    assert record(tmp_path / "run.h5", make(False), *data()) == 3
    check(tmp_path / "run.h5", make)


def test_a_window_that_begins_late_takes_the_optimizers_slots(tmp_path: Path) -> None:
    x, y = data(bad_step=9, steps=12)
    path = tmp_path / "run.h5"
    assert record(path, net(False), x, y, recorder=Recorder(path, window=4, keyframe_every=2)) == 9
    mended = check(path, net)
    assert mended.steps[0].step > 0


def test_dictionaries_and_sample_weights(tmp_path: Path) -> None:
    x, y = data()
    weights = np.linspace(0.5, 1.5, len(y)).astype("float32")
    assert record(tmp_path / "run.h5", net(False), {"x": x}, y, sample_weight=weights) == 3
    check(tmp_path / "run.h5", net)


def test_half_precision_with_loss_scaling(tmp_path: Path) -> None:
    def make(mended: bool) -> Any:
        keras.mixed_precision.set_global_policy("mixed_float16")
        try:
            return net(mended)
        finally:
            keras.mixed_precision.set_global_policy("float32")

    assert record(tmp_path / "run.h5", make(False), as_dataset(*data())) is not None
    check(tmp_path / "run.h5", make)


def loop(mended: bool, *, compiled: bool = True) -> Any:
    """A tf.Module that is trained without Keras's optimizers."""
    module = tf.Module(name="linear")
    module.kernel = tf.Variable(tf.ones([3, 1]), name="kernel")
    module.bias = tf.Variable(tf.zeros([1]), name="bias")

    def step(batch: Any) -> Any:
        x, y = batch
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(
                tf.square((clean(x) if mended else x) @ module.kernel + module.bias - y)
            )
        for variable, gradient in zip(
            module.trainable_variables, tape.gradient(loss, module.trainable_variables), strict=True
        ):
            variable.assign_sub(0.1 * gradient)
        return loss

    return module, None, tf.function(step) if compiled else step


def run_until_non_finite(step: Callable[[Any], Any]) -> None:
    batches = list(as_dataset(*data()))
    for batch in batches[:3]:
        step(batch)
    with pytest.raises(NonFiniteError):
        step(batches[3])


@pytest.mark.parametrize("compiled", [True, False])
def test_loops_without_keras_that_take_one_pair(compiled: bool, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    module, _, step = loop(False, compiled=compiled)
    recorded = Recorder(path).wrap(step, model=module)
    run_until_non_finite(recorded)
    check(path, lambda mended: loop(mended, compiled=compiled))


def test_a_recording_that_does_not_fail_again_decides_nothing(tmp_path: Path) -> None:
    """The last batch is mended in the file, as if the machine had made the NaN."""
    path = tmp_path / "run.h5"
    record(path, net(False), *data())
    with Capture(path) as capture:
        contents = capture.contents()
    last = contents.batches[3]
    sound = replace(last, leaves=(np.nan_to_num(last.leaves[0]), *last.leaves[1:]))
    write_capture(path, replace(contents, batches={**contents.batches, 3: sound}))
    result = replay_with(path, lambda: net(False))
    assert (result.finite, result.fixed, result.exit_code) == (True, None, 3)
    assert "the recorded program is finite on this window as well" in result.sentence


def test_steps_that_draw_other_numbers_decide_nothing_when_finite(tmp_path: Path) -> None:
    class Noisy(Net):
        def call(self, inputs: Any, training: bool = False) -> Any:
            return super().call(inputs, training) + tf.random.normal([1])

    def make(mended: bool) -> Any:
        model = Noisy(mended)
        model.compile("adam", "mse", jit_compile=False)
        return model

    record(tmp_path / "run.h5", make(False), *data())
    assert replay_with(tmp_path / "run.h5", lambda: make(False)).exit_code == 1
    result = replay_with(tmp_path / "run.h5", lambda: make(True))
    assert (result.exit_code, result.finite) == (3, True)
    assert "draws other numbers in every run (RandomStandardNormal)" in result.sentence


def test_a_learning_rate_that_a_callback_changed_is_repeated(tmp_path: Path) -> None:
    path, schedule = (
        tmp_path / "run.h5",
        keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1)),
    )
    x, y = data(bad_step=None)
    model = net(False)
    recorder = Recorder(path)
    x_bad = x.copy()
    x_bad[-1] = np.nan
    model.fit(
        x, y, batch_size=4, epochs=2, shuffle=False, verbose=0, callbacks=[schedule, recorder]
    )
    with pytest.raises(NonFiniteError):
        model.fit(
            x_bad,
            y,
            batch_size=4,
            epochs=3,
            initial_epoch=2,
            shuffle=False,
            verbose=0,
            callbacks=[schedule, recorder],
        )
    result = replay_with(path, lambda: net(True))
    assert result.fixed, result.sentence
    assert any(
        note.startswith("The learning rate was changed while training ran (0.0333333 to 0.1)")
        for note in result.notes
    )


def test_a_loop_that_takes_other_arguments_is_said(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    _, _, step = loop(False)
    recorded = Recorder(path).wrap(step)
    run_until_non_finite(recorded)
    with pytest.raises(
        ReplayError,
        match=r"Today's step takes \(a, b, c\), but the capture holds 2 arguments that are arrays",
    ):
        replay_with(path, lambda: (None, None, lambda a, b, c: a))
