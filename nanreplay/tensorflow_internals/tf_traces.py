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

Kinds = tuple[tuple[int, tuple[int, ...]], ...]
"""(number of the dtype, shape) of each tensor that a function is given."""
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
        self._traces: dict[Kinds, weakref.ref[Any]] = {}
        self._count = 0
        """How many traces there were when these were chosen."""
        self._context: Any = None
        """The context in which they were chosen."""
        # As `tf.function` has it: an error shows no frames within TensorFlow.
        self.run: Callable[[Callable[[], Any]], Any]
        self.run = _traceback_utils.filter_traceback(self._run)

    def find(self, args: Sequence[Any]) -> Any:
        """The ConcreteFunction that TensorFlow would call; None where that is not known.

        It takes `args` as its flat inputs.
        """
        if not self._traces or self._function.experimental_get_tracing_count() != self._count:
            return None
        trace = self._traces.get(_kinds_of(args))
        if trace is None or _function_context.make_function_context() != self._context:
            return None
        return trace()

    def learn(self, args: Sequence[Any], trace: Any) -> None:
        """Remember that TensorFlow may have called this ConcreteFunction for `args`.

        A trace of another function is not remembered.
        """
        if trace is None or not tf_functions.is_trace_of(trace, self._function):
            return
        if not all(map(_is_plain, args)) or not _takes_as_they_are(trace, args):
            return
        count = self._function.experimental_get_tracing_count()
        context = _function_context.make_function_context()
        is_other = count != self._count or context != self._context
        if is_other or len(self._traces) >= MOST_KNOWN:
            self._traces.clear()
        self._count, self._context = count, context
        self._traces[_kinds_of(args)] = weakref.ref(trace)

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


def _kinds_of(args: Sequence[Any]) -> Any:
    """What TensorFlow chooses by; None where one of `args` is no eager tensor."""
    kinds = []
    for arg in args:
        if type(arg) is not _ops.EagerTensor:
            return None
        kinds.append((arg._datatype_enum(), arg._shape_tuple()))
    return tuple(kinds)


def _is_plain(arg: Any) -> bool:
    """Whether dtype and shape are all that TensorFlow asks of an argument."""
    return type(arg) is _ops.EagerTensor and arg.dtype not in (tf.resource, tf.variant)


def _takes_as_they_are(trace: Any, args: Sequence[Any]) -> bool:
    """Whether `args` are the flat inputs of a ConcreteFunction, in this order."""
    if tf_functions.deferred_captures(trace.graph):
        return False  # what these are is asked for in each call
    try:
        flat = trace.function_type.unpack_inputs(trace.function_type.bind(*args))
    except TypeError:  # such as where an argument that was left out has a default
        return False
    return len(flat) == len(args) and all(
        one is other for one, other in zip(flat, args, strict=True)
    )
