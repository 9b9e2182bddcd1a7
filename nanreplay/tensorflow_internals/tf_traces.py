"""Private names of TensorFlow for the choice that a `tf.function` makes among its traces.

A loop calls its step with tensors of the same types and shapes again and again. TensorFlow asks in
each call anew which trace fits them, and that takes longer than many a short step.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.eager.polymorphic_function import function_context as _function_context
from tensorflow.python.eager.polymorphic_function import polymorphic_function as _polymorphic
from tensorflow.python.framework import ops as _ops
from tensorflow.python.util import traceback_utils as _traceback_utils

from nanreplay.tensorflow_internals import tf_functions

MOST_KNOWN = 64
"""Kinds of arguments that are remembered at once."""


FUNCTION_CHOOSES = (_polymorphic.Function, "__call__")
"""Class and name of the method by which a `tf.function` chooses a trace and calls it."""


class KnownTraces:
    """Which trace of a `tf.function` TensorFlow chose for which tensors.

    It chooses by the dtypes and shapes of tensors, by the context (a strategy, a graph), and among
    the traces that there are. As long as all of that is the same, it chooses the same trace.

    Args:
        function: The `tf.function`; it is held weakly, and so are its traces.
    """

    def __init__(self, function: Any) -> None:
        self._function = weakref.proxy(function)
        self._traces: dict[Any, weakref.ref[Any]] = {}
        """By what TensorFlow chooses by, as `_describe` gives it."""
        self._count = 0
        """How many traces there were when these were chosen."""
        self._context: Any = None
        """The context in which they were chosen."""
        # As `tf.function` has it: an error shows no frames within TensorFlow.
        self.run: Callable[[Callable[[], Any]], Any]
        self.run = _traceback_utils.filter_traceback(self._run)

    def find(self, args: Sequence[Any]) -> tuple[Any, list[Any]] | None:
        """The ConcreteFunction that TensorFlow would call, and its flat inputs.

        None where that is not known.
        """
        if not self._traces or self._function.experimental_get_tracing_count() != self._count:
            return None
        tensors: list[Any] = []
        known = self._traces.get(_describe(tuple(args), tensors))
        if known is None or _function_context.make_function_context() != self._context:
            return None
        trace = known()
        return None if trace is None else (trace, tensors)

    def learn(self, args: Sequence[Any], trace: Any) -> None:
        """Remember that TensorFlow may have called this ConcreteFunction for `args`.

        A trace of another function is not remembered.
        """
        if trace is None or not tf_functions.is_trace_of(trace, self._function):
            return
        tensors: list[Any] = []
        described = _describe(tuple(args), tensors)
        if described is None or not _takes_as_they_are(trace, args, tensors):
            return
        count = self._function.experimental_get_tracing_count()
        context = _function_context.make_function_context()
        is_other = count != self._count or context != self._context
        if is_other or len(self._traces) >= MOST_KNOWN:
            self._traces.clear()
        self._count, self._context = count, context
        self._traces[described] = weakref.ref(trace)

    def _run(self, run: Callable[[], Any]) -> Any:
        """Run a trace as `tf.function` does: a profile shows it, and its calls are counted.

        TensorFlow warns of functions that are traced in many of their calls.
        """
        function = self._function
        with tf.profiler.experimental.Trace(function._name) as profiled:
            result = run()
            compiler = "xla" if function._jit_compile else "nonXla"
            profiled.set_metadata(
                tf_function_call=f"notTraced-{compiler}", tracing_count=self._count
            )
        _polymorphic._frequent_tracing_detector_manager.called_without_tracing(
            function._key_for_call_stats
        )
        return result


_CONSTANTS = (bool, int, str)
"""Types of Python of which each value is traced for itself; an equal float may be another one."""


def _describe(value: Any, tensors: list[Any]) -> Any:
    """What TensorFlow chooses by, hashable; None where that is more than this tells.

    Types and shapes of eager tensors, constants of Python, and in what these are nested.

    Args:
        value: What a function is given.
        tensors: The tensors in it are added here, as TensorFlow flattens them.
    """
    kind = type(value)
    if kind is _ops.EagerTensor:
        tensors.append(value)
        return value._datatype_enum(), value._shape_tuple()
    if value is None or kind in _CONSTANTS:
        return kind, value
    if kind is tuple or kind is list:
        parts = [_describe(part, tensors) for part in value]
    elif kind is dict and all(type(key) is str for key in value):
        parts = [tuple(sorted(value))]
        parts += [_describe(value[key], tensors) for key in parts[0]]
    else:
        return None
    return None if None in parts else (kind, *parts)


def _takes_as_they_are(trace: Any, args: Sequence[Any], tensors: Sequence[Any]) -> bool:
    """Whether the tensors in `args` are the flat inputs of a ConcreteFunction, in this order."""
    if tf_functions.deferred_captures(trace.graph):
        return False  # what these are is asked for in each call
    if any(tensor.dtype in (tf.resource, tf.variant) for tensor in tensors):
        return False  # of these, dtype and shape do not tell all
    try:
        flat = trace.function_type.unpack_inputs(trace.function_type.bind(*args))
    except TypeError:  # such as where an argument that was left out has a default
        return False
    return len(flat) == len(tensors) and all(
        one is other for one, other in zip(flat, tensors, strict=True)
    )
