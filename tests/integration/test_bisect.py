"""Real trainings that turn non-finite, recorded and bisected: the step, op, layer, element and rows
that are found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from trainings import with_all_variables

from nanreplay import Recorder
from nanreplay.bisect import find_origin
from nanreplay.capture.reader import Capture
from nanreplay.findings import Findings, Origin
from nanreplay.replay.session import Replay
from nanreplay.report.explain import explain

ROWS = 8
pytestmark = pytest.mark.filterwarnings(
    "ignore:nanreplay. step"
)  # what `on_nan="stop"` says at an incident


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    keras.utils.set_random_seed(0)
    yield
    keras.backend.clear_session(free_memory=False)


@pytest.fixture
def draws() -> np.random.RandomState:
    return np.random.RandomState(0)


def bisect(path: Path) -> Findings:
    with Capture(path) as capture, Replay(capture) as replay:
        return find_origin(replay, capture.timeline_record())


def fit(path: Path, model: Any, x: Any, y: Any, **options: Any) -> Findings:
    """Train until something is not finite, and bisect the recording."""
    return bisect(recorded(path, model, x, y, **options))


def recorded(path: Path, model: Any, x: Any, y: Any, **options: Any) -> Path:
    """The recording of a training until something is not finite."""
    run = path / "run.h5"
    if model.built:
        with_all_variables(model)
    model.fit(
        x,
        y,
        batch_size=ROWS,
        shuffle=False,
        verbose=0,
        callbacks=[Recorder(str(run), on_nan="stop")],
        **options,
    )
    assert run.exists(), "nothing turned non-finite"
    return run


def loop(path: Path, step: Callable[[Any], Any], batches: Iterable[Any], **parts: Any) -> Findings:
    """Train in a loop of one's own until something is not finite, and bisect the recording."""
    recorder = Recorder(str(path / "run.h5"), on_nan="stop")
    wrapped = recorder.wrap(step, **parts)
    for batch in batches:
        wrapped(batch)
        if recorder.stopped:
            break
    recorder.close()
    return bisect(path / "run.h5")


def origin_of(findings: Findings) -> Origin:
    assert findings.origin is not None, findings.reason
    return findings.origin


def model_of(
    layer: Any, shape: tuple[int, ...], *, loss: Any = "mse", optimizer: Any = "sgd", **options: Any
) -> Any:
    """A model of one layer and a Dense on top."""
    inputs = keras.Input(shape)
    model = keras.Model(inputs, keras.layers.Dense(1, name="out")(layer(inputs)))
    model.compile(optimizer, loss, **options)
    return model


class Layer(keras.layers.Layer):
    """A layer made of a function."""

    def __init__(self, function: Callable[[Any], Any], **options: Any) -> None:
        super().__init__(**options)
        self.function = function

    def call(self, x: Any) -> Any:
        return self.function(x)


def test_a_nan_in_the_batch_is_the_origin_with_its_row(tmp_path: Path, draws: Any) -> None:
    x, y = draws.randn(40, 3).astype("float32"), draws.randn(40, 1).astype("float32")
    x[2 * ROWS + 5, 1] = np.nan
    findings = fit(tmp_path, model_of(keras.layers.Dense(4, activation="tanh"), (3,)), x, y)
    origin = origin_of(findings)
    assert (origin.step, origin.phase, origin.where, origin.layer, origin.op_type) == (
        2,
        "input",
        "input",
        None,
        None,
    )
    assert origin.rows == (5,)
    assert origin.outputs[0].indices == ((5, 1),)
    assert findings.chain[0].op_type == "MatMul"


