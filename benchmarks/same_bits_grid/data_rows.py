"""What `fit` takes batches from, and how many steps a call of the compiled function makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from same_bits_grid.training import (
    BATCH,
    CLASSES,
    SAMPLES,
    Attachment,
    Row,
    Spy,
    Trained,
    compiled,
    fit,
    fitted,
    numbers,
    regression,
    with_and_without_xla,
)

Train = Callable[..., Trained]
REST = 3
"""Samples of the last, smaller batch."""


def dataset(samples: int = SAMPLES, **given: Any) -> Any:
    return tf.data.Dataset.from_tensor_slices(regression(samples=samples)).batch(BATCH, **given)


def of_unknown_length(samples: int = SAMPLES) -> Any:
    return dataset(samples).filter(lambda x, y: True)


def batches(samples: int = SAMPLES) -> Iterator[Any]:
    x, y = regression(samples=samples)
    for start in range(0, samples, BATCH):
        yield x[start : start + BATCH], y[start : start + BATCH]


def for_ever() -> Iterator[Any]:
    while True:
        yield from batches()


class OwnDataset(keras.utils.PyDataset):
    """Batches by index, which change from epoch to epoch."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.epoch = 0

    def __len__(self) -> int:
        return SAMPLES // BATCH

    def __getitem__(self, index: int) -> Any:
        x, y = numbers(BATCH, 12, seed=index), numbers(BATCH, CLASSES, seed=index + 100)
        return x, y + self.epoch

    def on_epoch_end(self) -> None:
        self.epoch += 1


def random_crops() -> Any:
    """A pipeline with draws of its own, shuffled."""
    data = tf.data.Dataset.from_tensor_slices(regression())
    noisy = data.map(lambda x, y: (x + tf.random.uniform((12,)), y)).shuffle(16)
    return noisy.batch(BATCH).prefetch(2)


def with_weights() -> Any:
    x, y = regression()
    return tf.data.Dataset.from_tensor_slices((x, y, abs(numbers(SAMPLES, seed=3)))).batch(BATCH)


def through_python() -> Any:
    def scaled(x: Any, y: Any) -> Any:
        return tf.numpy_function(lambda given: given * np.float32(0.5), [x], tf.float32), y

    shapes = tf.data.Dataset.from_tensor_slices(regression()).batch(BATCH).map(scaled)
    return shapes.map(lambda x, y: (tf.ensure_shape(x, (None, 12)), y))


SOURCES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "arrays": (regression, {}),
    "arrays, shuffled": (regression, {"shuffle": True}),
    "arrays with a rest": (lambda: regression(samples=SAMPLES + REST), {}),
    "arrays, split for validation": (regression, {"validation_split": 0.3}),
    "arrays, fewer steps": (regression, {"steps_per_epoch": 3}),
    "a dataset": (dataset, {}),
    "a dataset with a rest": (lambda: dataset(SAMPLES + REST), {}),
    "a dataset with weights": (with_weights, {}),
    "a dataset, validated by another": (
        dataset,
        {"validation_data": dataset, "validation_freq": 2, "validation_steps": 2},
    ),
    "a dataset of unknown length": (of_unknown_length, {}),
    "a dataset of unknown length, validated": (
        of_unknown_length,
        {"validation_data": of_unknown_length},
    ),
    "a dataset of unknown length with a rest": (lambda: of_unknown_length(SAMPLES + REST), {}),
    "a dataset repeated": (lambda: dataset().repeat(), {"steps_per_epoch": 7}),
    "a dataset that ends early": (dataset, {"steps_per_epoch": 4}),
    "a dataset with random draws": (random_crops, {}),
    "a dataset through Python": (through_python, {}),
    "a generator": (batches, {"epochs": 1}),
    "a generator without end": (for_ever, {"steps_per_epoch": 6}),
    "a PyDataset": (OwnDataset, {}),
    "a PyDataset, shuffled": (OwnDataset, {"shuffle": True}),
    "a PyDataset with workers": (lambda: OwnDataset(workers=2), {}),
}
"""Each with what else `fit` is given; functions among it are called."""

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "decay and schedule": lambda: keras.optimizers.SGD(
        keras.optimizers.schedules.ExponentialDecay(0.1, 4, 0.5, staircase=True),
        weight_decay=0.1,
    ),
    "EMA": lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=4),
    "accumulation": lambda: keras.optimizers.SGD(0.05, gradient_accumulation_steps=3),
}


def data_rows() -> Iterator[Row]:
    for name in SOURCES:
        yield from with_and_without_xla("data", name, trains(name))
    for title, optimizer in OPTIMIZERS.items():
        name = "a dataset of unknown length"
        yield Row("data", f"{name}, {title}", trains_graph(name, optimizer=optimizer))
    yield Row("data", "sequences of several lengths", trains_lengths)
    yield Row("data", "dicts of inputs and outputs", trains_dicts)
    yield Row("data", "one iterator in two fits", trains_iterator)


