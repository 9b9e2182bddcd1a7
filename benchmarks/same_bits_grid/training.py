"""What the trainings of the grid share: how a recorder is attached, small data, and `fit`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from nanreplay import Recorder

EPOCHS, BATCH, STEPS = 3, 8, 5
SAMPLES = BATCH * STEPS
CLASSES = 4


@dataclass
class Attachment:
    """Attaches recorders to a training that is recorded, and nothing to a bare one."""

    folder: Path | None
    """Where recorders would write; None: the training is bare."""

    recorders: list[Recorder] = field(default_factory=list)
    """All that were attached."""

    wrapping: list[Recorder] = field(default_factory=list)
    """Those of loops, which end when they are closed; `fit` ends by itself."""

    def callbacks(self, *others: Any, **settings: Any) -> list[Any]:
        """The callbacks of one `fit`: `others`, then a new recorder."""
        return [*others, *self.recorder(**settings)]

    def recorder(self, **settings: Any) -> list[Recorder]:
        """A new recorder in a list, which is empty where training is bare."""
        if self.folder is None:
            return []
        self.recorders.append(Recorder(self.folder / f"{len(self.recorders)}.h5", **settings))
        return self.recorders[-1:]

    def wrap(self, step: Callable[..., Any], **names: Any) -> Callable[..., Any]:
        """The step of a loop, wrapped by a recorder that all steps of this training share."""
        if self.folder is None:
            return step
        if not self.wrapping:
            self.wrapping += self.recorder()
        return self.wrapping[0].wrap(step, **names)


@dataclass(frozen=True)
class Trained:
    """What a training leaves behind."""

    models: Sequence[Any] = ()
    told: Any = None
    """Histories, losses, and what else the training itself saw."""
    optimizers: Sequence[Any] = ()
    """Those that no model holds."""
    variables: Sequence[Any] = ()
    """Weights that no model holds."""


@dataclass(frozen=True)
class Row:
    """One training of the grid."""

    group: str
    name: str
    train: Callable[[Attachment], Trained]
    prepare: Callable[[], Any] | None = None
    """What must be set before TensorFlow is used; such a row has a process of its own."""

    @property
    def title(self) -> str:
        """The group and the name: unique in the grid."""
        return f"{self.group}: {self.name}"


class Table(dict[str, Callable[..., Any]]):
    """Trainings by name."""

    def add(self, train: Any) -> Any:
        """Put a training in that is named by its docstring."""
        self[(train.__doc__ or "").strip().rstrip(".")] = train
        return train


def numbers(*shape: int, seed: int = 0) -> Any:
    """Normal numbers of that shape, the same in each call."""
    return np.random.RandomState(seed).randn(*shape).astype("float32")


def integers(high: int, *shape: int, seed: int = 0) -> Any:
    """Integers from 0 to `high` - 1."""
    return np.random.RandomState(seed).randint(0, high, shape).astype("int32")


def regression(features: int = 12, samples: int = SAMPLES) -> tuple[Any, Any]:
    """Inputs [samples, features] and targets [samples, 4]."""
    return numbers(samples, features), numbers(samples, CLASSES, seed=1)


def mlp(*, features: int = 12, dropout: float = 0.2) -> Any:
    """A perceptron with batch statistics and dropout, not compiled."""
    layers = keras.layers
    hidden = [layers.Dense(24, "relu"), layers.BatchNormalization(), layers.Dropout(dropout)]
    return keras.Sequential([keras.Input((features,)), *hidden, layers.Dense(CLASSES)])


def compiled(optimizer: Any = "adam", *, jit: bool = False, model: Any = None, **how: Any) -> Any:
    """A compiled model: `mlp` by default, with the mean squared error."""
    model = mlp() if model is None else model
    model.compile(optimizer, **{"loss": "mse", "jit_compile": jit, **how})
    return model


def fit(attach: Attachment, model: Any, x: Any = None, y: Any = None, **how: Any) -> dict[str, Any]:
    """Fit with a new recorder after the callbacks that are given; returns the history."""
    x, y = regression() if x is None else (x, y)
    others = how.pop("callbacks", [])
    given = {"epochs": EPOCHS, "shuffle": False, "verbose": 0, **how}
    if isinstance(x, (np.ndarray, list, tuple, dict)):
        given.setdefault("batch_size", BATCH)
    history: dict[str, Any] = model.fit(x, y, callbacks=attach.callbacks(*others), **given).history
    return history


def fitted(attach: Attachment, model: Any, x: Any = None, y: Any = None, **how: Any) -> Trained:
    """What one `fit` leaves behind."""
    return Trained([model], fit(attach, model, x, y, **how))


def with_and_without_xla(
    group: str,
    name: str,
    train: Callable[..., Trained],
    *,
    xla: bool = True,
) -> Iterator[Row]:
    """The row of a training `train(attach, jit=...)` in graph mode, and that compiled by XLA."""
    yield Row(group, name, lambda attach: train(attach, jit=False))
    if xla:
        yield Row(group, f"{name}, XLA", lambda attach: train(attach, jit=True))


class Spy(keras.callbacks.Callback):
    """Keeps what a callback sees of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.seen.append(batch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen.append((batch, dict(logs or {}), int(self.model.optimizer.iterations)))
