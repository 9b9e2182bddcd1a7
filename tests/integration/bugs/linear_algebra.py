"""Matrices that have no inverse."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from bugs.base import ROWS, Compute, adam, at, bug, fit, normal, sgd


def covariance(x: Any) -> Any:
    """Covariance of the columns of each sample's points, [samples, columns, columns]."""
    centred = x - tf.reduce_mean(x, axis=1, keepdims=True)
    return tf.matmul(centred, centred, transpose_a=True) / tf.cast(tf.shape(x)[1], x.dtype)


@bug(
    step=1, phase="forward", ops=("Cholesky",), layer="whiten", rows=(3,),
    causes=("linalg_singular",),
    prevents=("epsilon",), fails=("clipnorm", "lr"), fails_in_code=("epsilon_after",),
)  # fmt: skip
def cholesky_of_points_in_a_plane(path: Path, fix: str | None) -> None:
    """Clouds of points whitened by the Cholesky factor of their covariance: one cloud is flat, and
    the factor NaN, silently."""

    def whiten(points: Any) -> Any:
        spread = covariance(points)
        factor = tf.linalg.cholesky(spread + 1e-3 * tf.eye(3) if fix == "epsilon" else spread)
        return factor + 1e-3 if fix == "epsilon_after" else factor

    points = keras.Input((8, 3))
    factors = keras.layers.Flatten()(Compute(whiten, name="whiten")(points))
    model = keras.Model(points, keras.layers.Dense(1, name="volume")(factors))
    model.compile(adam(1e-3, fix), "mse")
    x = normal(100, 3 * ROWS, 8, 3)
    x[at(1, 3), :, 2] = 0.0
    fit(path, model, x, normal(101, 3 * ROWS, 1))


@bug(
    step=2, phase="forward", ops=("MatrixInverse",), layer="precision", rows=(5,),
    causes=("linalg_singular",), trigger="exception",
    prevents=("epsilon",), fails=("clipnorm", "clipvalue", "lr"),
    prevents_in_code=("pseudo_inverse",),
)  # fmt: skip
def inverse_of_a_covariance_of_equal_points(path: Path, fix: str | None) -> None:
    """The inverse of a covariance for a Mahalanobis distance: one cloud is a single point, and on a
    CPU the op raises."""

    def precision(points: Any) -> Any:
        spread = covariance(points)
        if fix == "pseudo_inverse":
            return tf.linalg.pinv(spread)
        return tf.linalg.inv(spread + 1e-3 * tf.eye(2) if fix == "epsilon" else spread)

    points = keras.Input((6, 2))
    inverses = keras.layers.Flatten()(Compute(precision, name="precision")(points))
    model = keras.Model(
        points, keras.layers.Dense(1, activation="sigmoid", name="is_outlier")(inverses)
    )
    model.compile(sgd(1e-3, fix), "binary_crossentropy", jit_compile=False)
    x = normal(102, 4 * ROWS, 6, 2)
    x[at(2, 5)] = 1.5
    with suppress(tf.errors.InvalidArgumentError):
        fit(path, model, x, (normal(103, 4 * ROWS, 1) > 0).astype("float32"))
