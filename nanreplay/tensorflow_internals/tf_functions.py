"""Private names of TensorFlow for compiled functions, their FuncGraphs and the library.

The recorder finds out with it which function runs and runs variants of it; replays make a
ConcreteFunction of a recorded graph.
"""

from __future__ import annotations

import contextlib
import enum
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2 as _config_pb2
from tensorflow.core.protobuf import rewriter_config_pb2 as _rewriter_config_pb2
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
from tensorflow.python.ops import summary_ops_v2 as _summary_ops
from tensorflow.python.util import nest as _nest


def xla_function(function: Callable[..., Any]) -> Any:
    """A `tf.function` that XLA compiles, which may be made anew many times.

    TensorFlow counts traces by the line that a function was written in, and warns of the fifth. A
    replay traces each of its functions once; the reader could do nothing about the warning.
    """
    compiled = tf.function(function, jit_compile=True, autograph=False)
    compiled._omit_frequent_tracing_warning = True
    return compiled


# Which function runs, where, and what it is.

FuncGraph = _func_graph.FuncGraph
FUNCTION_CALL = (_concrete_function.ConcreteFunction, "_call_flat")
"""Class and name of the method that every call of a compiled function goes through.

`__call__` is no such place: a `tf.function` calls its ConcreteFunctions by `_call_flat`.
"""
GRAPH_MADE = (_func_graph.FuncGraph, "__init__")
"""Class and name of the method that runs before anything is traced."""


def is_top_level() -> bool:
    """Whether ops run now, outside of every trace."""
    return bool(tf.executing_eagerly())


def is_tracing() -> bool:
    """Whether ops go into a trace now; else they run, or go into a graph of TensorFlow 1."""
    return isinstance(tf.compat.v1.get_default_graph(), FuncGraph)


def is_tape_recording() -> bool:
    """Whether a tape of this thread may be recording; a `GradientTape` tells only of itself."""
    return bool(_record.could_possibly_record())


def func_graph(function: Any) -> Any:
    """The FuncGraph of a ConcreteFunction."""
    return function.graph


def runtime_name(function: Any) -> str:
    """The name under which the runtime knows a ConcreteFunction.

    The public `name` may be that of a rewritten function, which returns more for the gradient.
    """
    return str(function._inference_function.name.decode())


def is_trace_of(function: Any, named: Any) -> bool:
    """Whether a ConcreteFunction is `named`, or a trace of that `tf.function`.

    TensorFlow also traces a function to set its variables up; that trace has another name.
    """
    return function is named or getattr(named, "_name", None) == function.graph.name


def runs_steps_of_keras(function: Any) -> bool:
    """Whether a ConcreteFunction is what Keras 3's `fit` calls to run several steps at once.

    Nothing but the name of the function that was traced tells it from a loop of the user's.
    """
    return bool(function.graph.name == "multi_step_on_iterator")


def outermost_graph(graph: Any) -> Any:
    """The FuncGraph, around `graph`, that is not traced within another one."""
    while isinstance(getattr(graph, "outer_graph", None), FuncGraph):
        graph = graph.outer_graph
    return graph


def pack_outputs(function: Any, outputs: Sequence[Any]) -> Any:
    """What a ConcreteFunction returns, of its flat outputs."""
    return function.function_type.pack_output(outputs)


def flat_outputs(result: Any) -> list[Any]:
    """Flat outputs of a ConcreteFunction, of what it returns; the reverse of `pack_outputs`."""
    leaves = tf.nest.flatten(result, expand_composites=True)
    return [leaf for leaf in leaves if leaf is not None]


