"""What a bug of the collection is, and the few helpers that its trainings share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from nanreplay import Recorder

ROWS = 8
"""Samples of a batch."""
Train = Callable[[Path, "str | None"], None]
"""(where the capture goes, the fix to train with or None)"""
BUGS: dict[str, Bug] = {}
CLIPPING = ("clipnorm", "clipvalue", "global_clipnorm")


@dataclass(frozen=True)
class Bug:
    """One bug: the training, what bisecting must name, why it happens, and what helps."""

    train: Train
    step: int
    phase: str
    ops: tuple[str, ...]
    """Types of the op that may be named; none when the batch itself is not finite."""
    causes: tuple[str, ...]
    """Kinds of cause that are right, the best one first."""
    layer: str | None = None
    rows: tuple[int, ...] | None = None
    iteration: int | None = None
    """Iteration of the innermost loop, None outside of loops."""
    trigger: str | None = None
    """What stopped the training (`loss`, `gradient`, ...), where that is part of the story."""
    prevents: tuple[str, ...] = ()
    """Fixes that must prevent it, in the code and tried on the recording, where one may need a
    value: `epsilon=1e-4`."""
    fails: tuple[str, ...] = ()
    """Fixes that look right and must not prevent it, in the code and tried on the recording."""
    prevents_in_code: tuple[str, ...] = ()
    """Rewritings that help and that only the code can hold."""
    fails_in_code: tuple[str, ...] = ()
    """Rewritings that look right, do not help, and that only the code can hold."""

    @property
    def name(self) -> str:
        """What happens, in a few words."""
        return str(getattr(self.train, "__name__", self.train))

    def run(self, path: Path, fix: str | None = None) -> bool:
        """Train, and return whether something was not finite, so that there is a capture at
        `path`."""
        keras.backend.clear_session()
        keras.utils.set_random_seed(0)
        self.train(path, fix)
        return path.exists()


def bug(**facts: Any) -> Callable[[Train], Train]:
    """Register a training with the facts of its `Bug`."""

    def register(train: Train) -> Train:
        made = Bug(train=train, **facts)
        BUGS[made.name] = made
        return train

    return register


class Compute(keras.layers.Layer):
    """A layer made of a function."""

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        super().__init__(**options)
        self.function = function

    def call(self, *inputs: Any) -> Any:
        return self.function(*inputs)


def sgd(rate: float, fix: str | None = None, **options: Any) -> Any:
    return keras.optimizers.SGD(**_with(fix, rate, options))


def adam(rate: float, fix: str | None = None, **options: Any) -> Any:
    return keras.optimizers.Adam(**_with(fix, rate, options))


def _with(fix: str | None, rate: float, options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of an optimizer, with the clipping or the lower learning rate that people try
    first."""
    arguments = {"learning_rate": rate / 10 if fix == "lr" else rate, **options}
    if fix in CLIPPING:
        arguments = {key: value for key, value in arguments.items() if key not in CLIPPING} | {
            fix: 1.0
        }
    return arguments


def normal(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def uniform(seed: int, *shape: int, low: float = 0.0, high: float = 1.0) -> Any:
    return np.random.default_rng(seed).uniform(low, high, size=shape).astype("float32")


def at(step: int, row: int) -> int:
    """Index in the data of one row of one step."""
    return step * ROWS + row


def fit(path: Path, model: Any, x: Any, y: Any = None, *, window: int = 32, **options: Any) -> None:
    """Fit until something is not finite."""
    if isinstance(x, (np.ndarray, list, dict)):
        options["batch_size"] = ROWS
    if model.built:
        model.optimizer.build(model.trainable_variables)  # else TensorFlow traces the step twice
    model.fit(
        x,
        y,
        shuffle=False,
        verbose=0,
        callbacks=[Recorder(str(path), on_nan="stop", window=window)],
        **options,
    )


def loop(path: Path, step: Callable[..., Any], arrays: Iterable[Any], **parts: Any) -> None:
    """Call `step` with the batches of `arrays`, in order, until something is not finite."""
    arrays = tuple(arrays)
    with Recorder(str(path), on_nan="stop") as recorder:
        recorded = recorder.wrap(step, **parts)
        for start in range(0, len(arrays[0]), ROWS):
            recorded(*(array[start : start + ROWS] for array in arrays))
            if recorder.stopped:
                break


@contextmanager
def mixed_float16(fix: str | None) -> Iterator[None]:
    """Layers that compute in float16, unless the fix is `float32`."""
    keras.mixed_precision.set_global_policy("float32" if fix == "float32" else "mixed_float16")
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy("float32")
