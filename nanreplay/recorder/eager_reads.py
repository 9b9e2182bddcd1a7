"""What an eager step is given and what it reads, kept from outside while it runs.

`EagerStep` keeps the batch of each call. As long as it does not know which variables the step uses,
it also keeps the first value that is read of each, which is the state before the step.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import GeneratorType
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay.program.nonfinite_values import read_variable
from nanreplay.program.traced_program import is_variable
from nanreplay.tensorflow_internals import tf_datasets, tf_variables

Reads = dict[int, tuple[Any, Any]]
"""(handle, value) of variables, by the id of the handle."""


def batch_leaves(args: Any) -> tuple[list[Any], list[str]]:
    """Arrays and tensors of a step's arguments, with a readable path each; numpy's are copied."""
    only = args[0] if isinstance(args, tuple) and len(args) == 1 else args
    leaves, paths = [], []
    for path, leaf in tf_datasets.flatten_with_paths(only):
        if isinstance(leaf, np.ndarray):
            leaves.append(leaf.copy())
            paths.append(path)
        elif _is_data(leaf):
            leaves.append(leaf)
            paths.append(path)
    return leaves, paths


def _is_data(leaf: Any) -> bool:
    """Whether a tensor holds numbers or texts of its own."""
    return tf_variables.is_value(leaf) and leaf.dtype not in (tf.resource, tf.variant)


def repeatable(
    step: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Callable[[], Any]:
    """The call with what it is given now, for later.

    Numpy arrays are copied: a loop may reuse their buffers, and the step may change them.
    """
    kept_args, kept_kwargs = _copied((list(args), dict(kwargs)))

    def again() -> Any:
        with contextlib.ExitStack() as stack:
            for value in (*kept_args, *kept_kwargs.values()):
                if isinstance(value, NotedIterator):
                    stack.enter_context(value.repeated())
            return step(*copy.copy(kept_args), **kept_kwargs)

    return again


def _copied(structure: Any) -> Any:
    """A structure with copies of its numpy arrays."""
    return tf.nest.map_structure(
        lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, structure
    )


_READ_BY_THEMSELVES = ("ResourceGather", "ResourceGatherNd")
"""Ops that take single rows out of a variable, which nothing else reads."""
_ITERATORS: tuple[type[Any], ...] = (
    GeneratorType,
    zip,
    map,
    filter,
    enumerate,
    type(iter([])),
    type(iter(())),
)


class NotedIterator(Iterator[Any]):
    """Stands for an iterator of Python's that a step is given, and notes what the step takes.

    So that the step can run once more: what an iterator gave, it never gives again.

    Args:
        iterator: The iterator.
    """

    def __init__(self, iterator: Any) -> None:
        self._iterator = iterator
        self._again: Iterator[Any] | None = None
        self.taken: list[Any] = []
        """What the step has taken."""

    def __next__(self) -> Any:
        """The next value, noted; or once more one that was noted."""
        if self._again is not None:
            return next(self._again)
        value = next(self._iterator)
        self.taken.append(_copied(value))
        return value

    def __getattr__(self, name: str) -> Any:
        """Anything else is the iterator's own: `close`, `send`."""
        return getattr(self._iterator, name)

    @contextlib.contextmanager
    def repeated(self) -> Iterator[None]:
        """Give what was taken once more, and then nothing."""
        self._again = iter(_copied(self.taken))
        try:
            yield
        finally:
            self._again = None


def with_noted_iterators(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], list[NotedIterator]]:
    """Arguments whose generators, and other iterators of Python's own, note what is taken."""
    noted: list[NotedIterator] = []

    def one(value: Any) -> Any:
        if not isinstance(value, _ITERATORS):
            return value
        noted.append(NotedIterator(value))
        return noted[-1]

    new_args = tuple(map(one, args))
    new_kwargs = {name: one(value) for name, value in kwargs.items()}
    return (new_args, new_kwargs, noted) if noted else (args, kwargs, noted)


def read_new(handles: Iterable[Any], reads: Reads) -> None:
    """Read the variables among `handles` that are not in `reads` yet, and add them."""
    values = {}
    for handle in handles:
        if _is_new(handle, reads):
            values[id(handle)] = (handle, read_variable(handle))
    reads.update(values)


def _is_new(tensor: Any, reads: Mapping[int, Any]) -> bool:
    return id(tensor) not in reads and is_variable(tensor)


def read_before(
    guard: Callable[[Callable[[], None]], Any],
    reads: Reads,
    name: str,
    original: Callable[..., Any],
) -> Callable[..., Any]:
    """A function that assigns a variable, and keeps its value before that in `reads`.

    A sum may be added to a variable that nobody has read before.

    Args:
        guard: Runs work of the recorder's own.
        reads: Filled with the values that are not known yet.
        name: Name of the function that is replaced.
        original: The function that is replaced; its first argument is the handle.
    """
    thread = threading.get_ident()

    def keep(handle: Any) -> None:
        if not tf.is_tensor(handle) or not _is_new(handle, reads):
            return
        # A variable that is being made has no value yet: this is its first. A read of it may give
        # an empty tensor in place of an error.
        if tf.raw_ops.VarIsInitializedOp(resource=handle):
            reads[id(handle)] = (handle, read_variable(handle))

    def assign(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == thread and tf.executing_eagerly():
            guard(lambda: keep(args[0] if args else next(iter(kwargs.values()), None)))
        return original(*args, **kwargs)

    return assign


def note_first_reads(reads: Reads) -> Callable[..., None]:
    """An op callback that keeps the value of each variable before the step in `reads`.

    That is the first value that is read of it, or the one that a new variable is given.
    """
    made: dict[int, Any] = {}

    def callback(
        op_type: Any, inputs: Any, attrs: Any, outputs: Any, op_name: Any = None, graph: Any = None
    ) -> None:
        kind = op_type.decode() if isinstance(op_type, bytes) else op_type
        if graph is not None:  # an op that is traced reads nothing
            return
        if kind == "VarHandleOp":
            made[id(outputs[0])] = outputs[0]
        if not inputs or inputs[0].dtype != tf.resource or id(inputs[0]) in reads:
            return
        if kind == "ReadVariableOp":
            reads[id(inputs[0])] = (inputs[0], outputs[0])
        elif kind in _READ_BY_THEMSELVES and _is_new(inputs[0], reads):
            reads[id(inputs[0])] = (inputs[0], read_variable(inputs[0]))
        elif kind == "AssignVariableOp" and id(inputs[0]) in made:
            reads[id(inputs[0])] = (inputs[0], inputs[1])

    return callback
