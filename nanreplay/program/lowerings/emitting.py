"""Adding an op with attributes of its own to the graph that is being traced.

`tf.raw_ops` has other argument names for each op, and lacks some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import tensorflow as tf

from nanreplay.program.graph_nodes import output_types
from nanreplay.tensorflow_internals.tf_eager import op_definition

Attrs: TypeAlias = Mapping[str, Any]
"""AttrValue protos by name."""
Compute: TypeAlias = Callable[[Attrs, Sequence[Any]], Sequence[Any]]
"""Adds the ops that stand for one op: of its attributes and inputs, its outputs in order."""


def node_of(op_type: str, attrs: Attrs) -> Any:
    """Return a NodeDef of an op with its attributes, and the defaults of those not given."""
    node = tf.compat.v1.NodeDef(op=op_type)
    for attribute in op_definition(op_type).attr:
        if attribute.name in attrs:
            node.attr[attribute.name].CopyFrom(attrs[attribute.name])
        elif attribute.HasField("default_value"):
            node.attr[attribute.name].CopyFrom(attribute.default_value)
    return node


def emit(op_type: str, attrs: Attrs, inputs: Sequence[Any]) -> list[Any]:
    """Add one op to the graph that is being traced; returns its outputs."""
    node = node_of(op_type, attrs)
    types = []
    for kind in output_types(op_definition(op_type), node):
        types.append(tf.dtypes.as_dtype(kind))
    graph = tf.compat.v1.get_default_graph()
    op = graph.create_op(op_type, list(inputs), types, attrs=dict(node.attr))
    return list(op.outputs)


def changed(attrs: Attrs, **values: Any) -> dict[str, Any]:
    """Return attributes with others in the place of some: texts, numbers, types, lists of them."""
    result = dict(attrs)
    for name, value in values.items():
        result[name] = _attr_value(value)
    return result


def _attr_value(value: Any) -> Any:
    attr = tf.compat.v1.AttrValue()
    if isinstance(value, tf.DType):
        attr.type = value.as_datatype_enum
    elif isinstance(value, bool):
        attr.b = value
    elif isinstance(value, int):
        attr.i = value
    elif isinstance(value, str):
        attr.s = value.encode()
    else:
        attr.list.SetInParent()
        attr.list.i.extend(value)
    return attr


def text(op_type: str, attrs: Attrs, name: str) -> str:
    """Return a text attribute of an op, or its default; "" where the op has no such attribute."""
    if name in attrs:
        return str(attrs[name].s.decode())
    defaults = {}
    for attribute in declared(op_type):
        defaults[attribute.name] = attribute.default_value
    return str(defaults[name].s.decode()) if name in defaults else ""


def integers(attrs: Attrs, name: str) -> list[int]:
    """Return a list of integers; empty where it is not given."""
    return list(map(int, attrs[name].list.i)) if name in attrs else []


def types_of(op_type: str, attrs: Attrs) -> dict[str, tuple[int, ...]]:
    """Return the DataType enums of an op's attributes of types, those left out by default too."""
    types: dict[str, tuple[int, ...]] = {}
    for attribute in declared(op_type):
        value = attrs.get(attribute.name, attribute.default_value)
        if attribute.type == "type":
            types[attribute.name] = (int(value.type),)
        elif attribute.type == "list(type)":
            types[attribute.name] = tuple(value.list.type)
    return types


def declared(op_type: str) -> Iterable[Any]:
    """Return the attributes that an op declares (AttrDefs); none for an op that is not known."""
    definition = op_definition(op_type)
    attributes: Iterable[Any] = () if definition is None else definition.attr
    return attributes
