"""Variables, random numbers, lookup tables."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from . import case
from .build import normal, with_gradient

Built = tuple[Any, tuple[Any, ...]]


@case
def assignments() -> Built:
    v, w = tf.Variable(normal(3, 4)), tf.Variable(0, dtype=tf.int64)

    def step(x: Any) -> Any:
        before = v.read_value()
        v.assign_add(x)
        v[0, 1].assign(9.0)
        v.scatter_update(tf.IndexedSlices(x[:1], [2]))
        v.scatter_nd_add([[0, 0], [1, 1]], [1.0, 2.0])
        w.assign_add(1)
        return before, v * 2.0, v.sparse_read([0, 2]), v.gather_nd([[1, 1]]), w.assign_sub(3)

    return step, (normal(3, 4, seed=1),)


@case
def sparse_gradient_through_resource_gather() -> Built:
    table = tf.Variable(normal(5, 4))

    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.nn.embedding_lookup(table, [0, 3, 3]) * x)
        gradient = tape.gradient(loss, table)
        table.scatter_sub(gradient)
        tf.raw_ops.ResourceScatterMax(resource=table.handle, indices=[0], updates=x[:1])
        return loss, gradient.values, gradient.indices

    return step, (normal(3, 4),)


@case
def variable_in_a_loop() -> Built:
    v = tf.Variable(1.0)

    def step(x: Any) -> Any:
        def body(i: Any, a: Any) -> Any:
            v.assign(v * 1.5)
            return i + 1, a + v * tf.reduce_sum(x)

        total = tf.while_loop(lambda i, a: i < 3, body, [tf.constant(0), tf.constant(0.0)])[1]
        if_changed = tf.cond(total > 0, lambda: v.assign_add(1.0), lambda: v.assign_sub(1.0))
        return total, if_changed, v.read_value()

    return step, (normal(3, 4),)


@case
def old_optimizer_kernels() -> Built:
    v, m, n = tf.Variable(normal(4)), tf.Variable(tf.ones(4)), tf.Variable(tf.ones(4))
    s = tf.Variable(tf.ones(4))

    def step(g: Any) -> Any:
        raw = tf.raw_ops
        raw.ResourceApplyAdam(
            var=v.handle, m=m.handle, v=n.handle, beta1_power=0.9, beta2_power=0.99, lr=0.1,
            beta1=0.9, beta2=0.99,
            epsilon=1e-7, grad=g,
        )  # fmt: skip
        raw.ResourceApplyMomentum(var=v.handle, accum=m.handle, lr=0.1, grad=g, momentum=0.9)
        raw.ResourceSparseApplyAdagradV2(
            var=v.handle, accum=s.handle, lr=0.1, epsilon=1e-7, grad=g[:2], indices=[0, 3]
        )
        return v.read_value(), m.read_value(), n.read_value(), s.read_value()

    return step, (normal(4, seed=2),)


@case
def stateless_random_numbers() -> Built:
    def f(x: Any) -> Any:
        seed = tf.constant([1, 2])
        return (
            tf.nn.experimental.stateless_dropout(x, 0.4, seed),
            x + tf.random.stateless_normal([3, 4], seed),
            x * tf.random.stateless_uniform([3, 4], seed),
            tf.random.stateless_truncated_normal([3], seed),
            tf.random.stateless_gamma([3], seed, alpha=2.0),
            tf.cast(tf.random.stateless_categorical(x, 2, seed), tf.float32),
            tf.random.stateless_binomial([3], seed, 5.0, 0.5, tf.float32),
            tf.random.stateless_poisson([3], seed, 2.0),
        )

    return with_gradient(f), (normal(3, 4),)


@case
def shuffling() -> Built:
    return lambda x: tf.random.experimental.stateless_shuffle(x, [1, 2]), (normal(3, 4),)


@case
def generator_of_random_numbers() -> Built:
    generator = tf.random.Generator.from_seed(5)

    def step(x: Any) -> Any:
        return (
            generator.normal([3]) * x[0, :3],
            generator.uniform([2]),
            generator.binomial([2], 4.0, 0.5),
        )

    return step, (normal(3, 4),)


@case
def tables_that_change() -> Built:
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.float32, -1.0)
    table.insert(["a"], [1.0])

    def step(x: Any) -> Any:
        return table.lookup(tf.constant(["a", "b"])) * x[0, :2], table.size()

    return step, (normal(3, 4),)


@case
def tables_that_stay() -> Built:
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([1, 2], [10, 20]), -1)
    return lambda x: table.lookup(tf.cast(x, tf.int32)), (tf.constant([1, 2, 3]),)
