"""The few other ops that only GPUs have kernels of: CTC losses, transforms of several axes, pools.

A loss of cuDNN's and a transform of cuFFT's are made of the ops that a CPU has for the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from nanreplay.program.lowerings.emitting import Attrs, emit


def ctc_loss(attrs: Attrs, inputs: Sequence[Any]) -> list[Any]:
    """`CTCLossV2`, whose blank is class 0, by `CTCLoss`, whose blank is the last class."""
    logits, indices, labels, lengths = inputs
    rolled = tf.roll(logits, -1, axis=2)
    names = (
        "preprocess_collapse_repeated", "ctc_merge_repeated", "ignore_longer_outputs_than_inputs",
    )  # fmt: skip
    own = {}
    for name in names:
        if name in attrs:
            own[name] = attrs[name]
    loss, gradient = emit("CTCLoss", own, [rolled, indices, labels - 1, lengths])
    return [loss, tf.roll(gradient, 1, axis=2)]


def max_pool_grad_grad_with_argmax(attrs: Attrs, inputs: Sequence[Any]) -> list[Any]:
    """`MaxPoolGradGradWithArgmax`: of each window, what was given at its largest element."""
    images, gradient, argmax = inputs
    flat = tf.reshape(gradient, [-1])
    if "include_batch_in_index" in attrs and attrs["include_batch_in_index"].b:
        return [tf.gather(flat, argmax)]
    samples = tf.shape(images, argmax.dtype)[0]
    per_sample = tf.size(images, argmax.dtype) // tf.maximum(samples, 1)
    starts = tf.reshape(tf.range(samples) * per_sample, [-1, 1, 1, 1])
    return [tf.gather(flat, argmax + starts)]


# Transforms over several axes: one after another, each as the last axis.


def fft_nd(attrs: Attrs, inputs: Sequence[Any]) -> list[Any]:
    """`FFTND`."""
    return [_along_axes(tf.signal.fft, *inputs)]


def ifft_nd(attrs: Attrs, inputs: Sequence[Any]) -> list[Any]:
    """`IFFTND`."""
    return [_along_axes(tf.signal.ifft, *inputs)]


def rfft_nd(attrs: Attrs, inputs: Sequence[Any]) -> list[Any]:
    """`RFFTND`: real numbers along the last of the axes, complex ones along the others."""
    values, lengths, axes = inputs
    half = _along(lambda rows: tf.signal.rfft(rows, lengths[-1:]), values, axes[-1])
    return [_along_axes(tf.signal.fft, half, lengths[:-1], axes[:-1])]


def irfft_nd(attrs: Attrs, inputs: Sequence[Any]) -> list[Any]:
    """`IRFFTND`: the other way round."""
    values, lengths, axes = inputs
    complexes = _along_axes(tf.signal.ifft, values, lengths[:-1], axes[:-1])
    return [_along(lambda rows: tf.signal.irfft(rows, lengths[-1:]), complexes, axes[-1])]


def _along_axes(transform: Any, values: Any, lengths: Any, axes: Any) -> Any:
    def one(number: Any, current: Any) -> Any:
        def cut_and_transformed(rows: Any) -> Any:
            return transform(_of_length(rows, lengths[number]))

        return number + 1, _along(cut_and_transformed, current, axes[number])

    shapes = (tf.TensorShape([]), tf.TensorShape(None))
    loop_values = (tf.constant(0), values)
    _, result = tf.while_loop(
        lambda number, _: number < tf.size(axes), one, loop_values, shape_invariants=shapes
    )
    return result


def _along(transform: Any, values: Any, axis: Any) -> Any:
    """Transform along one axis: it changes places with the last one, and back."""
    rank = tf.rank(values)
    axis = tf.where(axis < 0, axis + rank, axis)
    order = tf.range(rank)
    swapped = tf.where(order == axis, rank - 1, tf.where(order == rank - 1, axis, order))
    return tf.transpose(transform(tf.transpose(values, swapped)), swapped)


def _of_length(rows: Any, length: Any) -> Any:
    """Rows cut, or padded with zeros, to a length."""
    rows = rows[..., :length]
    missing = length - tf.shape(rows)[-1]
    before_last = tf.zeros([tf.rank(rows) - 1, 2], tf.int32)
    return tf.pad(rows, tf.concat([before_last, [[0, missing]]], axis=0))
