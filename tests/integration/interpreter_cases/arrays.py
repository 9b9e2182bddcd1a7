"""Shapes, slices, gathers, scatters, segments, sparse and ragged tensors."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from . import case
from .build import normal, with_gradient

Built = tuple[Any, tuple[Any, ...]]


@case
def slices() -> Built:
    def f(x: Any) -> Any:
        return (
            x[1:, ::2],
            x[..., -1],
            x[:, tf.newaxis, 1],
            tf.slice(x, [0, 1], [2, -1]),
            x[tf.shape(x)[0] - 1],
        )

    return with_gradient(f), (normal(3, 4),)


@case
def reshapes() -> Built:
    def f(x: Any) -> Any:
        parts = tf.split(x, [1, 3], axis=1)
        return (
            tf.concat([*parts, x], 1),
            tf.stack(tf.unstack(x)),
            tf.tile(x, [2, 1]),
            tf.pad(x, [[1, 1], [0, 2]], "REFLECT"),
            tf.pad(x, [[1, 1], [0, 2]], constant_values=2.0),
            tf.transpose(tf.reshape(x, [4, 3])),
            tf.reverse(x, [1]),
            tf.roll(x, 1, 0),
            tf.repeat(x, [1, 2, 3], 0),
            tf.broadcast_to(x[:1], [5, 4]),
            tf.squeeze(tf.expand_dims(x, 0)),
            tf.reverse_sequence(x, [1, 2, 3], 1),
        )

    return with_gradient(f), (normal(3, 4),)


@case
def gather_and_scatter() -> Built:
    def f(x: Any) -> Any:
        where = tf.constant([[0], [2], [0]])
        return (
            tf.gather(x, [2, 0, 2]),
            tf.gather(x, [[0, 1], [1, 2], [3, 3]], axis=1, batch_dims=1),
            tf.gather_nd(x, [[0, 1], [2, 3]]),
            tf.scatter_nd(where, x, [4, 4]),
            tf.tensor_scatter_nd_update(x, [[1, 2]], [5.0]),
            tf.tensor_scatter_nd_add(x, where, x),
            tf.tensor_scatter_nd_max(x, where, x[::-1]),
            tf.dynamic_stitch([[0, 2], [1]], tf.dynamic_partition(x, [0, 1, 0], 2)),
        )

    return with_gradient(f), (normal(3, 4),)


@case
def segments() -> Built:
    def f(x: Any) -> Any:
        ids = tf.constant([0, 0, 2])
        return (
            tf.math.segment_sum(x, ids),
            tf.math.segment_mean(x, ids),
            tf.math.segment_max(x, ids),
            tf.math.unsorted_segment_sum(x, ids, 4),
            tf.math.unsorted_segment_mean(x, ids, 4),
            tf.math.unsorted_segment_prod(x, ids, 4),
            tf.sparse.segment_mean(x, [0, 2], [0, 0]),
        )

    return with_gradient(f), (normal(3, 4),)


@case
def dynamic_shapes() -> Built:
    def f(x: Any) -> Any:
        values, index, count = tf.unique_with_counts(tf.cast(tf.reshape(x, [-1]) * 2, tf.int32))
        picked = tf.boolean_mask(x, x > 0.0)
        return (
            values,
            index,
            count,
            tf.reduce_sum(picked),
            tf.shape(picked),
            tf.range(tf.size(values)),
        )

    return f, (normal(3, 4),)


@case
def sorting_and_counting() -> Built:
    def f(x: Any) -> Any:
        top = tf.math.top_k(x, 2)
        whole = tf.cast(tf.abs(x) * 3, tf.int32)
        return (
            top.values,
            tf.sort(x, direction="DESCENDING"),
            tf.cast(tf.argsort(x), tf.float32),
            tf.cast(tf.argmax(x, 1), tf.float32),
            tf.cast(
                tf.math.bincount(tf.reshape(whole, [-1]), minlength=5, maxlength=5), tf.float32
            ),
            tf.cast(tf.searchsorted([[0.0, 1.0]] * 3, x), tf.float32),
            tf.cast(tf.histogram_fixed_width(x, [-1.0, 1.0], 4), tf.float32),
            tf.one_hot(whole, 4),
        )

    return with_gradient(f), (normal(3, 4),)


@case
def sparse_tensors() -> Built:
    def f(x: Any) -> Any:
        sparse = tf.sparse.SparseTensor([[0, 0], [1, 2], [2, 3]], x[0, :3], [3, 4])
        return (
            tf.sparse.sparse_dense_matmul(sparse, tf.transpose(x)),
            tf.sparse.to_dense(tf.sparse.reorder(sparse)),
            tf.sparse.reduce_sum(sparse, 1),
            tf.sparse.softmax(sparse).values,
            tf.sparse.to_dense(tf.sparse.add(sparse, sparse)),
            tf.sparse.concat(0, [sparse, sparse]).values,
        )

    return with_gradient(f), (normal(3, 4),)


@case
def ragged_tensors() -> Built:
    def f(x: Any) -> Any:
        ragged = tf.RaggedTensor.from_row_splits(tf.reshape(x, [-1]), [0, 3, 3, 12])
        mapped = tf.map_fn(
            lambda row: row * 2.0,
            ragged,
            fn_output_signature=tf.RaggedTensorSpec([None], tf.float32, 0),
        )
        return (
            ragged.to_tensor(),
            tf.reduce_mean(mapped + 1.0, axis=1),
            tf.concat([ragged, mapped], 1).flat_values,
        )

    return f, (normal(3, 4),)


@case
def meshes_and_indices() -> Built:
    def f(x: Any) -> Any:
        rows, columns = tf.meshgrid(tf.range(3.0), tf.linspace(0.0, 1.0, 4))
        flat = tf.unravel_index(tf.range(5), [3, 4])
        return (
            rows * columns,
            flat,
            tf.eye(3),
            tf.fill([2], x[0, 0]),
            tf.rank(x),
            tf.size(x),
            tf.zeros_like(x),
        )

    return f, (normal(3, 4),)
