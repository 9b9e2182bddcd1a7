"""Reading nodes of GraphDefs: their inputs, their outputs, the functions they call, constants.

The lowest module of the package: all that reads or edits a recorded graph uses it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from nanreplay.tensorflow_internals import tf_eager, tf_functions

VARIABLE_READS = frozenset(
    {"ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape"}
)
"""Types of ops that take a variable's handle and leave the variable as it is."""

# What a node of a GraphDef takes and gives. An input is `^op` for a control dependency, and `op`,
# `op:1` or in a function `op:output:1` for a tensor.


def data_inputs(node: Any) -> list[str]:
    """Return the names of the tensors that a node takes, without control dependencies."""
    return [name for name in node.input if not name.startswith("^")]


def functions_by_name(graph: Any) -> dict[str, Any]:
    """Return the FunctionDefs of a GraphDef's library."""
    return {function.signature.name: function for function in graph.library.function}


def op_name(tensor: str) -> str:
    """Return the name of the op that makes a tensor, or that a control dependency names."""
    return tensor.removeprefix("^").partition(":")[0]


def count_outputs(argument: Any, node: Any) -> int:
    """Return how many tensors one declared output (an ArgDef) of a node stands for."""
    if argument.number_attr:
        return int(node.attr[argument.number_attr].i)
    if argument.type_list_attr:
        return len(node.attr[argument.type_list_attr].list.type)
    return 1


def output_types(definition: Any, node: Any) -> list[int]:
    """Return the DataType enum of each output tensor of a node, whose OpDef is given."""
    return argument_types(definition.output_arg, node)


def argument_types(arguments: Any, node: Any) -> list[int]:
    """Return the DataType enum of each tensor of some arguments of a node's OpDef."""
    types: list[int] = []
    for argument in arguments:
        if argument.type_list_attr:
            types += node.attr[argument.type_list_attr].list.type
        else:
            kind = argument.type or node.attr[argument.type_attr].type
            types += [kind] * count_outputs(argument, node)
    return types


# Constants of a graph as arrays.


def dimensions(shape: Any) -> tuple[int, ...]:
    """Return the sizes of a TensorShapeProto; -1 for one that is not known."""
    return tuple(dimension.size for dimension in shape.dim)


def constant_array(tensor: Any) -> NDArray[Any]:
    """The values of a TensorProto, as `tf.make_ndarray` gives them.

    Of float16, bfloat16 and float8 a TensorProto may hold the bits as integers. `tf.make_ndarray`
    then sets the dtype of an array, which NumPy 2.5 warns of; here the bits are viewed in it.

    Raises:
        TypeError: A tensor of this type has no array.
        ValueError: It does not hold what its shape asks for.
    """
    kind = tf.dtypes.as_dtype(tensor.dtype)
    if tensor.tensor_content or not kind.is_floating or kind.size > 2:
        return np.asarray(tf.make_ndarray(tensor))
    bits: NDArray[Any] = np.frombuffer(tensor.float8_val, np.uint8)
    if kind.size == 2:
        bits = np.fromiter(tensor.half_val, np.uint16)
    values = bits.view(kind.as_numpy_dtype)
    shape = dimensions(tensor.tensor_shape)
    if not values.size:
        return np.zeros(shape, values.dtype)
    # One value, or the last of several, stands for all that follow.
    return np.pad(values, (0, math.prod(shape) - values.size), "edge").reshape(shape)


# Names of library functions. A process knows one function of a name, so two versions of a program
# need names of their own.

_serials = itertools.count()


def mentioned_functions(nodes: Iterable[Any]) -> Iterator[str]:
    """Yield what nodes may call: their op types, which may name functions, and their attributes."""
    for node in nodes:
        yield node.op
        for value in node.attr.values():
            for function in _functions_in(value):
                yield function.name


def _functions_in(value: Any) -> Iterable[Any]:
    """The functions that an attribute names: one, or a list (the branches of a Case)."""
    functions: Iterable[Any] = [value.func] if value.HasField("func") else value.list.func
    return functions


def rename_mentions(nodes: Iterable[Any], names: Mapping[str, str]) -> None:
    """Give functions other names wherever nodes mention them, in place.

    Args:
        nodes: NodeDefs.
        names: Old name to new name.
    """
    for node in nodes:
        node.op = names.get(node.op, node.op)
        for value in node.attr.values():
            for function in _functions_in(value):
                function.name = names.get(function.name, function.name)


def avoid_known_functions(graph: Any) -> None:
    """Rename the functions of a GraphDef, in place, where this process knows others so named."""
    functions = graph.library.function
    if not any(map(_is_another, functions)):
        return
    prefix = f"__nanreplay_version_{next(_serials)}_"
    names = {}
    for function in functions:
        names[function.signature.name] = prefix + function.signature.name
    rename_mentions(graph.node, names)
    for function in functions:
        function.signature.name = names[function.signature.name]
        rename_mentions(function.node_def, names)
    for gradient in graph.library.gradient:
        gradient.function_name = names.get(gradient.function_name, gradient.function_name)
        gradient.gradient_func = names.get(gradient.gradient_func, gradient.gradient_func)


def _is_another(function: Any) -> bool:
    known = tf_functions.known_function(function.signature.name)
    return known is not None and known != function


# Names of tensors within functions.


def output_name(tensor: Any) -> str:
    """The name of a tensor within a FunctionDef: `op:output:number`.

    A traced tensor knows its number among all outputs of its op; a FunctionDef counts within each
    declared output. The third part that a Split gives, declared as the list `output`, is
    `split:output:2`.
    """
    op, index = tensor.op, tensor.value_index
    for argument in tf_eager.op_definition(op.type).output_arg:
        count = 1
        if argument.number_attr:
            count = op.get_attr(argument.number_attr)
        elif argument.type_list_attr:
            count = len(op.get_attr(argument.type_list_attr))
        if index < count:
            return f"{op.name}:{argument.name}:{index}"
        index -= count
    raise ValueError(f"{op.name} has no output {tensor.value_index}")
