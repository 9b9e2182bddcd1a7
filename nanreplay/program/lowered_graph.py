"""Putting functions of plain ops into a program in the place of ops that only a GPU runs.

`lowered_function` gives such a function for one op; kernels of the interpreter run it as it is.
`lower_graph` puts calls of them into a GraphDef that is to run compiled. Names of ops and tensors
stay, so that feeds, fetches and what is known of each op hold.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import tensorflow as tf

from nanreplay.program.graph_nodes import (
    argument_types,
    count_outputs,
    functions_by_name,
    mentioned_functions,
    output_types,
)
from nanreplay.program.lowerings import lowering_of
from nanreplay.program.lowerings.channels_first import CHANNELS_LAST, layout_of
from nanreplay.program.lowerings.emitting import node_of
from nanreplay.program.lowerings.half_precision import needs_float32
from nanreplay.program.safety import all_nodes
from nanreplay.tensorflow_internals import tf_functions
from nanreplay.tensorflow_internals.tf_eager import op_definition

_serials = itertools.count()
_COMPILED = "_XlaMustCompile"


class LoweredFunction(NamedTuple):
    """A function that computes what one op computes; TensorFlow knows it as long as this lives."""

    name: str
    definitions: Sequence[Any]
    """Its FunctionDef, and those of all functions that it calls."""
    input_types: Sequence[int]
    output_types: Sequence[int]
    traced: Any
    """The ConcreteFunction; TensorFlow forgets the function when it is gone."""


def lowered_function(op_type: str, name: str, attrs: Mapping[str, Any]) -> LoweredFunction | None:
    """Return the function that runs in the place of an op; None for an op that runs as it is.

    Args:
        op_type: Type of the op.
        name: Its name, for errors.
        attrs: Its attributes by name (AttrValue protos).

    Raises:
        UnsupportedOpError: Only a GPU runs the op.
    """
    definition = op_definition(op_type)
    if definition is None or lowering_of(op_type, name, attrs) is None:
        return None
    return _traced(node_of(op_type, attrs).SerializeToString(deterministic=True))


@cache
def _traced(serialized: bytes) -> LoweredFunction:
    """Trace the function of an op, whose NodeDef is given without a name and inputs."""
    node = tf.compat.v1.NodeDef.FromString(serialized)
    compute = lowering_of(node.op, node.op, node.attr)
    assert compute is not None
    definition = op_definition(node.op)
    input_types = argument_types(definition.input_arg, node)
    attrs = dict(node.attr)

    def call(*inputs: Any) -> list[Any]:
        return list(map(tf.identity, compute(attrs, inputs)))

    call.__name__ = f"nanreplay_lowered_{node.op}_{next(_serials)}"
    specs = []
    for kind in input_types:
        specs.append(tf.TensorSpec(None, tf.dtypes.as_dtype(kind)))
    # Shapes are left open: one function serves all ops of these attributes, whatever they are
    # given.
    traced = tf.function(call, autograph=False).get_concrete_function(*specs)
    name = tf_functions.runtime_name(traced)
    library = tf_functions.function_library(name)
    return LoweredFunction(name, library, input_types, output_types(definition, node), traced)


class LoweredOps(NamedTuple):
    """What of a program runs on this machine in a form of its own."""

    forms: tuple[str, ...]
    """Types of ops in another form, with the layout where that is why; sorted."""
    in_float32: tuple[str, ...]
    """Types of ops of half precision that run in float32 between casts; sorted."""


def lowered_ops(graph: Any, recorded: Container[str] = ()) -> LoweredOps:
    """Tell which ops of a GraphDef run in another form on this machine.

    Args:
        graph: The GraphDef.
        recorded: Names of ops of its main graph that do not run, as their outputs were recorded.

    Raises:
        UnsupportedOpError: An op runs on a GPU alone.
    """
    forms: set[str] = set()
    in_float32: set[str] = set()
    called = _called_functions(graph)
    for function, node in all_nodes(graph):
        if (not function and node.name in recorded) or (function and function not in called):
            continue
        if lowering_of(node.op, node.name, node.attr) is None:
            continue
        if needs_float32(node.op, node.attr):
            in_float32.add(node.op)
        layout = layout_of(node.op, node.attr)
        if layout in CHANNELS_LAST:
            # The op itself has a kernel here; it is the layout of its images that has none.
            forms.add(f"{node.op} in {layout}")
        elif node.op not in in_float32:
            forms.add(node.op)
    return LoweredOps(tuple(sorted(forms)), tuple(sorted(in_float32)))


def lower_graph(graph: Any) -> Sequence[str]:
    """Put calls of functions in the place of all ops of a GraphDef that only a GPU runs.

    What XLA compiles stays: XLA has forms of its own of these ops for each device.

    Args:
        graph: The GraphDef; it is changed.

    Returns:
        The types of the ops that were replaced, sorted.

    Raises:
        UnsupportedOpError: An op runs on a GPU alone.
    """
    replaced: set[str] = set()
    added: dict[str, Any] = {}
    # Functions that nobody calls stay as they are: an op without a form there refuses nothing.
    lowered = _called_functions(graph) - _compiled_functions(graph)
    _lower_body(graph.node, added, replaced)
    for function in graph.library.function:
        if function.signature.name not in lowered:
            continue
        renamed = _lower_body(function.node_def, added, replaced)
        for node in function.node_def if renamed else ():
            node.input[:] = [renamed.get(source, source) for source in node.input]
        for result, source in list(function.ret.items()):
            function.ret[result] = renamed.get(source, source)
    graph.library.function.extend(added.values())
    return sorted(replaced)


def _called_functions(graph: Any) -> set[str]:
    """Names of the functions that a program calls.

    A library may hold others: Keras 2 puts a version of each LSTM for GPUs beside the one that is
    called, and leaves the choice to the runtime.
    """
    return _reached(graph, mentioned_functions(graph.node))


def _compiled_functions(graph: Any) -> set[str]:
    """Names of the functions that XLA compiles, and of all that they call."""
    marked = []
    for name, function in functions_by_name(graph).items():
        if _is_compiled(function.attr):
            marked.append(name)
    callers = []
    for _, node in all_nodes(graph):
        if _is_compiled(node.attr):
            callers.append(node)
    return _reached(graph, [*marked, *mentioned_functions(callers)])


def _reached(graph: Any, names: Iterable[str]) -> set[str]:
    """Names of functions of a library, and of all that they call."""
    functions = functions_by_name(graph)
    pending, reached = list(names), set[str]()
    while pending:
        name = pending.pop()
        if name in functions and name not in reached:
            reached.add(name)
            pending += mentioned_functions(functions[name].node_def)
    return reached


def _is_compiled(attrs: Mapping[str, Any]) -> bool:
    return _COMPILED in attrs and bool(attrs[_COMPILED].b)


def _lower_body(nodes: Any, added: dict[str, Any], replaced: set[str]) -> dict[str, str]:
    """Replace ops among the nodes of one body.

    Returns:
        Names of outputs, as a function of the library names them, and those that they have now.
    """
    renamed: dict[str, str] = {}
    for node in nodes:
        lowered = lowered_function(node.op, node.name, node.attr)
        if lowered is None:
            continue
        replaced.add(node.op)
        for entry in lowered.definitions:
            added[entry.signature.name] = entry
        number = 0
        for argument in op_definition(node.op).output_arg:
            for k in range(count_outputs(argument, node)):
                # Within functions outputs are named as the OpDef declares them, and a call declares
                # one list of all. In the main graph they have numbers, which stay.
                renamed[f"{node.name}:{argument.name}:{k}"] = f"{node.name}:output:{number}"
                number += 1
        _become_call(node, lowered)
    return renamed


def _become_call(node: Any, lowered: LoweredFunction) -> None:
    node.op = "StatefulPartitionedCall"
    node.attr.clear()
    node.ClearField("experimental_type")
    node.attr["Tin"].list.type.extend(lowered.input_types)
    node.attr["Tout"].list.type.extend(lowered.output_types)
    node.attr["f"].func.name = lowered.name
