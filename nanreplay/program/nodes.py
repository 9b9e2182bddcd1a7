"""What a node of a GraphDef gives: how many tensors, of which types."""

from __future__ import annotations

from typing import Any


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
