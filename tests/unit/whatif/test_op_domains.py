"""What `double_where` puts before an op keeps it finite at its poles, and changes nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from nanreplay.whatif.edits import CannotTryError
from nanreplay.whatif.fixes.op_domains import ATAN2_TEMPLATE, domain_of, guarded_atan2

INF = np.inf
OPS: dict[str, tuple[Callable[[Any], Any], list[float], list[float]]] = {
    # the function, operands at which it or its gradient is not finite, operands that stay
    "RealDiv": (lambda x: 1 / x, [0.0], [-2.0, 1e-7, 3.0]),
    "Reciprocal": (tf.math.reciprocal, [0.0], [-2.0, 3.0]),
    "Log": (tf.math.log, [0.0, -1.0], [1e-7, 5.0]),
    "Sqrt": (tf.sqrt, [0.0, -1.0], [1e-7, 5.0]),
    "Rsqrt": (tf.math.rsqrt, [0.0, -1.0], [1e-7, 5.0]),
    "Log1p": (tf.math.log1p, [-1.0, -2.0], [-0.999, -0.5, 0.0, 3.0]),
    "Acos": (tf.acos, [1.0, -1.0, 1.5], [-0.99, 0.0, 0.99]),
    "Asin": (tf.asin, [1.0, -1.0, 1.5], [-0.99, 0.0, 0.99]),
    "Atanh": (tf.atanh, [1.0, -1.0, 1.5], [-0.99, 0.0, 0.99]),
    "Acosh": (tf.acosh, [1.0, 0.5, -3.0], [1.001, 5.0]),
    "Erfinv": (tf.math.erfinv, [1.0, -1.0, 2.0], [-0.9, 0.5]),
    "Ndtri": (tf.math.ndtri, [0.0, 1.0, 2.0], [0.1, 0.9]),
    "Lgamma": (tf.math.lgamma, [0.0, -1.0, -2.0], [-0.5, -1.5, 0.1, 7.0]),
    "Digamma": (tf.math.digamma, [0.0, -1.0], [-0.5, 0.1, 7.0]),
}


@pytest.mark.parametrize("op_type", OPS)
def test_poles_are_replaced_and_the_domain_stays(op_type: str) -> None:
    function, poles, usual = OPS[op_type]
    domain = domain_of(op_type)
    x = tf.constant([*poles, *usual], tf.float32)
    written = eval(domain.template.format("x"), {"tf": tf, "x": x})
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(domain.guarded(x))

    np.testing.assert_array_equal(domain.guarded(x), written)
    np.testing.assert_array_equal(y[len(poles) :], function(tf.constant(usual)))
    assert np.isfinite(y).all()
    assert np.isfinite(tape.gradient(y, x)).all()


@pytest.mark.parametrize(
    ("exponent", "at_zero_and_below", "stays"),
    [(None, 1.0, 0.3), (0.5, 1.0, 0.3), (-2.0, 1.0, -0.3)],
)
def test_the_pole_of_a_power_is_that_of_its_exponent(
    exponent: float | None, at_zero_and_below: float, stays: float
) -> None:
    domain = domain_of("Pow", exponent)
    assert domain.guarded(tf.constant([0.0, stays])).numpy().tolist() == pytest.approx(
        [at_zero_and_below, stays]
    )


def test_what_has_no_pole_is_not_tried() -> None:
    for op_type, exponent in (("Exp", None), ("Pow", 2.0)):
        with pytest.raises(CannotTryError, match="no pole"):
            domain_of(op_type, exponent)


def test_atan2_is_guarded_where_both_operands_are_zero() -> None:
    y, x = tf.constant([0.0, 0.0, -1.0, -2.0]), tf.constant([0.0, -1.0, 0.0, 3.0])
    with tf.GradientTape() as tape:
        tape.watch([y, x])
        angle = tf.atan2(y, guarded_atan2(y, x))
    written = eval(ATAN2_TEMPLATE.format("y", "x"), {"tf": tf, "y": y, "x": x})

    np.testing.assert_array_equal(angle, tf.atan2(y, x))
    np.testing.assert_array_equal(angle, written)
    assert all(np.isfinite(one).all() for one in tape.gradient(angle, [y, x]))
