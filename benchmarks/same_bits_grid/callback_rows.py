"""Callbacks beside the recorder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from same_bits_grid.fit_rows import plain
from same_bits_grid.training import (
    Attachment,
    Row,
    Spy,
    Table,
    Trained,
    compiled,
    fit,
    fitted,
    mlp,
    regression,
)

CALLBACKS = Table()
"""Trainings with other callbacks."""


def callback_rows() -> Iterator[Row]:
    for name, train in CALLBACKS.items():
        yield Row("callbacks", name, train)


def ended(fit: Callable[[], Any]) -> Any:
    """What `fit` returns, or the exception that it raises; messages name nodes that are counted."""
    try:
        return fit()
    except BaseException as error:
        return f"{type(error).__name__} {error if isinstance(error, RuntimeError) else ''}"


class Raises(keras.callbacks.Callback):
    """Raises at a step, counted from 0."""

    def __init__(self, error: BaseException, step: int) -> None:
        super().__init__()
        self.error, self.step = error, step

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.step -= 1
        if self.step < 0:
            raise self.error


@CALLBACKS.add
def early_stopping(attach: Attachment) -> Trained:
    """EarlyStopping that restores the best weights."""
    stopping = keras.callbacks.EarlyStopping(patience=1, restore_best_weights=True, min_delta=0.1)
    return validated(attach, stopping)


@CALLBACKS.add
def plateau(attach: Attachment) -> Trained:
    """ReduceLROnPlateau."""
    return validated(attach, keras.callbacks.ReduceLROnPlateau(patience=1, min_delta=0.3))


@CALLBACKS.add
def rates(attach: Attachment) -> Trained:
    """LearningRateScheduler."""
    return validated(attach, keras.callbacks.LearningRateScheduler(lambda n, rate: rate * 0.7))


@CALLBACKS.add
def backup(attach: Attachment) -> Trained:
    """BackupAndRestore, taken up after an interrupt."""
    model = compiled()
    with tempfile.TemporaryDirectory() as folder:
        for last in (False, True):
            keeping = keras.callbacks.BackupAndRestore(Path(folder) / "backup", save_freq=2)
            interrupt = [] if last else [Raises(KeyboardInterrupt(), 7)]
            told = ended(lambda k=keeping, i=interrupt: fit(attach, model, callbacks=[k, *i]))
    return Trained([model], told)


@CALLBACKS.add
def swap(attach: Attachment) -> Trained:
    """SwapEMAWeights."""
    swapping = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    adam = keras.optimizers.Adam(0.01, use_ema=True)
    return validated(attach, swapping, optimizer=adam)


@CALLBACKS.add
def files(attach: Attachment) -> Trained:
    """ModelCheckpoint, CSVLogger, TerminateOnNaN."""
    with tempfile.TemporaryDirectory() as folder:
        csv = Path(folder) / "log.csv"
        saving = keras.callbacks.ModelCheckpoint(f"{folder}/best.keras", save_best_only=True)
        others = [saving, keras.callbacks.CSVLogger(csv), keras.callbacks.TerminateOnNaN()]
        done = validated(attach, *others)
        return Trained(done.models, [done.told, csv.read_text(encoding="utf-8")])


@CALLBACKS.add
def each_batch(attach: Attachment) -> Trained:
    """logs, weights and rate read at each batch."""
    spy, read = Spy(), []
    model = compiled(metrics=["mae"])
    reading = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: read.append(model.get_weights()[0]),
    )
    told = fit(attach, model, callbacks=[spy, reading])
    return Trained([model], [told, spy.seen, read])


class Changes(keras.callbacks.Callback):
    """Changes weights and the learning rate while `fit` runs."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == 2:
            self.model.optimizer.learning_rate = 0.5 * float(self.model.optimizer.learning_rate)
            self.model.layers[0].bias.assign_add(0.1 * np.ones(24, "float32"))


@CALLBACKS.add
def changing(attach: Attachment) -> Trained:
    """a callback that changes weights and rate."""
    return validated(attach, Changes())


class Freezes(keras.callbacks.Callback):
    """Freezes a layer in the middle, without effect until `compile`."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.model.layers[0].trainable = epoch != 1


@CALLBACKS.add
def freezing(attach: Attachment) -> Trained:
    """a callback that freezes a layer."""
    return validated(attach, Freezes())


class Stops(keras.callbacks.Callback):
    """Stops in the middle of an epoch."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.model.stop_training = batch == 2


@CALLBACKS.add
def stopping(attach: Attachment) -> Trained:
    """a callback that stops in the middle of an epoch."""
    return validated(attach, Stops(), Spy())


class Nested(keras.callbacks.Callback):
    """Evaluates the model, and trains another one, at the end of each epoch."""

    def __init__(self, attach: Attachment) -> None:
        super().__init__()
        self.attach, self.other = attach, compiled("sgd", model=mlp())

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.evaluate(*regression(), verbose=0)
        fit(self.attach, self.other, epochs=1)


@CALLBACKS.add
def nested(attach: Attachment) -> Trained:
    """a fit inside of a fit."""
    inner = Nested(attach)
    done = validated(attach, inner)
    return Trained([*done.models, inner.other], done.told)


@CALLBACKS.add
def first_of_all(attach: Attachment) -> Trained:
    """the recorder before the others, twice."""
    model, spy = compiled(), Spy()
    callbacks = [*attach.callbacks(), spy, Changes(), *attach.callbacks()]
    return Trained([model], [plain(model, callbacks), spy.seen])


@CALLBACKS.add
def a_list(attach: Attachment) -> Trained:
    """a CallbackList of one's own."""
    model = compiled()
    listed = attach.callbacks(Changes())
    callbacks = keras.callbacks.CallbackList(listed, add_history=True, model=model)
    return Trained([model], plain(model, callbacks))


def validated(attach: Attachment, *others: Any, optimizer: Any = "adam") -> Trained:
    """A fit of six epochs with validation data, and callbacks."""
    model = compiled(optimizer, metrics=["mae"])
    x, y = regression()
    given = {"validation_data": (x[:16], y[:16]), "epochs": 6}
    return fitted(attach, model, callbacks=list(others), **given)
