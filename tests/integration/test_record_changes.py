"""What changes a training from outside of its step: callbacks, loaded weights, new variables, many
fits in one process."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from trainings import BATCH, data, mlp, record, replayed, with_all_variables

from nanreplay import Capture, NonFiniteError, Recorder, Replay, explain
from nanreplay.tensorflow_internals import tf_variables


class Meddler(keras.callbacks.Callback):
    """Sets variables between steps, as warm-ups, pruning and weight clipping do."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.model.optimizer.learning_rate.assign(0.001 * (batch + 1))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch in (1, 2):
            kernel = self.model.layers[-1].kernel
            kernel.assign(kernel * 0.5)
            self.model.optimizer.variables[2].value.assign_add(
                tf.ones_like(self.model.optimizer.variables[2]) * 0.01
            )


def test_the_rate_of_a_schedule_is_that_of_each_step(tmp_path: Path) -> None:
    """Variables are looked at every 64th of so short steps."""
    path, schedule = tmp_path / "run.h5", keras.optimizers.schedules.CosineDecay(0.01, 300)
    model = mlp(optimizer=keras.optimizers.SGD(schedule))
    assert record(path, model, *data(200, steps=201)) == 200
    with Capture(path) as capture:
        rates = np.asarray(capture.timeline()["learning_rate"])
    np.testing.assert_array_equal(rates, [float(schedule(step)) for step in range(201)])


def assignments() -> list[Any]:
    return [getattr(module, name) for module, name in tf_variables.assignment_functions()]


def test_variables_that_a_callback_sets_between_steps_are_replayed(tmp_path: Path) -> None:
    path, before, recorder = tmp_path / "run.h5", assignments(), Recorder(tmp_path / "run.h5")
    model = mlp()
    x, y = data(10, steps=11)
    assert record(path, model, x, y, recorder=recorder, callbacks_before=[Meddler()]) == 10
    assert [step.bit_exact for step in replayed(path)] == [True] * 11
    with Capture(path) as capture:
        # The rate of each step, also of those between two looks at the variables.
        rates = np.asarray(capture.timeline()["learning_rate"])
        np.testing.assert_allclose(rates, 0.001 * np.arange(1, 12))
    lower = explain(path, fixes=["lr=0.1"]).fixes[0]
    assert lower.code.startswith("# Take 0.1 times each learning rate that your code sets")
    assert lower.code.endswith("0.0011 at last (was 0.011)")
    with Capture(path) as capture:
        assert capture.keyframe_steps == (0,)
        paths = {capture.variables_info[index].path for index in capture.batch(3).overrides}
        assert any("kernel" in each for each in paths)
        assert capture.incident.bit_exact
    assert assignments() == before


def test_the_usual_callbacks_are_replayed(tmp_path: Path) -> None:
    x, y = data(None)
    model, recorder = (
        mlp(optimizer=keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9)),
        Recorder(tmp_path / "run.h5"),
    )
    others = [
        keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
        keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=0, min_delta=10.0),
        keras.callbacks.EarlyStopping(
            "val_loss", patience=0, min_delta=1e9, start_from_epoch=2, restore_best_weights=True
        ),
        keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", "val_loss", save_best_only=True),
    ]
    fit = {"validation_data": (x, y), "epochs": 9, "batch_size": 4, "shuffle": False, "verbose": 0}
    model.fit(x, y, callbacks=[*others, recorder], **fit)
    path = recorder.dump()
    assert path is not None
    steps = replayed(path)
    assert 18 <= len(steps) < 54
    assert all(step.bit_exact for step in steps)


