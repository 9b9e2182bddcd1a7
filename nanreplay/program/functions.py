"""Names of library functions. A process knows one function of a name; two versions of a program need names of their own."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from nanreplay.program import private_tf

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
    known = private_tf.known_function(function.signature.name)
    return known is not None and known != function


def output_name(tensor: Any) -> str:
    """The name of a tensor within a FunctionDef: `op:output:number`."""
    op, index = tensor.op, tensor.value_index
    for argument in private_tf.op_definition(op.type).output_arg:
        count = len(op.get_attr(argument.type_list_attr)) if argument.type_list_attr else 1
        count = op.get_attr(argument.number_attr) if argument.number_attr else count
        if index < count:
            return f"{op.name}:{argument.name}:{index}"
        index -= count
    raise ValueError(f"{op.name} has no output {tensor.value_index}")
