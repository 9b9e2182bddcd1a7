"""What a shape of a training loop is, and the model, the data and the step that all shapes share.

Eight batches of eight rows. In a training that fails, row 3 of batch 5 is constant: its standard
deviation is 0, and the layer `spread` makes 0 / 0 of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from nanreplay import Recorder

EAGER, GRAPH, XLA = "eager", "graph", "xla"
COLUMNS = (EAGER, GRAPH, XLA)
"""The step as plain Python, in a `tf.function`, and with `jit_compile=True`."""
BATCHES, ROWS, FEATURES = 8, 8, 4
BAD_BATCH, BAD_ROW = 5, 3
ORIGIN = MappingProxyType(
    {
        "step": BAD_BATCH,
        "op": "RealDiv",
        "layer": "spread",
        "rows": [BAD_ROW],
    }
)
"""What is found in most shapes."""
SHAPES: dict[str, Shape] = {}

Train = Callable[["Run"], Iterable[Any]]
"""Trains with a run; returns what has `variables`, or variables, whose bits are compared."""


@dataclass(frozen=True)
class Shape:
    """One way to write a training loop, and what must be found when it fails."""

    train: Train
    expect: dict[str, Any]
    """`step`, `op`, `layer`, `rows` and `loop` of the origin; those that are given are compared."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Columns that cannot be, with the reason."""
    files: tuple[str, ...] = ("run",)
    """Stems of the captures that a failing training leaves."""
    unproved: bool = False
    """Whether `rows` may be left open, since the step takes its batch in a way that hides them."""
    eager_step: int | None = None
    """The step in the eager column, where it is another one."""
    xla_differs: str = ""
    """Why two bare trainings compiled by XLA end with other bits, where they do."""
    may_refuse: bool = False
    """Whether one line that says what is not recorded is as good as a file."""
    slow: bool = False
    """Whether it takes more than two seconds."""

    @property
    def name(self) -> str:
        return str(getattr(self.train, "__name__", self.train))

    def repeats(self, column: str) -> bool:
        """Whether two bare trainings end with the same bits."""
        return column != XLA or not self.xla_differs

    @property
    def columns(self) -> list[str]:
        return [column for column in COLUMNS if column not in self.left_out]

    def expected(self, column: str) -> dict[str, Any]:
        """What must be found in a column; loops are Python's own in the eager one."""
        if column != EAGER:
            return self.expect
        found = {key: value for key, value in self.expect.items() if key != "loop"}
        return found if self.eager_step is None else {**found, "step": self.eager_step}


def shape(
    *,
    eager: str = "",
    xla: str = "",
    files: tuple[str, ...] = ("run",),
    unproved: bool = False,
    eager_step: int | None = None,
    xla_differs: str = "",
    may_refuse: bool = False,
    slow: bool = False,
    **expect: Any,
) -> Callable[[Train], Train]:
    """Register a training; `eager` and `xla` say why it cannot be in that column."""
    left_out = {column: why for column, why in ((EAGER, eager), (XLA, xla)) if why}

    def register(train: Train) -> Train:
        found = {**ORIGIN, **expect}
        expected = {key: value for key, value in found.items() if value is not ANYTHING}
        made = Shape(
            train,
            expected,
            left_out,
            files=files,
            unproved=unproved,
            eager_step=eager_step,
            xla_differs=xla_differs,
            may_refuse=may_refuse,
            slow=slow,
        )
        assert made.name not in SHAPES, f"two shapes are called {made.name}"
        SHAPES[made.name] = made
        return train

    return register


ANYTHING = object()
"""Stands for a fact of the origin that is not sure, so not compared."""


