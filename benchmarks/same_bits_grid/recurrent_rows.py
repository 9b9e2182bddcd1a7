"""Recurrent layers: cells, stacks and options, with dropout of both kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import layers

from same_bits_grid.training import (
    CLASSES,
    SAMPLES,
    Attachment,
    Row,
    Trained,
    compiled,
    fitted,
    integers,
    numbers,
    with_and_without_xla,
)

TIMES, FEATURES, UNITS, WORDS = 5, 6, 8, 30
LAYERS = {"SimpleRNN": layers.SimpleRNN, "GRU": layers.GRU, "LSTM": layers.LSTM}
CELLS = {"SimpleRNN": layers.SimpleRNNCell, "GRU": layers.GRUCell, "LSTM": layers.LSTMCell}
DROPOUTS: dict[str, dict[str, float]] = {
    "dropout": {"dropout": 0.3},
    "recurrent dropout": {"recurrent_dropout": 0.3},
    "both dropouts": {"dropout": 0.2, "recurrent_dropout": 0.2},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "backwards": {"go_backwards": True, "dropout": 0.2},
    "unrolled": {"unroll": True, "recurrent_dropout": 0.2},
    "regularized": {"kernel_regularizer": "l2", "recurrent_regularizer": "l2"},
}
Build = Callable[[], list[Any]]


def recurrent_rows() -> Iterator[Row]:
    for name in LAYERS:
        for title, options in {**DROPOUTS, **OPTIONS}.items():
            yield from rows(f"{name}, {title}", lambda n=name, o=options: [LAYERS[n](UNITS, **o)])
        for title, options in DROPOUTS.items():
            cells = f"stack of {name} cells, {title}"
            yield from rows(cells, lambda n=name, o=options: stack(n, o))
    for title, build in OTHERS.items():
        yield from rows(title, build)
    yield from with_and_without_xla("recurrent", "embedding with a mask", trains_words)
    yield Row("recurrent", "stateful", trains_stateful)


def rows(title: str, build: Build) -> Iterator[Row]:
    def train(attach: Attachment, *, jit: bool) -> Trained:
        inputs = keras.Input((TIMES, FEATURES))
        model = keras.Sequential([inputs, *build(), layers.Dense(CLASSES)])
        data = numbers(SAMPLES, TIMES, FEATURES), numbers(SAMPLES, CLASSES, seed=1)
        return fitted(attach, compiled("sgd", model=model, jit=jit), *data)

    # Last bits differ more often in graph mode; XLA takes ten seconds for a cell with dropout.
    return with_and_without_xla("recurrent", title, train, xla="recurrent" not in title)


def stack(name: str, options: dict[str, Any]) -> list[Any]:
    """Two cells, one on the other."""
    return [layers.RNN(layers.StackedRNNCells([CELLS[name](UNITS, **options) for _ in range(2)]))]


def two_layers() -> list[Any]:
    first = layers.LSTM(UNITS, dropout=0.2, return_sequences=True)
    return [first, layers.GRU(UNITS, recurrent_dropout=0.2)]


def both_ways() -> list[Any]:
    return [layers.Bidirectional(layers.GRU(UNITS, recurrent_dropout=0.2), merge_mode="sum")]


class OwnCell(layers.Layer):
    """A cell as users write it, with noise of its own."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.state_size = self.output_size = units
        self.inner, self.outer = layers.Dense(units), layers.Dense(units, use_bias=False)
        self.seeds = keras.random.SeedGenerator(3)

    def build(self, shape: Any) -> None:
        self.inner.build(shape)
        self.outer.build((None, self.state_size))

    def call(self, x: Any, states: Any, training: bool = False) -> Any:
        state = keras.ops.tanh(self.inner(x) + self.outer(states[0]))
        if training:
            state = state + 0.1 * keras.random.normal(keras.ops.shape(state), seed=self.seeds)
        return state, [state]


OTHERS: dict[str, Build] = {
    "two layers": two_layers,
    "bidirectional, summed": both_ways,
    "a cell of one's own": lambda: [layers.RNN(OwnCell(UNITS))],
    "convolution, then LSTM": lambda: [layers.Conv1D(8, 2, activation="relu"), layers.LSTM(UNITS)],
}


def trains_words(attach: Attachment, *, jit: bool) -> Trained:
    """Sequences of several lengths, padded."""
    x = integers(WORDS, SAMPLES, TIMES)
    x[np.arange(TIMES) >= 1 + integers(TIMES, SAMPLES, 1, seed=2)] = 0
    hidden = [layers.Embedding(WORDS, FEATURES, mask_zero=True), layers.LSTM(UNITS, dropout=0.2)]
    model = keras.Sequential([keras.Input((TIMES,), dtype="int32"), *hidden, layers.Dense(CLASSES)])
    y = numbers(SAMPLES, CLASSES, seed=1)
    return fitted(attach, compiled(model=model, jit=jit), x, y)


def trains_stateful(attach: Attachment) -> Trained:
    """The state of one batch goes on in the next."""
    inputs = keras.Input(batch_shape=(8, TIMES, FEATURES))
    hidden = layers.LSTM(UNITS, stateful=True, recurrent_dropout=0.2)
    model = keras.Sequential([inputs, hidden, layers.Dense(CLASSES)])
    data = numbers(SAMPLES, TIMES, FEATURES), numbers(SAMPLES, CLASSES, seed=1)
    return fitted(attach, compiled(model=model), *data)
