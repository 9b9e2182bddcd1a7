"""Elementwise functions, reductions, linear algebra, transforms, casts."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from . import CASES, case
from .build import normal, positive, with_gradient

Built = tuple[Any, tuple[Any, ...]]

UNARY = (
    "abs acosh asinh atan cos cosh erf erfc exp expm1 log log1p lgamma digamma negative "
    "reciprocal rsqrt sigmoid sign sin "
    "sinh softplus softsign sqrt square tan tanh floor ceil round bessel_i0 bessel_i1e ndtri"
)
for _name in UNARY.split():
    _f = getattr(tf.math, _name)
    CASES[f"unary-{_name}"] = lambda f=_f, n=_name: (
        with_gradient(lambda x: f(x)),
        (
            (
                positive(3, 4) / 4
                if n == "ndtri"
                else positive(3, 4) + (1.0 if n == "acosh" else 0.0)
            ),
        ),
    )

BINARY = (
    "add subtract multiply divide divide_no_nan multiply_no_nan pow maximum minimum "
    "squared_difference atan2 xlogy xdivy "
    "xlog1py floordiv floormod igamma igammac zeta"
)
for _name in BINARY.split():
    CASES[f"binary-{_name}"] = lambda f=getattr(tf.math, _name): (
        with_gradient(lambda x, y: f(x, y)),
        (positive(3, 4) + 1.0, positive(3, 1)),
    )

REDUCTIONS = "sum mean max min prod std variance logsumexp euclidean_norm"
for _name in REDUCTIONS.split():
    CASES[f"reduce-{_name}"] = lambda f=getattr(tf.math, f"reduce_{_name}"): (
        with_gradient(lambda x: (f(x), f(x, axis=1, keepdims=True))),
        (normal(3, 4),),
    )


def _spd(n: int) -> Any:
    x = normal(2, n, n)
    return x @ tf.transpose(x, [0, 2, 1]) + 3.0 * tf.eye(n)


LINEAR_ALGEBRA = {
    "cholesky": tf.linalg.cholesky,
    "inv": tf.linalg.inv,
    "det": tf.linalg.det,
    "logdet": tf.linalg.logdet,
    "slogdet": tf.linalg.slogdet,
    "eigh": tf.linalg.eigh,
    "svd": lambda x: tf.linalg.svd(x),
    "qr": lambda x: tf.linalg.qr(x),
    "lu": lambda x: tf.linalg.lu(x)[0],
    "solve": lambda x: tf.linalg.solve(x, tf.ones([2, 4, 1])),
    "triangular_solve": lambda x: tf.linalg.triangular_solve(x, tf.ones([2, 4, 1])),
    "lstsq": lambda x: tf.linalg.lstsq(x, tf.ones([2, 4, 1])),
    "expm": lambda x: tf.linalg.expm(0.1 * x),
    "diag_part": tf.linalg.diag_part,
    "set_diag": lambda x: tf.linalg.set_diag(x, tf.ones([2, 4])),
    "band_part": lambda x: tf.linalg.band_part(x, 1, 0),
    "norm": lambda x: tf.norm(x, axis=[-2, -1]),
    "trace": tf.linalg.trace,
    "einsum": lambda x: tf.einsum("bij,bkj->bik", x, x),
    "matmul_transposed": lambda x: tf.matmul(x, x, transpose_b=True),
    "tensordot": lambda x: tf.tensordot(x, x, [[0, 2], [0, 2]]),
    "adjoint": tf.linalg.adjoint,
    "pinv": tf.linalg.pinv,
}
for _name, _linear in LINEAR_ALGEBRA.items():
    CASES[f"linalg-{_name}"] = lambda f=_linear, n=_name: (
        with_gradient(f) if n not in ("lstsq", "lu") else f,
        (_spd(4),),
    )


@case
def fourier_transforms() -> Built:
    def f(x: Any) -> Any:
        spectrum = tf.signal.rfft(x)
        plane = tf.signal.fft2d(tf.complex(x, x))
        return tf.abs(spectrum), tf.signal.irfft(spectrum), tf.math.real(plane), tf.signal.dct(x)

    return with_gradient(f), (normal(4, 8),)


@case
def short_time_fourier_transform() -> Built:
    return with_gradient(lambda x: tf.abs(tf.signal.stft(x, 16, 8))), (normal(2, 64),)


@case
def complex_numbers() -> Built:
    def f(x: Any, y: Any) -> Any:
        z = tf.complex(x, y)
        return (
            tf.abs(z * tf.math.conj(z) + tf.exp(z)),
            tf.math.imag(z / (z + 1.0)),
            tf.math.angle(z),
        )

    return with_gradient(f), (positive(3, 4), normal(3, 4, seed=1))


@case
def casts_and_half_precision() -> Built:
    def f(x: Any) -> Any:
        half, brain = tf.cast(x, tf.float16), tf.cast(x, tf.bfloat16)
        bits = tf.bitcast(x, tf.int32)
        return (
            half @ tf.transpose(half),
            tf.exp(brain),
            tf.cast(bits, tf.float64),
            tf.saturate_cast(x * 300, tf.uint8),
        )

    return with_gradient(f), (normal(3, 4),)


@case
def comparisons_and_selection() -> Built:
    def f(x: Any) -> Any:
        mask = tf.logical_and(x > 0, tf.logical_not(tf.math.is_nan(x)))
        return (
            tf.where(mask, tf.sqrt(tf.abs(x)), x),
            tf.boolean_mask(x, mask),
            tf.cast(tf.where(mask), tf.float32),
        )

    return with_gradient(f), (normal(3, 4),)


@case
def cumulative() -> Built:
    def f(x: Any) -> Any:
        return (
            tf.cumsum(x, 1, exclusive=True),
            tf.math.cumprod(x),
            tf.math.cumulative_logsumexp(x, reverse=True),
        )

    return with_gradient(f), (normal(3, 4),)


@case
def clipping() -> Built:
    def f(x: Any) -> Any:
        clipped, norm = tf.clip_by_global_norm([x, 2 * x], 1.0)
        return tf.clip_by_value(x, -1.0, 1.0), tf.clip_by_norm(x, 1.0), *clipped, norm

    return with_gradient(f), (normal(3, 4),)
