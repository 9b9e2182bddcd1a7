"""Half precision where a CPU has no kernel for it: the op runs in float32 between two casts.

A GPU's kernels of half precision mostly add up in float32 and round at the end, as this does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from nanreplay.program.lowerings.emitting import Attrs, changed, types_of
from nanreplay.tensorflow_internals.tf_eager import op_definition
from nanreplay.tensorflow_internals.tf_kernels import has_kernel

_HALF = frozenset({tf.half.as_datatype_enum, tf.bfloat16.as_datatype_enum})
_FLOAT = tf.float32.as_datatype_enum


def is_half(attrs: Attrs) -> bool:
    """Whether attributes name a type of half precision.

    A program has tens of thousands of attributes, and few of them are types.
    """
    for value in attrs.values():
        kind = value.WhichOneof("value")
        if kind == "type" and value.type in _HALF:
            return True
        if kind == "list" and not _HALF.isdisjoint(value.list.type):
            return True
    return False


def lacks_half(op_type: str, attrs: Attrs) -> bool:
    """Whether the CPU has a kernel of an op for float32, and none for its half precision."""
    types = types_of(op_type, attrs)
    if not any(_HALF.intersection(kinds) for kinds in types.values()):
        return False
    return not has_kernel(op_type, types) and has_kernel(op_type, _in_float32(types))


def needs_float32(op_type: str, attrs: Attrs) -> bool:
    """Whether an op of half precision has to run in float32 between casts, and can.

    An op on a variable of half precision could not be cast: what it takes is a handle.
    """
    if not lacks_half(op_type, attrs):
        return False
    arguments = op_definition(op_type).input_arg
    return not any(
        argument.type == tf.resource.as_datatype_enum or argument.is_ref for argument in arguments
    )


def in_float32(run: Any, op_type: str, attrs: Attrs, inputs: Sequence[Any]) -> list[Any]:
    """Add an op in float32 between two casts.

    Args:
        run: Adds the op in float32; called like `emitting.emit`.
        op_type: Type of the op.
        attrs: Its attributes, in half precision.
        inputs: Its inputs.
    """
    types = types_of(op_type, attrs)
    wide = {}
    for name, kinds in types.items():
        if len(kinds) == 1 and _HALF.intersection(kinds):
            wide[name] = tf.float32
    definition = op_definition(op_type)
    arguments = []
    for tensor in inputs:
        if tensor.dtype in (tf.half, tf.bfloat16):
            arguments.append(tf.cast(tensor, tf.float32))
        else:
            arguments.append(tensor)
    outputs = run(op_type, changed(attrs, **wide), arguments)
    results = []
    for argument, tensor in zip(definition.output_arg, outputs, strict=True):
        if argument.type_attr in wide:
            results.append(tf.cast(tensor, types[argument.type_attr][0]))
        else:
            results.append(tensor)
    return results


def _in_float32(types: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    widened = {}
    for name, kinds in types.items():
        widened[name] = tuple(_FLOAT if kind in _HALF else kind for kind in kinds)
    return widened
