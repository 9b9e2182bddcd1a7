"""Loops without `fit`: optimizers, and steps in many shapes."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from same_bits_grid.hand_rows import BATCHES, WIDTH
from same_bits_grid.training import (
    BATCH,
    CLASSES,
    Attachment,
    Row,
    Table,
    Trained,
    mlp,
    numbers,
    regression,
    with_and_without_xla,
)

LOOPS = Table()
"""Loops that are compiled as a whole, in graph mode and by XLA."""
PLAIN_LOOPS = Table()
"""Loops whose step is a plain Python function, or that XLA does not compile."""


def loop_rows() -> Iterator[Row]:
    for name, train in LOOPS.items():
        yield from with_and_without_xla("loops", name, train)
    for name, train in PLAIN_LOOPS.items():
        yield Row("loops", name, train)
    if importlib.util.find_spec("tf_keras"):
        yield from with_and_without_xla("loops", "Keras 2", trains_keras_2)


def batches() -> list[Any]:
    """Pairs of tensors."""
    x, y = regression(samples=BATCHES * BATCH)
    return list(tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH))


def squared(model: Any, x: Any, y: Any) -> Any:
    return tf.reduce_mean(tf.square(model(x, training=True) - y))


def descend(model: Any, optimizer: Any, x: Any, y: Any) -> Any:
    """One step, to be called from the step that is wrapped."""
    with tf.GradientTape() as tape:
        loss = squared(model, x, y)
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return loss


@LOOPS.add
def with_optimizer(attach: Attachment, *, jit: bool) -> Trained:
    """an optimizer of Keras."""
    model, optimizer = mlp(), keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)
    step = tf.function(lambda x, y: descend(model, optimizer, x, y), jit_compile=jit)
    run = attach.wrap(step, model=model, optimizer=optimizer)
    return Trained([model], [run(x, y) for x, y in batches()], [optimizer])


@LOOPS.add
def persistent(attach: Attachment, *, jit: bool) -> Trained:
    """a persistent tape, two losses, two optimizers."""
    first, second = mlp(), mlp()
    optimizers = [keras.optimizers.SGD(0.05), keras.optimizers.RMSprop(0.01)]
    for each, optimizer in zip((first, second), optimizers, strict=True):
        optimizer.build(each.trainable_variables)

    @tf.function(jit_compile=jit)
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape(persistent=True) as tape:
            one = 0.7 * squared(first, x, y)
            other = 0.3 * tf.reduce_mean(tf.abs(second(x, training=True) - first(x))) + 0.1 * one
        for each, optimizer, loss in zip((first, second), optimizers, (one, other), strict=True):
            optimizer.apply(tape.gradient(loss, each.trainable_variables), each.trainable_variables)
        return {"one": one, "other": other}

    run = attach.wrap(step, model=[first, second], optimizer=optimizers)
    return Trained([first, second], [run(x, y) for x, y in batches()], optimizers)


@LOOPS.add
def by_hand(attach: Attachment, *, jit: bool) -> Trained:
    """a model whose weights are assigned, nothing returned."""
    model = mlp()

    @tf.function(jit_compile=jit)
    def step(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = 0.5 * squared(model, x, y)
        weights = model.trainable_variables
        for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
            weight.assign_sub(0.01 * gradient)

    run = attach.wrap(step, model=model)
    for x, y in batches():
        run(x, y)
    return Trained([model])


@LOOPS.add
def adversaries(attach: Attachment, *, jit: bool) -> Trained:
    """two steps that take turns, each wrapped."""
    generator, critic = mlp(features=CLASSES), mlp(features=CLASSES)
    optimizers = [keras.optimizers.Adam(0.01), keras.optimizers.Adam(0.01)]
    for each, optimizer in zip((generator, critic), optimizers, strict=True):
        optimizer.build(each.trainable_variables)

    @tf.function(jit_compile=jit)
    def judge(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = squared(critic, y, 1.0) + squared(critic, generator(x), 0.0)
        weights = critic.trainable_variables
        optimizers[1].apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return loss

    @tf.function(jit_compile=jit)
    def deceive(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = squared(critic, generator(x, training=True), 1.0)
        weights = generator.trainable_variables
        optimizers[0].apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return loss

    judges = attach.wrap(judge, model=critic, optimizer=optimizers[1])
    deceives = attach.wrap(deceive, model=generator, optimizer=optimizers[0])
    told = [(judges(x[:, :CLASSES], y), deceives(x[:, :CLASSES])) for x, y in batches()]
    return Trained([generator, critic], told, optimizers)


@LOOPS.add
def several_shapes(attach: Attachment, *, jit: bool) -> Trained:
    """batches of several sizes."""
    model, optimizer = mlp(), keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)
    step = tf.function(lambda x, y: descend(model, optimizer, x, y), jit_compile=jit)
    run = attach.wrap(step, model=model, optimizer=optimizer)
    sizes = [8, 8, 3, 8, 5, 3, 8]
    pairs = [(x[:size], y[:size]) for size, (x, y) in zip(sizes, batches(), strict=False)]
    return Trained([model], [run(x, y) for x, y in pairs], [optimizer])


@LOOPS.add
def recomputed(attach: Attachment, *, jit: bool) -> Trained:
    """recompute_grad and a custom gradient."""
    weight, other = (tf.Variable(numbers(64, 64, seed=seed) / 8) for seed in (0, 2))

    @tf.custom_gradient
    def scaled(x: Any) -> Any:
        return 0.5 * x, lambda upstream: 0.3 * upstream

    @tf.function(jit_compile=jit)
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            hidden = tf.recompute_grad(lambda z: tf.tanh(z @ weight))(x)
            loss = tf.reduce_mean(tf.square(scaled(hidden @ other)))
        gradients = tape.gradient(loss, [weight, other])
        weight.assign_sub(0.1 * gradients[0])
        other.assign_sub(0.1 * gradients[1])
        return loss

    run = attach.wrap(step)
    told = [run(tf.constant(x)) for x in numbers(BATCHES, BATCH, 64, seed=1)]
    return Trained(told=told, variables=[weight, other])


class Line(tf.Module):
    """A module without Keras, whose method is the step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = tf.Variable(numbers(12, CLASSES), name="weight")
        self.seeds = tf.random.Generator.from_seed(3)

    @tf.function(input_signature=[tf.TensorSpec((None, 12)), tf.TensorSpec((None, CLASSES))])
    def step(self, x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            noise = self.seeds.normal(tf.shape(x), stddev=0.1)
            loss = tf.reduce_mean(tf.square((x + noise) @ self.weight - y))
        self.weight.assign_sub(0.05 * tape.gradient(loss, self.weight))
        return loss


@PLAIN_LOOPS.add
def of_a_module(attach: Attachment) -> Trained:
    """a method of a tf.Module, with a generator of random numbers."""
    module = Line()
    run = attach.wrap(module.step)
    told = [run(x, y) for x, y in batches()]
    return Trained(told=told, variables=[module.weight, module.seeds.state])


@PLAIN_LOOPS.add
def over_a_dataset(attach: Attachment) -> Trained:
    """a whole epoch in one tf.function."""
    model, optimizer = mlp(), keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)
    data = tf.data.Dataset.from_tensor_slices(regression()).batch(BATCH)

    @tf.function
    def epoch(data: Any) -> Any:
        total = tf.zeros(())
        for x, y in data:
            total += descend(model, optimizer, x, y)
        return total

    run = attach.wrap(epoch, model=model, optimizer=optimizer)
    return Trained([model], [run(data) for _ in range(3)], [optimizer])