class Run:
    """One training of a shape: in which column, whether it fails, and who records it.

    Args:
        column: How steps are compiled.
        fails: Whether a batch holds the constant row.
        folder: Where captures go; None trains without a recorder.
    """

    def __init__(self, column: str, *, fails: bool, folder: Path | None = None) -> None:
        self.column, self.fails, self.folder = column, fails, folder
        self.recorders: dict[str, Recorder] = {}

    def recorder(self, stem: str = "run") -> Recorder | None:
        """The recorder that writes the capture of that name."""
        if self.folder is None:
            return None
        if stem not in self.recorders:
            self.recorders[stem] = Recorder(self.folder / f"{stem}.h5", on_nan="stop")
        return self.recorders[stem]

    def wrap(self, step: Any, stem: str = "run", **of: Any) -> Any:
        """The step as it is recorded, or as it is."""
        recorder = self.recorder(stem)
        return step if recorder is None else recorder.wrap(step, **of)

    def stopped(self, stem: str = "run") -> bool:
        """Whether the loop should end."""
        recorder = self.recorder(stem)
        return recorder is not None and recorder.stopped

    def close(self) -> None:
        for recorder in self.recorders.values():
            recorder.close()

    def compiled(self, function: Any, **options: Any) -> Any:
        """The function as the column has it; options are those of `tf.function`."""
        if self.column == EAGER:
            return function
        return tf.function(function, jit_compile=True if self.column == XLA else None, **options)

    def arrays(self, stem: str = "run") -> Iterator[tuple[Any, Any]]:
        """Batches as numpy arrays [8, 4] and [8, 1], until the recorder stops."""
        x, y = numbers(self.fails)
        for batch in zip(x, y, strict=True):
            if self.stopped(stem):
                return
            yield batch

    def batches(self, stem: str = "run") -> Iterator[tuple[Any, Any]]:
        """The same as tensors."""
        for x, y in self.arrays(stem):
            yield tf.constant(x), tf.constant(y)

    def dataset(self) -> Any:
        """The same as a `tf.data.Dataset`."""
        return tf.data.Dataset.from_tensor_slices(numbers(self.fails))

    def loop(self, step: Any, model: Any, optimizer: Any, call: Any = None) -> list[Any]:
        """Wrap a step and call it with every batch: `call(step, x, y)`, or `step(x, y)`."""
        recorded = self.wrap(step, model=model, optimizer=optimizer)
        for x, y in self.batches():
            recorded(x, y) if call is None else call(recorded, x, y)
        return [model, optimizer]

    def fetching_loop(
        self, step: Any, model: Any, optimizer: Any, *iterators: Any, calls: int = BATCHES
    ) -> list[Any]:
        """Wrap a step that fetches its batches itself, and call it with the iterators until the
        recorder stops."""
        recorded = self.wrap(step, model=model, optimizer=optimizer)
        for _ in range(calls):
            recorded(*iterators)
            if self.stopped():
                break
        return [model, optimizer]


class Spread(keras.layers.Layer):
    """Brings each row to mean 0 and standard deviation 1."""

    def call(self, x: Any) -> Any:
        return (x - tf.reduce_mean(x, -1, keepdims=True)) / tf.math.reduce_std(x, -1, keepdims=True)


def make(name: str = "net", seed: int = 7) -> tuple[Any, Any]:
    """A built model and its optimizer, with the same weights each time."""
    keras.utils.set_random_seed(seed)
    layers = [
        keras.layers.Input((FEATURES,)),
        Spread(name="spread"),
        keras.layers.Dense(3, "tanh", name="hidden"),
        keras.layers.Dense(1, name="out"),
    ]
    model = keras.Sequential(layers, name=name)
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    optimizer.build(model.trainable_variables)
    return model, optimizer


def numbers(fails: bool) -> tuple[Any, Any]:
    """Arrays [8 batches, 8 rows, 4 features] and [8, 8, 1]."""
    random = np.random.default_rng(3)
    x = random.normal(size=(BATCHES, ROWS, FEATURES)).astype("float32")
    y = random.normal(size=(BATCHES, ROWS, 1)).astype("float32")
    if fails:
        x[BAD_BATCH, BAD_ROW] = 2.0
    return x, y


def error(model: Any, x: Any, y: Any) -> Any:
    """Mean squared error."""
    return tf.reduce_mean(tf.square(model(x) - y))


def update(model: Any, optimizer: Any, x: Any, y: Any) -> Any:
    """One ordinary training step; returns the loss."""
    with tf.GradientTape() as tape:
        loss = error(model, x, y)
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return loss