def test_division_by_zero_in_a_while_loop_names_the_iteration(tmp_path: Path, draws: Any) -> None:
    def call(x: Any) -> Any:
        def body(i: Any, total: Any) -> Any:
            return i + 1, total + 1.0 / (x[:, i] - 2.0)

        return tf.while_loop(
            lambda i, total: i < 4, body, (tf.constant(0), tf.zeros_like(x[:, 0]))
        )[1][:, None]

    x, y = draws.rand(32, 4).astype("float32"), draws.randn(32, 1).astype("float32")
    x[ROWS + 3, 2] = 2.0
    origin = origin_of(
        fit(tmp_path, model_of(Layer(call, name="looped"), (4,), jit_compile=False), x, y)
    )
    assert (origin.step, origin.phase, origin.layer, origin.op_type) == (
        1,
        "forward",
        "looped",
        "RealDiv",
    )
    assert [each.iteration for each in origin.loop] == [2]
    assert origin.rows == (3,)
    assert origin.operands[1].value == 0.0


def test_an_op_in_map_fn_names_the_element(tmp_path: Path, draws: Any) -> None:
    layer = Layer(lambda x: tf.map_fn(lambda row: tf.math.log(row), x), name="mapped")
    x, y = draws.rand(32, 3).astype("float32") + 0.5, draws.randn(32, 1).astype("float32")
    x[2 * ROWS + 6, 1] = 0.0
    origin = origin_of(fit(tmp_path, model_of(layer, (3,), jit_compile=False), x, y))
    assert (origin.step, origin.layer, origin.op_type) == (2, "mapped", "Log")
    assert [each.iteration for each in origin.loop] == [6]
    assert origin.outputs[0].indices == ((1,),)
    assert origin.rows == (6,)


class Divides(keras.layers.Layer):
    """A recurrent cell that divides by its input."""

    state_size = 1
    output_size = 1

    def call(self, x: Any, states: Any) -> Any:
        new = states[0] + 1.0 / x
        return new, [new]


def test_an_op_in_a_recurrent_cell_names_the_time_step(tmp_path: Path, draws: Any) -> None:
    x, y = draws.rand(24, 5, 1).astype("float32") + 0.5, draws.randn(24, 1).astype("float32")
    x[ROWS + 2, 3] = 0.0
    origin = origin_of(
        fit(
            tmp_path,
            model_of(keras.layers.RNN(Divides(name="cell"), name="rnn"), (5, 1), jit_compile=False),
            x,
            y,
        )
    )
    assert (origin.step, origin.phase, origin.op_type) == (1, "forward", "RealDiv")
    assert origin.layer_path is not None
    assert "rnn" in origin.layer_path.split("/")
    assert [each.iteration for each in origin.loop] == [3]
    assert origin.rows == (2,)


def test_a_backward_op_in_a_loop_names_the_forward_iteration(tmp_path: Path, draws: Any) -> None:
    def call(x: Any) -> Any:
        def body(i: Any, total: Any) -> Any:
            return i + 1, total + tf.sqrt(x[:, i])

        return tf.while_loop(
            lambda i, total: i < 4, body, (tf.constant(0), tf.zeros_like(x[:, 0]))
        )[1][:, None]

    inputs = keras.Input((4,))
    scaled = keras.layers.EinsumDense(
        "bi,i->bi", output_shape=4, kernel_initializer="ones", name="scale"
    )(inputs)
    model = keras.Model(inputs, Layer(call, name="roots")(scaled))
    model.compile("sgd", "mse", jit_compile=False)
    x, y = draws.rand(24, 4).astype("float32") + 0.5, draws.randn(24, 1).astype("float32")
    x[2 * ROWS + 1, 1] = 0.0
    origin = origin_of(fit(tmp_path, model, x, y))
    assert (origin.step, origin.phase, origin.layer, origin.op_type) == (
        2,
        "backward",
        "roots",
        "SqrtGrad",
    )
    assert [each.iteration for each in origin.loop] == [1]
    assert origin.rows == (1,)


