"""Names of library functions. A process knows one function of a name; two versions of a program need names of their own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from nanreplay.tensorflow_internals import tf_eager, tf_functions

# What a node of a GraphDef gives: how many tensors, of which types.


def count_outputs(argument: Any, node: Any) -> int:
    """Return how many tensors one declared output (an ArgDef) of a node stands for."""
    if argument.number_attr:
        return int(node.attr[argument.number_attr].i)
    if argument.type_list_attr:
        return len(node.attr[argument.type_list_attr].list.type)
    return 1


def output_types(definition: Any, node: Any) -> list[int]:
    """Return the DataType enum of each output tensor of a node, whose OpDef is given."""
    types: list[int] = []
    for argument in definition.output_arg:
        if argument.type_list_attr:
            types += node.attr[argument.type_list_attr].list.type
        else:
            kind = argument.type or node.attr[argument.type_attr].type
            types += [kind] * count_outputs(argument, node)
    return types


# Constants of a graph as arrays.


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
    shape = tuple(dimension.size for dimension in tensor.tensor_shape.dim)
    if not values.size:
        return np.zeros(shape, values.dtype)
    # one value, or the last of several, stands for all that follow
    return np.pad(values, (0, math.prod(shape) - values.size), "edge").reshape(shape)


# --- program.functions

_serials = itertools.count()


def rename_mentions(nodes: Iterable[Any], names: Mapping[str, str]) -> None:
    """Give functions other names wherever nodes mention them, in place.

    Args:
        nodes: NodeDefs.
        names: Old name to new name.
    """
    for node in nodes:
        node.op = names.get(node.op, node.op)
        for value in node.attr.values():
            for function in [value.func] if value.HasField("func") else value.list.func:
                function.name = names.get(function.name, function.name)


def avoid_known_functions(graph: Any) -> None:
    """Rename the functions of a GraphDef, in place, when this process knows other ones by the same names."""
    functions = graph.library.function
    if not any(_is_another(function) for function in functions):
        return
    prefix = f"__nanreplay_version_{next(_serials)}_"
    names = {function.signature.name: prefix + function.signature.name for function in functions}
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


def output_name(tensor: Any) -> str:
    """The name of a tensor within a FunctionDef: `op:output:number`."""
    op, index = tensor.op, tensor.value_index
    for argument in tf_eager.op_definition(op.type).output_arg:
        count = len(op.get_attr(argument.type_list_attr)) if argument.type_list_attr else 1
        count = op.get_attr(argument.number_attr) if argument.number_attr else count
        if index < count:
            return f"{op.name}:{argument.name}:{index}"
        index -= count
    raise ValueError(f"{op.name} has no output {tensor.value_index}")