def test_a_backup_survives_an_incident_and_training_goes_on_from_it(tmp_path: Path) -> None:
    x, y = data(None)
    model, again, backup = mlp(), mlp(), keras.callbacks.BackupAndRestore(tmp_path / "backup")

    class Spoil(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 2:
                self.model.layers[-1].bias.assign([np.nan])

    with pytest.raises(NonFiniteError):
        model.fit(
            x,
            y,
            epochs=4,
            batch_size=4,
            verbose=0,
            callbacks=[backup, Spoil(), Recorder(tmp_path / "run.h5")],
        )
    assert any((tmp_path / "backup").rglob("*.h5"))
    history = again.fit(
        x,
        y,
        epochs=4,
        batch_size=4,
        verbose=0,
        callbacks=[keras.callbacks.BackupAndRestore(tmp_path / "backup")],
    )
    assert history.epoch == [2, 3]


def test_weights_loaded_and_layers_frozen_between_two_fits(tmp_path: Path) -> None:
    path, model = tmp_path / "run.h5", mlp()
    recorder = Recorder(path)
    assert record(path, model, *data(None), recorder=recorder) is None
    model.layers[0].trainable = False
    model.compile("adam", "mse", jit_compile=False)
    model.set_weights([weight * 0.5 for weight in model.get_weights()])
    assert record(path, model, *data(), recorder=recorder) == 9
    assert [step.bit_exact for step in replayed(path)] == [True] * 10
    with Capture(path) as capture:
        assert len(capture.programs) == 2
        assert 6 in capture.keyframe_steps


def test_what_was_set_between_a_fit_and_single_batches_is_recorded(tmp_path: Path) -> None:
    path, model = tmp_path / "run.h5", with_all_variables(mlp())
    x, y = data(1, steps=2)
    with Recorder(path):
        model.fit(x[:BATCH], y[:BATCH], batch_size=BATCH, verbose=0)
        model.set_weights([weight * 0.5 for weight in model.get_weights()])
        model.train_on_batch(x[:BATCH], y[:BATCH])
        with pytest.raises(NonFiniteError, match="step 2"):
            model.train_on_batch(x[BATCH:], y[BATCH:])
    assert [step.bit_exact for step in replayed(path)] == [True] * 3


def test_the_state_of_a_generator_is_a_variable(tmp_path: Path) -> None:
    generator = tf.random.Generator.from_seed(3)
    weight = tf.Variable(1.0)

    @tf.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(weight * x * generator.normal([4]))
        weight.assign_sub(0.1 * tape.gradient(loss, weight))
        return loss

    recorded = Recorder(tmp_path / "run.h5").wrap(step)
    recorded(tf.ones([4]))
    recorded(tf.ones([4]))
    with pytest.raises(NonFiniteError):
        recorded(tf.constant([1.0, np.inf, 1.0, 1.0]))
    with Capture(tmp_path / "run.h5") as capture, Replay(capture) as replay:
        assert capture.program("p0").signature.fed == ()
        assert [
            info.dtype for info in capture.variables_info if info.path.startswith("StateVar")
        ] == ["int64"]
        assert [result.bit_exact for result in replay.run_window("recorded")] == [True] * 3


def test_a_variable_made_during_training_is_recorded_from_then_on(tmp_path: Path) -> None:
    heads = [tf.Variable(1.0, name="first")]

    @tf.function
    def step(x: Any, head: int) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(heads[0] * x)) + tf.reduce_sum(heads[head] * x)
        for variable, gradient in zip(
            tape.watched_variables(), tape.gradient(loss, tape.watched_variables()), strict=True
        ):
            variable.assign_sub(0.1 * gradient)
        return loss

    recorded = Recorder(tmp_path / "run.h5").wrap(step)
    recorded(tf.ones([2]), 0)
    heads.append(tf.Variable(0.5, name="second"))
    recorded(tf.ones([2]), 1)
    heads[1].assign(0.25)
    recorded(tf.ones([2]), 1)
    with pytest.raises(NonFiniteError):
        recorded(tf.constant([1.0, np.nan]), 1)
    with Capture(tmp_path / "run.h5") as capture:
        assert [info.path for info in capture.variables_info] == ["first", "second"]
        assert len(capture.programs) == 2
        assert set(capture.batch(2).overrides) == {1}
    assert [result.bit_exact for result in replayed(tmp_path / "run.h5")] == [True] * 4


def test_what_no_one_noticed_is_told_of_when_the_file_is_written(tmp_path: Path) -> None:
    weight = tf.Variable(1.0)

    @tf.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(weight * x))
        weight.assign_sub(0.1 * tape.gradient(loss, weight))
        return loss

    @tf.function
    def scale() -> None:
        weight.assign(0.7 * weight)

    @tf.function
    def halve() -> None:
        scale()
        scale()  # of what is called twice, nobody tells which variables it writes

    recorded = Recorder(tmp_path / "run.h5").wrap(step)
    recorded(tf.ones([2]))
    recorded(tf.ones([2]))
    halve()
    recorded(tf.ones([2]))
    with pytest.raises(NonFiniteError):
        recorded(tf.constant([1.0, np.nan]))
    with Capture(tmp_path / "run.h5") as capture:
        assert "step 2 differs" in capture.incident.notes[-1]
        assert capture.incident.bit_exact is False


def fit_once(path: Path) -> tuple[weakref.ref[Any], weakref.ref[Any]]:
    model, recorder = mlp(), Recorder(path)
    record(path, model, *data(), recorder=recorder)
    return weakref.ref(model), weakref.ref(recorder._recording)


def test_nothing_of_a_fit_is_held_after_it(tmp_path: Path) -> None:
    left = [fit_once(tmp_path / "run.h5") for _ in range(2)]
    keras.backend.clear_session()
    gc.collect()
    assert [(model(), recording()) for model, recording in left] == [(None, None)] * 2
