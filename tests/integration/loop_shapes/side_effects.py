"""What else a step does, or a loop between its steps."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from loop_shapes.base import FEATURES, ROWS, Run, Spread, error, make, shape, update

PYTHON = "XLA cannot call Python"


@shape(xla="XLA cannot compile what writes a file")
def summary(run: Run) -> Any:
    model, optimizer = make()
    counter = tf.Variable(0, dtype=tf.int64)
    with tempfile.TemporaryDirectory() as folder:
        writer = tf.summary.create_file_writer(folder)

        def step(x: Any, y: Any) -> Any:
            loss = update(model, optimizer, x, y)
            with writer.as_default():
                tf.summary.write("loss", loss, step=counter)
            counter.assign_add(1)
            return loss

        found = run.loop(run.compiled(step), model, optimizer)
        run.close()
        writer.close()
    return [*found, counter]


@shape()
def summary_between_steps(run: Run) -> Any:
    model, optimizer = make()
    step = run.compiled(lambda x, y: update(model, optimizer, x, y))
    step = run.wrap(step, model=model, optimizer=optimizer)
    with tempfile.TemporaryDirectory() as folder:
        writer = tf.summary.create_file_writer(folder)
        for number, (x, y) in enumerate(run.batches()):
            loss = step(x, y)
            with writer.as_default(step=number):
                tf.summary.write("loss", loss)
        writer.close()
    return [model, optimizer]


@shape(xla="XLA cannot compile what prints")
def printing(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        loss = update(model, optimizer, x, y)
        tf.print("loss", loss)
        return loss

    return run.loop(run.compiled(step), model, optimizer)


@shape()
def assertions(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        tf.debugging.assert_all_finite(x, "the batch is not finite")
        tf.debugging.assert_equal(tf.shape(x)[0], tf.shape(y)[0])
        tf.debugging.assert_less(tf.reduce_max(tf.abs(x)), 1e3, "the batch is not scaled")
        tf.debugging.Assert(tf.reduce_all(tf.abs(y) < 1e3), [y])
        return update(model, optimizer, x, y)

    return run.loop(run.compiled(step), model, optimizer)


@shape()
def checkpoint_in_the_step(run: Run) -> Any:
    model, optimizer = make()
    inner = run.compiled(lambda x, y: update(model, optimizer, x, y))
    with tempfile.TemporaryDirectory() as folder:
        manager = checkpoints(folder, model)

        def step(x: Any, y: Any) -> Any:
            loss = inner(x, y)
            manager.save()
            return loss

        return run.loop(step, model, optimizer)


@shape()
def checkpoint_between_steps(run: Run) -> Any:
    model, optimizer = make()
    step = run.compiled(lambda x, y: update(model, optimizer, x, y))
    step = run.wrap(step, model=model, optimizer=optimizer)
    with tempfile.TemporaryDirectory() as folder:
        manager = checkpoints(folder, model)
        for x, y in run.batches():
            step(x, y)
            manager.save()
            model.save_weights(Path(folder) / "last.weights.h5")
    return [model, optimizer]


@shape()
def checkpoint_restored_between_steps(run: Run) -> Any:
    """After batch 3 the weights are those after batch 1 again."""
    model, optimizer = make()
    step = run.compiled(lambda x, y: update(model, optimizer, x, y))
    step = run.wrap(step, model=model, optimizer=optimizer)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = tf.train.Checkpoint(model=model)
        for number, (x, y) in enumerate(run.batches()):
            step(x, y)
            if number == 1:
                kept = checkpoint.write(f"{folder}/kept")
            if number == 3:
                checkpoint.read(kept)
    return [model, optimizer]


def checkpoints(folder: str, model: Any) -> Any:
    return tf.train.CheckpointManager(tf.train.Checkpoint(model=model), folder, max_to_keep=2)


@shape()
def learning_rate_set_between_steps(run: Run) -> Any:
    model, optimizer = make()
    step = run.compiled(lambda x, y: update(model, optimizer, x, y))
    step = run.wrap(step, model=model, optimizer=optimizer)
    for number, (x, y) in enumerate(run.batches()):
        optimizer.learning_rate = 0.01 / (1 + number)
        step(x, y)
    return [model, optimizer]


@shape()
def evaluation_between_steps(run: Run) -> Any:
    """A compiled function that does not train, and metrics of Keras."""
    model, optimizer = make()
    metric = keras.metrics.MeanSquaredError()
    step = run.compiled(lambda x, y: update(model, optimizer, x, y))
    step = run.wrap(step, model=model, optimizer=optimizer)

    def evaluate(x: Any, y: Any) -> None:
        metric.update_state(y, model(x))

    evaluate = run.compiled(evaluate)
    for number, (x, y) in enumerate(run.batches()):
        step(x, y)
        evaluate(x, y)
        if number % 3 == 2:
            metric.reset_state()
    return [model, optimizer, metric]


@shape(xla=PYTHON, unproved=True)
def noise_of_numpy(run: Run) -> Any:
    """Augmentation by a Python function: its random numbers are not in the graph."""
    model, optimizer = make()
    random = np.random.default_rng(5)

    def scaled(x: Any) -> Any:
        return (x * random.uniform(0.5, 1.5)).astype("float32")

    def step(x: Any, y: Any) -> Any:
        x = tf.ensure_shape(tf.numpy_function(scaled, [x], tf.float32), [ROWS, FEATURES])
        return update(model, optimizer, x, y)

    return run.loop(run.compiled(step), model, optimizer)


@shape(xla_differs="XLA ignores the seed")
def random_numbers_without_a_seed(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        return update(model, optimizer, x * tf.random.uniform([], 0.5, 1.5), y)

    return run.loop(run.compiled(step), model, optimizer)


@shape()
def dropout_and_normalisation(run: Run) -> Any:
    """Layers with a state of their own: seeds and moving averages."""
    keras.utils.set_random_seed(7)
    layers = [
        keras.layers.Input((FEATURES,)),
        Spread(name="spread"),
        keras.layers.Dense(6, name="hidden"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.Dropout(0.3, name="dropout"),
        keras.layers.Dense(1, name="out"),
    ]
    model, optimizer = keras.Sequential(layers), keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = error(lambda x: model(x, training=True), x, y)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return run.loop(run.compiled(step), model, optimizer)
