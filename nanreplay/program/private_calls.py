"""The private part of TensorFlow that calls compiled functions; see `private_tf`.

Every call of a `tf.function` ends in `ConcreteFunction._call_flat`, with the tensors of its arguments flattened, whoever made
it: the one place at which a training step can be seen from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from tensorflow.python.autograph.core import ag_ctx as _ag_ctx
from tensorflow.python.autograph.impl import api as _autograph
from tensorflow.python.eager import context as _context
from tensorflow.python.eager import record as _record
from tensorflow.python.eager.polymorphic_function import atomic_function as _atomic_function
from tensorflow.python.eager.polymorphic_function import concrete_function as _concrete_function
from tensorflow.python.framework import func_graph as _func_graph
from tensorflow.python.ops import handle_data_util as _handle_data_util

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
            found = _context.context().call_function(self.name.encode(), list(inputs), self.n_outputs)
        outputs = list(found or ())
        for output, kind in zip(outputs, function.function_type.flat_outputs, strict=False):
            if kind.dtype._handle_data:
                _handle_data_util.set_handle_data(output, kind.dtype._handle_data.shape_inference)
        return outputs
