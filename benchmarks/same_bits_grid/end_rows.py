"""Fits and loops that end by an exception or meet NaN, and go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from same_bits_grid.callback_rows import Raises, ended
from same_bits_grid.fit_rows import plain
from same_bits_grid.training import (
    BATCH,
    Attachment,
    Row,
    Spy,
    Table,
    Trained,
    compiled,
    fit,
    regression,
)

ENDS = Table()
"""Trainings that end before their time."""
ERRORS = (RuntimeError, KeyboardInterrupt, SystemExit)


def end_rows() -> Iterator[Row]:
    for error in ERRORS:
        name = f"{error.__name__} in a callback, then a bare fit"
        yield Row("ends", name, raising(error))
    for name, train in ENDS.items():
        yield Row("ends", name, train)


def raising(error: type[BaseException]) -> Callable[[Attachment], Trained]:
    def train(attach: Attachment) -> Trained:
        model, spy = compiled(), Spy()
        first = ended(lambda: fit(attach, model, callbacks=[spy, Raises(error(), 7)]))
        return Trained([model], [first, spy.seen, plain(model, [])])

    return train


@ENDS.add
def bad_data(attach: Attachment) -> Trained:
    """an exception in the data."""

    def give() -> Iterator[Any]:
        for place in range(6):
            if place == 4:
                raise RuntimeError("no more")
            yield regression(samples=BATCH)

    model = compiled()
    return Trained([model], ended(lambda: fit(attach, model, give(), epochs=1)))


@ENDS.add
def bad_label(attach: Attachment) -> Trained:
    """an op that refuses a batch."""
    model = compiled("sgd", loss="sparse_categorical_crossentropy")
    x, y = regression()[0], np.zeros(40, "int32")
    y[27] = 9
    return Trained([model], ended(lambda: fit(attach, model, x, y)))


def with_nan(attach: Attachment, **how: Any) -> Trained:
    """The last batch of each epoch holds a NaN."""
    x, y = regression()
    x[-1, 0] = np.nan
    model = compiled(**how)
    given = {"epochs": 2, "batch_size": BATCH, "shuffle": False, "verbose": 0}
    recorders = attach.recorder(on_nan="continue")
    return Trained([model], model.fit(x, y, callbacks=recorders, **given).history)


@ENDS.add
def nan_goes_on(attach: Attachment) -> Trained:
    """NaN, and training goes on."""
    return with_nan(attach)


@ENDS.add
def nan_goes_on_eagerly(attach: Attachment) -> Trained:
    """NaN in eager steps, and training goes on."""
    return with_nan(attach, run_eagerly=True)


@ENDS.add
def nan_goes_on_by_xla(attach: Attachment) -> Trained:
    """NaN by XLA, and training goes on."""
    return with_nan(attach, jit=True)


@ENDS.add
def loop_raises(attach: Attachment) -> Trained:
    """an exception in a loop, which goes on."""
    weight = tf.Variable(tf.ones(8))

    @tf.function
    def step(x: Any) -> Any:
        tf.debugging.assert_greater(x, 0.0)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(weight * x))
        weight.assign_sub(0.01 * tape.gradient(loss, weight))
        return loss

    run = attach.wrap(step)
    told = [ended(lambda x=x: run(tf.constant(x))) for x in (0.5, 0.7, -1.0, 0.3)]
    return Trained(told=told, variables=[weight])
