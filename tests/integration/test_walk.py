"""What is said of NaN that ops hide, of tapes within tapes, and of where a value came from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from nanreplay import Recorder
from nanreplay.bisect import find_origin
from nanreplay.capture.reader import Capture
from nanreplay.findings import Findings, Origin
from nanreplay.replay.session import Replay
from nanreplay.report.explain import explain

pytestmark = pytest.mark.filterwarnings("ignore:nanreplay. step")
ROWS = 4
BAD = 2
"""Row of the failing batch that fails."""


def train(
    path: Path, loss_of: Callable[[Any, Any, Any], Any], *, bad: Any, jit: bool = False
) -> Path:
    """Train a weight of 1 on a healthy batch, and on one with a row `bad`; returns the capture."""
    weight = tf.Variable(1.0, name="weight")

    @tf.function(jit_compile=jit)
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(x, y, weight)
        gradient = tape.gradient(loss, weight)
        weight.assign_sub(1e-3 * gradient)
        return loss

    draws = np.random.RandomState(0)
    x, y = (draws.rand(ROWS, 3).astype(np.float32) + 0.1 for _ in range(2))
    failing = x.copy()
    failing[BAD] = bad
    run = path / "run.h5"
    recorder = Recorder(str(run), on_nan="stop")
    recorded = recorder.wrap(step)
    try:
        recorded(tf.constant(x), tf.constant(y))
        recorded(tf.constant(failing), tf.constant(y))
    except tf.errors.InvalidArgumentError:
        pass
    recorder.close()
    assert run.exists(), "nothing turned non-finite"
    return run


def bisected(run: Path) -> tuple[Findings, Origin]:
    with Capture(run) as capture, Replay(capture) as replay:
        findings = find_origin(replay, capture.timeline_record())
    assert findings.origin is not None, findings.reason
    return findings, findings.origin


def normalized(x: Any) -> Any:
    """0 / 0 for a row of equal values."""
    return (x - tf.reduce_mean(x, -1, keepdims=True)) / tf.math.reduce_std(x, -1, keepdims=True)


def by_comparison(x: Any, y: Any, weight: Any) -> Any:
    indicator = tf.where(normalized(x) > -10.0, tf.ones_like(x), tf.zeros_like(x))
    return tf.reduce_mean(tf.math.log(indicator * weight))


def by_position_of_maximum(x: Any, y: Any, weight: Any) -> Any:
    position = tf.argmax(tf.add(normalized(x), [0.0, 1.0, 9.0]), -1)
    return tf.reduce_mean(weight / tf.cast(position, tf.float32))


def by_lookup(x: Any, y: Any, weight: Any) -> Any:
    row = tf.cast(normalized(x)[:, 0] * 2 + 5, tf.int32)
    return tf.reduce_mean(tf.gather(tf.range(10.0) * weight, row))


def by_pooling(x: Any, y: Any, weight: Any) -> Any:
    image = tf.repeat(normalized(x)[:, :, None, None], 2, axis=2)
    pooled = tf.nn.max_pool2d(image, 2, 1, "VALID")
    return tf.reduce_mean(tf.square(pooled * weight * 1e3))


HIDDEN = {
    "Greater": by_comparison,
    "ArgMax": by_position_of_maximum,
    "Cast": by_lookup,
    "MaxPool": by_pooling,
}


@pytest.mark.parametrize("hider", list(HIDDEN))
def test_the_walk_goes_through_an_op_that_hides_a_nan(hider: str, tmp_path: Path) -> None:
    findings, origin = bisected(train(tmp_path, HIDDEN[hider], bad=0.5))
    assert (origin.op_type, origin.step) == ("RealDiv", 1)
    assert origin.rows == (BAD,)
    assert findings.other_origins == ()
    assert [link.op_type for link in findings.chain if link.hides == "nan"] == [hider]
    assert f"was hidden by {hider}" in (findings.consequence or "")


def test_a_lookup_that_fails_for_a_hidden_nan_is_told_with_it(tmp_path: Path) -> None:
    sentence = explain(train(tmp_path, by_lookup, bad=0.5), fixes="none").sentence
    assert "gave NaN, which was hidden by `Cast` and made `GatherV2` raise" in sentence


def test_an_activation_that_hides_a_nan_where_it_is_fused_is_named(tmp_path: Path) -> None:
    kernel, bias = tf.ones([3, 8]), tf.zeros([8])

    def fused(x: Any, y: Any, weight: Any) -> Any:
        product = tf.nn.bias_add(tf.matmul(normalized(x) * weight, kernel), bias)
        return tf.reduce_mean(tf.square(tf.nn.relu(product)))

    @tf.function
    def activated(x: Any) -> Any:
        return tf.nn.relu(tf.nn.bias_add(tf.matmul(x, kernel), bias))

    findings, origin = bisected(train(tmp_path, fused, bad=0.5))
    assert origin.op_type == "RealDiv"
    is_told = any("swallowed" in note and "`Relu`" in note for note in findings.notes)
    # the fused kernel of oneDNN hides a NaN, that of TensorFlow itself does not
    hides = bool(tf.reduce_all(tf.math.is_finite(activated(tf.fill([2, 3], np.nan)))))
    assert is_told == hides, findings.notes


def test_a_nan_that_the_program_leaves_out_itself_is_no_origin(tmp_path: Path) -> None:
    def filled(x: Any, y: Any, weight: Any) -> Any:
        return tf.reduce_mean(tf.math.log(tf.where(tf.math.is_nan(x), 0.0, x) * weight))

    _, origin = bisected(train(tmp_path, filled, bad=np.nan))
    assert origin.op_type == "Log"


# Where it came from.


def concatenated(x: Any, y: Any, weight: Any) -> Any:
    return tf.math.log(tf.concat([tf.square(x * weight), tf.exp(y * 9)], 1))


def chosen(x: Any, y: Any, weight: Any) -> Any:
    return tf.math.log(tf.where(x < 0.05, tf.square(x * weight), tf.exp(y * 9)))


def multiplied(x: Any, y: Any, weight: Any) -> Any:
    return tf.math.log(tf.square(x * weight) * tf.exp(y * 9))


def contracted(x: Any, y: Any, weight: Any) -> Any:
    return tf.math.log(tf.einsum("bi,bj->bij", tf.square(x * weight), tf.exp(y * 9)))


def split_and_turned(x: Any, y: Any, weight: Any) -> Any:
    both = tf.stack([tf.square(x * weight), tf.exp(y * 9)], 1)
    return tf.math.log(tf.transpose(tf.split(both, 2, axis=1)[0][:, 0, 1:]))


WAYS = [concatenated, chosen, multiplied, contracted, split_and_turned]


@pytest.mark.parametrize("logarithms", WAYS, ids=lambda way: way.__name__)
def test_the_way_back_follows_the_element_not_the_largest_value(
    logarithms: Any, tmp_path: Path
) -> None:
    run = train(tmp_path, lambda *args: tf.reduce_mean(logarithms(*args)), bad=[0.2, 0.3, 0.0])
    findings, origin = bisected(run)
    assert origin.op_type == "Log"
    types = [link.op_type for link in findings.upstream]
    assert "Square" in types
    assert "Exp" not in types


# Tapes within tapes.


def penalized(x: Any, y: Any, weight: Any) -> Any:
    with tf.GradientTape() as inner:
        inner.watch(x)
        value = tf.tanh(x * weight)
    slope = tf.reduce_sum(tf.square(inner.gradient(value, x)), -1)
    return tf.reduce_mean(tf.square(value - y)) + tf.reduce_mean(tf.sqrt(slope * x[:, 0]))


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_what_a_loss_makes_of_an_inner_gradient_is_loss(jit: bool, tmp_path: Path) -> None:
    findings, origin = bisected(train(tmp_path, penalized, bad=-1.0, jit=jit))
    assert (origin.op_type, origin.phase, origin.where) == ("Sqrt", "loss", "loss")
    assert {link.phase for link in findings.chain} == {"loss"}
    assert findings.consequence == "reached the loss"


# Half precision.


def test_of_a_mean_in_half_precision_the_sum_is_what_does_not_fit(tmp_path: Path) -> None:
    def mean_of_halves(x: Any, y: Any, weight: Any) -> Any:
        halves = tf.repeat(tf.cast(x * weight, tf.float16), 100, axis=1)
        return tf.reduce_mean(tf.cast(tf.reduce_mean(halves, -1), tf.float32))

    report = explain(train(tmp_path, mean_of_halves, bad=300.0), fixes="none")
    assert report.causes[0].kind == "fp16_overflow"
    told = report.causes[0].sentence
    assert "first takes the sum" in told
    assert "though the mean is" in told


def test_an_eager_step_of_bfloat16_scalars_is_recorded_and_told(tmp_path: Path) -> None:
    weight = tf.Variable(tf.ones([3, 1], tf.bfloat16), name="weight")

    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.math.log(tf.cast(x, tf.bfloat16) @ weight))
        rate = tf.cast(0.01, tf.bfloat16)
        weight.assign_sub(rate * tape.gradient(loss, weight))
        return loss

    recorder = Recorder(str(tmp_path / "run.h5"), on_nan="stop")
    recorded = recorder.wrap(step)
    recorded(tf.ones([ROWS, 3]))
    recorded(tf.concat([tf.ones([ROWS - 1, 3]), tf.zeros([1, 3])], 0))
    recorder.close()
    report = explain(tmp_path / "run.h5", fixes="none")
    assert report.findings.origin is not None
    assert report.findings.origin.op_type == "Log"
    assert report.causes[0].kind == "log_of_zero"
    assert not report.findings.notes


def test_an_op_that_only_the_compiler_makes_bad_is_found_by_looking_at_one_tensor_at_a_time(
    tmp_path: Path,
) -> None:
    weight, velocity, mean = tf.Variable([1.0]), tf.Variable([4e8]), tf.Variable([2e4])

    @tf.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(weight * x)
        gradient = tape.gradient(loss, weight)
        # Compiled, 1e-7 is added to `velocity` before the subtraction, and is lost in it.
        variance = velocity - tf.square(mean) + 1e-7
        weight.assign_sub(0.1 * gradient / tf.sqrt(variance))
        return loss

    with Recorder(str(tmp_path / "run.h5"), on_nan="stop") as recorder:
        recorder.wrap(step)(tf.constant([1.0]))
    report = explain(tmp_path / "run.h5", fixes="none")
    origin = report.findings.origin
    assert origin is not None
    assert (origin.phase, origin.where, origin.op_type, origin.kind) == (
        "update",
        "optimizer",
        "RealDiv",
        None,
    )
    assert [operand.value for operand in origin.operands] == [pytest.approx(0.1), 0.0]
    assert report.causes[0].kind == "division_by_zero"
    recorded, ops, _ = report.verdict.evidence
    assert (recorded.finite, recorded.bit_exact) == (False, True)
    assert (ops.finite, ops.bit_exact) == (True, False)


def test_an_op_that_raises_in_an_eager_step_is_the_origin(tmp_path: Path) -> None:
    table = keras.layers.Embedding(10, 2, name="table")
    optimizer = keras.optimizers.SGD(0.1)

    def step(words: Any) -> float:
        with tf.GradientTape() as tape:
            try:
                tf.linalg.cholesky(tf.zeros((2, 3)))  # raises as well, but the step catches that
            except tf.errors.InvalidArgumentError:
                loss = tf.reduce_mean(table(words) ** 2)
        gradients = tape.gradient(loss, table.trainable_variables)
        optimizer.apply(gradients, table.trainable_variables)
        return float(loss)

    words = np.array([[1, 2], [3, 4], [5, 6]], np.int32)
    with Recorder(str(tmp_path / "run.h5")) as recorder:
        recorded = recorder.wrap(step, model=table, optimizer=optimizer)
        recorded(words)
        with pytest.raises(tf.errors.InvalidArgumentError):
            recorded(words + np.array([[0], [7], [0]], np.int32))
    report = explain(tmp_path / "run.h5", fixes=["clean_data=drop_rows", "clipnorm"])
    origin = report.findings.origin
    assert origin is not None
    assert (origin.op_type, origin.layer, origin.kind, origin.rows) == (
        "GatherV2",
        "table",
        "raised",
        (1,),
    )
    said = "indices[1,0] = 10 is not in [0, 10)"
    assert (report.trigger.value, origin.message) == (said, said)
    assert f"(sample 1 of the batch) raised InvalidArgumentError: {said}. " in report.sentence
    assert report.causes[0].kind == "label_out_of_range"
    # nothing of an update was recorded: clipping cannot be tried, which is not that it fails
    assert [fix.prevents for fix in report.fixes[:2]] == [True, None]


def test_a_function_that_raises_in_an_eager_step_is_no_part_of_the_update(tmp_path: Path) -> None:
    table = tf.Variable(tf.ones((4, 2)))

    @tf.function
    def looked_up(words: Any) -> Any:
        return tf.reduce_sum(tf.gather(table, words) ** 2)

    def step(words: Any) -> float:
        with tf.GradientTape() as tape:
            loss = looked_up(words)
        table.assign_sub(0.1 * tf.convert_to_tensor(tape.gradient(loss, table)))
        return float(loss)

    with Recorder(str(tmp_path / "run.h5")) as recorder:
        recorded = recorder.wrap(step)
        recorded(tf.constant([1, 2, 3]))
        with pytest.raises(tf.errors.InvalidArgumentError):
            recorded(tf.constant([1, 9, 3]))
    _, origin = bisected(tmp_path / "run.h5")
    assert (origin.kind, origin.where) == ("raised", "loss")
    assert origin.operands[-1].name == "batch"


def test_a_constant_of_an_eager_step_that_equals_an_array_of_the_batch_is_not_it(
    tmp_path: Path,
) -> None:
    weight = tf.Variable(1.0)
    nothing = np.zeros(4, np.float32)

    def step(x: Any, labels: Any) -> float:
        with tf.GradientTape() as tape:
            loss = weight * tf.reduce_sum(x / nothing) + tf.reduce_sum(labels)
        weight.assign_sub(0.1 * tape.gradient(loss, weight))
        return float(loss)

    with Recorder(str(tmp_path / "run.h5"), on_nan="stop") as recorder:
        recorder.wrap(step)(tf.constant([1.0, 2.0, 3.0, 4.0]), tf.zeros(4))
    _, origin = bisected(tmp_path / "run.h5")
    assert origin.op_type == "RealDiv"
    assert ["batch" in operand.name for operand in origin.operands] == [True, False]


@pytest.mark.parametrize("is_compiled", [True, False])
def test_the_loss_of_a_step_is_not_what_a_gradient_computes_again(
    tmp_path: Path, is_compiled: bool
) -> None:
    weight = tf.Variable(1.0)

    def step(x: Any) -> Any:
        block = tf.recompute_grad(lambda y: y * weight)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(block(x)) + 100.0
        weight.assign_sub(0.1 * tape.gradient(loss, weight))
        return loss if is_compiled else float(loss)

    with Recorder(str(tmp_path / "run.h5")) as recorder:
        recorded = recorder.wrap(tf.function(step) if is_compiled else step)
        losses = [float(recorded(tf.constant([1.0, float(k)]))) for k in range(3)]
        recorder.dump()
    with Capture(tmp_path / "run.h5") as capture:
        assert capture.timeline()["loss"].tolist() == losses


def test_the_gradient_at_the_same_operand_is_no_other_origin(tmp_path: Path) -> None:
    def loss_of(x: Any, y: Any, weight: Any) -> Any:
        return -tf.reduce_sum(y * tf.math.log(weight * x))

    findings, origin = bisected(train(tmp_path, loss_of, bad=[0.0, 1.0, 1.0]))
    assert origin.op_type == "Log"
    assert findings.other_origins == ()


def test_probabilities_that_saturate_without_weights_are_no_mask(tmp_path: Path) -> None:
    def loss_of(x: Any, y: Any, weight: Any) -> Any:
        gates = tf.math.log(tf.sigmoid(1e4 * x))
        return tf.reduce_sum(tf.nn.softmax(weight + gates) * y)

    _, origin = bisected(train(tmp_path, loss_of, bad=[-9.0, -9.0, -9.0]))
    assert (origin.op_type, origin.operands[0].value) == ("Log", 0.0)


def test_the_bad_element_of_an_array_of_the_batch_is_told(tmp_path: Path) -> None:
    def loss_of(x: Any, y: Any, weight: Any) -> Any:
        return tf.reduce_sum(weight * x)

    _, origin = bisected(train(tmp_path, loss_of, bad=[1.0, np.inf, 2.0]))
    assert (origin.where, origin.operands[0].value) == ("input", np.inf)


def test_a_bessel_function_overflows_at_the_element_that_it_is_given(tmp_path: Path) -> None:
    def loss_of(x: Any, y: Any, weight: Any) -> Any:
        return tf.reduce_sum(tf.math.log(tf.math.bessel_i0(weight * x)))

    run = train(tmp_path, loss_of, bad=[1.0, 120.0, 2.0])
    report = explain(run, fixes="none")
    origin = report.findings.origin
    assert origin is not None
    assert (origin.op_type, origin.rows) == ("BesselI0", (BAD,))
    assert origin.operands[0].value == pytest.approx(120.0, rel=0.01)
    cause = next(cause for cause in report.causes if cause.kind == "exp_overflow")
    assert "takes is 88.72" in cause.evidence[0]
    assert np.isfinite(tf.math.bessel_i0(88.72))
    assert np.isinf(tf.math.bessel_i0(88.73))


def test_an_origin_in_a_loop_has_no_gradient_of_its_own_beside_it(tmp_path: Path) -> None:
    def loss_of(x: Any, y: Any, weight: Any) -> Any:
        def halved(i: Any, rest: Any) -> Any:
            return i + 1, rest - rest / (rest + 0.0 * weight)

        return tf.reduce_sum(tf.while_loop(lambda i, rest: i < 3, halved, (0, x))[1])

    findings, origin = bisected(train(tmp_path, loss_of, bad=[2.0, 3.0, 3.0]))
    assert (origin.op_type, origin.loop[0].iteration) == ("RealDiv", 2)
    assert findings.other_origins == ()


def test_single_elements_that_are_gathered_lead_to_what_made_these(tmp_path: Path) -> None:
    table = tf.Variable(tf.ones((ROWS, 6)), trainable=False, name="table")
    places = np.zeros((ROWS, 6, 2), np.int32)
    places[0, 0] = BAD, 4

    def loss_of(x: Any, y: Any, weight: Any) -> Any:
        table.assign(tf.concat([x / x, x * tf.math.log(x)], axis=1))
        loss = tf.reduce_mean(tf.gather_nd(table, places) * weight)
        table.assign(tf.zeros_like(table))  # so that the loss alone fails
        return loss

    findings, origin = bisected(train(tmp_path, loss_of, bad=0.0))
    assert (origin.op_type, origin.rows) == ("Log", (BAD,))
    assert findings.other_origins == ()


def test_rows_that_are_scattered_into_a_variable_lead_to_what_made_them(tmp_path: Path) -> None:
    table = tf.Variable(tf.ones((ROWS, 3)), trainable=False, name="table")

    def loss_of(x: Any, y: Any, weight: Any) -> Any:
        table.scatter_nd_update([[0], [3]], (x / x)[1:3])
        loss = tf.reduce_mean(table * weight)
        table.assign(tf.zeros_like(table))
        return loss

    findings, origin = bisected(train(tmp_path, loss_of, bad=0.0))
    assert (origin.op_type, origin.rows) == ("RealDiv", (BAD,))
    assert findings.other_origins == ()


def test_an_op_that_must_know_the_shape_of_a_variable_is_imported(tmp_path: Path) -> None:
    head = tf.Variable(tf.ones((3, 1)), name="head")

    def loss_of(x: Any, y: Any, weight: Any) -> Any:
        products = x[:, :, None] * x[:, None, :] * weight
        # the gradient of the diagonal is a MatrixDiagV3 of what comes through `head`
        return tf.reduce_mean(tf.matmul(tf.linalg.diag_part(products / products), head))

    _, origin = bisected(train(tmp_path, loss_of, bad=0.0))
    assert (origin.op_type, origin.rows) == ("RealDiv", (BAD,))
