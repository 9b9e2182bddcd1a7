"""Ops that another run would not repeat: their outputs are recorded with the batch, and replays are
fed with them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from trainings import (
    assert_same_bits,
    data,
    record,
    replayed,
    weights_after,
    with_all_variables,
)

from nanreplay import Capture, NonFiniteError, Recorder, Replay, explain
from nanreplay.bisect import bisect
from nanreplay.capture import write_capture
from nanreplay.diagnose import judge
from nanreplay.errors import FormatError


class Added(keras.layers.Layer):
    """Adds what a function gives to its input."""

    def __init__(self, function: Callable[[Any], Any], **options: Any) -> None:
        super().__init__(**options)
        self.function = function

    def call(self, x: Any) -> Any:
        return x + self.function(x)


def with_layer(function: Callable[[Any], Any], *, jit_compile: bool = False) -> Any:
    keras.utils.set_random_seed(3)
    layers = [
        keras.Input((3,)),
        keras.layers.Dense(3, activation="tanh"),
        Added(function, name="added"),
        keras.layers.Dense(1),
    ]
    model = keras.Sequential(layers)
    model.compile("adam", "mse", jit_compile=jit_compile)
    return with_all_variables(model)


def normal(x: Any) -> Any:
    return 0.1 * tf.random.normal(tf.shape(x))


def many(x: Any) -> Any:
    draws = [
        tf.random.uniform([3]),
        tf.random.truncated_normal([3], seed=4),
        tf.random.gamma([3], 2.0),
        tf.random.shuffle([1.0, 2.0, 3.0]),
    ]
    whole = [
        tf.random.uniform([3], maxval=5, dtype=tf.int32),
        tf.random.poisson([3], 2.0),
        tf.random.categorical(tf.zeros([1, 4]), 3)[0],
        tf.random.log_uniform_candidate_sampler([[1]], 1, 3, True, 10).sampled_candidates,
    ]
    return 0.01 * tf.add_n([*draws, *(tf.cast(each, tf.float32) for each in whole)]) + normal(x)


numbers = itertools.count()


def from_python(x: Any) -> Any:
    return tf.ensure_shape(
        tf.py_function(lambda value: value * (0.1 + next(numbers) % 3), [x], tf.float32), [None, 3]
    )


def from_numpy(x: Any) -> Any:
    table = tf.numpy_function(
        lambda value: np.float32([next(numbers) % 3, value.size, 1.0]), [x], tf.float32
    )
    return 0.01 * tf.ensure_shape(table, [3])


def of_a_table() -> Callable[[Any], Any]:
    rows = tf.lookup.KeyValueTensorInitializer(
        tf.constant([0, 1], tf.int64), tf.constant([0.25, 0.5])
    )
    table = tf.lookup.StaticHashTable(rows, default_value=-1.0)
    return lambda x: table.lookup(tf.cast(x > 0, tf.int64))


def by_the_clock(x: Any) -> Any:
    return tf.cast(tf.timestamp() % 1.0, tf.float32) * tf.ones_like(x)


@pytest.mark.parametrize("kind", ["random", "others"])
def test_what_another_run_would_not_repeat_is_recorded_and_fed(tmp_path: Path, kind: str) -> None:
    path, table = tmp_path / "run.h5", of_a_table()
    layer = (
        many
        if kind == "random"
        else lambda x: from_python(x) + from_numpy(x) + table(x) + by_the_clock(x)
    )
    assert record(path, with_layer(layer), *data()) == 3
    with Capture(path) as capture, Replay(capture) as replay:
        assert capture.incident.notes == ()
        assert capture.incident.bit_exact
        assert [step.bit_exact for step in replay.run_window("recorded")] == [True] * 4
        wide = replay.run_window("float64", first=1, last=2)
        assert all(
            step.finite and step.max_ulp is not None and step.max_ulp < 10_000 for step in wide
        )
        assert judge(replay).kind == "reproduced"


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_returning_random_numbers_does_not_change_the_training(
    tmp_path: Path, jit_compile: bool
) -> None:
    """Under XLA two runs draw other numbers, recorder or not: there they count nothing."""
    factor = 0.0 if jit_compile else 1.0
    x, y = data(None)

    def fit(callbacks: list[Any]) -> Any:
        tf.random.set_seed(5)
        model = with_layer(lambda x: factor * normal(x), jit_compile=jit_compile)
        model.fit(x, y, batch_size=4, shuffle=False, verbose=0, callbacks=callbacks)
        return model

    assert_same_bits(
        weights_after(lambda: fit([])), weights_after(lambda: fit([Recorder(tmp_path / "run.h5")]))
    )


@pytest.mark.slow
def test_random_numbers_drawn_under_xla_are_fed(tmp_path: Path) -> None:
    assert record(tmp_path / "run.h5", with_layer(normal, jit_compile=True), *data()) == 3
    assert all(step.bit_exact for step in replayed(tmp_path / "run.h5"))


def log_in_python(x: Any) -> Any:
    def logarithm(value: Any) -> Any:
        with np.errstate(divide="ignore"):
            return np.log(np.maximum(value - 1.0, 0))

    return tf.ensure_shape(tf.numpy_function(logarithm, [x], tf.float32), [None, 3])


def test_an_infinity_made_in_python_has_its_origin_there(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    assert record(path, with_layer(log_in_python), *data(None)) == 0
    with Capture(path) as capture, Replay(capture) as replay:
        origin = bisect(replay).findings.origin
        assert origin is not None
        assert (origin.op_type, origin.phase, origin.layer) == ("PyFunc", "forward", "added")
    # Python does not run in a replay, so nobody knows what these would change.
    for fix in explain(path, fixes=["clean_data=drop_rows", "lr=0.1"]).fixes:
        assert fix.prevents is None
        assert fix.note == "What `PyFunc` gave was recorded: no replay computes it anew."


def in_a_loop(x: Any) -> Any:
    return 0.1 * tf.map_fn(lambda row: row * tf.random.uniform([]), x)


def test_draws_inside_a_loop_are_named_and_nothing_is_claimed(tmp_path: Path) -> None:
    path, model = tmp_path / "run.h5", with_layer(in_a_loop)
    tf.random.set_seed(None)  # else a new process draws as this one did, from its first step on
    assert record(path, model, *data()) == 3
    with Capture(path) as capture, Replay(capture) as replay:
        (note,) = capture.incident.notes
        assert "RandomUniform" in note
        assert "a replay may draw others" in note
        assert capture.incident.bit_exact is False
        verdict = judge(replay)  # the NaN is in the batch, whatever is drawn
        assert (verdict.kind, verdict.bit_exact) == ("reproduced", False)


def test_a_nan_that_only_a_draw_made_is_not_called_a_fault(tmp_path: Path) -> None:
    """The recorded step was unlucky: its replays draw otherwise and are finite."""
    weight = tf.Variable(1.0)

    @tf.function
    def step(x: Any) -> Any:
        drawn = tf.while_loop(
            lambda i, _: i < 1, lambda i, _: (i + 1, tf.random.uniform([])), [0, 0.5]
        )[1]
        with tf.GradientTape() as tape:
            loss = weight * x + tf.math.log(tf.where(drawn > 0.5, 1.0, -1.0))
        weight.assign_sub(0.01 * tape.gradient(loss, weight))
        return loss

    tf.random.set_seed(1)
    path = tmp_path / "run.h5"
    recorded = Recorder(path).wrap(step)
    steps = (recorded(tf.constant(1.0)) for _ in range(100))
    with pytest.raises(NonFiniteError):
        list(steps)
    with Capture(path) as capture, Replay(capture) as replay:
        for _ in range(20):
            assert judge(replay).kind != "transient"


def test_a_step_that_raises_has_no_outputs_to_feed(tmp_path: Path) -> None:
    @tf.function
    def step(x: Any) -> Any:
        noise = tf.random.uniform([4])
        with tf.control_dependencies(
            [noise]
        ):  # in a replay the draw raises first, for want of a seed where ops are deterministic
            tf.debugging.assert_less(x, 5.0, message="too large")
        return tf.reduce_sum(noise * weight * x)

    weight = tf.Variable(1.0)
    path = tmp_path / "run.h5"
    recorded = Recorder(path).wrap(step)
    recorded(tf.ones([4]))
    with (
        pytest.raises(tf.errors.InvalidArgumentError),
        pytest.warns(UserWarning, match="too large"),
    ):
        recorded(9 * tf.ones([4]))
    with Capture(path) as capture, Replay(capture) as replay:
        assert [len(capture.batch(at).fed) for at in (0, 1)] == [1, 0]
        assert "Step 1 raised before" in capture.incident.notes[-1]
        assert replay.run_window("recorded", last=0)[0].finite
        assert judge(replay).kind == "reproduced"  # it raises again, whatever is drawn


def test_a_file_that_lacks_recorded_outputs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    record(path, with_layer(many), *data())
    with Capture(path) as capture:
        contents = capture.contents()
    short = {
        step: dataclasses.replace(batch, fed=batch.fed[:-1])
        for step, batch in contents.batches.items()
    }
    write_capture(path, dataclasses.replace(contents, batches=short))
    with (
        Capture(path) as capture,
        Replay(capture) as replay,
        pytest.raises(FormatError, match="lacks outputs"),
    ):
        replay.run_window("recorded")


def test_recorded_outputs_count_toward_the_memory_limit(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run.h5", memory_limit="100KiB")
    record(
        tmp_path / "run.h5",
        with_layer(lambda x: tf.reduce_mean(tf.random.normal([100, 100]))),
        *data(),
        recorder=recorder,
    )
    with Capture(tmp_path / "run.h5") as capture:
        assert capture.batch(3).fed[0].nbytes == 40_000
        assert capture.steps in ((3,), (2, 3))


def test_an_eager_step_is_run_once_more_with_the_numbers_that_it_drew(tmp_path: Path) -> None:
    weight = tf.Variable([1.0, 2.0])

    def step(x: Any) -> Any:
        noise = tf.random.normal([2]) + tf.random.uniform([2], seed=7) * tf.random.shuffle(
            [1.0, 2.0]
        )
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(weight * x + noise))
        weight.assign_sub(0.1 * tape.gradient(loss, weight))
        return loss.numpy()  # no graph could

    path = tmp_path / "run.h5"
    recorded = Recorder(path).wrap(step)
    recorded(tf.ones([2]))
    recorded(tf.ones([2]))
    with pytest.raises(NonFiniteError):
        recorded(tf.constant([1.0, np.inf]))
    with Capture(path) as capture, Replay(capture) as replay:
        assert capture.incident.notes == ()
        assert capture.incident.bit_exact
        assert [result.bit_exact for result in replay.run_window("recorded")] == [True]


@pytest.mark.filterwarnings("ignore:nanreplay. step")  # what `on_nan="stop"` says
def test_what_a_python_function_sets_is_no_fault_of_the_machine(tmp_path: Path) -> None:
    """A replay has what it returned, and not what else it did."""
    scale, weights = tf.Variable(1.0, trainable=False), tf.Variable([1.0, 1.0])
    calls = itertools.count()

    def watch() -> Any:
        if next(calls) == 2:
            scale.assign(np.nan)
        return np.float32(0)

    @tf.function(autograph=False)
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(x * weights) * scale
        weights.assign_sub(0.01 * tape.gradient(loss, weights))
        with tf.control_dependencies([loss]):
            tf.py_function(watch, [], tf.float32)
        return loss

    with Recorder(tmp_path / "run.h5", on_nan="stop") as recorder:
        recorded = recorder.wrap(step)
        for _ in range(4):
            recorded(tf.ones((4, 2)))
    report = explain(tmp_path / "run.h5", fixes="none")

    assert report.verdict.kind == "inconclusive"
    assert "calls Python functions" in str(report.verdict.reason)