def test_a_shared_layer_is_named_at_the_call_that_failed(tmp_path: Path, draws: Any) -> None:
    shared = Layer(tf.math.log, name="shared")
    left, right = keras.Input((2,)), keras.Input((2,))
    model = keras.Model([left, right], keras.layers.Dense(1)(shared(left) + shared(right)))
    model.compile("sgd", "mse")
    x, y = (
        [draws.rand(16, 2).astype("float32") + 0.5 for _ in range(2)],
        draws.randn(16, 1).astype("float32"),
    )
    x[1][ROWS + 4, 0] = 0.0
    findings = fit(tmp_path, model, x, y)
    origin = origin_of(findings)
    assert (origin.step, origin.layer, origin.op_type, origin.rows) == (1, "shared", "Log", (4,))
    assert origin.operands[0].name.startswith("batch[")
    assert origin.operands[0].value == 0.0


def test_a_nested_model_gives_the_chain_of_layers(tmp_path: Path, draws: Any) -> None:
    inner = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(3, name="first"),
            Layer(lambda x: x / tf.abs(x), name="sign"),
        ],
        name="inner",
    )
    x, y = draws.randn(24, 3).astype("float32"), draws.randn(24, 1).astype("float32")
    x[ROWS + 7] = 0.0
    origin = origin_of(fit(tmp_path, model_of(inner, (3,), loss="mae"), x, y))
    assert (origin.step, origin.layer, origin.layer_path, origin.op_type) == (
        1,
        "sign",
        "inner/sign",
        "RealDiv",
    )
    assert origin.rows == (7,)


def test_the_layer_within_a_time_distributed_one_is_named(tmp_path: Path, draws: Any) -> None:
    inner = keras.layers.Lambda(lambda x: x / tf.abs(x), output_shape=lambda s: s, name="sign")
    x, y = draws.randn(24, 2, 3).astype("float32"), draws.randn(24, 2, 1).astype("float32")
    x[ROWS + 7, 1] = 0.0
    each = keras.layers.TimeDistributed(inner, name="each")
    report = explain(recorded(tmp_path, model_of(each, (2, 3), loss="mae"), x, y), fixes="none")
    origin = report.findings.origin
    assert origin is not None
    assert (origin.layer, origin.layer_path) == ("sign", "each/sign")
    assert "Inside of Keras" not in report.sentence


def test_an_op_of_a_vectorized_map_is_that_of_the_function_for_one_element(tmp_path: Path) -> None:
    weight = tf.Variable([1.0, 2.0], name="weight")
    logs = Layer(lambda total: tf.math.log(total), name="logs")

    @tf.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(
                tf.vectorized_map(lambda row: logs(tf.reduce_sum(row * weight)), x)
            )
        weight.assign_sub(0.1 * tape.gradient(loss, weight))
        return loss

    batches = [tf.ones((4, 2)), tf.constant([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0], [1.0, 1.0]])]
    origin = origin_of(loop(tmp_path, step, batches))
    assert (origin.layer, origin.op_type, origin.rows) == ("logs", "Log", (2,))
    assert origin.source is not None
    assert "tf.math.log(total)" in str(origin.source.code)


def test_weights_that_began_as_nan_are_no_steps_doing(tmp_path: Path, draws: Any) -> None:
    x, y = draws.randn(16, 3).astype("float32"), draws.randn(16, 1).astype("float32")
    nan = keras.initializers.Constant(np.nan)
    first = keras.layers.Dense(2, name="first", bias_initializer=nan)
    model = model_of(first, (3,))
    report = explain(recorded(tmp_path, model, x, y))
    origin = origin_of(report.findings)
    assert (origin.step, origin.kind, origin.phase, origin.layer) == (0, "set", "forward", "first")
    assert (origin.op_type, origin.operands[0].name) == (None, "first/bias")
    assert "`first/bias` was NaN at [0] before step 0" in report.causes[0].sentence


