"""A fix of a source line is made at every op of the line, as one who edits the line does.

Each training runs twice: as it is, and with the epsilon in its code. The replay of the first with
the fix gives the losses of the second.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from trainings import with_all_variables

from nanreplay import Capture, Recorder, Replay
from nanreplay.bisect import bisect
from nanreplay.findings import FixResult
from nanreplay.report.explain import explain
from nanreplay.whatif.failure import Failure
from nanreplay.whatif.fixes import FIXES
from nanreplay.whatif.trial import what_if
from nanreplay.whatif.trial_window import TrialWindow

ROWS, STEPS, WIDTH = 4, 5, 4
pytestmark = pytest.mark.filterwarnings("ignore:nanreplay. step")


def data() -> tuple[Any, Any]:
    """Readings; row 1 of step 3 is all 0, and stays so in each layer without a bias."""
    x = np.random.default_rng(0).uniform(0.2, 1.0, (ROWS * STEPS, WIDTH)).astype("float32")
    x[3 * ROWS + 1] = 0.0
    return x, x.sum(axis=1, keepdims=True)


class Scaled(keras.layers.Layer):
    """Divides each row by its length."""

    def __init__(self, eps: float, way: str = "plain", **options: Any) -> None:
        super().__init__(**options)
        self.eps, self.way = eps, way
        self.compiled = tf.function(self.scaled)
        self.compiled_by_xla = tf.function(self.scaled, jit_compile=True)
        self.recomputed = tf.recompute_grad(self.scaled)

    def scaled(self, x: Any) -> Any:
        return x * tf.math.rsqrt(tf.reduce_mean(tf.square(x), axis=-1, keepdims=True) + self.eps)

    def repeated(self, x: Any) -> Any:
        def body(i: Any, y: Any) -> Any:
            return i + 1, self.scaled(y) * 0.9

        return tf.while_loop(lambda i, y: i < 3, body, (tf.constant(0), x))[1]

    def call(self, x: Any) -> Any:
        if self.way == "loop":
            return self.repeated(x)
        if self.way == "function":
            return self.compiled(x)
        if self.way == "xla function":
            return self.compiled_by_xla(x)
        if self.way == "recomputed":
            return self.recomputed(x)
        if self.way == "mapped":
            return tf.map_fn(self.scaled, x)
        if self.way == "calls":
            for _ in range(2):
                x = self.scaled(x)
            return x
        return self.scaled(x)


def stacked(eps: float, way: str = "plain", **options: Any) -> Any:
    def mixing() -> Any:
        return keras.layers.Dense(WIDTH, use_bias=False)

    layers = [keras.Input((WIDTH,)), mixing(), Scaled(eps, way), mixing(), Scaled(eps, way)]
    model = keras.Sequential([*layers, keras.layers.Dense(1, dtype="float32")])
    model.compile(keras.optimizers.SGD(0.01), "mse", **options)
    return model


def fitted(path: Path, model: Any) -> None:
    x, y = data()
    recorder = Recorder(path, on_nan="stop")
    model.fit(x, y, batch_size=ROWS, shuffle=False, verbose=0, callbacks=[recorder])
    if not path.exists():
        recorder.dump(reason="the end of a healthy training")


def looped(path: Path, step: Callable[..., Any], model: Any, optimizer: Any) -> None:
    x, y = data()
    with Recorder(path, on_nan="stop") as recorder:
        recorded = recorder.wrap(step, model=model, optimizer=optimizer)
        for begin in range(0, len(x), ROWS):
            recorded(tf.constant(x[begin : begin + ROWS]), tf.constant(y[begin : begin + ROWS]))
            if recorder.stopped:
                return
        recorder.dump(reason="the end of a healthy training")


def fit(way: str = "plain", **options: Any) -> Callable[[Path, float], None]:
    return lambda path, eps: fitted(path, stacked(eps, way, **options))


def accumulated(path: Path, eps: float) -> None:
    """Gradients of two halves of the batch, added up in a loop of the graph."""
    model, optimizer = stacked(eps), keras.optimizers.SGD(0.01)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        weights = model.trainable_variables
        sums, total = [tf.zeros_like(weight) for weight in weights], tf.constant(0.0)
        for half in tf.range(2):
            begin = half * ROWS // 2
            with tf.GradientTape() as tape:
                outputs = model(x[begin : begin + ROWS // 2])
                loss = tf.reduce_mean(tf.square(outputs - y[begin : begin + ROWS // 2]))
            pairs = zip(sums, tape.gradient(loss, weights), strict=True)
            sums = [old + new for old, new in pairs]
            total += loss
        optimizer.apply_gradients(zip(sums, weights, strict=True))
        return total

    looped(path, step, model, optimizer)


def penalised(path: Path, eps: float) -> None:
    """A gradient of a gradient."""
    model, optimizer = stacked(eps), keras.optimizers.SGD(0.01)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            with tf.GradientTape() as inner:
                inner.watch(x)
                loss = tf.reduce_mean(tf.square(model(x) - y))
            slope = inner.gradient(loss, x)
            loss += 0.01 * tf.reduce_mean(tf.square(slope))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    looped(path, step, model, optimizer)


def eager(path: Path, eps: float) -> None:
    model, optimizer = stacked(eps), keras.optimizers.SGD(0.01)

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x) - y))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    looped(path, step, model, optimizer)


def two_shapes(path: Path, eps: float) -> None:
    """Batches of two shapes give two programs; the second of them fails."""
    model, optimizer = stacked(eps), keras.optimizers.SGD(0.01)

    @tf.function(reduce_retracing=False)
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x) - y))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    x, y = data()
    with Recorder(path, on_nan="stop") as recorder:
        recorded = recorder.wrap(step, model=model, optimizer=optimizer)
        for begin, end in ((0, 4), (4, 7), (7, 11), (11, 14)):
            recorded(tf.constant(x[begin:end]), tf.constant(y[begin:end]))
            if recorder.stopped:
                return
        recorder.dump(reason="the end of a healthy training")


def several_steps(path: Path, eps: float) -> None:
    model = stacked(eps)
    model.compile(keras.optimizers.SGD(0.01), "mse", steps_per_execution=2, jit_compile=False)
    fitted(path, model)


KINDS: dict[str, tuple[Callable[[Path, float], None], int]] = {
    "two layers": (fit(), 2),
    "two layers under XLA": (fit(jit_compile=True), 2),
    "a loop in each layer": (fit("loop"), 2),
    "a loop over the rows": (fit("mapped"), 2),
    "two calls in each layer": (fit("calls"), 4),
    "a function that both layers call": (fit("function"), 2),
    "a function that XLA compiles": (fit("xla function", jit_compile=False), 2),
    "recomputed for the gradient": (fit("recomputed"), 4),
    "step by step in Python": (fit(run_eagerly=True), 2),
    "several steps in one call": (several_steps, 2),
    "gradients of two halves": (accumulated, 2),
    "a gradient of a gradient": (penalised, 2),
    "a plain Python loop": (eager, 2),
    "two programs": (two_shapes, 2),
}
"""How the line runs, and how many ops of the failing step it makes."""


def tried(path: Path, eps: float) -> tuple[dict[int, float], FixResult]:
    """The losses of the window with an epsilon on the line, and what is said of the fix."""
    with Capture(path) as capture, Replay(capture) as replay:
        bisection = bisect(replay, capture.timeline_record())
        failure = Failure(TrialWindow(replay), bisection, ())
        edit = FIXES["epsilon"](failure, str(eps)).edit
        losses = {r.step: float(r.loss or 0) for r in failure.window.run(edit).results}
        (result,) = what_if(replay, bisection, (), [f"epsilon={eps}"]).results
        return losses, result


def losses_of(path: Path) -> dict[int, float]:
    with Capture(path) as capture, Replay(capture) as replay:
        if replay.steps:
            return {r.step: float(r.loss or 0) for r in replay.run_window()}
        table = capture.timeline()  # a healthy step in Python is recorded without a program
        return dict(zip(table["step"], table["loss"], strict=True))


SLOW = (
    "two layers",  # as those of "a loop in each layer"
    "a loop over the rows",
    "two calls in each layer",
    "a function that XLA compiles",
    "several steps in one call",
    "step by step in Python",
    "gradients of two halves",
    "two layers under XLA",
    "recomputed for the gradient",
    "a plain Python loop",
)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in SLOW)) for kind in KINDS]
)
def test_an_edit_of_a_line_is_replayed_at_every_op_of_the_line(kind: str, tmp_path: Path) -> None:
    train, places = KINDS[kind]
    for name, eps in (("as_it_is", 0.0), ("edited", 1e-3)):
        keras.utils.set_random_seed(3)
        train(tmp_path / f"{name}.h5", eps)

    replayed, result = tried(tmp_path / "as_it_is.h5", 1e-3)
    trained = losses_of(tmp_path / "edited.h5")
    assert max(replayed) >= 2
    wanted = [trained[step] for step in replayed]
    assert np.isfinite(wanted).all()
    np.testing.assert_allclose(list(replayed.values()), wanted, rtol=2e-5)
    assert (result.prevents, result.places) == (True, places)


def test_a_rate_far_too_high_is_the_cause_of_what_fails_next_and_a_healthy_rate_is_found(
    tmp_path: Path,
) -> None:
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(16, activation="relu") for _ in range(3)]
    model = keras.Sequential([keras.Input((WIDTH,)), *layers, keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(1e9), "mse", jit_compile=False)
    with_all_variables(model)
    fitted(tmp_path / "run.h5", model)

    report = explain(tmp_path / "run.h5", fixes=["lr=1e-8", "lr=1e-12"])

    assert report.causes[0].kind == "high_learning_rate"
    assert "at a learning rate of 1e+09" in report.causes[0].sentence
    high, usual = report.fixes[:2]
    assert (high.prevents, high.outcome) == (False, "unhealthy")
    assert "loss grows to" in str(high.note)
    assert usual.prevents is True
    assert "`lr x 1e-12 (0.001)`" in report.sentence
    assert "`lr x 1e-8 (10)` leaves the training unhealthy" in report.sentence

    rates = [fix for fix in explain(tmp_path / "run.h5").fixes if fix.name == "lr"]
    assert rates[0].params["learning_rate"] == 0.1
    assert [rate.prevents for rate in rates] == [False] * (len(rates) - 1) + [True]


def test_a_fix_that_moves_the_failure_says_where_to(tmp_path: Path) -> None:
    class Moved(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            length = tf.reduce_sum(tf.square(x), axis=-1, keepdims=True)
            x = x / length
            return x + tf.math.log(length)

    model = keras.Sequential([keras.Input((WIDTH,)), Moved(name="moved"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
    fitted(tmp_path / "run.h5", model)

    (fix,) = explain(tmp_path / "run.h5", fixes=["double_where"]).fixes

    assert (fix.prevents, fix.outcome) == (False, "moves")
    assert fix.moved_to is not None
    assert (fix.moved_to.step, fix.moved_to.op_type, fix.moved_to.layer) == (3, "Log", "moved")
    assert fix.moved_to.source is not None
    assert "tf.math.log(length)" in str(fix.moved_to.source.code)


def test_clip_data_takes_a_batch_of_several_dtypes_and_leaves_labels_alone(tmp_path: Path) -> None:
    # a positive weight: of a large negative number the exponential is 0
    layer, optimizer = keras.layers.Dense(1, kernel_initializer="ones"), keras.optimizers.SGD(0.01)
    layer.build((None, WIDTH))

    @tf.function
    def step(batch: Any) -> Any:
        with tf.GradientTape() as tape:
            output = tf.exp(layer(tf.cast(batch["x"], tf.float32)))
            loss = tf.reduce_mean(tf.square(output - tf.cast(batch["y"], tf.float32)))
        gradients = tape.gradient(loss, layer.trainable_variables)
        optimizer.apply_gradients(zip(gradients, layer.trainable_variables, strict=True))
        return loss

    random = np.random.default_rng(0)
    with Recorder(tmp_path / "run.h5", on_nan="stop") as recorder:
        recorded = recorder.wrap(step, model=layer, optimizer=optimizer)
        for number in range(4):
            x, y = random.normal(size=(ROWS, WIDTH)), random.normal(size=(ROWS, 1))
            x[1, 1], y[2, 0] = (1e6, 3.0) if number == 3 else (0.5, 0.0)
            recorded(
                {
                    "x": tf.constant(x),
                    "y": tf.cast(y, tf.bfloat16),
                    "name": tf.constant(["a"] * ROWS),
                    "id": tf.range(ROWS),
                }
            )
    (fix,) = explain(tmp_path / "run.h5", fixes=["clip_data"]).fixes
    assert fix.params["arrays"] == "x"
    assert str(fix.code).startswith('batch["x"][:, 1] = np.clip(batch["x"][:, 1], ')


def test_a_quotient_in_a_loop_takes_divide_no_nan_in_its_gradient_too(tmp_path: Path) -> None:
    class Shares(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            def body(i: Any, y: Any) -> Any:
                return i + 1, y / (tf.reduce_sum(y, axis=-1, keepdims=True) + 0.0)

            return tf.while_loop(lambda i, y: i < 2, body, (tf.constant(0), x))[1]

    model = keras.Sequential([keras.Input((WIDTH,)), Shares(), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
    fitted(tmp_path / "run.h5", model)

    (fix,) = explain(tmp_path / "run.h5", fixes=["stable_op"]).fixes

    assert (fix.prevents, fix.note) == (True, None)
    assert "tf.math.divide_no_nan(y, tf.reduce_sum(" in str(fix.code)


def test_an_update_that_nothing_before_it_tells_is_not_skipped(tmp_path: Path) -> None:
    keras.utils.set_random_seed(3)
    dead = keras.layers.Dense(4, "relu", bias_initializer=keras.initializers.Constant(-9.0))
    model = keras.Sequential([keras.Input((WIDTH,)), dead, keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01, epsilon=0.0), "mse", jit_compile=False)
    with_all_variables(model)
    fitted(tmp_path / "run.h5", model)

    (fix,) = explain(tmp_path / "run.h5", fixes=["skip_step"]).fixes

    assert fix.prevents is None
    assert "gradients are finite before the update" in str(fix.note)


def test_a_lower_rate_is_that_of_each_optimizer(tmp_path: Path) -> None:
    keras.utils.set_random_seed(3)
    layers = [keras.layers.Dense(4), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((WIDTH,)), *layers])
    slow, fast = keras.optimizers.Adam(0.01), keras.optimizers.SGD(1e30)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape(persistent=True) as tape:
            loss = tf.reduce_mean(tf.square(model(x) - y))
        for optimizer, layer in zip((slow, fast), layers, strict=True):
            weights = layer.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return loss

    looped(tmp_path / "run.h5", step, model, None)
    (fix,) = explain(tmp_path / "run.h5", fixes=["lr=1e-32"]).fixes

    assert fix.prevents is True
    assert str(fix.code).splitlines() == [
        "keras.optimizers.Adam(learning_rate=1e-34)  # was 0.01",
        "keras.optimizers.SGD(learning_rate=0.01)  # was 1e+30",
    ]
    assert [edit["optimizer"] for edit in fix.edits] == [
        "keras.optimizers.Adam",
        "keras.optimizers.SGD",
    ]


def test_a_softmax_on_another_line_is_named_with_its_line(tmp_path: Path) -> None:
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((WIDTH,)), keras.layers.Dense(3)])
    optimizer = keras.optimizers.SGD(1e-6)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            shares = tf.nn.softmax(1e4 * model(x))
            loss = -tf.reduce_mean(y * tf.math.log(shares))
        weights = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return loss

    looped(tmp_path / "run.h5", step, model, optimizer)
    (fix,) = explain(tmp_path / "run.h5", fixes=["stable_op"]).fixes

    assert fix.prevents is True
    assert str(fix.code).startswith("# Write `tf.nn.log_softmax(x)`, x being what `Softmax` is ")
    assert "`shares = tf.nn.softmax(1e4 * model(x))` (line " in str(fix.code)
    assert str(fix.code).endswith("instead of the logarithm of the operand of `Log`, `shares`")
    assert fix.edits == ()
