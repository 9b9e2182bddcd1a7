"""Gradients of dilated convolutions, of which a CPU has no kernels.

They are added up over the elements of the filter. Each meets the image at every `stride`-th place
from its own offset, a part of the image as large as the output. No element is multiplied by a zero
that stands for a gap, so a NaN goes nowhere that it would not go on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from nanreplay.program.lowerings.emitting import Attrs, integers, text

_GRADIENTS = frozenset({"Conv2DBackpropInput", "Conv2DBackpropFilter"})


def is_dilated_gradient(op_type: str, attrs: Attrs) -> bool:
    """Whether an op is the gradient of a dilated convolution of images."""
    return op_type in _GRADIENTS and any(rate > 1 for rate in integers(attrs, "dilations"))


class _Places(NamedTuple):
    """Where the elements of a filter meet an image; pairs are (height, width)."""

    strides: Any
    dilations: Any
    before: Any
    """Rows and columns of padding before the image."""
    padded_sizes: Any
    """Sizes of the image with its padding."""
    span: Any
    """Rows and columns from the first to the last place where one element meets the image."""


def gradient_by_elements(op_type: str, attrs: Attrs, inputs: Sequence[Any]) -> list[Any]:
    """Add the gradient of a dilated convolution of images with channels last."""
    is_of_input = op_type == "Conv2DBackpropInput"
    if is_of_input:
        image_sizes, weights, gradient = inputs
        filter_sizes = tf.shape(weights)
    else:
        image, filter_sizes, gradient = inputs
        image_sizes = tf.shape(image)
    places = _places(op_type, attrs, image_sizes, filter_sizes, tf.shape(gradient))
    after = places.padded_sizes - places.before - image_sizes[1:3]
    n_columns = filter_sizes[1]
    n_elements = filter_sizes[0] * n_columns

    def corner(element: Any) -> Any:
        """The place where an element meets the image first."""
        return tf.stack([element // n_columns, element % n_columns]) * places.dilations

    if is_of_input:
        elements = tf.reshape(weights, tf.concat([[n_elements], filter_sizes[2:]], 0))

        def added(element: Any, total: Any) -> Any:
            part = tf.einsum("nhwk,ck->nhwc", gradient, elements[element])
            begin, end, strides = _slice_of(places, corner(element))
            shape = tf.shape(total)
            end = tf.concat([shape[:1], end, shape[3:]], 0)
            placed = tf.raw_ops.StridedSliceGrad(
                shape=shape, begin=_around(begin, 0), end=end, strides=strides, dy=part
            )
            return element + 1, total + placed

        sizes = tf.concat([image_sizes[:1], places.padded_sizes, image_sizes[3:]], 0)
        start = (tf.constant(0), tf.zeros(sizes, gradient.dtype))
        shapes = (tf.TensorShape([]), tf.TensorShape([None] * 4))
        _, total = tf.while_loop(
            lambda element, _: element < n_elements, added, start, shape_invariants=shapes
        )
        return [tf.slice(total, _around(places.before, 0), image_sizes)]

    paddings = tf.concat([[[0, 0]], tf.stack([places.before, after], 1), [[0, 0]]], 0)
    padded = tf.pad(image, paddings)

    def one(element: Any) -> Any:
        begin, end, strides = _slice_of(places, corner(element))
        shape = tf.shape(padded)
        end = tf.concat([shape[:1], end, shape[3:]], 0)
        met = tf.strided_slice(padded, _around(begin, 0), end, strides)
        return tf.einsum("nhwc,nhwk->ck", met, gradient)

    spec = tf.TensorSpec([None, None], gradient.dtype)
    rows = tf.map_fn(one, tf.range(n_elements), fn_output_signature=spec)
    return [tf.reshape(rows, filter_sizes)]


def _places(
    op_type: str, attrs: Attrs, image_sizes: Any, filter_sizes: Any, output_sizes: Any
) -> _Places:
    strides = tf.constant(integers(attrs, "strides")[1:3])
    dilations = tf.constant(integers(attrs, "dilations")[1:3])
    span = (output_sizes[1:3] - 1) * strides + 1
    reach = span + (filter_sizes[:2] - 1) * dilations
    padding = text(op_type, attrs, "padding")
    if padding == "EXPLICIT":
        before = tf.constant(integers(attrs, "explicit_paddings")[2:6:2])
    elif padding == "SAME":
        before = tf.maximum(reach - image_sizes[1:3], 0) // 2
    else:
        before = tf.constant([0, 0])
    # Rows at the end that no element meets are there all the same.
    padded_sizes = tf.maximum(reach, before + image_sizes[1:3])
    return _Places(strides, dilations, before, padded_sizes, span)


def _slice_of(places: _Places, corner: Any) -> tuple[Any, Any, Any]:
    """Begin and end (height and width), and strides (all axes), of what one element meets."""
    return corner, corner + places.span, _around(places.strides, 1)


def _around(pair: Any, value: int) -> Any:
    """A number for each axis of an image, of those for its height and width."""
    return tf.concat([[value], pair, [value]], 0)
