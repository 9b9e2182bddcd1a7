"""Private names of TensorFlow for functions that the runtime holds without a graph in Python.

The public ways to a function of a GraphDef make a Python object of each op, and keep them all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.client import pywrap_tf_session as _tf_session
from tensorflow.python.eager import context as _context
from tensorflow.python.eager import record as _record
from tensorflow.python.eager.polymorphic_function import atomic_function as _atomic_function
from tensorflow.python.framework import c_api_util as _c_api_util
from tensorflow.python.framework import func_graph as _func_graph


class LoadedFunction:
    """A function that the runtime holds, without a graph in Python.

    That would take as much memory as all that the runtime makes of it.

    Args:
        atomic: TensorFlow's AtomicFunction; the runtime forgets the function when it is gone.
        n_outputs: How many tensors it returns.
    """

    def __init__(self, atomic: Any, n_outputs: int) -> None:
        """Take the function over."""
        self._atomic = atomic
        self._n_outputs = n_outputs

    def __call__(self, *inputs: Any) -> list[Any]:
        """Run it on flat inputs and return flat outputs.

        `AtomicFunction.call_flat` would parse the whole function to count its inputs.
        """
        with _atomic_function.InterpolateRuntimeError(self._atomic), _record.stop_recording():
            context = _context.context()
            returned = context.call_function(self._atomic.name, list(inputs), self._n_outputs)
        return list(returned or ())


def loaded_function(function: Any) -> LoadedFunction:
    """Return a ConcreteFunction of `function_of_graph` without its graph.

    Args:
        function: The function, which cannot be used afterwards.
    """
    loaded = LoadedFunction(function._inference_function, len(function.outputs))
    graph = function.graph
    # made anew of the runtime's where an error names an op
    loaded._atomic._cached_graph = None
    _func_graph.dismantle_func_graph(graph)
    # These name ops, which name the graph: it would wait for the collector of cycles.
    graph.inputs, graph.outputs, graph.control_outputs = [], [], []
    graph.structured_outputs = None
    return loaded


_serials = itertools.count()


def load_graph(
    graph: Any, inputs: Sequence[str], outputs: Sequence[str], effects: Sequence[str]
) -> LoadedFunction:
    """Return a function of a GraphDef; the runtime's is that of `wrap_function`.

    The public `import_graph_def` also makes a Python object of each op, which takes four times as
    long as all the rest, and more memory.

    Args:
        graph: The GraphDef. The runtime knows none of its library's functions as another one.
        inputs: Names of its placeholders, in the order in which they are fed.
        outputs: Names of the tensors that are returned.
        effects: Names of ops that run though nothing that is returned needs them.

    Raises:
        tf.errors.InvalidArgumentError: The graph is no valid one, or lacks one of these.
    """
    scoped = _c_api_util.ScopedTFImportGraphDefOptions()
    for tensor in (*inputs, *outputs):
        op, _, number = tensor.partition(":")
        _tf_session.TF_ImportGraphDefOptionsAddReturnOutput(scoped.options, op, int(number or 0))
    for op in effects:
        _tf_session.TF_ImportGraphDefOptionsAddReturnOperation(scoped.options, op)
    context, name = _context.context(), f"__nanreplay_program_{next(_serials)}"
    serialized = _tf_session.TF_NewBufferFromString(graph.SerializeToString())
    with tf.Graph()._c_graph.get() as c_graph:
        try:
            imported = _tf_session.TF_GraphImportGraphDefWithResults(
                c_graph, serialized, scoped.options
            )
        finally:
            _tf_session.TF_DeleteBuffer(serialized)
        results = _c_api_util.ScopedTFImportGraphDefResults(imported)
        tensors = _tf_session.TF_ImportGraphDefResultsReturnOutputs(results.results)
        ops = _tf_session.TF_ImportGraphDefResultsReturnOperations(results.results)
        fed, returned = tensors[: len(inputs)], tensors[len(inputs) :]
        function = _tf_session.TF_GraphToFunction_wrapper(
            c_graph, name, False, None, fed, returned, [], ops, [], None, ""
        )
    context.add_c_function(function)
    _tf_session.TF_DeleteFunction(function)
    # Of what it takes and gives nothing is asked: it is called with flat tensors.
    called = [one for function in graph.library.function for one in _known_while_held(function)]
    atomic = _atomic_function.AtomicFunction(name, context, None, children=called)
    return LoadedFunction(atomic, len(outputs))


def _known_while_held(definition: Any) -> Iterator[Any]:
    """Make a FunctionDef known to the runtime; yields what it is to be held by, if anything.

    The runtime forgets a function with the last AtomicFunction of its name. One that somebody has
    made known without any stays known.
    """
    context, name = _context.context(), definition.signature.name
    if not context.has_function(name):
        context.add_function_def(definition)
    elif (context.function_scope_id, name.encode()) not in _atomic_function.RUNTIME_FUNCTION_REFS:
        return
    yield _atomic_function.AtomicFunction(name, context, None)