@pytest.mark.parametrize("rate", [np.nan, np.inf])
@pytest.mark.parametrize("when", ["on_train_batch_begin", "on_epoch_begin"])
def test_a_rate_that_a_callback_sets_is_the_origin(
    when: str, rate: float, tmp_path: Path, draws: Any
) -> None:
    x, y = draws.randn(24, 3).astype("float32"), draws.randn(24, 1).astype("float32")
    model = model_of(keras.layers.Dense(4, name="first"), (3,))

    def set_rate(number: int, logs: Any = None) -> None:
        if number >= 1:
            model.optimizer.learning_rate = rate

    schedule = keras.callbacks.LambdaCallback(**{when: set_rate})
    run = tmp_path / "run.h5"
    recorder = Recorder(str(run), on_nan="stop")
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[schedule, recorder])
    report = explain(run)
    origin, step = origin_of(report.findings), 1 if when == "on_train_batch_begin" else 3
    assert (origin.step, origin.kind, origin.where) == (step, "set", "optimizer")
    assert origin.operands[0].name.endswith("learning_rate")
    value = "NaN" if np.isnan(rate) else "inf"
    cause = report.causes[0]
    assert cause.kind == "other"
    assert f"the learning rate of the optimizer, was set to {value} between" in cause.sentence
    assert f"between steps {step - 1} and {step}" in cause.sentence
    assert cause.evidence == (f"In step {step - 1} it was 0.01.",)
    assert not report.fixes


def test_several_origins_of_one_step_are_all_named(tmp_path: Path, draws: Any) -> None:
    inputs = keras.Input((2,))
    logs, inverse = (
        Layer(tf.math.log, name="logs")(inputs[:, :1]),
        Layer(tf.math.reciprocal, name="inverse")(inputs[:, 1:]),
    )
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Concatenate()([logs, inverse])))
    model.compile("sgd", "mse")
    x, y = draws.rand(16, 2).astype("float32") + 0.5, draws.randn(16, 1).astype("float32")
    x[ROWS + 1, 0] = 0.0
    x[ROWS + 6, 1] = 0.0
    findings = fit(tmp_path, model, x, y)
    found = {origin.op_type: origin for origin in (origin_of(findings), *findings.other_origins)}
    assert {"Log", "Reciprocal"} <= set(found)
    assert {found["Log"].layer, found["Reciprocal"].layer} == {"logs", "inverse"}


def test_a_metric_that_is_nan_is_no_incident(tmp_path: Path, draws: Any) -> None:
    def broken(y: Any, p: Any) -> Any:
        return tf.math.log(-tf.abs(p) - 1.0)

    model = model_of(keras.layers.Dense(2), (3,), metrics=[broken])
    x, y = draws.randn(16, 3).astype("float32"), draws.randn(16, 1).astype("float32")
    model.fit(
        x,
        y,
        batch_size=ROWS,
        verbose=0,
        callbacks=[Recorder(str(tmp_path / "run.h5"), on_nan="stop")],
    )
    assert not (tmp_path / "run.h5").exists()


def test_a_metric_that_is_nan_as_well_is_not_the_origin(tmp_path: Path, draws: Any) -> None:
    def broken(y: Any, p: Any) -> Any:
        return tf.math.log(-tf.abs(p) - 1.0)

    model = model_of(Layer(tf.math.rsqrt, name="inverse_root"), (3,), metrics=[broken])
    x, y = draws.rand(16, 3).astype("float32") + 0.5, draws.randn(16, 1).astype("float32")
    x[ROWS] = 0.0
    findings = fit(tmp_path, model, x, y)
    assert origin_of(findings).op_type == "Rsqrt"
    assert all(origin.where != "metric" for origin in findings.other_origins)


def test_a_variable_updated_by_hand_is_followed(tmp_path: Path) -> None:
    weight, scale = (
        tf.Variable([1.0, 2.0], name="weight"),
        tf.Variable(1.0, name="scale", trainable=False),
    )

    @tf.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(weight * x * scale)
        weight.assign_sub(0.1 * tape.gradient(loss, weight))
        scale.assign(1.0 / tf.reduce_sum(x))
        return loss

    batches = [
        np.array([1.0, 2.0], np.float32),
        np.array([3.0, 4.0], np.float32),
        np.array([1.0, -1.0], np.float32),
    ]
    findings = loop(tmp_path, step, [tf.constant(batch) for batch in batches])
    origin = origin_of(findings)
    assert (origin.step, origin.op_type) == (2, "RealDiv")
    assert [operand.value for operand in origin.operands] == [1.0, 0.0]
    assert origin.rows is None


