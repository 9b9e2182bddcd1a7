"""A program in other float types: the same names, the same call, more precision; what cannot follow
stands between casts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from nanreplay.program.compiled_program import CompiledProgram
from nanreplay.program.float_types import TO_FLOAT32, TO_FLOAT64, widen, widened, widened_variables
from nanreplay.records import InputSpec, ProgramRecord, Signature, VariableInfo
from nanreplay.replay.interpreter import Interpreter


def recorded(function: Callable[..., Any], *specs: Any) -> ProgramRecord:
    """A record of a function of tensors."""
    concrete = tf.function(function, autograph=False).get_concrete_function(*specs)
    inputs = tuple(
        InputSpec(t.name, i, str(i), t.dtype.name, tuple(t.shape))
        for i, t in enumerate(concrete.inputs)
    )
    signature = Signature("graph", inputs, (), outputs=tuple(t.name for t in concrete.outputs))
    return ProgramRecord("p0", concrete.graph.as_graph_def().SerializeToString(), signature)


def run(record: ProgramRecord, *values: Any) -> list[Any]:
    """Outputs of a program run op by op, after checking that it gives the same when it is
    compiled."""
    feeds = {
        spec.tensor: tf.cast(values[spec.leaf], spec.dtype) for spec in record.signature.inputs
    }
    by_op = Interpreter(record.graph).run(feeds, record.signature.outputs)
    compiled, _ = CompiledProgram(record.graph, record.signature, jit=False)(
        list(feeds.values()), []
    )
    for one, other in zip(by_op, compiled, strict=True):
        np.testing.assert_allclose(
            one.numpy().astype(float), other.numpy().astype(float), rtol=1e-12
        )
    return by_op


def spec(dtype: Any = tf.float32, shape: tuple[int, ...] = (2, 3)) -> Any:
    return tf.TensorSpec(shape, dtype)


def test_a_square_that_overflows_float32_is_finite_in_float64() -> None:
    record = recorded(lambda x: tf.reduce_mean(tf.square(x)), spec())
    x = np.full((2, 3), 1e30, np.float32)
    assert not np.isfinite(run(record, x)[0].numpy())
    (wide,) = run(widened(record), x)
    assert wide.dtype == tf.float64
    assert wide.numpy() == np.mean(np.square(x.astype(np.float64)))


def test_names_and_outputs_stay_and_the_inputs_are_wide() -> None:
    record = recorded(lambda x: x * 2.0, spec())
    wide = widened(record)
    assert wide.signature.outputs == record.signature.outputs
    assert [each.dtype for each in wide.signature.inputs] == ["float64"]
    assert {node.name for node in graph_of(wide).node} == {
        node.name for node in graph_of(record).node
    }


def graph_of(record: ProgramRecord) -> Any:
    return tf.compat.v1.GraphDef.FromString(record.graph)


@pytest.mark.parametrize("half", [tf.float16, tf.bfloat16])
def test_half_precision_alone_becomes_float32(half: Any) -> None:
    def step(x: Any, d: Any) -> Any:
        return tf.cast(tf.square(tf.cast(x, half)), tf.float32), d * 2

    record = recorded(step, spec(), spec(tf.float64))
    square, double = run(widened(record, TO_FLOAT32), np.full((2, 3), 300.0), np.ones((2, 3)))
    assert square.numpy().max() == 90000.0
    assert double.dtype == tf.float64
    half = (tf.float16.as_datatype_enum, tf.bfloat16.as_datatype_enum)
    nodes = graph_of(widened(record, TO_FLOAT32)).node
    assert not any(attr.type in half for node in nodes for attr in node.attr.values())


def test_loops_lists_branches_and_functions_follow() -> None:
    inner = tf.function(lambda x: tf.where(x > 0, tf.sqrt(tf.abs(x)), x * 1e-3))

    def step(x: Any) -> Any:
        array = tf.TensorArray(tf.float32, 4, element_shape=[2, 3])

        def body(i: Any, x: Any, array: Any) -> Any:
            x = inner(x) + 0.1
            return i + 1, x, array.write(i, x)

        _, x, array = tf.while_loop(lambda i, *_: i < 4, body, [0, x, array])
        x = tf.cond(tf.reduce_sum(x) > 0, lambda: x * 3.0, lambda: x)
        return tf.reduce_sum(array.stack()) + tf.reduce_sum(x), tf.map_fn(
            lambda row: tf.reduce_max(row), x
        )

    record = recorded(step, spec())
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    for narrow, wide in zip(run(record, x), run(widened(record), x), strict=True):
        assert wide.dtype == tf.float64
        np.testing.assert_allclose(narrow.numpy(), wide.numpy(), rtol=1e-6)
        assert not np.array_equal(narrow.numpy().astype(np.float64), wide.numpy())
    assert widen(record).narrow_ops == ()


def test_the_gradient_of_a_loop_follows() -> None:
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            _, y = tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, tf.tanh(y) * 1.5), [0, x])
            loss = tf.reduce_sum(y)
        return tape.gradient(loss, x)

    record = recorded(step, spec())
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_allclose(
        run(record, x)[0].numpy(), run(widened(record), x)[0].numpy(), rtol=1e-5
    )


def test_random_numbers_are_those_that_were_drawn() -> None:
    def step(x: Any) -> Any:
        return x + tf.random.stateless_uniform([2, 3], [1, 2]), tf.random.stateless_normal(
            [3], [1, 2], dtype=tf.float16
        )

    record = recorded(step, spec())
    x = np.zeros((2, 3), np.float32)
    for narrow, wide in zip(run(record, x), run(widened(record), x), strict=True):
        np.testing.assert_array_equal(
            narrow.numpy().astype(np.float64), wide.numpy().astype(np.float64)
        )
    assert widen(record).narrow_ops == ()


@pytest.mark.parametrize("in_function", [False, True])
def test_an_op_without_a_float64_kernel_stands_between_casts_and_is_named(
    in_function: bool,
) -> None:
    def normalised(x: Any) -> Any:
        y, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            x, tf.ones([3]), tf.zeros([3]), epsilon=1e-3
        )
        return y * 2.0 + mean, variance

    record = recorded(
        tf.function(normalised) if in_function else normalised, spec(shape=(2, 4, 4, 3))
    )
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    assert widen(record).narrow_ops == ("FusedBatchNormV3",)
    for narrow, wide in zip(run(record, x), run(widened(record), x), strict=True):
        np.testing.assert_allclose(narrow.numpy(), wide.numpy(), rtol=1e-5, atol=1e-6)


def test_an_op_with_an_output_of_a_fixed_type_is_cast() -> None:
    record = recorded(lambda x: tf.image.resize(x, [4, 4]) * 2.0, spec(shape=(1, 2, 2, 3)))
    x = np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3)
    np.testing.assert_allclose(
        run(record, x)[0].numpy(), run(widened(record), x)[0].numpy(), rtol=1e-6
    )


def test_complex_numbers_follow() -> None:
    record = recorded(
        lambda x: tf.math.real(tf.signal.fft(tf.cast(x, tf.complex64))), spec(shape=(8,))
    )
    x = np.arange(8, dtype=np.float32)
    (wide,) = run(widened(record), x)
    np.testing.assert_allclose(wide.numpy(), np.fft.fft(x).real, atol=1e-12)


def test_a_constant_of_one_value_stays_small() -> None:
    record = recorded(lambda x: x + tf.ones([2, 3]) * tf.fill([2, 3], 0.5), spec())
    big = recorded(lambda x: x + tf.constant(1.0, shape=[100, 100]), spec(shape=(100, 100)))
    assert len(widened(big).graph) < 2000
    np.testing.assert_array_equal(
        run(widened(record), np.zeros((2, 3)))[0].numpy(), np.full((2, 3), 0.5)
    )


def test_bits_keep_their_meaning() -> None:
    record = recorded(lambda x: tf.bitcast(x, tf.int32), spec())
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(run(widened(record), x)[0].numpy(), x.view(np.int32))


def test_variables_get_the_wide_type_and_counters_stay() -> None:
    infos = [
        VariableInfo("w", (2,), "float16", "trainable"),
        VariableInfo("step", (), "int64", "optimizer"),
    ]
    assert [info.dtype for info in widened_variables(infos)] == ["float64", "int64"]
    assert [info.dtype for info in widened_variables(infos, TO_FLOAT32)] == ["float32", "int64"]


def test_every_wide_type_is_wider() -> None:
    for narrow, wide in {**TO_FLOAT64, **TO_FLOAT32}.items():
        assert tf.dtypes.as_dtype(wide).size > tf.dtypes.as_dtype(narrow).size
