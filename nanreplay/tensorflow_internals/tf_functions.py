"""The one module that may import private TensorFlow and Keras modules, but for those of distribution strategies.

A test names what an upgrade moved. Everything else of the package goes through the small functions below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from tensorflow.python.autograph.core import ag_ctx as _ag_ctx
from tensorflow.python.autograph.impl import api as _autograph
from tensorflow.python.eager import context as _context
from tensorflow.python.eager import record as _record
from tensorflow.python.eager import wrap_function as _wrap_function
from tensorflow.python.eager.polymorphic_function import atomic_function as _atomic_function
from tensorflow.python.eager.polymorphic_function import concrete_function as _concrete_function
from tensorflow.python.framework import func_graph as _func_graph
from tensorflow.python.framework import tensor as _tensor
from tensorflow.python.ops import handle_data_util as _handle_data_util
from tensorflow.python.util import nest as _nest

# The private part of TensorFlow that calls compiled functions; see `private_tf`.

FuncGraph = _func_graph.FuncGraph
FUNCTION_CALL = (_concrete_function.ConcreteFunction, "_call_flat")
"""Class and name of the method that every call of a compiled function goes through."""
GRAPH_MADE = (_func_graph.FuncGraph, "__init__")
"""Class and name of the method that runs before anything is traced."""


def is_top_level() -> bool:
    """Whether ops run now, outside of every trace."""
    return bool(_context.executing_eagerly())


def is_tape_recording() -> bool:
    """Whether a tape of this thread may be recording."""
    return bool(_record.could_possibly_record())


def func_graph(function: Any) -> Any:
    """The FuncGraph of a ConcreteFunction."""
    return function._func_graph


def name_of(function: Any) -> str:
    """The name under which the runtime knows a ConcreteFunction."""
    return str(function._inference_function.name.decode())


def is_of(function: Any, named: Any) -> bool:
    """Whether a ConcreteFunction is `named`, or a trace of that `tf.function`, not one that TensorFlow makes to set variables up."""
    return function is named or getattr(named, "_name", None) == function._func_graph.name


def outermost(graph: Any) -> Any:
    """The FuncGraph, around `graph`, that is not traced within another one."""
    while isinstance(getattr(graph, "outer_graph", None), FuncGraph):
        graph = graph.outer_graph
    return graph


def packed(function: Any, outputs: Sequence[Any]) -> Any:
    """What a ConcreteFunction returns, of its flat outputs."""
    return function.function_type.pack_output(list(outputs))


def converted_now(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as AutoGraph treats it at this point of a trace: converted where the caller is."""
    return cast("Callable[..., Any]", _autograph.tf_convert(function, _ag_ctx.control_status_ctx()))


def leave_to_caller(function: Any) -> Any:
    """Mark a function of ours that AutoGraph calls as it is, without turning conversion off for what it calls."""
    return _autograph.autograph_artifact(function)


def run_function(name: str, n_outputs: int, inputs: Sequence[Any]) -> list[Any]:
    """Run a function that the runtime knows, optimised as TensorFlow optimises those that it traced."""
    return list(_context.context().call_function(name.encode(), list(inputs), n_outputs) or ())


def function_definition(function: Any) -> Any:
    """The FunctionDef of a ConcreteFunction, a copy."""
    definition = type(function.function_def)()
    definition.CopyFrom(function.function_def)
    return definition


class RegisteredFunction(NamedTuple):
    """A variant of a ConcreteFunction, known to the runtime under a name of its own, with more outputs at its end."""

    original: Any
    """The ConcreteFunction."""
    name: str
    n_outputs: int
    """With the added ones."""

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """Run it on flat inputs, as `AtomicFunction.call_flat` runs the original; returns flat outputs."""
        function = self.original._inference_function
        with _atomic_function.InterpolateRuntimeError(function), _record.stop_recording():
            found = _context.context().call_function(
                self.name.encode(), list(inputs), self.n_outputs
            )
        outputs = list(found or ())
        for output, kind in zip(outputs, function.function_type.flat_outputs, strict=False):
            if kind.dtype._handle_data:
                _handle_data_util.set_handle_data(output, kind.dtype._handle_data.shape_inference)
        return outputs


# --- program.private_tf


def function_of_graph(
    wrapped: Any, inputs: Sequence[Any], outputs: Sequence[Any], effects: Sequence[Any]
) -> Any:
    """Return a ConcreteFunction that runs a wrapped graph as it is.

    Args:
        wrapped: What `tf.compat.v1.wrap_function` returned; its graph must hold only what is to run.
        inputs: Placeholders of the graph, in the order in which they are fed.
        outputs: Tensors of the graph, returned as a list.
        effects: Ops that run though nothing that is returned needs them.
    """
    graph = wrapped.graph
    graph.inputs, graph.outputs, graph.control_outputs = list(inputs), list(outputs), list(effects)
    graph.structured_outputs = list(outputs)
    graph.structured_input_signature = (
        tuple(_spec(index, tensor) for index, tensor in enumerate(inputs)),
        {},
    )
    function = _wrap_function.WrappedFunction(graph, variable_holder=wrapped._variable_holder)
    function._num_positional_args, function._arg_keywords = len(inputs), []
    return function


def _spec(index: int, tensor: Any) -> Any:
    return _tensor.TensorSpec(tensor.shape, tensor.dtype, f"input_{index}")


def register_function(function: Any) -> None:
    """Make a FunctionDef known to eager kernels under its own name."""
    context = _context.context()
    context.ensure_initialized()
    context.add_function_def(function)


def known_function(name: str) -> Any:
    """Return the FunctionDef that this process knows by a name, or None."""
    context = _context.context()
    return context.get_function_def(name) if context.has_function(name) else None


def unregister_function(name: str) -> None:
    """Forget a function that `register_function` made known."""
    context = _context.context()
    if context.has_function(name):
        context.remove_function(name)


# Tracing: which op a gradient belongs to, and how many ops a graph holds.


def op_count(graph: Any) -> int:
    """How many ops `graph` holds: the index of the next one in `graph.get_operations()`."""
    return int(graph.num_operations())


def deferred_captures(graph: Any) -> list[Any]:
    """Placeholders that are fed with what a function returns at each call; they are the last ones of `graph.inputs`."""
    return list(_nest.flatten(graph.deferred_internal_captures, expand_composites=True))


def forward_graph(graph: Any) -> Any:
    """The FuncGraph of which `graph` computes the gradient (bodies of While and If), or None."""
    return getattr(graph, "_forward_graph", None)


def library_graphs(graph: Any) -> dict[str, Any]:
    """The FuncGraphs of all functions that `graph` calls, directly or not, by function name."""
    found: dict[str, Any] = {}
    pending = [graph]
    while pending:
        for name, function in getattr(pending.pop(), "_functions", {}).items():
            if name not in found:
                found[name] = function.graph
                pending.append(function.graph)
    return found


def function_library(name: str) -> list[Any]:
    """FunctionDefs of the eager function `name` and of all functions that it calls; empty when there is none."""
    context = _context.context()
    found: dict[str, Any] = {}
    pending = [name]
    while pending:
        each = pending.pop()
        if each not in found and context.has_function(each):
            found[each] = context.get_function_def(each)
            pending += [
                attr.func.name
                for node in found[each].node_def
                for attr in node.attr.values()
                if attr.HasField("func")
            ]
            pending += [
                func.name
                for node in found[each].node_def
                for attr in node.attr.values()
                for func in attr.list.func
            ]
            pending += [node.op for node in found[each].node_def if context.has_function(node.op)]
    return list(found.values())
