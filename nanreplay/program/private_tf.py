"""The one module that may import private TensorFlow and Keras modules, but for those of distribution strategies.

A test names what an upgrade moved. Everything else of the package goes through the small functions below.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

# --- the registry of ops --------------------------------------------------------------------------------------------
from tensorflow.core.framework import op_def_pb2 as _op_def_pb2

# --- tracing (program/observe, program/describe) ---------------------------------------------------------------------
from tensorflow.python import pywrap_tfe as _pywrap_tfe
from tensorflow.python.client import pywrap_tf_session as _tf_session

# --- elements of datasets (program/batches) --------------------------------------------------------------------------
from tensorflow.python.data.util import structure as _structure
from tensorflow.python.eager import backprop as _backprop

# --- running single ops (replay/interpreter) -------------------------------------------------------------------------
from tensorflow.python.eager import context as _context
from tensorflow.python.eager import execute as _execute
from tensorflow.python.eager import wrap_function as _wrap_function
from tensorflow.python.framework import kernels as _kernels
from tensorflow.python.framework import op_callbacks as _op_callbacks
from tensorflow.python.framework import op_def_library as _op_def_library
from tensorflow.python.framework import op_def_registry as _op_def_registry
from tensorflow.python.framework import ops as _ops
from tensorflow.python.framework import tensor as _tensor
from tensorflow.python.ops import gen_dataset_ops as _gen_dataset_ops
from tensorflow.python.ops import gen_optional_ops as _gen_optional_ops
from tensorflow.python.ops import gen_random_ops as _gen_random_ops
from tensorflow.python.ops import gen_resource_variable_ops as _gen_resource_variable_ops
from tensorflow.python.ops import gen_state_ops as _gen_state_ops
from tensorflow.python.ops.resource_variable_ops import BaseResourceVariable as _ResourceVariable
from tensorflow.python.util import _pywrap_determinism
from tensorflow.python.util import nest as _nest

from nanreplay.program.private_distribution import components


def run_op(op_type: str, n_outputs: int, inputs: Sequence[Any], attrs: tuple[Any, ...]) -> list[Any]:
    """Run one eager kernel. `attrs` alternates names and values; op callbacks are not called."""
    outputs: list[Any] = _execute.quick_execute(op_type, n_outputs, inputs, attrs, _context.context())
    return outputs


def function_of_graph(wrapped: Any, inputs: Sequence[Any], outputs: Sequence[Any], effects: Sequence[Any]) -> Any:
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
    graph.structured_input_signature = (tuple(_spec(index, tensor) for index, tensor in enumerate(inputs)), {})
    function = _wrap_function.WrappedFunction(graph, variable_holder=wrapped._variable_holder)
    function._num_positional_args, function._arg_keywords = len(inputs), []
    return function


def _spec(index: int, tensor: Any) -> Any:
    return _tensor.TensorSpec(tensor.shape, tensor.dtype, f"input_{index}")


def op_definition(op_type: str) -> Any:
    """Return the OpDef that this TensorFlow registers under `op_type`, or None."""
    return _op_def_registry.get(op_type)


@cache
def _cpu_kernels(op_type: str) -> list[dict[str, set[int]]]:
    """The types that each CPU kernel of an op is limited to, by attribute."""
    found = _kernels.get_registered_kernels_for_op(op_type).kernel
    here = [kernel for kernel in found if kernel.device_type in ("CPU", "DEFAULT")]  # a DEFAULT one serves every device
    return [{each.name: set(each.allowed_values.list.type) for each in kernel.constraint} for kernel in here]


def has_kernel(op_type: str, types: Mapping[str, Sequence[int]]) -> bool:
    """Whether the CPU has a kernel of `op_type` for these types (DataType enums, by attribute)."""
    return any(all(set(types.get(name, ())) <= allowed for name, allowed in limits.items()) for limits in _cpu_kernels(op_type))


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


def hook_gradient_functions(
    token: Callable[[str, Any], str],
    observed: Callable[[Callable[[str], Any], str, str, Any, Any], Any],
) -> Callable[[], None]:
    """Put `observed` around the gradient function of every op; returns what undoes it.

    Args:
        token: (name scope, outputs of the forward op) -> the scope that the tape remembers for it.
        observed: (call with a scope, op type, remembered scope, inputs, outputs) -> what the call returned.
    """
    original_record = _execute.record_gradient

    def record_gradient(op_name: str, inputs: Any, attrs: Any, outputs: Any) -> None:
        _pywrap_tfe.TFE_Py_RecordGradient(op_name, inputs, attrs, outputs, token(_ops.get_name_scope(), outputs))

    def gradient_function(
        op_name: str, attr_tuple: Any, num_inputs: int, inputs: Any, outputs: Any, out_grads: Any, skip: Any, scope: str
    ) -> Any:
        def call(real_scope: str) -> Any:
            return _backprop._gradient_function(op_name, attr_tuple, num_inputs, inputs, outputs, out_grads, skip, real_scope)

        return observed(call, op_name, scope or "", inputs, outputs)

    def undo() -> None:
        _execute.record_gradient = original_record
        _pywrap_tfe.TFE_Py_RegisterGradientFunction(_backprop._gradient_function)

    _execute.record_gradient = record_gradient
    _pywrap_tfe.TFE_Py_RegisterGradientFunction(gradient_function)
    return undo


@contextlib.contextmanager
def explicit_reads() -> Iterator[None]:
    """Read variables that this thread hands to kernels as ops of their own, which op callbacks are told of.

    The generated functions read a `tf.Variable` among their arguments in C++, and call no op callback for it.
    """
    original, own = _pywrap_tfe.TFE_Py_FastPathExecute, threading.get_ident()

    def execute(context: Any, op_type: str, name: Any, *args: Any) -> Any:
        if threading.get_ident() == own and "Variable" not in op_type and not op_type.startswith("Resource"):
            args = tuple(map(_read, args))
        return original(context, op_type, name, *args)

    _pywrap_tfe.TFE_Py_FastPathExecute = execute
    try:
        yield
    finally:
        _pywrap_tfe.TFE_Py_FastPathExecute = original


def _read(argument: Any) -> Any:
    if isinstance(argument, (list, tuple)) and any(isinstance(each, _ResourceVariable) for each in argument):
        return [_read(each) for each in argument]
    return argument.value() if isinstance(argument, _ResourceVariable) else argument


def gradient_places() -> list[tuple[Any, str]]:
    """Module and name of what `hook_gradient_functions` replaces in Python."""
    return [(_execute, "record_gradient")]


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


def variable_type(handle: Any) -> tuple[Any, tuple[int, ...]] | None:
    """(dtype, shape) of the variable behind a resource handle; None when it is no variable or its shape is not known."""
    data = getattr(handle, "_handle_data", None)
    if data is None or not data.is_set or len(data.shape_and_type) != 1:
        return None
    entry = data.shape_and_type[0]
    shape = tuple(int(axis.size) for axis in entry.shape.dim)
    return (entry.dtype, shape) if not entry.shape.unknown_rank and min(shape, default=0) >= 0 else None


def handle_of(variable: Any) -> Any:
    """The resource handle of a `tf.Variable` or a Keras variable (of the first replica's, if mirrored), None for anything else."""
    return getattr(components(variable)[0], "handle", None)


def variables_in(owner: Any, which: str = "variables") -> list[Any]:
    """The variables of a layer, a model, an optimizer, a `tf.Module`; none of what has not made them yet."""
    try:
        found = getattr(owner, which, ())
        return list(found() if callable(found) else found)
    except Exception:  # models of Keras 2 raise a ValueError before they are built; a layer's own property may raise anything
        return []


def assignment_functions() -> list[tuple[Any, str]]:
    """Module and name of the functions that assign variables eagerly; the handle is their first argument."""
    modules = (_gen_resource_variable_ops, _gen_state_ops)
    names = re.compile(r"assign_((add|sub)_)?variable_op|resource_scatter_(nd_)?(add|sub|mul|div|min|max|update)")
    return [(module, name) for module in modules for name in vars(module) if names.fullmatch(name)]


@cache
def random_functions() -> list[tuple[Any, str]]:
    """Module and name of the functions that draw eagerly from a kernel's own state, but of those that have a gradient."""
    names = re.compile(
        r"random_(uniform|uniform_int|standard_normal|shuffle|poisson|poisson_v2)|(parameterized_)?truncated_normal|multinomial"
    )
    return [(_gen_random_ops, name) for name in vars(_gen_random_ops) if names.fullmatch(name)]


def fetch_functions() -> list[tuple[Any, str]]:
    """Module and name of the functions that take the next element of an iterator eagerly."""
    names = ("iterator_get_next", "iterator_get_next_sync", "iterator_get_next_as_optional", "multi_device_iterator_get_next_from_shard")
    optional = ("optional_has_value", "optional_get_value")
    return [*((_gen_dataset_ops, name) for name in names), *((_gen_optional_ops, name) for name in optional)]


def add_op_callback(callback: Callable[..., Any]) -> Callable[[], None]:
    """Call `callback(op_type, inputs, attrs, outputs, op_name, graph)` after each op of this thread; returns what undoes it."""
    _op_callbacks.add_op_callback(callback)

    def undo() -> None:
        _op_callbacks.remove_op_callback(callback)

    return undo


def flatten_with_paths(structure: Any) -> list[tuple[str, Any]]:
    """(path, leaf) pairs in the order of `tf.nest.flatten(structure, expand_composites=True)`.

    A path is e.g. `0/ids`, and `replica_1/0/ids` for the part of a distributed batch that the second replica gets.
    """
    return [(_replica_first(str(path)), leaf) for path, leaf in _nest.flatten_with_joined_string_paths(structure, expand_composites=True)]


def _replica_first(path: str) -> str:
    before, found, after = path.partition("PerReplica/")
    if not found:
        return path
    replica, _, rest = after.partition("/")
    return "/".join(part for part in (f"replica_{replica}", before.rstrip("/"), rest) if part)


def function_library(name: str) -> list[Any]:
    """FunctionDefs of the eager function `name` and of all functions that it calls; empty when there is none."""
    context = _context.context()
    found: dict[str, Any] = {}
    pending = [name]
    while pending:
        each = pending.pop()
        if each not in found and context.has_function(each):
            found[each] = context.get_function_def(each)
            pending += [attr.func.name for node in found[each].node_def for attr in node.attr.values() if attr.HasField("func")]
            pending += [func.name for node in found[each].node_def for attr in node.attr.values() for func in attr.list.func]
            pending += [node.op for node in found[each].node_def if context.has_function(node.op)]
    return list(found.values())


def attr_value(value: Any, kind: str, name: str) -> Any:
    """An AttrValue proto from what an eager op was called with."""
    return _op_def_library.value_to_attr_value(value, kind, name)


def is_deterministic() -> bool:
    """Whether op determinism is on in this process."""
    return bool(_pywrap_determinism.is_enabled())


def set_deterministic(wanted: bool) -> None:
    """Turn op determinism on or off for this process. TensorFlow can only turn it on in public."""
    _pywrap_determinism.enable(wanted)


def registered_ops() -> list[str]:
    """Names of all ops that this TensorFlow registers."""
    every = _op_def_pb2.OpList.FromString(_tf_session.TF_GetBuffer(_tf_session.TF_GetAllOpList()))
    return [op.name for op in every.op]


def is_jit_chosen_by_keras(model: Any) -> bool:
    """Whether `compile` of a Keras model was left to decide on XLA (`jit_compile="auto"`), which it does by the devices."""
    config = getattr(getattr(model, "_compile_config", None), "config", {})
    return bool(config.get("jit_compile", "auto") == "auto")


def layers_of(model: Any) -> list[Any]:
    """A Keras model or layer and all layers within it."""
    flatten = getattr(model, "_flatten_layers", None)
    return list(flatten()) if callable(flatten) else []


def keras_2_loss_scaling(keras: Any) -> list[Any]:
    """The classes of Keras 2 that scale a loss; the public one is made by a metaclass."""
    module = __import__(f"{keras.__name__}.src.mixed_precision.loss_scale_optimizer", fromlist=["LossScaleOptimizer"])
    return [module.LossScaleOptimizer, module.LossScaleOptimizerV3]


def iterator_handle(iterator: Any) -> Any:
    """The resource of an iterator of `tf.data`."""
    return iterator._iterator_resource


def element_spec(spec: Any) -> Any:
    """Spec of the elements of an iterator or a dataset, given the spec of that; None for any other spec."""
    return getattr(spec, "_element_spec", None)


def decoded_element(spec: Any, components: Sequence[Any]) -> list[Any]:
    """The tensors, ragged and sparse ones taken apart, of an element that a dataset handed over as flat components."""
    element = _structure.from_compatible_tensor_list(spec, list(components))
    flat = _nest.flatten(element, expand_composites=True)
    return [leaf for leaf in flat if isinstance(leaf, _tensor.Tensor) and leaf.dtype.name not in ("variant", "resource")]
