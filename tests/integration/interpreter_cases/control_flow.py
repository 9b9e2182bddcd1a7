"""Loops, branches, calls, tensor lists and arrays, forward and backward."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from . import case
from .build import normal, with_gradient

Built = tuple[Any, tuple[Any, ...]]


@case
def while_loop_with_gradient() -> Built:
    def f(x: Any) -> Any:
        return tf.while_loop(
            lambda i, a: i < 5, lambda i, a: (i + 1, tf.sin(a) * a + x), [tf.constant(0), x]
        )[1]

    return with_gradient(f), (normal(3, 4),)


@case
def while_in_if_in_while() -> Built:
    def inner(a: Any) -> Any:
        return tf.while_loop(
            lambda j, b: j < 3, lambda j, b: (j + 1, b * 1.1 + tf.tanh(b)), [tf.constant(0), a]
        )[1]

    def body(i: Any, a: Any) -> Any:
        return i + 1, tf.cond(i % 2 == 0, lambda: inner(a), lambda: a - tf.reduce_mean(a))

    def f(x: Any) -> Any:
        return tf.while_loop(lambda i, a: i < 4, body, [tf.constant(0), x])[1]

    return with_gradient(f), (normal(3, 4),)


@case
def cond_with_gradient() -> Built:
    def f(x: Any) -> Any:
        return tf.cond(
            tf.reduce_sum(x) > 1e9, lambda: tf.exp(x), lambda: tf.square(x) * tf.sigmoid(x)
        )

    return with_gradient(f), (normal(3, 4),)


@case
def switch_case_with_gradient() -> Built:
    def f(x: Any) -> Any:
        branches = [lambda: x * 2.0, lambda: tf.sin(x), lambda: tf.cos(x)]
        return [tf.switch_case(tf.cast(tf.size(x) - 11 + k, tf.int32), branches) for k in range(4)]

    return with_gradient(f), (normal(3, 4),)


@case
def map_fn_and_scan() -> Built:
    def f(x: Any) -> Any:
        rows = tf.map_fn(lambda row: tf.nn.softmax(row) * row, x)
        return (
            rows,
            tf.scan(lambda a, row: 0.5 * a + tf.tanh(row), x),
            tf.foldl(lambda a, r: a + r * r, x),
        )

    return with_gradient(f), (normal(5, 4),)


@case
def vectorized_map() -> Built:
    return with_gradient(
        lambda x: tf.vectorized_map(lambda row: tf.cumsum(row) / tf.norm(row), x)
    ), (normal(5, 4),)


@case
def nested_functions() -> Built:
    @tf.function
    def inner(x: Any) -> Any:
        return tf.nn.relu(x) + x

    @tf.function
    def outer(x: Any) -> Any:
        return inner(inner(x) * 2.0)

    return with_gradient(lambda x: outer(x) + inner(x)), (normal(3, 4),)


@case
def autograph_loop() -> Built:
    @tf.function
    def inner(x: Any) -> Any:
        total = tf.zeros_like(x[0])
        for row in x:
            if tf.reduce_sum(row) > 0.0:
                total += row * row
            else:
                continue
        return total

    return with_gradient(inner), (normal(6, 4),)


@case
def tensor_array() -> Built:
    def f(x: Any) -> Any:
        array = tf.TensorArray(tf.float32, size=0, dynamic_size=True, clear_after_read=False)
        array = array.unstack(x)
        array = array.write(5, array.read(1) * array.read(2))
        return array.stack(), array.gather([0, 5]), array.size(), array.concat()

    return with_gradient(f), (normal(5, 4),)


@case
def tensor_lists() -> Built:
    def f(x: Any) -> Any:
        raw = tf.raw_ops
        made = raw.TensorListFromTensor(tensor=x, element_shape=[4])
        pushed = raw.TensorListPushBack(input_handle=made, tensor=x[0] + x[1])
        rest, last = raw.TensorListPopBack(
            input_handle=pushed, element_shape=[4], element_dtype=tf.float32
        )
        wider = raw.TensorListResize(input_handle=rest, size=7)
        item = raw.TensorListGetItem(
            input_handle=wider, index=6, element_shape=[4], element_dtype=tf.float32
        )
        split = raw.TensorListSplit(tensor=x, element_shape=[-1, 4], lengths=[2, 3])
        joined = raw.TensorListConcatV2(
            input_handle=split,
            element_shape=[-1, 4],
            leading_dims=tf.zeros([0], tf.int64),
            element_dtype=tf.float32,
        )
        placed = raw.TensorListScatterV2(
            tensor=x[:2], indices=[3, 1], element_shape=[4], num_elements=5
        )
        stacked = raw.TensorListStack(
            input_handle=placed, element_shape=[4], element_dtype=tf.float32
        )
        return last, item, joined[0], stacked, raw.TensorListLength(input_handle=wider)

    return with_gradient(f), (normal(5, 4),)


@case
def optionals() -> Built:
    def f(x: Any) -> Any:
        optional = tf.raw_ops.OptionalFromValue(components=[x, x * 2.0])
        found = tf.raw_ops.OptionalGetValue(
            optional=optional, output_types=[tf.float32, tf.float32], output_shapes=[[3], [3]]
        )
        return *found, tf.cast(tf.raw_ops.OptionalHasValue(optional=optional), tf.float32)

    return f, (normal(3),)


@case
def dataset_reduce_in_the_step() -> Built:
    def f(x: Any) -> Any:
        return (
            tf.data.Dataset.from_tensor_slices(x)
            .map(lambda r: r * 2.0)
            .reduce(tf.zeros([4]), lambda a, r: a + r * r)
        )

    return f, (normal(5, 4),)


@case
def recompute_gradient() -> Built:
    return with_gradient(tf.recompute_grad(lambda x: tf.tanh(x) * tf.exp(-x))), (normal(3, 4),)


@case
def custom_gradient() -> Built:
    @tf.custom_gradient
    def clipped(x: Any) -> Any:
        return tf.exp(x), lambda upstream: tf.clip_by_norm(upstream * tf.exp(x), 1.0)

    return with_gradient(clipped), (normal(3, 4),)


@case
def gradient_penalty() -> Built:
    def f(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(tf.nn.elu(x @ tf.transpose(x)))
        return tf.square(tf.norm(tape.gradient(y, x)) - 1.0)

    return with_gradient(f), (normal(3, 4),)


@case
def jacobian_and_hessian() -> Built:
    def f(x: Any) -> Any:
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.sin(x) * tf.reduce_sum(x**2)
            jacobian = tape.jacobian(y, x)
        return jacobian, outer.jacobian(jacobian, x)

    return f, (normal(4),)


@case
def checks_and_printing() -> Built:
    def f(x: Any) -> Any:
        tf.debugging.assert_greater(tf.reduce_sum(x * x), 0.0)
        tf.debugging.Assert(tf.reduce_all(tf.math.is_finite(x)), [x])
        tf.print("never shown", x)
        return tf.debugging.check_numerics(tf.ensure_shape(x, [3, 4]), "x")

    return with_gradient(f), (normal(3, 4),)
