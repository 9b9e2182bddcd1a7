"""`tf.distribute` on one device, and models of Keras 2."""

from __future__ import annotations

from typing import Any

import pytest
import tensorflow as tf

from loop_shapes.base import ANYTHING, BATCHES, FEATURES, Run, error, make, shape, update


def strategy_and_model() -> tuple[Any, Any, Any]:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model, optimizer = make()
    return strategy, model, optimizer


@shape()
def strategy_in_a_plain_loop(run: Run) -> Any:
    """`strategy.run` is called by Python; what it runs is compiled."""
    strategy, model, optimizer = strategy_and_model()
    replica_step = run.compiled(lambda x, y: update(model, optimizer, x, y))
    return run.loop(lambda x, y: strategy.run(replica_step, args=(x, y)), model, optimizer)


@shape()
def strategy_in_a_compiled_function(run: Run) -> Any:
    strategy, model, optimizer = strategy_and_model()

    def replica_step(x: Any, y: Any) -> Any:
        return update(model, optimizer, x, y)

    def step(batch: Any) -> Any:
        losses = strategy.run(replica_step, args=batch)
        return strategy.reduce(tf.distribute.ReduceOp.MEAN, losses, axis=None)

    step = run.wrap(run.compiled(step), model=model, optimizer=optimizer)
    for batch in strategy.experimental_distribute_dataset(run.dataset()):
        step(batch)
        if run.stopped():
            break
    return [model, optimizer]


@shape(xla="XLA cannot compile what fetches from an iterator")
def distributed_iterator(run: Run) -> Any:
    """The step is given the iterator of a distributed dataset, as TensorFlow's guide has it."""
    strategy, model, optimizer = strategy_and_model()

    def step(iterator: Any) -> Any:
        return strategy.run(lambda x, y: update(model, optimizer, x, y), args=next(iterator))

    return run.fetching_loop(
        run.compiled(step),
        model,
        optimizer,
        iter(strategy.experimental_distribute_dataset(run.dataset())),
    )


@shape(
    eager="a loop of Python's own is one eager step",
    xla="XLA cannot compile what fetches from an iterator",
    step=1,
    rows=ANYTHING,
    loop=[1],
)
def distributed_iterator_in_a_loop_of_the_graph(run: Run) -> Any:
    """Four updates in one call, each on the next batch of the strategy."""
    strategy, model, optimizer = strategy_and_model()

    def steps(iterator: Any) -> None:
        for _ in tf.range(4):
            batch = next(iterator)
            strategy.run(lambda pair: update(model, optimizer, *pair), args=(batch,))

    return run.fetching_loop(
        run.compiled(steps),
        model,
        optimizer,
        iter(strategy.experimental_distribute_dataset(run.dataset())),
        calls=BATCHES // 4,
    )


def keras_2_model() -> tuple[Any, Any]:
    keras = pytest.importorskip("tf_keras")

    class Spread(keras.layers.Layer):  # type: ignore[misc, name-defined]
        def call(self, x: Any) -> Any:
            centred = x - tf.reduce_mean(x, -1, keepdims=True)
            return centred / tf.math.reduce_std(x, -1, keepdims=True)

    keras.utils.set_random_seed(7)
    hidden = keras.layers.Dense(3, "tanh", name="hidden")
    inputs, out = keras.layers.Input((FEATURES,)), keras.layers.Dense(1, name="out")
    model = keras.Sequential([inputs, Spread(name="spread"), hidden, out])
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)
    return model, optimizer


@shape(slow=True)
def loop_of_keras_2(run: Run) -> Any:
    model, optimizer = keras_2_model()

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = error(model, x, y)
        optimizer.minimize(loss, model.trainable_variables, tape=tape)
        return loss

    return run.loop(run.compiled(step), model, optimizer)


@shape(slow=True)
def train_on_batch_of_keras_2(run: Run) -> Any:
    model, optimizer = keras_2_model()
    how = {"eager": {"run_eagerly": True}, "graph": {}, "xla": {"jit_compile": True}}
    model.compile(optimizer, "mse", **how[run.column])
    step = run.wrap(model.train_on_batch, model=model, optimizer=optimizer)
    for x, y in run.arrays():
        step(x, y)
    return [model, optimizer]
