"""`model.fit` in all the ways people call it: the recorder finds the step, and its capture replays
bit for bit."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from trainings import (
    BATCH,
    as_dataset,
    assert_same_bits,
    data,
    mlp,
    record,
    replayed,
    weights_after,
    with_all_variables,
)

from nanreplay import Capture, NonFiniteError, Recorder, Replay


def assert_recorded(path: Path, step: int | None, expected: int = 3) -> None:
    assert step == expected
    results = replayed(path)
    assert [result.step for result in results] == list(range(expected + 1))
    assert [result.bit_exact for result in results] == [True] * (expected + 1)
    assert [result.finite for result in results] == [True] * expected + [False]
    with Capture(path) as capture:
        assert capture.incident.reproduced
        assert capture.incident.bit_exact


def generator(x: Any, y: Any) -> Any:
    for start in range(0, len(x), BATCH):
        yield x[start : start + BATCH], y[start : start + BATCH]


class Rows(keras.utils.PyDataset):
    def __init__(self, x: Any, y: Any) -> None:
        super().__init__()
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x) // BATCH

    def __getitem__(self, index: int) -> Any:
        rows = slice(index * BATCH, (index + 1) * BATCH)
        return self.x[rows], self.y[rows]


@pytest.mark.parametrize(
    "kind",
    [
        "tf.data",
        pytest.param("generator", marks=pytest.mark.slow),
        pytest.param("PyDataset", marks=pytest.mark.slow),
    ],
)
def test_every_input_of_fit_is_recorded(tmp_path: Path, kind: str) -> None:
    x, y = data()
    source = {"tf.data": as_dataset, "generator": generator, "PyDataset": Rows}[kind](x, y)
    path = tmp_path / "run.h5"
    model = mlp(features=None, optimizer="adam")  # the first step makes all variables
    assert_recorded(path, record(path, model, source))
    with Capture(path) as capture:
        np.testing.assert_array_equal(capture.batch(3).leaves[0], x[12:16])


@pytest.mark.parametrize(
    "jit_compile",  # in another process `test_replay_exact.py` replays each, too
    [
        pytest.param(True, marks=pytest.mark.slow),
        pytest.param(False, marks=pytest.mark.slow),
        pytest.param("auto", marks=pytest.mark.slow),
    ],
)
def test_every_compilation_replays_bit_for_bit(tmp_path: Path, jit_compile: Any) -> None:
    path = tmp_path / "run.h5"
    assert_recorded(path, record(path, mlp(jit_compile=jit_compile), *data()))


def test_eager_fit_keeps_the_failing_step_as_a_flat_program(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    assert record(path, mlp(run_eagerly=True), *data()) == 3
    (result,) = replayed(path)
    assert result.step == 3
    assert not result.finite
    assert result.bit_exact
    with Capture(path) as capture:
        assert capture.program(capture.batch(3).program).signature.compilation == "eager"
        assert len(capture.steps) == 4


counts_inner_steps = pytest.mark.skipif(
    not hasattr(keras.Sequential(), "unrolled_steps_per_execution"),
    reason="this Keras writes the steps of a call out one after the other: the call is the step",
)


@counts_inner_steps
@pytest.mark.slow  # the last call of fewer steps, below, counts as well
@pytest.mark.parametrize("steps_per_execution", [4, 5])
def test_steps_per_execution_counts_inner_steps(tmp_path: Path, steps_per_execution: int) -> None:
    path = tmp_path / "run.h5"
    assert_recorded(path, record(path, mlp(steps_per_execution=steps_per_execution), *data()))


@counts_inner_steps
def test_steps_that_keras_writes_out_are_told_with_what_records_them(tmp_path: Path) -> None:
    model = mlp(steps_per_execution=4)
    model.unrolled_steps_per_execution = 2
    with pytest.warns(
        UserWarning, match=r"leave `model\.unrolled_steps_per_execution` at 1"
    ) as told:
        model.fit(*data(), verbose=0, callbacks=[Recorder(tmp_path / "run.h5")])
    assert [one.filename for one in told] == [__file__]


@counts_inner_steps
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("batches", [9, pytest.param(11, marks=pytest.mark.slow)])
def test_a_last_call_of_fewer_steps_counts_those_that_it_ran(tmp_path: Path, batches: int) -> None:
    x, y = data(None, steps=batches)
    bad_step, counter = 2 * batches - 1, itertools.count()

    def rows() -> Any:
        for features, labels in generator(x, y):
            is_bad = next(counter) == bad_step
            yield (np.full_like(features, np.nan) if is_bad else features), labels

    signature = (tf.TensorSpec((None, 3)), tf.TensorSpec((None, 1)))
    dataset = tf.data.Dataset.from_generator(rows, output_signature=signature)
    path = tmp_path / "run.h5"
    step = record(path, mlp(steps_per_execution=4), dataset, epochs=3)
    assert_recorded(path, step, bad_step)
    with Capture(path) as capture:
        assert np.isnan(capture.batch(bad_step).arrays[0]).all()


def test_sample_and_class_weights_are_part_of_the_batch(tmp_path: Path) -> None:
    x, _ = data(None)
    y = (x[:, 0] > 0).astype("int64")
    weights = np.ones(len(x), "float32")
    weights[13] = np.inf
    model = mlp(loss="binary_crossentropy")
    path = tmp_path / "weights.h5"
    assert_recorded(path, record(path, model, x, y, sample_weight=weights))
    path = tmp_path / "classes.h5"
    x, _ = data()
    assert_recorded(
        path, record(path, mlp(loss="binary_crossentropy"), x, y, class_weight={0: 0.5, 1: 2.0})
    )


def test_dictionary_inputs_keep_their_names(tmp_path: Path) -> None:
    x, y = data()
    one, other = keras.Input((3,), name="one"), keras.Input((3,), name="other")
    model = keras.Model(
        {"one": one, "other": other},
        keras.layers.Dense(1)(keras.layers.Concatenate()([one, other])),
    )
    model.compile("sgd", "mse", jit_compile=False)
    path = tmp_path / "run.h5"
    assert_recorded(path, record(path, model, {"one": x, "other": x * 2}, y))
    with Capture(path) as capture:
        assert list(capture.batch(0).paths) == ["0/one", "0/other", "1"]


def test_a_last_partial_batch_is_a_program_of_its_own(tmp_path: Path) -> None:
    x, y = data(5)
    path = tmp_path / "run.h5"
    assert_recorded(path, record(path, mlp(), x[:23], y[:23]), 5)


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.dense(x)


class OwnStep(Subclassed):
    def train_step(self, batch: Any) -> Any:
        x, y = batch
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self(x, training=True) - y))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"my_loss": loss}


@pytest.mark.parametrize("kind", [Subclassed, OwnStep])
def test_subclassed_models_are_recorded_unbuilt(tmp_path: Path, kind: Any) -> None:
    model = kind()
    model.compile("adam", "mse", jit_compile=False)
    path = tmp_path / "run.h5"
    assert_recorded(path, record(path, model, *data()))
    with Capture(path) as capture:
        roles = {info.path: info.role for info in capture.variables_info}
        assert (
            roles[next(path for path in roles if "dense" in path and path.endswith("kernel"))]
            == "trainable"
        )
        assert "optimizer" in roles.values()


@pytest.mark.slow  # `test_mixed_precision.py` has the quick ones
@pytest.mark.parametrize(
    "policy", [pytest.param("mixed_bfloat16", marks=pytest.mark.slow), "mixed_float16"]
)
def test_mixed_precision(tmp_path: Path, policy: str) -> None:
    keras.utils.set_random_seed(0)
    dtype = keras.DTypePolicy(policy)
    layers = [
        keras.layers.Dense(5, dtype=dtype, activation="relu"),
        keras.layers.Dense(1, dtype="float32"),
    ]
    optimizer = (
        keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())
        if policy == "mixed_float16"
        else "adam"
    )
    model = keras.Sequential(layers)
    model.compile(optimizer, "mse", jit_compile=False)
    path = tmp_path / "run.h5"
    assert_recorded(path, record(path, model, *data()))


def scaled(initial_scale: float) -> Any:
    keras.utils.set_random_seed(0)
    dtype = keras.DTypePolicy("mixed_float16")
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(8, dtype=dtype),
            keras.layers.Dense(1, dtype=dtype),
        ]
    )
    model.compile(
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(), initial_scale=initial_scale),
        "mse",
        jit_compile=False,
    )
    return with_all_variables(model)


def test_updates_that_loss_scaling_skips_are_no_incident(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    x, y = data(None, steps=12)
    recorder = Recorder(path)
    assert record(path, scaled(2.0**20), x, y, recorder=recorder) is None
    assert not path.exists()
    recorder.dump()
    with Capture(path) as capture:
        assert capture.timeline()["skipped"].sum() >= 3


def test_a_loss_scale_that_never_recovers_is_an_incident(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    x, y = data(None, steps=30)
    x *= 1e4  # every gradient overflows float16 at any scale
    step = record(path, scaled(2.0**15), x, y * 1e4, recorder=Recorder(path, max_skipped=5))
    assert step is not None
    with Capture(path) as capture:
        assert capture.incident.trigger.what in ("gradient", "loss")


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"jit_compile": True}, marks=pytest.mark.slow),
        {"run_eagerly": True},
        pytest.param({"steps_per_execution": 3}, marks=pytest.mark.slow),
    ],
)
def test_training_is_bit_identical_with_and_without_the_recorder(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    x, y = data(None)

    def fit(*callbacks: Any) -> Any:
        model = mlp(**options)
        model.fit(
            x, y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0, callbacks=list(callbacks)
        )
        return model

    assert_same_bits(weights_after(fit), weights_after(lambda: fit(Recorder(tmp_path / "run.h5"))))
    assert not list(tmp_path.iterdir())


def test_the_history_is_that_of_a_training_without_recorder(tmp_path: Path) -> None:
    x, y = data(None)
    histories = [
        mlp(metrics=["mae"])
        .fit(
            x, y, batch_size=BATCH, epochs=2, validation_split=0.25, verbose=0, callbacks=callbacks
        )
        .history
        for callbacks in ([], [Recorder(tmp_path / "run.h5")])
    ]
    assert histories[0] == histories[1]


def test_after_training_the_model_is_as_it_was(tmp_path: Path) -> None:
    x, y = data(None)
    model = mlp()
    model.fit(x, y, verbose=0)
    before = model.train_function
    recorder = Recorder(tmp_path / "run.h5")
    model.fit(x, y, verbose=0, callbacks=[recorder])
    assert type(model.train_function) is type(before)
    assert "train_step" not in vars(model)
    model.fit(x, y, verbose=0)


def test_one_recorder_serves_several_fits(tmp_path: Path) -> None:
    x, y = data(None)
    model, path = mlp(), tmp_path / "run.h5"
    recorder = Recorder(path)
    record(path, model, x, y, recorder=recorder)
    assert record(path, model, *data(), recorder=recorder) == 9
    assert all(result.bit_exact for result in replayed(path))


def test_stop_ends_fit_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    x, y = data()
    recorder = Recorder(path, on_nan="stop")
    model = mlp()
    with pytest.warns(UserWarning, match=r"step 3: .* is NaN"):
        history = model.fit(
            x, y, batch_size=BATCH, epochs=5, shuffle=False, verbose=0, callbacks=[recorder]
        )
    assert len(history.epoch) == 1
    assert recorder.stopped
    assert recorder.path == path


def test_raise_says_step_what_and_file(tmp_path: Path) -> None:
    path = tmp_path / "nan_{step}.h5"
    with pytest.raises(NonFiniteError, match=r"step 3: .*nan_3\.h5") as caught:
        mlp().fit(*data(), batch_size=BATCH, shuffle=False, verbose=0, callbacks=[Recorder(path)])
    assert caught.value.step == 3
    own = [entry for entry in caught.traceback if "nanreplay/recorder" in str(entry.path)]
    assert len(own) <= 2  # how the recorder came to know it is no news


def test_a_callback_that_changes_weights_and_rates_is_replayed(tmp_path: Path) -> None:
    class Meddler(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.model.layers[0].kernel.assign(self.model.layers[0].kernel * 0.5)

    schedule = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.3)
    x, y = data(None)
    y[13] = np.nan
    path = tmp_path / "run.h5"
    model = mlp()
    model.fit(x, y * 0, batch_size=BATCH, verbose=0)
    recorder = Recorder(path)
    with pytest.raises(NonFiniteError):
        model.fit(
            tf.data.Dataset.from_tensor_slices((np.concatenate([x, x]), np.concatenate([y * 0,
            y]))).batch(BATCH),
            steps_per_epoch=4, epochs=3, verbose=0, shuffle=False, callbacks=[Meddler(), schedule,
            recorder],
        )  # fmt: skip
    assert all(result.bit_exact for result in replayed(path))


@pytest.mark.slow  # a callback changes weights and rates, above
def test_a_learning_rate_changed_between_steps_is_replayed(tmp_path: Path) -> None:
    class Warmup(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self.model.optimizer.learning_rate = 1e-3 * (batch + 1)

    x, y = data()
    path = tmp_path / "run.h5"
    with pytest.raises(NonFiniteError):
        mlp().fit(
            x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[Warmup(), Recorder(path)]
        )
    assert all(result.bit_exact for result in replayed(path))
    with Capture(path) as capture:
        np.testing.assert_allclose(capture.timeline()["learning_rate"], [1e-3, 2e-3, 3e-3, 4e-3])


def test_a_metric_that_is_nan_is_no_incident(tmp_path: Path) -> None:
    def always_nan(y: Any, p: Any) -> Any:
        return p * np.nan

    path = tmp_path / "run.h5"
    assert record(path, mlp(metrics=[always_nan]), *data(None)) is None
    assert not path.exists()


def test_a_failure_of_the_recorder_does_not_reach_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("nanreplay.recorder.recording.Recording.before", broken)
    x, y = data(None)
    with pytest.warns(UserWarning, match="detached itself.*RuntimeError: a bug"):
        recorded = weights_after(lambda: fitted([Recorder(tmp_path / "run.h5")], x, y))
    assert_same_bits(recorded, weights_after(lambda: fitted([], x, y)))


def fitted(callbacks: list[Any], x: Any, y: Any) -> Any:
    model = mlp()
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=callbacks)
    return model


def test_weights_and_gradients_of_the_last_three_steps_are_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    record(path, mlp(), *data())
    with Capture(path) as capture:
        paths = [info.path for info in capture.variables_info]
        kernel = next(index for index, name in enumerate(paths) if name.endswith("hidden/kernel"))
        for step in (1, 2, 3):
            assert capture.weights(step)[kernel].shape == (3, 5)
            assert capture.gradients(step)[kernel].shape == (3, 5)
        assert np.isfinite(capture.gradients(2)[kernel]).all()
        assert np.isnan(capture.gradients(3)[kernel]).any()
        assert capture.weights(0) == {}
        assert capture.matrix("gradient_norm").shape == (4, 4)


@pytest.mark.parametrize(
    "steps_per_execution", [1, pytest.param(2, marks=[counts_inner_steps, pytest.mark.slow])]
)
def test_a_strategy_trains_as_keras_does_and_is_recorded(
    steps_per_execution: int, tmp_path: Path
) -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])

    def fit(bad_step: int | None, *callbacks: Any) -> Any:
        with strategy.scope():
            model = mlp(steps_per_execution=steps_per_execution)
        batches = tf.data.Dataset.from_tensor_slices(data(bad_step)).batch(
            BATCH, drop_remainder=True
        )
        model.fit(batches, epochs=2, shuffle=False, verbose=0, callbacks=list(callbacks))
        return model

    path = tmp_path / "run.h5"
    assert_same_bits(
        weights_after(lambda: fit(None)), weights_after(lambda: fit(None, Recorder(path)))
    )
    assert not path.exists()
    with pytest.raises(NonFiniteError) as raised:
        fit(3, Recorder(path))
    assert_recorded(path, raised.value.step)


def test_a_ctc_loss_is_recorded(tmp_path: Path) -> None:
    """Its gradient is a function of TensorFlow 1, which has no graph of its own."""
    random = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((12, 3)), keras.layers.Dense(6)])
    model.compile("sgd", keras.losses.CTC(), jit_compile=False)
    x = random.normal(size=(16, 12, 3)).astype("float32")
    x[9, 0, 0] = np.nan
    labels = random.integers(1, 6, (16, 4))
    recorder = Recorder(tmp_path / "run.h5", on_nan="stop")
    with pytest.warns(UserWarning, match="step 2: loss is NaN"):
        model.fit(x, labels, batch_size=4, shuffle=False, verbose=0, callbacks=[recorder])
    with Capture(tmp_path / "run.h5") as capture, Replay(capture) as replay:
        results = replay.run_window("recorded")
    assert [result.step for result in results] == [0, 1, 2]
    assert all(result.bit_exact for result in results)
    assert not results[-1].finite