def trains(name: str, **how: Any) -> Train:
    def train(attach: Attachment, *, jit: bool) -> Trained:
        make, given = SOURCES[name]
        given = {key: value() if callable(value) else value for key, value in given.items()}
        how_compiled = {key: value() if callable(value) else value for key, value in how.items()}
        model, spy = compiled(jit=jit, metrics=["mae"], **how_compiled), Spy()
        data = make()
        pair = data if isinstance(data, tuple) else (data, None)
        told = fit(attach, model, *pair, callbacks=[spy], **given)
        return Trained([model], [told, spy.seen, getattr(data, "epoch", None)])

    return train


def trains_graph(name: str, **how: Any) -> Callable[[Attachment], Trained]:
    train = trains(name, **how)
    return lambda attach: train(attach, jit=False)


def trains_lengths(attach: Attachment) -> Trained:
    hidden = layers.GRU(8, dropout=0.2)
    model = keras.Sequential([keras.Input((None, 6)), hidden, layers.Dense(CLASSES)])
    lengths = (5, 3, 5, 7, 3)

    def give() -> Iterator[Any]:
        for place, length in enumerate(lengths):
            yield numbers(BATCH, length, 6, seed=place), numbers(BATCH, CLASSES, seed=place)

    shapes = (tf.TensorSpec((None, None, 6)), tf.TensorSpec((None, CLASSES)))
    data = tf.data.Dataset.from_generator(give, output_signature=shapes)
    return fitted(attach, compiled(model=model), data)


def trains_dicts(attach: Attachment) -> Trained:
    inputs = {name: keras.Input((6,), name=name) for name in ("left", "right")}
    joined = layers.Concatenate()(list(inputs.values()))
    outputs = {"out": layers.Dense(CLASSES, name="out")(layers.Dropout(0.2)(joined))}
    model = compiled(model=keras.Model(inputs, outputs))
    x, y = regression()
    return fitted(attach, model, {"left": x[:, :6], "right": x[:, 6:]}, {"out": y})


def trains_iterator(attach: Attachment) -> Trained:
    """The second fit goes on where the first one left the generator."""
    model, source = compiled(), for_ever()
    told = [fit(attach, model, source, steps_per_epoch=3, epochs=2) for _ in range(2)]
    return Trained([model], [told, next(source)[0]])


# Several steps in one call

EXECUTIONS = ("arrays with a rest", "a dataset of unknown length with a rest", "a dataset repeated")


def execution_rows() -> Iterator[Row]:
    for name in EXECUTIONS:
        for steps in (1, 3, 8):
            title = f"{steps}, {name}"
            train = trains(name, steps_per_execution=steps)
            yield from with_and_without_xla("steps_per_execution", title, train)
    many = "a dataset of unknown length with a rest"
    for title, optimizer in OPTIMIZERS.items():
        train = trains_graph(many, optimizer=optimizer, steps_per_execution=3)
        yield Row("steps_per_execution", f"3, {many}, {title}", train)
    for name in ("a generator without end", "a PyDataset", "a dataset, validated by another"):
        train = trains_graph(name, steps_per_execution=2)
        yield Row("steps_per_execution", f"2, {name}", train)
    eagerly = trains_graph(many, steps_per_execution=3, run_eagerly=True)
    yield Row("steps_per_execution", f"3, {many}, eagerly", eagerly)


# Eager steps


def eager_rows() -> Iterator[Row]:
    for name in ("arrays with a rest", "a dataset of unknown length", "a PyDataset"):
        yield Row("eager", name, trains_graph(name, run_eagerly=True))
    for title, optimizer in OPTIMIZERS.items():
        train = trains_graph("arrays", optimizer=optimizer, run_eagerly=True)
        yield Row("eager", title, train)
    yield Row("eager", "LSTM", trains_eager_lstm)
    yield Row("eager", "mixed_float16", trains_eager_half)


def trains_eager_lstm(attach: Attachment) -> Trained:
    hidden = layers.LSTM(8, dropout=0.2, recurrent_dropout=0.2)
    model = keras.Sequential([keras.Input((5, 6)), hidden, layers.Dense(CLASSES)])
    data = numbers(SAMPLES, 5, 6), numbers(SAMPLES, CLASSES, seed=1)
    return fitted(attach, compiled(model=model, run_eagerly=True), *data)


def trains_eager_half(attach: Attachment) -> Trained:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return fitted(attach, compiled(run_eagerly=True))
    finally:
        keras.config.set_dtype_policy(before)
