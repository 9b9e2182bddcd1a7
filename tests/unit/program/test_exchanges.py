"""What replicas exchange by ops of NCCL, computed on one CPU, against the plain form.

The gradients are those that TensorFlow itself registers: of a sum, a broadcast, and the reverse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from nanreplay.program.collectives import has_collectives, local_program
from nanreplay.program.compiled_program import CompiledProgram
from nanreplay.program.float_types import widened
from nanreplay.program.safety import parse_graph
from nanreplay.records import InputSpec, ProgramRecord, Signature
from nanreplay.replay.interpreter import Interpreter

KINDS = [tf.float16, tf.float32, tf.float64]
MERGES: dict[str, Callable[[Sequence[Any]], Any]] = {
    "sum": lambda arrays: sum(arrays[1:], arrays[0]),
    "prod": lambda arrays: np.prod(arrays, axis=0),
    "min": lambda arrays: np.min(arrays, axis=0),
    "max": lambda arrays: np.max(arrays, axis=0),
}


def on_gpus(
    exchange: Callable[[Sequence[Any]], Any], count: int, shape: Sequence[int], kind: Any
) -> ProgramRecord:
    """A program as several GPUs trace it: what they exchange, and the gradient of x * x + 3 * x."""
    with tf.Graph().as_default() as graph:
        inputs = []
        for number in range(count):
            with tf.device(f"/GPU:{number}"):
                inputs.append(tf.compat.v1.placeholder(kind, shape, f"x_{number}"))
        with tf.device("/GPU:0"):
            exchanged = exchange([tf.identity(x) for x in inputs])
            gradients = tf.gradients([tf.square(exchanged), 3 * exchanged], inputs)
    outputs = [exchanged, *(each for each in gradients if each is not None)]
    specs = tuple(
        InputSpec(x.name, number, str(number), kind.name, tuple(shape))
        for number, x in enumerate(inputs)
    )
    signature = Signature("graph", specs, (), outputs=tuple(each.name for each in outputs))
    recorded = graph.as_graph_def()
    for node in recorded.node:
        node.attr.pop("_class", None)  # where to place it, which the trace of a step does not say
    return ProgramRecord("p0", recorded.SerializeToString(), signature)


def reduction(name: str) -> Callable[[Sequence[Any]], Any]:
    return lambda inputs: tf.raw_ops.NcclReduce(input=inputs, reduction=name)


def broadcast(inputs: Sequence[Any]) -> Any:
    return tf.raw_ops.NcclBroadcast(input=inputs[0], shape=inputs[0].shape)


def run(record: ProgramRecord, values: Sequence[Any]) -> list[Any]:
    """What a program gives op by op, which is what it gives compiled, bit for bit."""
    local = local_program(record)
    assert not has_collectives(parse_graph(local.graph))
    feeds = {spec.tensor: tf.cast(values[spec.leaf], spec.dtype) for spec in local.signature.inputs}
    by_op = Interpreter(local.graph).run(feeds, local.signature.outputs)
    program = CompiledProgram(local.graph, local.signature, jit=False)
    compiled, _ = program(list(feeds.values()), [])
    for one, other in zip(by_op, compiled, strict=True):
        assert one.numpy().tobytes() == other.numpy().tobytes()
    return [value.numpy() for value in by_op]


def values_of(count: int, shape: Sequence[int], kind: Any) -> list[Any]:
    random = np.random.default_rng(count)
    # quarters: sums of them are exact in any order and any of the types
    return [(random.integers(-8, 8, shape) / 4).astype(kind.as_numpy_dtype) for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", MERGES)
def test_a_reduction_of_nccl_is_the_plain_one(name: str, kind: Any) -> None:
    shape, count = (3, 2), 3
    values = values_of(count, shape, kind)
    if name == "sum":  # TensorFlow has gradients of sums alone
        expected = MERGES[name](values)
        found, *gradients = run(on_gpus(reduction(name), count, shape, kind), values)
        assert len(gradients) == count
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, 2 * expected + 3)
    else:
        record = on_gpus(without_gradient(name), count, shape, kind)
        (found,) = run(record, values)
        expected = MERGES[name](values)
    assert found.dtype == kind.as_numpy_dtype
    np.testing.assert_array_equal(found, expected)


def without_gradient(name: str) -> Callable[[Sequence[Any]], Any]:
    return lambda inputs: tf.stop_gradient(reduction(name)(inputs))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_broadcast_of_nccl_hands_on_what_one_replica_has(kind: Any) -> None:
    (value,) = values_of(1, (2, 4), kind)
    record = on_gpus(broadcast, 1, (2, 4), kind)
    found, gradient = run(record, [value])
    np.testing.assert_array_equal(found, value)
    np.testing.assert_array_equal(gradient, 2 * value + 3)
    wide, wide_gradient = run(widened(local_program(record)), [value])
    assert (wide.dtype, wide_gradient.dtype) == (np.float64, np.float64)
    np.testing.assert_array_equal(wide_gradient, 2 * value.astype(np.float64) + 3)


@settings(max_examples=5, deadline=None, phases=[Phase.generate])
@given(
    shape=st.lists(st.integers(0, 40), max_size=3).map(tuple),
    count=st.integers(1, 5),
)
def test_a_sum_of_any_shape_is_that_of_all_replicas(shape: tuple[int, ...], count: int) -> None:
    values = values_of(count, shape, tf.float32)
    record = on_gpus(reduction("sum"), count, shape, tf.float32)
    found, *gradients = run(record, values)
    expected = MERGES["sum"](values)
    np.testing.assert_array_equal(found, expected)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 2 * expected + 3)
    wide = run(widened(local_program(record)), values)[0]
    assert wide.dtype == np.float64
    np.testing.assert_array_equal(wide, expected.astype(np.float64))
