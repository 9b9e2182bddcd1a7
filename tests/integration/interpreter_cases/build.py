"""What cases are made of: seeded arrays, and steps that also differentiate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf


def normal(*shape: int, dtype: Any = tf.float32, seed: int = 0) -> Any:
    """Return normal numbers, the same ones at each call."""
    return tf.constant(np.random.default_rng(seed).normal(size=shape), dtype)


def positive(*shape: int, dtype: Any = tf.float32) -> Any:
    """Return numbers above 0.1."""
    return tf.abs(normal(*shape, dtype=dtype)) + tf.cast(0.1, dtype)


def with_gradient(f: Callable[..., Any]) -> Callable[..., Any]:
    """Return a step that gives f's outputs and the gradients of its arguments."""

    def step(*inputs: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = f(*inputs)
            total = tf.add_n(
                [
                    tf.reduce_sum(tf.cast(tf.math.real(o), tf.float32) ** 2)
                    for o in tf.nest.flatten(outputs)
                ]
            )
        return outputs, tape.gradient(total, inputs, unconnected_gradients="zero")

    return step
