"""What a step gives back."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import tensorflow as tf

from loop_shapes.base import Run, error, make, shape, update


@shape()
def nothing(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, y: Any) -> None:
        update(model, optimizer, x, y)

    return run.loop(run.compiled(step), model, optimizer)


@shape()
def dict_of_losses(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        loss = update(model, optimizer, x, y)
        return {"loss": loss, "per_row": tf.abs(y)[:, 0], "rows": tf.shape(x)[0]}

    return run.loop(run.compiled(step), model, optimizer)


@shape()
def infinity_beside_the_loss(run: Run) -> Any:
    """A measurement that is infinite where there is nothing to measure is no incident."""
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        loss = update(model, optimizer, x, y)
        far = tf.where(tf.abs(y) > 1e3, tf.abs(y), tf.constant(float("inf")))
        return {"loss": loss, "nearest_of_the_far": tf.reduce_min(far)}

    return run.loop(run.compiled(step), model, optimizer)


@shape()
def python_number(run: Run) -> Any:
    model, optimizer = make()
    inner = run.compiled(lambda x, y: update(model, optimizer, x, y))

    def step(x: Any, y: Any) -> float:
        return float(inner(x, y))

    return run.loop(step, model, optimizer)


@shape()
def numpy_number(run: Run) -> Any:
    model, optimizer = make()
    inner = run.compiled(lambda x, y: update(model, optimizer, x, y))
    return run.loop(lambda x, y: inner(x, y).numpy(), model, optimizer)


@dataclasses.dataclass
class Outcome:
    """What a trainer gives back to its loop."""

    loss: float
    message: str


@shape()
def some_object(run: Run) -> Any:
    model, optimizer = make()
    inner = run.compiled(lambda x, y: update(model, optimizer, x, y))

    def step(x: Any, y: Any) -> Outcome:
        loss = float(inner(x, y))
        return Outcome(loss, f"loss {loss:.3f}")

    return run.loop(step, model, optimizer)


@shape()
def a_sentence(run: Run) -> Any:
    model, optimizer = make()
    inner = run.compiled(lambda x, y: update(model, optimizer, x, y))
    return run.loop(lambda x, y: f"loss {inner(x, y):.3f}", model, optimizer)


@shape()
def loss_predictions_and_gradients(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            predictions = model(x)
            loss = tf.reduce_mean(tf.square(predictions - y))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss, predictions, gradients

    return run.loop(run.compiled(step), model, optimizer)


class Losses(NamedTuple):
    """Losses by name."""

    main: Any
    penalty: Any


@shape()
def named_losses(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, y: Any) -> Losses:
        with tf.GradientTape() as tape:
            main = error(model, x, y)
            penalty = 1e-3 * tf.add_n([tf.nn.l2_loss(v) for v in model.trainable_variables])
            total = main + penalty
        gradients = tape.gradient(total, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return Losses(main, penalty)

    return run.loop(run.compiled(step), model, optimizer)


@shape()
def only_what_was_predicted(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        update(model, optimizer, x, y)
        return tf.argmax(y, axis=-1)

    return run.loop(run.compiled(step), model, optimizer)
