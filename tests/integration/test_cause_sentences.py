"""What a cause says beyond the arithmetic: what there is none of, and why it is 0."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from trainings import with_all_variables

from nanreplay import NonFiniteError, Recorder, explain
from nanreplay.report.contents import Report

pytestmark = pytest.mark.filterwarnings("ignore:nanreplay. step")
Loss = Callable[..., Any]
X = np.random.default_rng(0).uniform(0.1, 1.0, (4, 3)).astype(np.float32)


def report_of(path: Path, loss: Loss, *batch: Any) -> Report:
    """Train a step of `loss(weights, *batch)`, and explain why it is not finite."""
    weights = tf.Variable(tf.ones(3), name="weights")

    @tf.function(autograph=False)  # which reads all of this file for each lambda of it
    def step(*arrays: Any) -> Any:
        with tf.GradientTape() as tape:
            value = loss(weights, *arrays)
        weights.assign_sub(1e-3 * tape.gradient(value, weights))
        return value

    may_raise = contextlib.suppress(tf.errors.InvalidArgumentError)
    with Recorder(str(path), on_nan="stop") as recorder, may_raise:
        recorder.wrap(step)(*map(tf.constant, batch))
    return explain(path, fixes="none")


def with_element(value: float) -> Any:
    x = X.copy()
    x[2, 1] = value
    return x


def positives(w: Any, x: Any, labels: Any) -> Any:
    is_positive = tf.cast(tf.equal(labels, 1), tf.float32)
    return tf.reduce_sum(is_positive * tf.linalg.matvec(x, w)) / tf.reduce_sum(is_positive)


def positives_with_epsilon(w: Any, x: Any, labels: Any, epsilon: float = 0.0) -> Any:
    is_positive = tf.cast(tf.equal(labels, 1), tf.float32)
    number = tf.reduce_sum(is_positive) + epsilon
    return tf.reduce_sum(is_positive * tf.linalg.matvec(x, w)) / number


def pairs(w: Any, x: Any, labels: Any) -> Any:
    same = tf.cast(labels[:, None] == labels[None], tf.float32)
    others = tf.reduce_sum(same) - tf.cast(tf.shape(labels)[0], tf.float32)
    likeness = tf.matmul(x * w, x, transpose_b=True)
    return tf.reduce_sum((same - tf.eye(4)) * likeness) / others


def positives_of_others(w: Any, x: Any, labels: Any) -> Any:
    mask = tf.cast(tf.logical_and(labels > 1, labels < 2), tf.float32)
    return tf.reduce_sum(mask * tf.linalg.matvec(x, w)) / tf.reduce_sum(mask)


def selected(w: Any, x: Any, labels: Any) -> Any:
    return tf.reduce_mean(tf.boolean_mask(tf.linalg.matvec(x, w), labels > 5))


def covariance(w: Any, x: Any) -> Any:
    centred = x * w - tf.reduce_mean(x * w, axis=0)
    return tf.matmul(centred, centred, transpose_a=True) / tf.cast(tf.shape(x)[0], tf.float32)


def dropped_out(w: Any, x: Any) -> Any:
    kept = tf.nn.dropout(tf.ones(4), 0.99, seed=3)
    return tf.reduce_sum(kept * tf.linalg.matvec(x, w)) / tf.reduce_sum(kept)


def ctc(w: Any, logits: Any, lengths: Any) -> Any:
    places = [[0, 0], [0, 1], [1, 0], [1, 1], [1, 2]]
    labels = tf.SparseTensor(places, [1, 2, 3, 3, 3], (2, 3))
    logits = tf.transpose(logits * w[0], [1, 0, 2])
    return tf.reduce_mean(tf.nn.ctc_loss(labels, logits, None, lengths, blank_index=-1))


def normalized_by_moments(w: Any, x: Any) -> Any:
    mean = tf.reduce_mean(x * w, -1, keepdims=True)
    variance = tf.reduce_mean((x * w) ** 2, -1, keepdims=True) - mean**2
    return tf.reduce_sum((x * w - mean) / tf.sqrt(variance))


def share_of_deviations(w: Any, x: Any, y: Any) -> Any:
    return tf.reduce_sum((x * w) ** 2) / tf.reduce_sum((y - tf.reduce_mean(y)) ** 2)


def times_a_mask_of_float16(w: Any, x: Any) -> Any:
    scores = tf.cast(x * w, tf.float16)
    masked = scores + tf.cast(-1e9, tf.float16) * tf.zeros(3, tf.float16)
    return tf.reduce_sum(tf.cast(tf.nn.softmax(masked), tf.float32))


def sum_of_two_logs(w: Any, x: Any) -> Any:
    a = b = tf.constant([0.0, -np.inf, 0.0])
    larger = tf.maximum(a, b)
    total = larger + tf.math.log(tf.exp(a - larger) + tf.exp(b - larger))
    return tf.reduce_sum(tf.exp(total) * w * x)


def means_of_rows(w: Any, x: Any, splits: Any) -> Any:
    rows = tf.RaggedTensor.from_row_splits(tf.linalg.matvec(x, w), splits, validate=False)
    sizes = tf.cast(rows.row_lengths(), tf.float32)
    return tf.reduce_sum(tf.reduce_sum(rows, axis=1) / sizes)


def means_of_segments(w: Any, x: Any, segments: Any) -> Any:
    sums = tf.math.unsorted_segment_sum(tf.linalg.matvec(x, w), segments, 3)
    sizes = tf.math.unsorted_segment_sum(tf.ones(4), segments, 3)
    return tf.reduce_sum(sums / sizes)


def shares_of_sums(w: Any, x: Any) -> Any:
    sums = tf.reduce_sum(x[:, :, None] * w, axis=1)
    return tf.reduce_sum(sums / tf.reduce_sum(sums, axis=1, keepdims=True) * w)


LABELS = np.array([0, 2, 3, 4])
SENTENCES: dict[str, tuple[Loss, Sequence[Any], str, str]] = {
    "a sigmoid by hand": (
        lambda w, x: tf.reduce_sum(tf.math.log(1.0 / (1.0 + tf.exp(-w * x)))),
        (with_element(-200.0),),
        "log_of_zero",
        "`RealDiv` made it of an infinity, which `Exp` of 200 gave.",
    ),
    "a share of an infinity": (
        lambda w, x: tf.reduce_sum(w / tf.square(1.0 / tf.exp(x))),
        (with_element(200.0),),
        "division_by_zero",
        "`RealDiv` made it of an infinity, which `Exp` of 200 gave.",
    ),
    "no positive sample": (positives, (X, LABELS), "empty_reduction", "it holds for none"),
    "no positive sample, and an epsilon of 0": (
        positives_with_epsilon,
        (X, LABELS),
        "empty_reduction",
        "holds, and it holds for none",
    ),
    "no sample of two conditions": (
        positives_of_others,
        (X, LABELS),
        "empty_reduction",
        "the sum of a mask, made of conditions such as",
    ),
    "no pair of a class": (pairs, (X, LABELS), "empty_reduction", "pairs of elements for which"),
    "a ragged row without elements": (
        means_of_rows,
        (X, np.array([0, 2, 2, 4])),
        "empty_reduction",
        "or the length of a ragged row), and that is 0 at [1]",
    ),
    "a segment without rows": (
        means_of_segments,
        (X, np.array([0, 0, 2, 2])),
        "empty_reduction",
        "The sum over the rows of a segment that `RealDiv` divides by in the loss is 0 at [1]",
    ),
    "a mask": (selected, (X, LABELS), "empty_reduction", "a mask kept no element"),
    "no row": (
        lambda w, x: tf.reduce_mean(x * w),
        (np.zeros((0, 3), np.float32),),
        "empty_reduction",
        "the batch has no rows. Gradients and weights",
    ),
    "dropout": (dropped_out, (X,), "empty_reduction", "what dropout kept, and it kept nothing"),
    "sums that are brought to a sum of 1": (
        shares_of_sums,
        (X * np.float32([[1], [1], [0], [1]]),),
        "zero_over_zero",
        "Numerator and denominator are both exactly 0.0 at [2, 0]",
    ),
    "log-gamma": (
        lambda w, x: tf.reduce_sum(tf.math.lgamma(x * w)),
        (with_element(-1.0),),
        "other",
        "is -1.0, and 0 and the negative whole numbers are poles",
    ),
    "the gradient of log-gamma": (
        lambda w, x: tf.reduce_sum(tf.math.digamma(x * w)),
        (with_element(0.0),),
        "other",
        "poles of the gamma function: `Digamma`",
    ),
    "zeta": (
        lambda w, x: tf.reduce_sum(tf.math.zeta(x, 2.0)) * w[0],
        (with_element(0.0) + 1,),
        "other",
        "pole at 1",
    ),
    "the incomplete gamma function": (
        lambda w, x: tf.reduce_sum(tf.math.igamma(2.0, x * w)),
        (with_element(-0.5),),
        "other",
        "takes no number below 0",
    ),
    "the incomplete beta function": (
        lambda w, x: tf.reduce_sum(tf.math.betainc(2.0, 3.0, x * w)),
        (with_element(1.5),),
        "other",
        "takes numbers from 0 to 1",
    ),
    "a variance that rounding makes 0": (
        normalized_by_moments,
        (np.array([[1e4, 1e4 + 0.02, 1e4 + 0.01]], np.float32),),
        "variance_zero",
        "or differ by less than the rounding of their squares, and dividing by its root is not",
    ),
    "a sum of squared deviations": (
        share_of_deviations,
        (X, np.full(4, 2.0, np.float32)),
        "variance_zero",
        "are all the same, and dividing by it is not finite",
    ),
    "the gradient of acosh": (
        lambda w, x: tf.reduce_sum(tf.math.acosh(1.0 + (x * w) ** 2)),
        (with_element(0.0),),
        "acos_domain",
        "at the border of its domain, 1 at [2, 1].",
    ),
    "a mask of float16 that masks nothing": (
        times_a_mask_of_float16,
        (X,),
        "fp16_overflow",
        "where it masks nothing, -inf times 0 is NaN",
    ),
    "a log-sum-exp of two terms that are -inf": (
        sum_of_two_logs,
        (X,),
        "mask_all",
        "takes the larger of two terms off them, and both are -inf at [1]: that is NaN",
    ),
    "a covariance of two rows": (
        lambda w, x: tf.linalg.slogdet(covariance(w, x))[1],
        (np.array([[1, 2, 4], [2, 4, 8]], np.float32),),
        "linalg_singular",
        "2 centred rows in 3 dimensions, so its rank is at most 1",
    ),
    "a long CTC label": (
        ctc,
        (np.zeros((2, 6, 5), np.float32), np.array([6, 4], np.int32)),
        "label_out_of_range",
        "the 3 labels of sample 1 and 2 blanks between equal ones need 5 time steps, and there "
        "are 4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", SENTENCES)
def test_the_reader_is_told_what_there_is_none_of(what: str, tmp_path: Path) -> None:
    loss, batch, kind, words = SENTENCES[what]
    report = report_of(tmp_path / "run.h5", loss, *batch)
    assert report.causes[0].kind == kind
    assert words in report.causes[0].sentence
    assert report.causes[0].sentence in report.sentence


@pytest.mark.parametrize("optimizer", [keras.optimizers.Adam, keras.optimizers.RMSprop])
def test_an_epsilon_of_0_is_told(optimizer: Any, tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(optimizer(epsilon=0.0), "mse", jit_compile=False)
    with_all_variables(model)
    x = X.copy()
    x[:, 1] = 0  # no gradient for this column of weights
    model.fit(x, X[:, :1], verbose=0, callbacks=[Recorder(tmp_path / "run.h5", on_nan="stop")])
    cause = explain(tmp_path / "run.h5", fixes="none").causes[0]
    assert cause.kind == "zero_over_zero"
    assert "the epsilon that is added is 0" in cause.sentence


def test_an_exponent_of_0_is_not_taken_for_a_rate_of_decay_of_1(tmp_path: Path) -> None:
    weight, average, updates = tf.Variable([1.0, 2.0]), tf.Variable([0.0, 0.0]), tf.Variable(0.0)

    @tf.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(weight * x)
        average.assign(0.9 * average + 0.1 * tape.gradient(loss, weight))
        weight.assign_sub(0.1 * average / (1.0 - tf.pow(0.9, updates)))
        updates.assign_add(1.0)
        return loss

    with pytest.raises(NonFiniteError):
        Recorder(tmp_path / "run.h5").wrap(step)(tf.ones(2))
    sentence = explain(tmp_path / "run.h5", fixes="none").causes[0].sentence
    assert sentence.endswith("less a power, and that power has the exponent 0.")


def test_a_rate_of_decay_of_1_is_told_and_an_epsilon_that_is_not_there_is_not_tried(
    tmp_path: Path,
) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(beta_1=1.0), "mse", jit_compile=False)
    with_all_variables(model)
    model.fit(X, X[:, :1], verbose=0, callbacks=[Recorder(tmp_path / "run.h5", on_nan="stop")])
    report = explain(tmp_path / "run.h5", fixes=["epsilon"])
    assert report.causes[0].sentence.endswith("a power of a decay rate, and that rate is 1.")
    assert [fix.prevents for fix in report.fixes] == [None]  # Adam adds its epsilon elsewhere


def test_a_norm_of_gradients_is_no_average_of_their_squares(tmp_path: Path) -> None:
    weights = tf.Variable(tf.ones(3))
    optimizer = keras.optimizers.SGD(0.1)

    @tf.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(weights * x)
        gradient = tape.gradient(loss, weights)
        weights.assign_sub(0.1 * gradient / tf.sqrt(tf.reduce_sum(gradient**2)))
        return loss

    with Recorder(tmp_path / "run.h5", on_nan="stop") as recorder:
        recorder.wrap(step, optimizer=optimizer)(tf.zeros(3))
    cause = explain(tmp_path / "run.h5", fixes="none").causes[0]
    assert "the root of a sum of squares: all of them are 0" in cause.sentence


def test_moving_statistics_are_told_from_weights(tmp_path: Path) -> None:
    layers = [keras.layers.BatchNormalization(name="norm"), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile("sgd", "mse", jit_compile=False)
    x = X.copy()
    x[:, 1] = [1e25, -2e25, 3e25, 1e24]
    model.fit(x, X[:, :1], verbose=0, callbacks=[Recorder(tmp_path / "run.h5", on_nan="stop")])
    assert np.isfinite(model.layers[-1].get_weights()[0]).all()
    sentence = explain(tmp_path / "run.h5", fixes="none").sentence
    assert "moving_variance`, which is not trained" in sentence


def test_an_op_of_a_functional_model_is_not_told_as_one_of_keras_itself(tmp_path: Path) -> None:
    inputs = keras.Input((3,))
    logarithms = keras.ops.log(inputs - 1.0)
    model = keras.Model(inputs, keras.layers.Dense(1)(logarithms))
    model.compile("sgd", "mse", jit_compile=False)
    recorder = Recorder(tmp_path / "run.h5", on_nan="stop")
    model.fit(X, X[:, :1], verbose=0, callbacks=[recorder])
    report = explain(tmp_path / "run.h5", fixes="none")
    assert report.findings.origin is not None
    assert report.findings.origin.op_type == "Log"
    assert "Inside of Keras" not in report.sentence
    assert (
        "One of the functional model's own ops, such as `keras.ops` make, run from "
        "test_cause_sentences.py:"
    ) in report.sentence
    assert "; the line that built it is not recorded." in report.sentence


def test_a_line_that_only_starts_the_training_is_marked(tmp_path: Path) -> None:
    layers = [keras.layers.LayerNormalization(epsilon=0.0, name="norm"), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile("sgd", "mse", jit_compile=False)
    x = X.copy()
    x[1] = 0.5
    model.fit(x, X[:, :1], verbose=0, callbacks=[Recorder(tmp_path / "run.h5", on_nan="stop")])
    report = explain(tmp_path / "run.h5", fixes="none")
    assert "Inside of Keras, called from test_cause_sentences.py:" in report.sentence
    assert '; the layer is `LayerNormalization(epsilon=0.0, dtype="float32")`.' in report.sentence
    assert report.causes[0].kind == "variance_zero"
    assert report.causes[0].sentence.endswith("The epsilon that is added to it is 0.")
