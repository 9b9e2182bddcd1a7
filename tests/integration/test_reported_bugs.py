"""What is said of trainings that were published as bugs, where running the code shows otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from nanreplay import Capture, Recorder
from nanreplay.findings import FixResult
from nanreplay.report.contents import Report
from nanreplay.report.explain import explain

pytestmark = [
    pytest.mark.filterwarnings("ignore:nanreplay. step"),  # what `on_nan="stop"` says
    pytest.mark.filterwarnings("ignore:overflow encountered in cast"),
    pytest.mark.xdist_group("reported_bugs"),
]
LossOf = Callable[[Any, Any], Any]


def explained(path: Path, loss_of: LossOf, batches: list[Any], fixes: list[str] | str) -> Report:
    """Train a vector until a step fails; what is said of that, with these fixes tried."""
    weights, optimizer = tf.Variable([1.0, 0.5]), keras.optimizers.SGD(0.01)

    @tf.function(autograph=False)
    def step(batch: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(batch, weights)
        optimizer.apply_gradients([(tape.gradient(loss, weights), weights)])
        return loss

    with Recorder(path, on_nan="stop") as recorder:
        recorded = recorder.wrap(step, optimizer=optimizer)
        for batch in batches:
            recorded(tf.constant(batch))
    return explain(path, fixes=fixes)


def by_name(report: Report) -> Mapping[str, FixResult]:
    return {fix.name: fix for fix in report.fixes}


def constant_column(steps: int = 2) -> list[Any]:
    """Batches of two columns; of the last batch, the second holds 5 alone."""
    random = np.random.default_rng(0)
    batches = [random.uniform(3.0, 7.0, (4, 2)).astype("float32") for _ in range(steps)]
    batches[-1][:, 1] = 5.0
    return batches


def scaled(epsilon: float) -> LossOf:
    """Features scaled by their range within the batch."""

    def loss_of(batch: Any, weights: Any) -> Any:
        low, high = tf.reduce_min(batch, 0), tf.reduce_max(batch, 0)
        x = (batch - low) / (high - low + epsilon if epsilon else high - low)
        return tf.reduce_mean(tf.square(x * weights))

    return loss_of


def test_an_epsilon_that_tensorflow_folds_away_is_no_fix(tmp_path: Path) -> None:
    report = explained(tmp_path / "run.h5", scaled(0.0), constant_column(), ["epsilon"])

    fix = by_name(report)["epsilon"]
    assert (fix.prevents, fix.params.get("how")) == (True, "maximum")
    assert "tf.maximum(" in str(fix.code)
    assert "`b - c` rounds to `b`" in str(fix.note)


def test_an_epsilon_that_is_named_is_tried_as_the_code_would_run(tmp_path: Path) -> None:
    report = explained(tmp_path / "run.h5", scaled(0.0), constant_column(), ["epsilon=1e-7"])

    assert [fix.outcome for fix in report.fixes] == ["fails"]

    @tf.function(autograph=False)
    def spread(x: Any) -> Any:
        return tf.reduce_max(x, 0) - tf.reduce_min(x, 0) + 1e-7

    assert spread(tf.fill([4], 5.0)).numpy() == 0.0  # so it runs


def test_an_op_is_named_where_the_compiled_step_alone_loses_an_epsilon(tmp_path: Path) -> None:
    report = explained(tmp_path / "run.h5", scaled(1e-7), constant_column(), "none")

    origin = report.findings.origin
    assert origin is not None, report.sentence
    assert origin.op_type == "RealDiv"
    assert [operand.value for operand in origin.operands] == [0.0, 0.0]
    assert "op by op" in str(origin.rows_reason)
    assert "the constant that is added before `RealDiv` is rounded away" in report.sentence
    assert report.causes[0].kind == "zero_over_zero"


def test_an_op_is_named_where_a_gradient_alone_fails_when_it_is_compiled(tmp_path: Path) -> None:
    def sine(batch: Any, weights: Any) -> Any:
        cosine = tf.tanh(batch * weights)
        return tf.reduce_mean(tf.sqrt(1.0 - tf.square(cosine) + 1e-9))

    batches = [np.full((4, 2), size, "float32") for size in (0.5, 60.0)]
    report = explained(tmp_path / "run.h5", sine, batches, "none")

    origin = report.findings.origin
    assert origin is not None, report.sentence
    assert (report.trigger.what, origin.op_type) == ("gradient", "SqrtGrad")
    assert "the constant that is added before `SqrtGrad` is rounded away" in report.sentence


def scaled_by_constant(epsilon: float) -> LossOf:
    """As `scaled`, by a range that the loss does not train."""

    def loss_of(batch: Any, weights: Any) -> Any:
        low, high = tf.reduce_min(batch, 0), tf.reduce_max(batch, 0)
        spread = tf.stop_gradient(high - low)
        x = (batch - low) / (spread + epsilon if epsilon else spread)
        return tf.reduce_mean(tf.square(x * weights))

    return loss_of


def test_a_fix_is_not_told_to_help_where_few_optimizers_alone_prevent(tmp_path: Path) -> None:
    """In one round the optimizers do not bring the constants together over what lies between."""
    path = tmp_path / "run.h5"
    report = explained(path, scaled_by_constant(1e-7), constant_column(), ["clipnorm"])

    with Capture(path) as capture:
        assert capture.optimized_graph("p0") is not None  # with it, the step needs none
    assert report.findings.origin is not None
    assert [fix.outcome for fix in report.fixes] == ["fails"]


def test_an_epsilon_is_no_fix_that_is_lost_over_what_lies_between(tmp_path: Path) -> None:
    report = explained(tmp_path / "run.h5", scaled_by_constant(0.0), constant_column(), ["epsilon"])

    fix = by_name(report)["epsilon"]
    assert (fix.prevents, fix.params.get("how")) == (True, "maximum")


def test_float32_is_not_judged_where_a_constant_became_infinite(tmp_path: Path) -> None:
    def masked(batch: Any, weights: Any) -> Any:
        x = tf.cast(batch, tf.float16) * tf.cast(weights, tf.float16)
        mask = (1.0 - tf.ones_like(x)) * tf.constant(-1e9, tf.float16)
        return tf.reduce_mean(tf.cast(tf.nn.softmax(x + mask), tf.float32))

    report = explained(tmp_path / "run.h5", masked, [np.ones((4, 2), "float32")], ["float32"])

    assert report.causes[0].kind == "fp16_overflow"
    fix = by_name(report)["float32"]
    assert fix.prevents is None
    assert "as an infinity" in str(fix.note)


class SparseActivity(keras.regularizers.Regularizer):
    """The divergence of a mean activation from 0.05, which is to be below 1."""

    def __call__(self, x: Any) -> Any:
        mean = tf.reduce_mean(x, 0)
        return tf.reduce_sum(0.95 * tf.math.log(0.95 / (1.0 - mean)))


def test_a_line_of_a_regularizer_is_not_called_inside_of_keras(tmp_path: Path) -> None:
    dense = keras.layers.Dense(
        2, kernel_initializer="ones", activity_regularizer=SparseActivity(), name="code"
    )
    model = keras.Sequential([keras.Input((2,)), dense])
    model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    path = tmp_path / "run.h5"
    x = np.full((4, 2), 3.0, "float32")
    model.fit(x, x, verbose=0, callbacks=[Recorder(path, on_nan="stop")])

    report = explain(path, fixes="none")

    origin = report.findings.origin
    assert origin is not None
    assert (origin.layer, origin.op_type) == ("code", "Log")
    assert "tf.math.log(0.95 /" in report.sentence
    assert "Inside of Keras" not in report.sentence


def log_cosh(batch: Any, weights: Any) -> Any:
    return tf.reduce_mean(tf.math.log(tf.cosh(batch * weights)))


def log_cosh_of_float64(batch: Any, weights: Any) -> Any:
    x = tf.cast(batch * weights, tf.float64) * 10.0
    return tf.cast(tf.reduce_mean(tf.math.log(tf.cosh(x))), tf.float32)


def partial_likelihood(batch: Any, weights: Any) -> Any:
    risk = tf.reduce_sum(batch * weights, 1)
    return tf.reduce_mean(tf.math.log(tf.cumsum(tf.exp(risk))) - risk)


def forward_algorithm(batch: Any, weights: Any) -> Any:
    def step(state: Any, x: Any) -> Any:
        return tf.math.log(tf.reduce_sum(tf.exp(state[:, None] + x * weights), 0))

    return tf.reduce_mean(tf.scan(step, batch)[-1])


@pytest.mark.parametrize(
    ("loss_of", "op", "code"),
    [
        (log_cosh, "x + tf.math.softplus(-2.0 * x) - tf.math.log(2.0)", "tf.cosh(batch * weights)"),
        (
            log_cosh_of_float64,
            "x + tf.math.softplus(-2.0 * x) - tf.math.log(tf.constant(2.0, x.dtype))",
            "tf.cosh(x)",
        ),
        (
            partial_likelihood,
            "tf.math.cumulative_logsumexp",
            "tf.reduce_mean(tf.math.cumulative_logsumexp(risk) - risk)",
        ),
        (
            forward_algorithm,
            "tf.reduce_logsumexp",
            "return tf.reduce_logsumexp(state[:, None] + x * weights, 0)",
        ),
    ],
)
def test_a_logarithm_of_what_overflows_has_a_stable_form(
    tmp_path: Path, loss_of: LossOf, op: str, code: str
) -> None:
    batches = constant_column(3)
    batches[-1][2, 0] = 200.0

    report = explained(tmp_path / "run.h5", loss_of, batches, ["stable_op"])

    fix = by_name(report)["stable_op"]
    assert (fix.prevents, fix.params["op"]) == (True, op)
    assert code in str(fix.code)
    assert fix.loss_change is not None
    assert fix.loss_change < 1e-5


@pytest.mark.parametrize("is_scaled", [False, True])
def test_data_that_nobody_scaled_make_the_rate_too_high(tmp_path: Path, is_scaled: bool) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="price")])
    size = 1.0 if is_scaled else 1e8
    rate = 1e14 if is_scaled else 0.01
    model.compile(keras.optimizers.SGD(rate), "mse", jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    path = tmp_path / "run.h5"
    x = size * np.random.default_rng(0).uniform(0.5, 1.0, (16, 2)).astype("float32")
    y = x.sum(1, keepdims=True)
    recorder = Recorder(path, on_nan="stop")
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0, callbacks=[recorder])

    report = explain(path, fixes="none")

    assert report.causes[0].kind == "high_learning_rate", report.sentence
    assert ("is not scaled: half of it is larger than" in report.sentence) == (not is_scaled)


def test_the_epsilon_of_a_layer_is_told_as_its_argument(tmp_path: Path) -> None:
    norm = keras.layers.LayerNormalization(epsilon=0.0, name="norm")
    model = keras.Sequential([keras.Input((3,)), norm, keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    path = tmp_path / "run.h5"
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    x[5] = 2.0
    recorder = Recorder(path, on_nan="stop")
    model.fit(
        x, x[:, :1], batch_size=4, shuffle=False, verbose=0, callbacks=[recorder]
    )  # fmt: skip

    fixes = by_name(explain(path, fixes=["epsilon", "double_where"]))

    assert fixes["epsilon"].prevents
    told = "keras.layers.LayerNormalization(..., epsilon=1e-7)  # layer `norm`"
    assert fixes["epsilon"].code == told
    made = "No line of yours makes the op of layer `norm`, but Keras does"
    assert str(fixes["double_where"].code).endswith(made)
