"""Element-wise dependences of ops: back and forth agree with what the kernels do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from nanreplay.bisect.blame import assign_blame
from nanreplay.bisect.influence import Copies, influence_of
from nanreplay.replay.kernels import run_kernel
from nanreplay.replay.provenance import OpEvent, ValueId


def execute(event: OpEvent, inputs: Any) -> Any:
    return run_kernel(event.type, event.attrs, inputs)


def event_of(function: Any, *arrays: Any) -> OpEvent:
    """The last op of a function, with its tensors."""
    traced = tf.function(function).get_concrete_function(
        *(tf.TensorSpec(a.shape, a.dtype) for a in arrays)
    )
    source = traced.outputs[0].op.inputs[0].op
    inputs = [tf.constant(a) for a in arrays]
    index = {tensor.name: value for tensor, value in zip(traced.inputs, inputs, strict=True)}
    given = [
        index[t.name] if t.name in index else tf.constant(tf.get_static_value(t))
        for t in source.inputs
    ]
    attrs = source.node_def.attr
    ids = tuple(ValueId(-1 - i, 0) for i in range(len(given)))
    return OpEvent(
        0,
        "",
        source.name,
        source.type,
        (),
        tuple(given),
        ids,
        tuple(run_kernel(source.type, attrs, given)),
        attrs,
    )


A, C = (
    np.random.RandomState(0).rand(2, 3, 4).astype("f") + 0.5,
    np.random.RandomState(1).rand(4, 5).astype("f"),
)
CASES = {
    "add": (lambda x, y: x + y, A, A[:, :1]),
    "matmul": (tf.matmul, A[0], C),
    "batched matmul": (lambda x, y: tf.matmul(x, y, transpose_b=True), A, A),
    "einsum": (lambda x, y: tf.einsum("bij,jk->bik", x, y), A, C),
    "sum": (lambda x: tf.reduce_sum(x, axis=1), A),
    "mean kept": (lambda x: tf.reduce_mean(x, axis=[0, 2], keepdims=True), A),
    "softmax": (tf.nn.softmax, A),
    "cumsum": (lambda x: tf.cumsum(x, axis=1), A),
    "images with channels first": (
        lambda x, y: tf.nn.conv2d(x, y, 1, "SAME", data_format="NCHW"),
        A[:, :, :, None].astype("d"),
        np.ones((1, 1, 3, 2)),
    ),
    "recurrent layer of a GPU": (
        lambda x, h: tf.raw_ops.CudnnRNNV3(
            input=x,
            input_h=h,
            input_c=h,
            params=np.ones(96, "f"),
            sequence_lengths=[3, 3],
            time_major=False,
        )[0],
        A,
        A[:, :1, :2],
    ),
    "transpose": (lambda x: tf.transpose(x, [2, 0, 1]), A),
    "reshape": (lambda x: tf.reshape(x, [6, 4]), A),
    "gather": (lambda x: tf.gather(x, [2, 0], axis=1), A),
    "concat": (lambda x, y: tf.concat([x, y], axis=1), A, A),
    "slice": (lambda x: x[:, 1:, ::2], A),
    "pad": (lambda x: tf.pad(x, [[0, 0], [1, 0], [0, 2]]), A),
    "tile": (lambda x: tf.tile(x, [1, 2, 1]), A),
    "bias": (lambda x: tf.nn.bias_add(x, tf.constant([1.0, 2.0, 3.0, 4.0])), A),
    "convolution": (lambda x: tf.nn.conv2d(x, np.ones((2, 2, 1, 2), "f"), 1, "SAME"), A[..., None]),
}


@pytest.mark.parametrize("name", list(CASES))
def test_a_nan_reaches_only_what_the_rule_says(name: str) -> None:
    function, *arrays = CASES[name]
    event = event_of(function, *arrays)
    influence = influence_of(event, execute)
    assert influence.exact
    clean = np.asarray(event.outputs[0])
    for i in range(len(arrays)):
        for place in list(np.ndindex(*arrays[i].shape))[::5]:
            inputs = [np.array(value) for value in event.inputs]
            inputs[i][place] = np.nan
            changed = np.isnan(np.asarray(execute(event, inputs)[0])) & ~np.isnan(clean)
            mask = np.zeros(arrays[i].shape, bool)
            mask[place] = True
            reached = influence.forth(i, 0, mask)
            assert not (changed & ~reached).any()
            if changed.any():
                assert influence.back(i, 0, changed)[place]


def test_a_branch_that_where_drops_influences_nothing() -> None:
    event = event_of(
        lambda x: tf.where(tf.constant([True, False, True, False]), x, tf.zeros_like(x)), A
    )
    influence = influence_of(event, execute)
    reached = influence.forth(1, 0, np.ones(A.shape, bool))
    assert reached[..., [0, 2]].all()
    assert not reached[..., [1, 3]].any()


def test_an_op_with_many_inputs_asks_each_output_about_its_own() -> None:
    n_tensors, asked = 40, []
    nans = [tf.fill([2], np.float32("nan")) for _ in range(n_tensors)]

    class Counted(Copies):
        def forth(self, i: int, k: int, mask: Any) -> Any:
            asked.append((i, k))
            return super().forth(i, k, mask)

    ids = tuple(ValueId(-1 - i, 0) for i in range(n_tensors))
    event = OpEvent(0, "", "op", "IdentityN", (), tuple(nans), ids, tuple(nans), {})
    failing = {k: np.ones(2, bool) for k in range(n_tensors)}
    blame = assign_blame(event, failing, execute, Counted([(2,)] * n_tensors, [(2,)] * n_tensors))
    assert asked == [(k, k) for k in range(n_tensors)]
    assert not blame.made
    assert all(blame.follow[i].all() for i in range(n_tensors))
