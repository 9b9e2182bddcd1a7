"""Neural network kernels: convolutions, pooling, normalization, losses, images, quantization."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from . import CASES, case
from .build import normal, positive, with_gradient

Built = tuple[Any, tuple[Any, ...]]


@case
def convolutions() -> Built:
    def f(x: Any, k: Any) -> Any:
        y = tf.nn.conv2d(x, k, 1, "SAME")
        z = tf.nn.conv2d(x, k, 2, "VALID", dilations=1)
        up = tf.nn.conv2d_transpose(y, k, [2, 8, 8, 3], 1)
        return (
            tf.nn.bias_add(y, [1.0, 2.0, 3.0, 4.0]),
            z,
            up,
            tf.nn.depthwise_conv2d(x, k, [1, 1, 1, 1], "SAME"),
        )

    return with_gradient(f), (normal(2, 8, 8, 3), normal(3, 3, 3, 4))


@case
def pooling() -> Built:
    def f(x: Any) -> Any:
        return (
            tf.nn.max_pool2d(x, 2, 2, "SAME"),
            tf.nn.avg_pool2d(x, 3, 1, "VALID"),
            tf.nn.max_pool_with_argmax(x, 2, 2, "SAME")[0],
            tf.nn.space_to_depth(x, 2),
            tf.nn.depth_to_space(tf.nn.space_to_depth(x, 2), 2),
            tf.nn.local_response_normalization(x),
            tf.space_to_batch(x, [2, 2], [[0, 0], [0, 0]]),
            tf.nn.dilation2d(x, tf.ones([2, 2, 3]), [1, 1, 1, 1], "SAME", "NHWC", [1, 1, 1, 1]),
            tf.image.extract_patches(x, [1, 2, 2, 1], [1, 2, 2, 1], [1, 1, 1, 1], "SAME"),
        )

    return with_gradient(f), (normal(2, 8, 8, 3),)


@case
def fused_batch_norm() -> Built:
    def f(x: Any, scale: Any) -> Any:
        made = tf.raw_ops.FusedBatchNormV3(
            x=x, scale=scale, offset=scale, mean=[], variance=[], is_training=True
        )
        return made.y, made.batch_mean, made.batch_variance

    return with_gradient(f), (normal(2, 8, 8, 3), positive(3))


ACTIVATIONS = "relu relu6 elu selu leaky_relu gelu silu softmax log_softmax crelu"
for _name in ACTIVATIONS.split():
    CASES[f"activation-{_name}"] = lambda f=getattr(tf.nn, _name): (
        with_gradient(lambda x: f(x)),
        (normal(3, 4),),
    )


@case
def cross_entropies() -> Built:
    def f(x: Any) -> Any:
        soft = tf.nn.softmax(x[::-1])
        return (
            tf.nn.sparse_softmax_cross_entropy_with_logits([0, 3, 1], x),
            tf.nn.softmax_cross_entropy_with_logits(soft, x),
            tf.nn.sigmoid_cross_entropy_with_logits(soft, x),
            tf.nn.weighted_cross_entropy_with_logits(soft, x, 2.0),
            tf.nn.l2_loss(x),
            tf.nn.log_poisson_loss(soft, x),
        )

    return with_gradient(f), (normal(3, 4),)


@case
def keras_losses() -> Built:
    import keras

    def f(x: Any) -> Any:
        y = tf.nn.softmax(x[::-1])
        kinds = (
            keras.losses.Huber,
            keras.losses.LogCosh,
            keras.losses.KLDivergence,
            keras.losses.CosineSimilarity,
        )
        kinds += (
            keras.losses.BinaryCrossentropy,
            keras.losses.Poisson,
            keras.losses.CategoricalFocalCrossentropy,
        )
        return [kind()(y, tf.nn.softmax(x)) for kind in kinds]

    return with_gradient(f), (normal(3, 4),)


@case
def ctc_losses() -> Built:
    labels = tf.constant([[1, 2, 1], [3, 1, 0]])

    def f(x: Any) -> Any:
        sparse = tf.sparse.from_dense(labels)
        return (
            tf.nn.ctc_loss(labels, x, [3, 2], [8, 8], logits_time_major=False, blank_index=0),
            tf.compat.v1.nn.ctc_loss(
                sparse, x, [8, 8], time_major=False, preprocess_collapse_repeated=True
            ),
        )

    return with_gradient(f), (normal(2, 8, 5),)


@case
def embedding_lookup() -> Built:
    def f(table: Any) -> Any:
        ids = tf.sparse.from_dense([[1, 2], [3, 0]])
        return tf.nn.embedding_lookup(table, [[0, 1], [1, 1]]), tf.nn.safe_embedding_lookup_sparse(
            table, ids
        )

    return with_gradient(f), (normal(5, 4),)


@case
def images() -> Built:
    def f(x: Any) -> Any:
        return (
            tf.image.resize(x, [5, 5]),
            tf.image.resize(x, [5, 5], "nearest"),
            tf.image.resize(x, [5, 5], "bicubic"),
            tf.image.crop_and_resize(x, [[0.1, 0.1, 0.8, 0.9]], [1], [3, 3]),
            tf.image.flip_left_right(x),
            tf.image.rgb_to_grayscale(x),
            tf.image.per_image_standardization(x),
            tf.image.ssim(x, x * 0.9, 1.0, filter_size=3),
        )

    return with_gradient(f), (normal(2, 8, 8, 3),)


@case
def image_colors_and_boxes() -> Built:
    def f(x: Any) -> Any:
        boxes = tf.sort(tf.abs(x[0, :4, :4, 0]), axis=1)
        return (
            tf.image.adjust_contrast(x, 0.5),
            tf.image.rgb_to_hsv(tf.abs(x)),
            tf.image.adjust_hue(tf.abs(x), 0.1),
            tf.image.adjust_saturation(tf.abs(x), 0.5),
            tf.image.non_max_suppression(boxes, boxes[:, 0], 2),
            tf.raw_ops.ResizeArea(images=x, size=[4, 4]),
        )

    return f, (normal(2, 8, 8, 3),)


@case
def fake_quantization() -> Built:
    def f(x: Any) -> Any:
        return (
            tf.quantization.fake_quant_with_min_max_args(x, -1, 1),
            tf.quantization.fake_quant_with_min_max_vars(x, x[0, 0] - 2.0, x[0, 0] + 2.0),
            tf.quantization.fake_quant_with_min_max_vars_per_channel(
                x, -tf.ones([4]), tf.ones([4])
            ),
            tf.quantization.quantize_and_dequantize_v2(x, -1.0, 1.0, range_given=True),
        )

    return with_gradient(f), (normal(3, 4),)


@case
def quantize_and_dequantize() -> Built:
    def f(x: Any) -> Any:
        quantized, low, high = tf.quantization.quantize(x, -3.0, 3.0, tf.quint8)
        return tf.quantization.dequantize(quantized, low, high)

    return f, (normal(3, 4),)


@case
def fused_recurrent_cells() -> Built:
    def f(x: Any, w: Any) -> Any:
        zeros, vector = tf.zeros([2, 3]), tf.zeros([3])
        made = tf.raw_ops.BlockLSTMV2(
            seq_len_max=4, x=x, cs_prev=zeros, h_prev=zeros, w=w, wci=vector, wcf=vector,
            wco=vector, b=tf.ones([12]),
            cell_clip=0.0, use_peephole=False,
        )  # fmt: skip
        return made.h, made.cs

    return f, (normal(4, 2, 5), normal(8, 12))