def autograph_converted(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as AutoGraph treats it at this point of a trace: converted where the caller is.

    The public `tf.autograph.to_graph` converts always, also where the user turned AutoGraph off.
    """
    return cast("Callable[..., Any]", _autograph.tf_convert(function, _ag_ctx.control_status_ctx()))


def autograph_artifact(function: Any) -> Any:
    """Mark a function of ours that AutoGraph calls as it is.

    The public `do_not_convert` would turn conversion off for what the function calls, too: for
    the user's step.
    """
    return _autograph.autograph_artifact(function)


def run_function(name: str, n_outputs: int, inputs: Sequence[Any]) -> list[Any]:
    """Run a function that the runtime knows, optimized as TensorFlow optimizes its own traces.

    `PartitionedCall` of `tf.raw_ops` would run it without TensorFlow's options for functions.
    """
    return list(_context.context().call_function(name.encode(), list(inputs), n_outputs) or ())


def function_definition(function: Any) -> Any:
    """The FunctionDef of a ConcreteFunction, a copy."""
    definition = type(function.function_def)()
    definition.CopyFrom(function.function_def)
    return definition


class Optimizers(enum.Enum):
    """Which of TensorFlow's graph optimizers go through a function before its first call."""

    ALL = "all"
    """All of them twice, as in training."""
    DECIDING = "deciding"
    """Those alone that decide about bits, without a plan for memory."""
    NONE = "none"
    """None, for a graph that they have been through."""


_DECIDING_OPTIMIZERS = (
    "function",
    "common_subgraph_elimination",
    "constfold",
    "arithmetic",
    "dependency",
    "common_subgraph_elimination",
    "remap",
)
"""An order in which once is enough.

The remapper puts several ops into one kernel. It finds most of them only once the dependency
optimizer and the elimination have cleared the way; TensorFlow needs a second round for that.
"""


@contextlib.contextmanager
def optimized_by(optimizers: Optimizers) -> Iterator[None]:
    """Let functions that this thread calls first be optimized by some of the graph optimizers.

    All of them take most of the time of a first call. The public
    `tf.config.optimizer.set_experimental_options` names neither rounds nor an order.
    """
    if optimizers is Optimizers.ALL:
        yield
        return
    context = _context.context()
    before = context.function_call_options
    config = _config_pb2.ConfigProto.FromString(before.config_proto_serialized)
    rewrites = config.graph_options.rewrite_options
    if optimizers is Optimizers.NONE:
        rewrites.disable_meta_optimizer = True
    else:
        off = _rewriter_config_pb2.RewriterConfig.OFF
        rewrites.meta_optimizer_iterations = _rewriter_config_pb2.RewriterConfig.ONE
        rewrites.experimental_conditional_code_motion = off
        rewrites.optimizers.extend(_DECIDING_OPTIMIZERS)
        rewrites.memory_optimization = _rewriter_config_pb2.RewriterConfig.NO_MEM_OPT
    context.function_call_options = _context.FunctionCallOptions(before.executor_type, config)
    try:
        yield
    finally:
        context.function_call_options = before


@contextlib.contextmanager
def optimized_graphs() -> Iterator[list[Any]]:
    """Collect the GraphDef of each function called first in here, as the optimizers leave it.

    The list is filled at the end. It stays empty while the user collects graphs by
    `tf.summary.trace_on`, since TensorFlow gives each to the first who asks.
    """
    graphs: list[Any] = []
    if _user_traces():
        yield graphs
        return
    context = _context.context()
    context.enable_graph_collection()
    try:
        yield graphs
        if not _user_traces():  # in another thread, from now on
            for function in context.export_run_metadata().function_graphs:
                graphs.append(function.post_optimization_graph)
    finally:
        if not _user_traces():
            context.disable_graph_collection()


def _user_traces() -> bool:
    """Whether the user collects graphs now, for which there is no public name."""
    return _summary_ops._current_trace_context is not None


def forget_optimized() -> None:
    """Let the runtime forget its optimized versions of functions, which take memory.

    A function that is called again is optimized anew.
    """
    _context.context().clear_kernel_cache()


class RegisteredFunction(NamedTuple):
    """A variant of a ConcreteFunction, which the runtime knows under a name of its own.

    It has the outputs of the original, and more at their end.
    """

    original: Any
    """The ConcreteFunction."""
    name: str
    n_outputs: int
    """With the added ones."""

    def __call__(self, inputs: list[Any]) -> list[Any]:
        """Run it on flat inputs and return flat outputs, as `AtomicFunction.call_flat` does."""
        return _call_flat(self.original._inference_function, self.name, self.n_outputs, inputs)


def run_flat(function: Any, inputs: list[Any]) -> list[Any]:
    """Run a ConcreteFunction where no tape records; returns its flat outputs.

    `pack_outputs` makes of them what the function returns. Its own `_call_flat` would do the same,
    and ask once more for tapes and for what only a call within a trace needs.
    """
    inference = function._inference_function
    n_outputs = len(inference.function_type.flat_outputs)
    return _call_flat(inference, inference.name.decode(), n_outputs, inputs)


def _call_flat(function: Any, name: str, n_outputs: int, inputs: list[Any]) -> list[Any]:
    """Run what the runtime knows as `name`, as `AtomicFunction.call_flat` runs `function`.

    What `call_flat` does around the call is repeated: errors name the user's source lines, no
    tape records, and handles among the outputs know the type of their variable.
    """
    with _atomic_function.InterpolateRuntimeError(function), _record.stop_recording():
        returned = _context.context().call_function(name.encode(), inputs, n_outputs)
    outputs = list(returned or ())
    # Not strict: outputs that a variant adds are no part of the original's type.
    for output, kind in zip(outputs, function.function_type.flat_outputs, strict=False):
        if kind.dtype._handle_data:
            _handle_data_util.set_handle_data(output, kind.dtype._handle_data.shape_inference)
    return outputs


# Making functions and the runtime's library of them.


def function_of_graph(
    build: Callable[[], Mapping[str, str]],
    inputs: Sequence[str],
    outputs: Sequence[str],
    effects: Sequence[str],
) -> Any:
    """Return a ConcreteFunction that runs a graph as it is.

    The public `wrap_function` makes a function of all that was built, and its `prune` makes the
    graph once more, op by op, in Python.

    Args:
        build: Adds what is to run, and nothing else, to the graph that is the default one; returns
            names of `inputs` that have another name there, to that name.
        inputs: Names of the graph's placeholders, in the order in which they are fed.
        outputs: Names of the tensors that are returned, as a list.
        effects: Names of ops that run though nothing that is returned needs them.
    """
    graph = _func_graph.FuncGraph("nanreplay_program")
    with graph.as_default():
        moved = build()
    graph.inputs = [graph.get_tensor_by_name(moved.get(name, name)) for name in inputs]
    graph.outputs = graph.structured_outputs = list(map(graph.get_tensor_by_name, outputs))
    graph.control_outputs = list(map(graph.get_operation_by_name, effects))
    specs = tuple(_input_spec(index, tensor) for index, tensor in enumerate(graph.inputs))
    graph.structured_input_signature = (specs, {})
    function = _wrap_function.WrappedFunction(graph, _wrap_function.VariableHolder())
    function._num_positional_args, function._arg_keywords = len(inputs), []
    return function


def _input_spec(index: int, tensor: Any) -> Any:
    return _tensor.TensorSpec(tensor.shape, tensor.dtype, f"input_{index}")


def handle_placeholder(dtype: Any) -> Any:
    """Return a placeholder for the handle of a variable of any shape, in the current graph.

    No public name tells a handle the type of its variable.

    Args:
        dtype: Type of the variable, a `tf.DType`.
    """
    handle = tf.compat.v1.placeholder(tf.resource, (), "nanreplay_handle")
    shape = tf.TensorShape(None)
    _handle_data_util.set_handle_data(handle, _handle_data_util.create_handle_data(shape, dtype))
    return handle


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


# What a FuncGraph and its library hold.


def stack_reader() -> Callable[[Any], Any]:
    """How to read the Python stack that made an op: returns its frames, outermost first.

    Frames of TensorFlow itself are left out where that loses none of the user's. They are four of
    five, and each that is read has its line number worked out: most of the time that it takes to
    describe a program.
    """
    own = str(Path(tf.__file__).parent)
    for module in list(sys.modules.values()):
        file = str(getattr(module, "__dict__", {}).get("__file__"))  # of a lazy one, as it is
        # TensorFlow takes all files below such a folder for its own, those of a fork as well.
        is_like_its_own = "tensorflow/python" in file or "tensorflow\\python" in file
        if is_like_its_own and not file.startswith(own):
            return lambda op: op.traceback
    return lambda op: op.traceback.get_user_frames()


def op_count(graph: Any) -> int:
    """How many ops `graph` holds: the index of the next one in `graph.get_operations()`."""
    return int(graph.num_operations())


def deferred_captures(graph: Any) -> list[Any]:
    """Placeholders that are fed with what a Python function returns at each call.

    They are the last ones of `graph.inputs`; `graph.captures` leaves them out.
    """
    return list(_nest.flatten(graph.deferred_internal_captures, expand_composites=True))


def forward_graph(graph: Any) -> Any:
    """The FuncGraph of which `graph` computes the gradient (bodies of While and If), or None."""
    return getattr(graph, "_forward_graph", None)


def library_graphs(graph: Any) -> dict[str, Any]:
    """The FuncGraphs of all functions that `graph` calls, directly or not, by function name."""
    graphs: dict[str, Any] = {}
    pending = [graph]
    while pending:
        for name, function in getattr(pending.pop(), "_functions", {}).items():
            # A `Defun` of TensorFlow 1, as CTC losses hold one, keeps no graph of its own.
            own_graph = getattr(function, "graph", None)
            if name not in graphs and own_graph is not None:
                graphs[name] = own_graph
                pending.append(own_graph)
    return graphs


def called_definition(graph: Any, name: str) -> Any:
    """The FunctionDef that a FuncGraph calls by a name, or None."""
    function = graph._functions.get(name)
    if function is None:
        return None
    return getattr(function, "cached_definition", None) or function.definition  # else a `Defun`


def function_library(name: str) -> list[Any]:
    """FunctionDefs of the eager function `name` and of all that it calls; empty for no function."""
    context = _context.context()
    definitions: dict[str, Any] = {}
    pending = [name]
    while pending:
        function = pending.pop()
        if function in definitions or not context.has_function(function):
            continue
        definitions[function] = context.get_function_def(function)
        for node in definitions[function].node_def:
            pending.append(node.op)  # a function may be called as if it were an op
            for value in node.attr.values():
                if value.HasField("func"):
                    pending.append(value.func.name)
                for called in value.list.func:
                    pending.append(called.name)
    return list(definitions.values())