def test_a_where_that_drops_a_log_is_blamed_in_the_backward_pass(
    tmp_path: Path, draws: Any
) -> None:
    def call(x: Any) -> Any:
        return tf.where(x > 0, tf.math.log(x), tf.zeros_like(x))

    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(
        3, use_bias=False, kernel_initializer=keras.initializers.Constant(0.5), name="scale"
    )(inputs)
    model = keras.Model(inputs, Layer(call, name="safe_log")(hidden))
    model.compile("sgd", "mse")
    x, y = draws.rand(24, 3).astype("float32") + 0.5, draws.randn(24, 3).astype("float32")
    x[2 * ROWS + 2] = 0.0
    origin = origin_of(fit(tmp_path, model, x, y))
    assert (origin.step, origin.phase, origin.layer) == (2, "backward", "safe_log")
    assert origin.op_type in ("Reciprocal", "Mul")
    assert origin.rows == (2,)


def test_a_where_that_drops_an_exp_is_blamed_in_the_backward_pass(
    tmp_path: Path, draws: Any
) -> None:
    def call(x: Any) -> Any:
        return tf.where(x < 20.0, tf.exp(x), x)

    inputs = keras.Input((3,))
    model = keras.Model(
        inputs,
        Layer(call, name="safe_exp")(
            keras.layers.EinsumDense("bi,i->bi", output_shape=3, kernel_initializer="ones")(inputs)
        ),
    )
    model.compile(keras.optimizers.SGD(1e-4), "mae")
    x, y = draws.rand(24, 3).astype("float32"), draws.randn(24, 3).astype("float32")
    x[ROWS + 2, 1] = 100.0
    origin = origin_of(fit(tmp_path, model, x, y))
    assert (origin.step, origin.phase, origin.layer, origin.op_type) == (
        1,
        "backward",
        "safe_exp",
        "Mul",
    )
    assert origin.rows == (2,)


@pytest.mark.parametrize(
    "form",
    [
        "where",
        pytest.param("added", marks=pytest.mark.slow),
        pytest.param("log", marks=pytest.mark.slow),
        "by_hand",
    ],
)
def test_softmax_of_a_row_that_is_masked_out_is_the_origin_not_its_mask(
    tmp_path: Path, draws: Any, form: str
) -> None:
    class Attention(keras.layers.Layer):
        def call(self, scores: Any, mask: Any) -> Any:
            if form == "where":
                masked = tf.where(mask > 0, scores, -np.inf)
            elif form == "log":
                masked = scores + tf.math.log(mask)
            else:
                masked = scores + tf.where(mask > 0, 0.0, -np.inf)
            if form != "by_hand":
                return tf.nn.softmax(masked)
            exps = tf.exp(masked - tf.reduce_max(masked, axis=-1, keepdims=True))
            return exps / tf.reduce_sum(exps, axis=-1, keepdims=True)

    inputs, mask = keras.Input((4,)), keras.Input((4,))
    model = keras.Model(
        [inputs, mask],
        keras.layers.Dense(1)(Attention(name="attention")(keras.layers.Dense(4)(inputs), mask)),
    )
    model.compile("adam", "mse")
    x, y = draws.randn(32, 4).astype("float32"), draws.randn(32, 1).astype("float32")
    visible = (draws.rand(32, 4) > 0.3).astype("float32")
    visible[:, 0] = 1.0
    visible[2 * ROWS + 3] = 0.0
    origin = origin_of(fit(tmp_path, model, [x, visible], y))
    assert (origin.step, origin.phase, origin.layer) == (2, "forward", "attention")
    assert origin.op_type == ("Sub" if form == "by_hand" else "Softmax")
    assert origin.rows == (3,)


