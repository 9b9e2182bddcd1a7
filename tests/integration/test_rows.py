"""Which samples of a batch are named: masked infinities, ragged, sparse and segmented batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from nanreplay import Capture, Recorder, Replay
from nanreplay.bisect import bisect
from nanreplay.findings import Origin
from nanreplay.whatif.trial import what_if

pytestmark = pytest.mark.filterwarnings("ignore:nanreplay. step")
Batch = tuple[Any, ...]
Loss = Callable[..., Any]


def train(path: Path, loss: Loss, batches: Sequence[Batch], weights: Any = 1.0) -> None:
    """Train `loss(weights, *batch)` until a step is not finite."""
    variable = tf.Variable(weights, name="weights")

    @tf.function
    def step(*batch: Any) -> Any:
        with tf.GradientTape() as tape:
            value = loss(variable, *batch)
        variable.assign_sub(1e-3 * tape.gradient(value, variable))
        return value

    with Recorder(str(path), on_nan="stop") as recorder:
        recorded = recorder.wrap(step)
        for batch in batches:
            recorded(*batch)


def origin_of(path: Path) -> Origin:
    with Capture(path) as capture, Replay(capture) as replay:
        findings = bisect(replay, capture.timeline_record()).findings
    assert findings.origin is not None, findings.reason
    return findings.origin


def mean_of_ragged(w: Any, values: Any, target: Any) -> Any:
    means = tf.reduce_sum(values * w, axis=1) / tf.cast(values.row_lengths(), tf.float32)
    return tf.reduce_sum(tf.square(means - target))


def ragged(*rows: Sequence[Any]) -> Batch:
    return tf.ragged.constant(list(rows), dtype=tf.float32), tf.zeros(len(rows))


def sparse(*values: float) -> Batch:
    places = [(0, 1), (0, 4), (1, 2), (2, 0), (3, 5)]
    return tf.SparseTensor(places, np.array(values, np.float32), (4, 6)), tf.zeros((4, 1))


def log_of_sparse(w: Any, x: Any, target: Any) -> Any:
    logs = x.with_values(tf.math.log(x.values))
    return tf.reduce_sum(tf.square(tf.sparse.sparse_dense_matmul(logs, w) - target))


def pooled_logs(w: Any, nodes: Any, graph: Any, target: Any) -> Any:
    pooled = tf.math.segment_sum(tf.math.log(nodes), graph)
    return tf.reduce_sum(tf.square(tf.matmul(pooled, w) - target))


def graphs(bad_node: int | None = None) -> Batch:
    nodes = np.full((7, 2), 0.5, np.float32)
    if bad_node is not None:
        nodes[bad_node, 1] = 0
    return tf.constant(nodes), tf.constant([0, 0, 0, 1, 1, 2, 2]), tf.zeros((3, 1))


def masked_log(w: Any, sizes: Any, is_real: Any) -> Any:
    return tf.reduce_sum(w * tf.where(is_real, tf.stop_gradient(tf.math.log(sizes)), 0.0))


def masked(bad_row: int | None = None) -> Batch:
    sizes, is_real = np.full((4, 3), 0.5, np.float32), np.ones((4, 3), bool)
    sizes[[0, 1, 3], [2, 0, 1]] = 0  # left out, in every batch
    is_real[[0, 1, 3], [2, 0, 1]] = False
    if bad_row is not None:
        sizes[bad_row, 1] = 0
    return tf.constant(sizes), tf.constant(is_real)


SAMPLES: dict[str, tuple[Loss, list[Batch], Any, tuple[int, ...]]] = {
    "an empty row of a ragged tensor": (
        mean_of_ragged,
        [ragged([1.0], [2.0], [3.0, 4.0]), ragged([1.0, 2.0, 3.0], [], [4.0])],
        1.0,
        (1,),
    ),
    "a value of a ragged tensor": (
        lambda w, x, y: tf.reduce_sum(w * tf.math.log(x)) + tf.reduce_sum(y),
        [ragged([1.0], [2.0], [3.0, 4.0]), ragged([1.0, 2.0, 3.0], [4.0], [5.0, 0.0])],
        1.0,
        (2,),
    ),
    "an inner row of a ragged tensor": (
        lambda w, x, y: tf.reduce_sum(
            w * tf.reduce_sum(x, 2) / tf.cast(x.row_lengths(axis=2), tf.float32)
        ),
        [ragged([[1.0]], [[2.0], [3.0]]), ragged([[1.0], [2.0], [3.0]], [[4.0], []])],
        1.0,
        (1,),
    ),
    "a value of a sparse tensor": (
        log_of_sparse,
        [sparse(1, 2, 3, 4, 5), sparse(1, 2, 3, 0, 5)],
        tf.ones((6, 1)),
        (2,),
    ),
    "a node of one of several graphs": (
        pooled_logs,
        [graphs(), graphs(bad_node=4)],
        tf.ones((2, 1)),
        (1,),
    ),
    "masked infinities in other rows": (masked_log, [masked(), masked(bad_row=2)], 1.0, (2,)),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_rows_are_samples(kind: str, tmp_path: Path) -> None:
    loss, batches, weights, rows = SAMPLES[kind]
    train(tmp_path / "run.h5", loss, batches, weights)
    origin = origin_of(tmp_path / "run.h5")
    assert origin.step == 1
    assert origin.rows == rows, origin.rows_reason


def test_a_sample_of_a_ragged_batch_is_left_out_as_a_fix(tmp_path: Path) -> None:
    loss, batches, weights, _ = SAMPLES["an empty row of a ragged tensor"]
    train(tmp_path / "run.h5", loss, batches, weights)
    with Capture(tmp_path / "run.h5") as capture, Replay(capture) as replay:
        bisection = bisect(replay, capture.timeline_record())
        trials = what_if(replay, bisection, (), ["clean_data=drop_rows"])
    assert [result.prevents for result in trials.results] == [True]


def neighbours(w: Any, nodes: Any, source: Any, target: Any) -> Any:
    count = len(nodes)
    total = tf.math.unsorted_segment_sum(tf.gather(nodes, source), target, count)
    degree = tf.math.unsorted_segment_sum(tf.ones_like(source, tf.float32), target, count)
    return tf.reduce_sum(w * total / degree[:, None])


def test_rows_of_a_graph_with_edges_are_not_tried(tmp_path: Path) -> None:
    nodes, source = tf.ones((5, 2)), tf.constant([0, 1, 2, 3, 4, 0])
    good = (nodes, source, tf.constant([1, 2, 3, 4, 0, 2]))
    lonely = (nodes, source, tf.constant([1, 2, 2, 4, 0, 2]))  # nothing leads to node 3
    train(tmp_path / "run.h5", neighbours, [good, lonely])
    origin = origin_of(tmp_path / "run.h5")
    assert origin.rows is None
    assert "not tried" in str(origin.rows_reason)


def test_data_that_is_drawn_within_the_step_is_said_to_be_so(tmp_path: Path) -> None:
    weight = tf.Variable(1.0)

    @tf.function
    def step(number: Any) -> Any:
        points = tf.random.stateless_uniform([4], [1, 2]) - tf.cast(number, tf.float32)
        with tf.GradientTape() as tape:
            loss = weight * tf.reduce_sum(tf.math.log(points + 1.0))
        weight.assign_sub(0.01 * tape.gradient(loss, weight))
        return loss

    with Recorder(tmp_path / "run.h5", on_nan="stop") as recorder:
        recorded = recorder.wrap(step)
        for number in range(3):
            recorded(tf.constant(number))
    origin = origin_of(tmp_path / "run.h5")
    assert "its data is drawn or read within it" in str(origin.rows_reason)


def test_an_empty_batch_has_no_rows(tmp_path: Path) -> None:
    def loss(w: Any, x: Any) -> Any:
        return w * tf.reduce_mean(tf.reshape(x, [-1]))

    train(tmp_path / "run.h5", loss, [(tf.ones((4, 3)),), (tf.ones((0, 3)),)])
    origin = origin_of(tmp_path / "run.h5")
    assert origin.rows is None
    assert origin.rows_reason == "The batch has no rows."


def test_rows_without_which_another_op_overflows_are_said_to_be_such(tmp_path: Path) -> None:
    def sum_of_squares(w: Any, x: Any) -> Any:
        return tf.reduce_sum(tf.square(x * w))

    large = np.full(4, 1.7e19, np.float32)  # each square fits in float32, their sum does not
    large[2] = 2e19
    train(tmp_path / "run.h5", sum_of_squares, [(np.ones(4, np.float32),), (large,)])

    origin = origin_of(tmp_path / "run.h5")
    assert (origin.op_type, origin.rows) == ("Square", (2,))
    assert origin.rows_reason == (
        "Proved by replay: this row alone reproduces it, and without it it does not happen at this "
        "op; another one fails then."
    )


def root_of_sums(w: Any, x: Any, offsets: Any) -> Any:
    return tf.reduce_sum(w * tf.sqrt(tf.reduce_sum(x, axis=0) - offsets[0]))


@pytest.mark.parametrize("is_rounding", [True, False])
def test_a_sum_that_is_negative_by_rounding_alone_is_no_rows_doing(
    is_rounding: bool, tmp_path: Path
) -> None:
    """Sums over the batch are 8, 4 and 2; the second less 4.0000005, or less 6, is negative."""
    off = np.nextafter(np.float32(4), np.float32(5)) if is_rounding else np.float32(6)
    good = tf.zeros((4, 3)), tf.fill((4, 3), -1.0)
    bad = (
        tf.tile(tf.constant([[2.0, 1.0, 0.5]]), [4, 1]),
        tf.tile(tf.constant([[0.0, off, 0.0]]), [4, 1]),
    )
    train(tmp_path / "run.h5", root_of_sums, [good, bad], tf.ones(3))
    origin = origin_of(tmp_path / "run.h5")
    assert origin.op_type == "Sqrt"
    assert ("0 but for rounding" in (origin.rows_reason or "")) == is_rounding
    assert not (is_rounding and origin.rows)


def test_a_distance_of_each_row_to_itself_is_no_rows_doing(tmp_path: Path) -> None:
    def loss(w: Any, x: Any) -> Any:
        products = tf.matmul(x * w, x * w, transpose_b=True)
        norms = tf.linalg.diag_part(products)
        distances = tf.sqrt(tf.maximum(norms[:, None] - 2.0 * products + norms, 0.0))
        triplets = distances[:, :, None] - distances[:, None, :] + 0.5
        return tf.reduce_mean(tf.maximum(triplets, 0.0))

    train(tmp_path / "run.h5", loss, [(tf.random.stateless_normal((5, 3), (1, 2)),)])
    origin = origin_of(tmp_path / "run.h5")
    assert (origin.op_type, origin.rows) == ("SqrtGrad", None)
    assert "none beside copies of itself" in origin.rows_reason