@PLAIN_LOOPS.add
def steps_inside(attach: Attachment) -> Trained:
    """several updates in a loop of the graph."""
    model, optimizer = mlp(), keras.optimizers.SGD(0.05)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        total = tf.zeros(())
        for _ in tf.range(3):
            total += descend(model, optimizer, x, y)
        return total

    run = attach.wrap(step, model=model, optimizer=optimizer)
    return Trained([model], [run(x, y) for x, y in batches()], [optimizer])


@PLAIN_LOOPS.add
def eager(attach: Attachment) -> Trained:
    """a plain function."""
    model, optimizer = mlp(), keras.optimizers.Adam(0.01)
    run = attach.wrap(
        lambda x, y: descend(model, optimizer, x, y),
        model=model,
        optimizer=optimizer,
    )
    return Trained([model], [run(x, y) for x, y in batches()], [optimizer])


@PLAIN_LOOPS.add
def around_compiled(attach: Attachment) -> Trained:
    """a plain function around a compiled step."""
    model, optimizer = mlp(), keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)
    inner = tf.function(lambda x, y: descend(model, optimizer, x, y))
    seen = []

    def step(x: Any, y: Any) -> Any:
        loss = inner(x, y)
        seen.append(loss.numpy())
        return loss

    run = attach.wrap(step, model=model, optimizer=optimizer)
    return Trained([model], [[run(x, y) for x, y in batches()], seen], [optimizer])


@PLAIN_LOOPS.add
def by_hand_eagerly(attach: Attachment) -> Trained:
    """a plain function that reads values, by hand."""
    weight = tf.Variable(numbers(WIDTH))
    seen = []

    def step(x: Any) -> float:
        with tf.GradientTape() as tape:
            noise = tf.random.normal(weight.shape)
            loss = 0.3 * tf.reduce_sum(tf.tanh(0.3 * weight) * x + 0.01 * noise * weight)
        gradient = tape.gradient(loss, weight)
        seen.append(float(tf.norm(gradient)))
        weight.assign_sub(0.01 * gradient)
        return float(loss)

    run = attach.wrap(step)
    told = [run(tf.constant(x)) for x in numbers(BATCHES, WIDTH, seed=1)]
    return Trained(told=[told, seen], variables=[weight])


def trains_keras_2(attach: Attachment, *, jit: bool) -> Trained:
    """A loop over a model of the older Keras, whose variables are those of TensorFlow."""
    import tf_keras

    tf_keras.backend.clear_session()
    layers = [tf_keras.layers.Dense(16, "tanh"), tf_keras.layers.Dense(CLASSES)]
    model = tf_keras.Sequential([tf_keras.Input((12,)), *layers])
    optimizer = tf_keras.optimizers.Adam(0.01, jit_compile=False)
    optimizer.build(model.trainable_variables)
    step = tf.function(lambda x, y: descend(model, optimizer, x, y), jit_compile=jit)
    run = attach.wrap(step)
    told = [run(x, y) for x, y in batches()]
    return Trained(told=told, variables=[*model.variables, *optimizer.variables])