def test_a_second_moment_that_overflows_is_found_where_it_overflows(
    tmp_path: Path, draws: Any
) -> None:
    model = model_of(
        keras.layers.Dense(2, name="first"), (3,), loss="mse", optimizer=keras.optimizers.Adam(1e-3)
    )
    x, y = draws.randn(40, 3).astype("float32"), draws.randn(40, 1).astype("float32")
    y[2 * ROWS] = 4e17
    model.compile(
        keras.optimizers.Adam(1e-3), lambda y, p: tf.abs(y - p) * tf.maximum(tf.abs(y), 1.0) * 1e3
    )
    origin = origin_of(fit(tmp_path, model, x, y))
    assert (origin.step, origin.phase, origin.where) == (2, "update", "optimizer")
    assert origin.op_type == "Square"
    assert abs(float(str(origin.operands[0].value))) > 1e19


def test_a_division_by_the_sum_of_no_weights_needs_the_whole_batch(
    tmp_path: Path, draws: Any
) -> None:
    def weighted(y: Any, p: Any) -> Any:
        return tf.reduce_sum(y[:, 1] * tf.square(y[:, 0] - p[:, 0])) / tf.reduce_sum(y[:, 1])

    x = draws.randn(24, 3).astype("float32")
    y = np.stack([x[:, 0], np.ones(24)], axis=1).astype("float32")
    y[ROWS : 2 * ROWS, 1] = 0.0
    origin = origin_of(fit(tmp_path, model_of(keras.layers.Dense(2), (3,), loss=weighted), x, y))
    assert (origin.step, origin.phase, origin.op_type) == (1, "loss", "RealDiv")
    assert origin.rows is None
    assert origin.rows_reason is not None
    assert "whole batch" in origin.rows_reason


def test_a_label_out_of_range_is_the_origin_though_it_raises_op_by_op(
    tmp_path: Path, draws: Any
) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(5)])
    model.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=True
    )
    x, y = draws.randn(24, 3).astype("float32"), draws.randint(0, 5, 24)
    y[ROWS + 6] = 5
    origin = origin_of(fit(tmp_path, model, x, y))
    assert (origin.step, origin.op_type, origin.kind) == (
        1,
        "SparseSoftmaxCrossEntropyWithLogits",
        "raised",
    )
    assert origin.rows == (6,)
    assert origin.operands[1].value == 5


def test_an_overflow_of_every_row_is_told_to_need_no_row(tmp_path: Path, draws: Any) -> None:
    model = model_of(Layer(lambda x: tf.exp(1000.0 + 0.0 * x), name="huge"), (3,))
    findings = fit(
        tmp_path, model, draws.randn(16, 3).astype("float32"), draws.randn(16, 1).astype("float32")
    )
    origin = origin_of(findings)
    assert (origin.step, origin.layer, origin.op_type, origin.rows) == (0, "huge", "Exp", None)
    assert origin.rows_reason is not None


def test_two_rows_are_both_proved(tmp_path: Path, draws: Any) -> None:
    x, y = draws.rand(24, 3).astype("float32") + 0.5, draws.randn(24, 1).astype("float32")
    x[ROWS + 1, 0] = x[ROWS + 5, 2] = 0.0
    origin = origin_of(fit(tmp_path, model_of(Layer(tf.math.log, name="logs"), (3,)), x, y))
    assert origin.rows == (1, 5)
    assert origin.outputs[0].indices == ((1, 0), (5, 2))


def test_constant_features_under_batch_statistics_need_the_whole_batch(
    tmp_path: Path, draws: Any
) -> None:
    def call(x: Any) -> Any:
        mean, variance = tf.nn.moments(x, axes=[0])
        return (x - mean) * tf.math.rsqrt(variance)

    x, y = draws.randn(24, 3).astype("float32"), draws.randn(24, 1).astype("float32")
    x[ROWS : 2 * ROWS, 1] = 0.5
    origin = origin_of(fit(tmp_path, model_of(Layer(call, name="norm"), (3,)), x, y))
    assert (origin.step, origin.layer, origin.op_type, origin.rows) == (1, "norm", "Rsqrt", None)
    assert "whole batch" in str(origin.rows_reason)


