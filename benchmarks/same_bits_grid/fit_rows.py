"""Several fits in a row."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import keras

from same_bits_grid.training import (
    BATCH,
    Attachment,
    Row,
    Table,
    Trained,
    compiled,
    fit,
    regression,
    with_and_without_xla,
)

FITS = Table()
"""Trainings of several fits, in graph mode and by XLA."""


def plain(model: Any, callbacks: list[Any], **how: Any) -> Any:
    """A fit with these callbacks, and no other recorder."""
    given = {"epochs": 2, "batch_size": BATCH, "shuffle": False, "verbose": 0, **how}
    return model.fit(*regression(), callbacks=callbacks, **given).history


def in_a_row(attach: Attachment, which: str, jit: bool, between: Any) -> Trained:
    """Two fits, the model changed between them, with a recorder in some of them."""
    model = compiled(jit=jit, metrics=["mae"])
    same = attach.callbacks() if which == "same" else []
    callbacks = {
        "same": lambda place: same,
        "new": lambda place: attach.callbacks(),
        "first": lambda place: attach.callbacks() if place == 0 else [],
        "second": lambda place: attach.callbacks() if place == 1 else [],
    }[which]
    told = [plain(model, callbacks(0))]
    between(model)
    told.append(plain(model, callbacks(1)))
    return Trained([model], told)


def freeze(model: Any) -> None:
    """Without `compile`, Keras goes on with the function that it has traced."""
    model.layers[0].trainable = False


def freeze_and_compile(model: Any) -> None:
    freeze(model)
    compiled("sgd", model=model, jit=model.jit_compile)


def slow_down(model: Any) -> None:
    model.optimizer.learning_rate = 1e-3


def evaluate(model: Any) -> None:
    model.evaluate(*regression(), verbose=0)
    model.predict(regression()[0], verbose=0)


def train_one_batch(model: Any) -> None:
    model.train_on_batch(*regression(samples=BATCH))


def set_weights(model: Any) -> None:
    model.set_weights([0.5 * each for each in model.get_weights()])


def drop_function(model: Any) -> None:
    model.make_train_function(force=True)


CHANGES: dict[str, Callable[[Any], None]] = {
    "": lambda model: None,
    ", frozen between": freeze,
    ", frozen and compiled between": freeze_and_compile,
    ", another rate between": slow_down,
    ", evaluated between": evaluate,
    ", one batch between": train_one_batch,
    ", other weights between": set_weights,
    ", train function made anew between": drop_function,
}


WHICH = {
    "same": "the same recorder",
    "new": "a new recorder each",
    "first": "a recorder in the first",
    "second": "a recorder in the second",
}


def fit_rows() -> Iterator[Row]:
    for which, title in WHICH.items():
        for change, between in CHANGES.items():
            train = trains(which, between)
            yield from with_and_without_xla("fits in a row", title + change, train)
    for title, train in FITS.items():
        yield from with_and_without_xla("fits in a row", title, train)


def trains(which: str, between: Callable[[Any], None]) -> Callable[..., Trained]:
    return lambda attach, *, jit: in_a_row(attach, which, jit, between)


@FITS.add
def two_models(attach: Attachment, *, jit: bool) -> Trained:
    """two models that share layers take turns."""
    first = compiled(jit=jit)
    second = keras.Sequential([*first.layers[:2], keras.layers.Dense(4)])
    second.build((None, 12))
    compiled("sgd", model=second, jit=jit)
    told = [fit(attach, model) for model in (first, second, first)]
    return Trained([first, second], told)


@FITS.add
def copied(attach: Attachment, *, jit: bool) -> Trained:
    """the callbacks copied for each, as searches for hyperparameters do."""
    callbacks, models, told = attach.callbacks(), [], []
    for _ in range(2):
        own = copy.deepcopy(callbacks)
        attach.recorders += own
        models.append(compiled(jit=jit))
        told.append(plain(models[-1], own))
    return Trained(models, told)


@FITS.add
def other_batches(attach: Attachment, *, jit: bool) -> Trained:
    """other sizes of batches, epochs that go on."""
    model = compiled(jit=jit)
    told = [fit(attach, model), fit(attach, model, batch_size=5, initial_epoch=1)]
    return Trained([model], told)
