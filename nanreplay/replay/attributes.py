"""Decoding node attributes (AttrValue protos) to what eager kernels take. Used by the interpreter's plans."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf


def decode_attributes(node: Any, definition: Any, rename: Mapping[str, str]) -> tuple[Any, ...]:
    """Return names and values of a node's attributes in turn, as eager execution takes them.

    Args:
        node: The NodeDef.
        definition: Its OpDef; attributes that it does not declare (`_output_shapes`, ...) are left out.
        rename: Name under which each library function was registered.
    """
    flat: list[Any] = []
    for declared in definition.attr:
        if declared.name in node.attr and declared.type != "tensor":
            flat += [declared.name, _decode(node.attr[declared.name], declared.type, rename)]
    return tuple(flat)


def decode_constant(node: Any) -> Any:
    """Return the tensor that a `Const` node holds."""
    proto = node.attr["value"].tensor
    return tf.io.parse_tensor(proto.SerializeToString(), tf.dtypes.as_dtype(proto.dtype))


def called_functions(node: Any) -> list[str]:
    """Return the names of library functions that a node's attributes mention."""
    names: list[str] = []
    for value in node.attr.values():
        if value.HasField("func"):
            names.append(value.func.name)
        elif value.HasField("list"):
            names += [function.name for function in value.list.func]
    return names


def _decode(value: Any, kind: str, rename: Mapping[str, str]) -> Any:
    if kind.startswith("list("):
        kind = kind[len("list(") : -1]
        field = {"string": "s", "int": "i", "float": "f", "bool": "b"}.get(kind, kind)
        scalar = _SCALARS.get(kind)
        items = getattr(value.list, field)
        if kind == "func":
            return [rename.get(item.name, item.name) for item in items]
        return [scalar(item) for item in items] if scalar else list(items)
    if kind == "func":
        return rename.get(value.func.name, value.func.name)
    field = {"string": "s", "int": "i", "float": "f", "bool": "b"}.get(kind, kind)
    scalar = _SCALARS.get(kind)
    return scalar(getattr(value, field)) if scalar else getattr(value, field)


def _shape(proto: Any) -> list[int] | None:
    return None if proto.unknown_rank else [dim.size for dim in proto.dim]


_SCALARS: dict[str, Callable[[Any], Any]] = {"shape": _shape, "type": int}