def test_divergence_is_traced_to_where_it_began(tmp_path: Path, draws: Any) -> None:
    x = (draws.rand(800, 3) * 10).astype("float32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, name="line")])
    model.compile(keras.optimizers.SGD(0.05), "mse")
    findings = fit(tmp_path, model, x, x.sum(axis=1, keepdims=True))
    assert findings.root is not None
    assert findings.root.step < origin_of(findings).step - 5
    assert "grew" in findings.root.reason


def test_dropout_keeps_its_draws_while_rows_are_proved(tmp_path: Path, draws: Any) -> None:
    inputs = keras.Input((4,))
    hidden = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(inputs))
    model = keras.Model(
        inputs,
        keras.layers.Dense(1)(
            Layer(lambda x: tf.sqrt(tf.convert_to_tensor(x) + 4.0), name="root")(hidden)
        ),
    )
    model.compile("sgd", "mse")
    x, y = draws.rand(24, 4).astype("float32"), draws.randn(24, 1).astype("float32")
    x[ROWS + 2] = -1e4
    origin = origin_of(fit(tmp_path, model, x, y))
    assert origin.step <= 1
    assert origin.layer == "root"


def test_an_eager_loop_is_bisected_too(tmp_path: Path, draws: Any) -> None:
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2, name="hidden"), Layer(tf.math.log, name="logs")]
    )
    model.layers[0].set_weights([np.ones((3, 2), np.float32), np.zeros(2, np.float32)])
    optimizer = keras.optimizers.SGD(0.0)

    def step(batch: Any) -> Any:
        x, y = tf.constant(batch[0]), tf.constant(batch[1])
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x) - y))
        optimizer.apply_gradients(
            zip(
                tape.gradient(loss, model.trainable_variables),
                model.trainable_variables,
                strict=True,
            )
        )
        return float(loss.numpy())

    batches = [
        (draws.rand(4, 3).astype("float32") + 0.5, draws.randn(4, 2).astype("float32"))
        for _ in range(5)
    ]
    batches[3][0][2] = 0.0
    origin = origin_of(loop(tmp_path, step, batches, model=model, optimizer=optimizer))
    assert (origin.step, origin.phase, origin.layer, origin.op_type) == (
        3,
        "forward",
        "logs",
        "Log",
    )
    assert origin.rows == (2,)


def test_a_nan_that_only_the_compiled_step_makes_is_found_in_it(
    tmp_path: Path, draws: np.random.RandomState
) -> None:
    """XLA computes 1 - step/20 as -1.5e-8 at step 20; a fractional power of that is NaN."""
    schedule = keras.optimizers.schedules.PolynomialDecay(
        0.01, 20, end_learning_rate=0.0, power=0.9
    )
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(schedule), "mse", jit_compile=True)
    x = draws.randn(25 * ROWS, 3).astype("float32")
    run = recorded(tmp_path, model, x, x[:, :1])
    report = explain(run, fixes=["epsilon"])
    assert report.verdict.kind == "xla_only"
    (bounded,) = report.fixes  # no number of the optimizer's own: the schedule's base is bounded
    assert (bounded.prevents, bounded.loss_change) == (True, 0.0)
    assert "tf.maximum(base, 1e-7) ** power" in str(bounded.code)
    origin = report.findings.origin
    assert origin is not None
    assert (origin.step, origin.phase, origin.where, origin.op_type) == (
        20,
        "update",
        "optimizer",
        "Pow",
    )
    assert origin.operands[0].value == pytest.approx(-1.49e-8, rel=0.01)


