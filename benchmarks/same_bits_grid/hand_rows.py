"""Updates of a variable by hand, and loops over `train_on_batch`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from same_bits_grid.training import (
    BATCH,
    SAMPLES,
    Attachment,
    Row,
    Trained,
    compiled,
    numbers,
    regression,
    with_and_without_xla,
)

WIDTH, BATCHES = 1024, 10

# Updates by hand of one variable; the loss ends in a constant factor, as does the update, so that
# TensorFlow may fold the two into one.

Update = Callable[[tf.Variable, Any, list[tf.Variable]], None]
"""Changes a weight by its gradient, with two variables beside."""


def momentum(weight: tf.Variable, gradient: Any, slots: list[tf.Variable]) -> None:
    slots[0].assign(0.9 * slots[0] - 0.01 * gradient)
    weight.assign_add(slots[0])


def adam(weight: tf.Variable, gradient: Any, slots: list[tf.Variable]) -> None:
    slots[0].assign(0.9 * slots[0] + 0.1 * gradient)
    slots[1].assign(0.999 * slots[1] + 0.001 * tf.square(gradient))
    weight.assign_sub(0.01 * slots[0] / (tf.sqrt(slots[1]) + 1e-7))


def clipped(weight: tf.Variable, gradient: Any, slots: list[tf.Variable]) -> None:
    (gradient,), _ = tf.clip_by_global_norm([gradient], 0.5)
    weight.assign_sub(0.1 * gradient)


def every_second(weight: tf.Variable, gradient: Any, slots: list[tf.Variable]) -> None:
    slots[0].assign_add(0.5 * gradient)
    slots[1].assign_add(tf.ones_like(gradient))
    if slots[1][0] >= 2.0:
        weight.assign_sub(0.01 * slots[0])
        slots[0].assign(tf.zeros_like(gradient))
        slots[1].assign(tf.zeros_like(gradient))


def noisy(weight: tf.Variable, gradient: Any, slots: list[tf.Variable]) -> None:
    weight.assign_sub(0.01 * (gradient + 0.1 * tf.random.normal(gradient.shape)))


UPDATES: dict[str, Update] = {
    "a constant rate": lambda w, g, slots: w.assign_sub(0.01 * g),
    "a rate and a mean": lambda w, g, slots: w.assign_sub(0.01 * (g / 3.0)),
    "weight decay": lambda w, g, slots: w.assign(0.999 * w - 0.01 * g),
    "the sign": lambda w, g, slots: w.assign_sub(0.01 * tf.sign(g)),
    "scatter": lambda w, g, slots: w.scatter_nd_sub([[3], [5]], 0.01 * tf.gather(g, [3, 5])),
    "momentum": momentum,
    "Adam": adam,
    "clipped": clipped,
    "every second step": every_second,
    "noise": noisy,
}


def update_rows() -> Iterator[Row]:
    for name, update in UPDATES.items():
        yield from with_and_without_xla("loops by hand", name, trains_update(update))


def trains_update(update: Update) -> Callable[..., Trained]:
    def train(attach: Attachment, *, jit: bool) -> Trained:
        weight = tf.Variable(numbers(WIDTH), name="weight")
        slots = [tf.Variable(tf.zeros(WIDTH), name=f"slot_{place}") for place in range(2)]

        @tf.function(jit_compile=jit)
        def step(x: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = 0.3 * tf.reduce_sum(tf.tanh(0.3 * weight) * x)
            update(weight, tape.gradient(loss, weight), slots)
            return loss

        run = attach.wrap(step)
        losses = [run(tf.constant(x)) for x in numbers(BATCHES, WIDTH, seed=1)]
        return Trained(told=losses, variables=[weight, *slots])

    return train


# train_on_batch


def batch_rows() -> Iterator[Row]:
    yield from with_and_without_xla("train_on_batch", "a loop", trains_batches())
    weighted = trains_batches(sample_weight=abs(numbers(BATCH, seed=3)))
    yield from with_and_without_xla("train_on_batch", "sample weights", weighted)
    named = trains_batches(return_dict=True)
    yield from with_and_without_xla("train_on_batch", "a dict of metrics", named)
    eagerly = trains_batches(run_eagerly=True)
    yield Row("train_on_batch", "eagerly", lambda attach: eagerly(attach, jit=False))


def trains_batches(*, run_eagerly: bool = False, **how: Any) -> Callable[..., Trained]:
    def train(attach: Attachment, *, jit: bool) -> Trained:
        model = compiled(jit=jit, metrics=["mae"], run_eagerly=run_eagerly)
        run = attach.wrap(lambda x, y: model.train_on_batch(x, y, **how), model=model)
        x, y = regression()
        starts = range(0, SAMPLES, BATCH)
        told = [run(x[start : start + BATCH], y[start : start + BATCH]) for start in starts]
        return Trained([model], told)

    return train
