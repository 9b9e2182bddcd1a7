"""A step that runs eagerly: state and batch are kept before each call, and an incident's step is run once more under watch."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay.program.fingerprint import Fingerprint, read_variable
from nanreplay.program.traced_program import is_variable
from nanreplay.tensorflow_internals import tf_datasets


def is_new(tensor: Any, reads: Mapping[int, Any]) -> bool:
    return id(tensor) not in reads and is_variable(tensor)


def fingerprint_values_of(watch: Fingerprint) -> Any:
    return np.zeros(0, np.float32) if watch.vector is None else watch.vector.numpy()


def repeatable(
    step: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Callable[[], Any]:
    """The call with what it was given at first: a loop may reuse the buffers of numpy arrays, which the step may change."""
    held = tf.nest.map_structure(
        lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf,
        (list(args), dict(kwargs)),
    )
    return lambda: step(*copy.copy(held[0]), **held[1])


def read_before(
    guard: Callable[[Callable[[], None]], Any],
    found: dict[int, tuple[Any, Any]],
    name: str,
    original: Callable[..., Any],
) -> Callable[..., Any]:
    """A function that assigns a variable, and keeps its value before that where it is not known: a sum may be added to unread."""
    thread = threading.get_ident()

    def keep(handle: Any) -> None:
        if tf.is_tensor(handle) and is_new(handle, found):
            with contextlib.suppress(
                tf.errors.FailedPreconditionError
            ):  # it is made, and given its first value
                found[id(handle)] = (handle, read_variable(handle))

    def assign(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == thread and tf.executing_eagerly():
            guard(lambda: keep(args[0] if args else next(iter(kwargs.values()), None)))
        return original(*args, **kwargs)

    return assign


def note_first_reads(found: dict[int, tuple[Any, Any]]) -> Callable[..., None]:
    """An op callback that keeps the value of each variable before the step: the first that is read, or that a new one is given."""
    made: dict[int, Any] = {}

    def callback(
        op_type: Any, inputs: Any, attrs: Any, outputs: Any, op_name: Any = None, graph: Any = None
    ) -> None:
        kind = op_type.decode() if isinstance(op_type, bytes) else op_type
        if graph is not None:
            return
        if kind == "VarHandleOp":
            made[id(outputs[0])] = outputs[0]
        if not inputs or inputs[0].dtype != tf.resource or id(inputs[0]) in found:
            return
        if kind == "ReadVariableOp":
            found[id(inputs[0])] = (inputs[0], outputs[0])
        elif kind == "AssignVariableOp" and id(inputs[0]) in made:
            found[id(inputs[0])] = (inputs[0], inputs[1])

    return callback


def batch_leaves(args: Any) -> tuple[list[Any], list[str]]:
    """Arrays and tensors of the step's arguments, numpy arrays copied, with a readable path each."""
    only = args[0] if isinstance(args, tuple) and len(args) == 1 else args
    leaves, paths = [], []
    for path, leaf in tf_datasets.flatten_with_paths(only):
        if isinstance(leaf, np.ndarray):
            leaves.append(leaf.copy())
            paths.append(path)
        elif (
            tf.is_tensor(leaf)
            and not isinstance(leaf, tf.Variable)
            and leaf.dtype not in (tf.resource, tf.variant)
        ):
            leaves.append(leaf)
            paths.append(path)
    return leaves, paths