def test_two_logarithms_of_zero_that_are_subtracted_are_no_mask(tmp_path: Path) -> None:
    weight = tf.Variable([[50.0, -50.0], [-50.0, 50.0]])

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            p = tf.nn.softmax(x @ weight)
            divergence = tf.reduce_sum(p * (tf.math.log(p) - tf.math.log(y)), -1)
            loss = tf.reduce_mean(divergence)
        weight.assign_sub(0.1 * tape.gradient(loss, weight))
        return loss

    recorder = Recorder(tmp_path / "run.h5", on_nan="stop")
    recorded = recorder.wrap(step)
    rows = np.eye(2, dtype="float32")[[0, 1, 0, 1]]
    recorded(tf.constant(0.02 * rows), tf.fill([4, 2], 0.5))
    recorded(tf.constant(3.0 * rows), tf.constant(rows))
    recorder.close()
    report = explain(tmp_path / "run.h5", fixes="none")
    assert report.findings.origin is not None
    assert report.findings.origin.op_type == "Log"
    assert report.causes[0].kind == "log_of_zero"


def test_of_two_ops_that_raise_one_is_told_with_its_own_message_and_table(tmp_path: Path) -> None:
    tables = [tf.Variable(tf.ones([rows, 4])) for rows in (3, 2)]

    @tf.function
    def step(first: Any, second: Any) -> Any:
        with tf.GradientTape() as tape:
            gathered = [tf.gather(tables[0], first), tf.gather(tables[1], second)]
            loss = tf.reduce_mean(gathered[0]) + tf.reduce_mean(gathered[1])
        for table, gradient in zip(tables, tape.gradient(loss, tables), strict=True):
            table.assign_sub(0.1 * tf.convert_to_tensor(gradient))
        return loss

    recorder = Recorder(tmp_path / "run.h5")
    recorded = recorder.wrap(step)
    with pytest.raises(tf.errors.InvalidArgumentError):
        recorded(tf.fill([8], 12), tf.fill([8], 284))
    recorder.close()
    report = explain(tmp_path / "run.h5", fixes="none")
    origin = report.findings.origin
    assert origin is not None
    rows = origin.operands[0].shape[0]
    assert f"is not in [0, {rows})" in report.sentence
    assert f"is not in [0, {rows})" in report.causes[0].sentence
    assert "{{" not in report.causes[0].sentence


def test_a_constant_that_equals_a_row_by_chance_is_none_of_the_batch(tmp_path: Path) -> None:
    weight = tf.Variable(1.0)

    def step(x: Any, number: int) -> Any:
        divisor = tf.constant(np.array([1.0, 1.0] if number < 3 else [0.0, 0.0], "float32"))
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.exp(-tf.square(weight * x)) / divisor)
        weight.assign_sub(0.001 * tape.gradient(loss, weight))
        return loss

    recorder = Recorder(tmp_path / "run.h5", on_nan="stop")
    recorded = recorder.wrap(step)
    x = np.array([[1, 2], [3, 4], [0, 0], [5, 6]], "float32")
    for number in range(4):
        recorded(tf.constant(x), number)
    recorder.close()
    origin = explain(tmp_path / "run.h5", fixes="none").findings.origin
    assert origin is not None
    assert (origin.op_type, origin.rows) == ("RealDiv", None)


@pytest.mark.parametrize("given", [tf.constant, np.asarray], ids=["tensor", "array"])
def test_nan_in_an_array_that_the_step_closes_over_is_data(given: Any, tmp_path: Path) -> None:
    x = np.ones((6, 2), "float32")
    x[4, 1] = np.nan
    held, weights = given(x), tf.Variable([[1.0], [2.0]])

    @tf.function(autograph=False)
    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(held @ weights))
        weights.assign_sub(0.1 * tape.gradient(loss, weights))
        return loss

    with Recorder(tmp_path / "run.h5", on_nan="stop") as recorder:
        recorder.wrap(step)()
    report = explain(tmp_path / "run.h5")
    origin = report.findings.origin
    assert origin is not None, report.sentence
    assert (origin.outputs[0].indices, origin.rows) == (((4, 1),), None)
    assert origin.source is not None
    assert "held @ weights" in str(origin.source.code)
    assert report.causes[0].kind == "data_nan"
    assert "holds NaN at [4, 1]" in report.sentence
    assert not report.fixes, "no change of the training makes the data finite"
