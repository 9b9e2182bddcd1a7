"""Images with channels first (NCHW, NCDHW), which most of a CPU's kernels do not take.

Images are transposed to channels last, the same op runs on them, and what it gives is transposed
back. Which arguments of an op are images, sizes of images, or neither, their names tell: TensorFlow
names those of all these ops alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from nanreplay.program.lowerings.emitting import Attrs, changed, integers, text
from nanreplay.tensorflow_internals.tf_eager import op_definition

CHANNELS_LAST = {
    "NCHW": "NHWC",
    "NCDHW": "NDHWC",
    "CHANNELS_FIRST": "CHANNELS_LAST",
}
"""Each format with channels first to the same with channels last."""
_IMAGES = frozenset(
    "input x value orig_input orig_output grad out_backprop y_backprop output x_backprop y".split()
)
_SIZES = frozenset({"input_sizes", "orig_input_shape", "ksize", "strides"})
"""Inputs with a number for each axis of an image."""
_NUMBERS_OF_AXES = ("strides", "ksize", "dilations")
"""Attributes with a number for each axis of an image."""


def layout_of(op_type: str, attrs: Attrs) -> str:
    """Return the `data_format` of an op; "" for an op that has none."""
    return text(op_type, attrs, "data_format")


def image_rank(op_type: str, attrs: Attrs) -> int:
    """Return how many axes the images of an op have."""
    layout = layout_of(op_type, attrs)
    return len(layout) if layout.startswith("N") else len(integers(attrs, "strides"))


def is_image(op_type: str, argument: str) -> bool:
    """Whether an argument of an op, or an output of it, is an image."""
    if argument == "output":  # of these gradients it is a filter or a bias
        return "BackpropFilter" not in op_type and op_type != "BiasAddGrad"
    return argument in _IMAGES


def is_sizes(argument: str) -> bool:
    """Whether an argument of an op holds a number for each axis of an image."""
    return argument in _SIZES


def channels_last(run: Any, op_type: str, attrs: Attrs, inputs: Sequence[Any]) -> list[Any]:
    """Add an op on images with channels first as one on images with channels last.

    Args:
        run: Adds the op on channels last; called like `emitting.emit`.
        op_type: Type of the op.
        attrs: Its attributes, with channels first.
        inputs: Its inputs, with channels first.
    """
    definition = op_definition(op_type)
    rank = image_rank(op_type, attrs)
    to_last = [0, *range(2, rank), 1]
    to_first = [0, rank - 1, *range(1, rank - 1)]
    arguments = []
    for argument, tensor in zip(definition.input_arg, inputs, strict=True):
        if is_image(op_type, argument.name):
            arguments.append(tf.transpose(tensor, to_last))
        elif is_sizes(argument.name):
            arguments.append(tf.gather(tensor, to_last))
        else:
            arguments.append(tensor)
    outputs = run(op_type, _attrs_of_channels_last(op_type, attrs, to_last), arguments)
    images = []
    for argument, tensor in zip(definition.output_arg, outputs, strict=True):
        if is_image(op_type, argument.name):
            images.append(tf.transpose(tensor, to_first))
        else:
            images.append(tensor)
    return images


def _attrs_of_channels_last(op_type: str, attrs: Attrs, to_last: Sequence[int]) -> Attrs:
    values: dict[str, Any] = {"data_format": CHANNELS_LAST[layout_of(op_type, attrs)]}
    for name in _NUMBERS_OF_AXES:
        numbers = integers(attrs, name)
        # A Conv may leave its dilations out, and MaxPoolV2 takes its sizes as tensors.
        if len(numbers) == len(to_last):
            values[name] = [numbers[axis] for axis in to_last]
    paddings = integers(attrs, "explicit_paddings")  # before and after, for each axis
    if paddings:
        values["explicit_paddings"] = [
            paddings[2 * axis + side] for axis in to_last for side in (0, 1)
        ]
    return changed(attrs, **values)
