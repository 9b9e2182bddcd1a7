"""What is known after a training, and by how many elements two trainings differ."""

from __future__ import annotations

import random
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from same_bits_grid.training import Trained

COLUMNS = ("weights", "slots", "metrics, history", "random states", "iterations", "the rest")
Facts = dict[str, dict[str, Any]]
"""For each column, named arrays or texts."""


def state_of(trained: Trained) -> Facts:
    """All variables that the training may have changed."""
    found: Facts = {column: {} for column in COLUMNS}
    optimizers = [*trained.optimizers, *optimizers_of(trained)]
    weights = [*(each for model in trained.models for each in model.weights), *trained.variables]
    known = {id(each) for each in weights}
    # A model names its seed states among its variables only.
    others = [each for model in trained.models for each in model.variables if id(each) not in known]
    metrics = [each for model in trained.models for each in metrics_of(model)]
    metric_ids = {id(each) for each in metrics}
    found["weights"] = values(weights)
    found["random states"] = values([each for each in others if id(each) not in metric_ids])
    found["metrics, history"] = values(metrics)
    for place, optimizer in enumerate(optimizers):
        held = optimizer.variables() if callable(optimizer.variables) else optimizer.variables
        slots = [each for each in held if each is not optimizer.iterations]
        found["slots"] |= values(slots, f"{place} ")
        found["iterations"][f"{place}"] = np.asarray(optimizer.iterations)
    return found


def optimizers_of(trained: Trained) -> list[Any]:
    """Those of the models."""
    held = [getattr(model, "optimizer", None) for model in trained.models]
    return [each for each in held if each is not None]


def metrics_of(model: Any) -> list[Any]:
    """The variables of a model's metrics, that of its loss included."""
    if hasattr(model, "metrics_variables"):
        return list(model.metrics_variables)
    return [each for metric in getattr(model, "metrics", ()) for each in metric.variables]


def values(variables: Any, prefix: str = "") -> dict[str, Any]:
    """The values of variables, of each replica that holds one."""
    found = {}
    for place, variable in enumerate(variables):
        held = variable.value if isinstance(variable, keras.Variable) else variable
        name = f"{prefix}{place} {getattr(variable, 'path', variable.name)}"
        for replica, part in enumerate(getattr(held, "values", None) or [held]):
            found[f"{name} {replica}"] = np.asarray(part)
    return found


def facts_of(trained: Trained) -> Facts:
    """The state after a training, what it told, and the next random numbers of the process."""
    found = state_of(trained)
    found["metrics, history"] |= dict(flat(trained.told))
    found["random states"] |= next_draws()
    return found


def left_behind(trained: Trained, before: dict[str, Any]) -> dict[str, str]:
    """What the training left in its models and in the process; `before`: its surroundings."""
    rest: dict[str, str] = {}
    changed = [name for name, value in surroundings().items() if value is not before[name]]
    rest["changed in the process"] = str(changed)
    left = [each for each in threading.enumerate() if "nanreplay" in each.name.lower()]
    for thread in left:
        thread.join(5)  # one that was told to end has not always ended yet
    rest["threads"] = str([each.name for each in left if each.is_alive()])
    for each in [*trained.models, *trained.optimizers, *optimizers_of(trained)]:
        rest[f"attributes of {type(each).__name__}"] = str(sorted(vars(each)))
    for place, model in enumerate(trained.models):
        for name in ("train_function", "train_step", "make_train_function", "test_function", "fit"):
            value = getattr(model, name, None)
            rest[f"{name} of model {place}"] = f"{type(value)} {getattr(value, '__qualname__', '')}"
    return rest


def surroundings() -> dict[str, Any]:
    """What a recorder might leave changed in the process; to be compared by identity."""
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    handlers = {f"handler of {each!r}": signal.getsignal(each) for each in signal.valid_signals()}
    hooks = {"excepthook": sys.excepthook, "threading.excepthook": threading.excepthook}
    return {
        **{name: by_value(handler) for name, handler in handlers.items()},
        **hooks,
        "wakeup_fd": wakeup,
        "showwarning": warnings.showwarning,
        "control status": tf.config.functions_run_eagerly(),
    }


def by_value(handler: Any) -> Any:
    """Python makes a new object of SIG_DFL at each call."""
    return int(handler) if isinstance(handler, signal.Handlers) else handler


def next_draws() -> dict[str, Any]:
    """What the random generators of the process would give next."""
    return {
        "next of random": np.asarray(random.random()),
        "next of numpy": np.random.rand(2),
        "next of tf.random": tf.random.uniform((2,)).numpy(),
        "next of keras.random": np.asarray(keras.random.uniform((2,))),
    }


def flat(told: Any, path: str = "told") -> Iterator[tuple[str, Any]]:
    """The numbers and texts of nested lists and dicts, named by their place."""
    if isinstance(told, dict):
        for key, value in told.items():
            yield from flat(value, f"{path}/{key}")
    elif isinstance(told, (list, tuple)):
        yield f"{path} length", np.asarray(len(told))
        for place, value in enumerate(told):
            yield from flat(value, f"{path}/{place}")
    elif told is None or isinstance(told, str):
        yield path, str(told)
    else:
        yield path, np.asarray(told)


def differing(one: Facts, other: Facts) -> dict[str, dict[str, int]]:
    """By column, the names whose values differ, and in how many elements."""
    found: dict[str, dict[str, int]] = {}
    for column in COLUMNS:
        names = {**one[column], **other[column]}
        counts = {name: count(one[column].get(name), other[column].get(name)) for name in names}
        found[column] = {name: each for name, each in counts.items() if each}
    return found


def count(one: Any, other: Any) -> int:
    """How many elements differ in a bit; a missing value and another shape count as one."""
    if isinstance(one, str) or isinstance(other, str) or one is None or other is None:
        return int(not (isinstance(one, str) and isinstance(other, str) and one == other))
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return 1
    if one.dtype.kind in "OSU" or not one.size:
        return int((one != other).sum())
    parts = [np.ascontiguousarray(each).reshape(-1) for each in (one, other)]
    as_bytes = [each.view(np.uint8).reshape(each.size, -1) for each in parts]
    unlike = (as_bytes[0] != as_bytes[1]).any(axis=1)
    # The bits of a NaN say nothing: which of two NaNs an addition keeps depends on their order.
    return int((unlike & ~((parts[0] != parts[0]) & (parts[1] != parts[1]))).sum())
