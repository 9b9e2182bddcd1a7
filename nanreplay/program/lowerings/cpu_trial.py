"""Whether this machine's CPU runs an op in a layout: asked by running it on a tiny image.

The registry of kernels knows of types alone. Which layouts and dilations a kernel takes it says as
it runs, and with oneDNN, which is there on some processors and may be turned off, it takes more.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import tensorflow as tf

from nanreplay.program.lowerings.channels_first import image_rank, is_image, is_sizes, layout_of
from nanreplay.program.lowerings.emitting import (
    Attrs,
    changed,
    declared,
    emit,
    integers,
    types_of,
)
from nanreplay.tensorflow_internals import tf_functions
from nanreplay.tensorflow_internals.tf_eager import op_definition

_SIZE = 4
"""Of each axis of the image but the first: room for a dilated filter, and for blocks of 2."""


def cpu_runs(op_type: str, attrs: Attrs) -> bool:
    """Whether the CPU runs an op on images of its layout, with its types and dilations."""
    types = tuple(sorted((name, kinds[0]) for name, kinds in types_of(op_type, attrs).items()))
    dilations = tuple(integers(attrs, "dilations"))
    rank = image_rank(op_type, attrs)
    return _runs(op_type, layout_of(op_type, attrs), types, dilations, rank)


@cache
def _runs(
    op_type: str,
    layout: str,
    types: tuple[tuple[str, int], ...],
    dilations: tuple[int, ...],
    rank: int,
) -> bool:
    values: dict[str, Any] = {"data_format": layout, "padding": "SAME", "strides": [1] * rank}
    values |= {name: tf.dtypes.as_dtype(kind) for name, kind in types}
    names = {attribute.name for attribute in declared(op_type)}
    if "ksize" in names:
        values["ksize"] = [1] * rank
    if "block_size" in names:
        values["block_size"] = 2
    if dilations:
        values["dilations"] = list(dilations)
    attrs = changed({}, **{name: value for name, value in values.items() if name in names})
    kinds = _input_types(op_type, dict(types))

    def call(*inputs: Any) -> list[Any]:
        return emit(op_type, attrs, inputs)

    try:
        with tf.init_scope():  # a form that is just being traced may ask
            inputs = _tiny_inputs(op_type, rank, kinds)
            specs = [tf.TensorSpec(None, tensor.dtype) for tensor in inputs]
            traced = tf.compat.v1.wrap_function(call, specs)
            # Called by its name, it is no call of a training's that a recorder would look at.
            name = tf_functions.runtime_name(traced)
            tf_functions.run_function(name, len(traced.outputs), inputs)
    except (tf.errors.OpError, ValueError):
        return False
    return True


def _input_types(op_type: str, types: dict[str, int]) -> list[Any]:
    arguments = op_definition(op_type).input_arg
    input_types = []
    for argument in arguments:
        input_types.append(tf.dtypes.as_dtype(argument.type or types[argument.type_attr]))
    return input_types


def _tiny_inputs(op_type: str, rank: int, kinds: Sequence[Any]) -> list[Any]:
    """Inputs for an image of 1 x 4 x ... x 4: with 4 channels wherever they stand."""
    image = [1] + [_SIZE] * (rank - 1)
    last = 1 if "Depthwise" in op_type else _SIZE
    filter_shape = [1] * (rank - 2) + [_SIZE, last]
    inputs = []
    for argument, kind in zip(op_definition(op_type).input_arg, kinds, strict=True):
        if is_image(op_type, argument.name):
            inputs.append(tf.zeros(image, kind))
        elif argument.name in ("ksize", "strides"):
            inputs.append(tf.ones([rank], kind))
        elif is_sizes(argument.name):
            inputs.append(tf.constant(image, kind))
        elif argument.name == "filter":
            inputs.append(tf.zeros(filter_shape, kind))
        elif argument.name == "filter_sizes":
            inputs.append(tf.constant(filter_shape, kind))
        else:  # a number for each channel
            inputs.append(tf.ones([_SIZE], kind))
    return inputs
