"""Fixes at the very operand: kept away from a pole, exchanged where it is one, cut to where the op is defined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay.whatif.case import DIVISIONS, Case, Place
from nanreplay.whatif.code import rewritten
from nanreplay.whatif.edits import CannotTryError, Edit, Fix
from nanreplay.whatif.fixes.optimizer import number

EPSILON = 1e-7
"""Keras's `keras.config.epsilon()`."""
_NEGATIVE_TOO = frozenset({"Log", "Sqrt", "Rsqrt", "Pow", "Xlogy", "Lgamma"})
"""Ops that take no operand below 0: an epsilon that is added does not help where the operand is far below."""


def epsilon(case: Case, value: str | None, place: Place | None = None) -> Fix:
    """Add a small number to the operand that is 0, or, where it is negative, put that number in its place.

    Args:
        case: The capture.
        value: The number; `keras.config.epsilon()` unless given.
        place: Which operand; that of the origin unless given.
    """
    small = number(value, EPSILON)
    place = place or next(case.places())
    if place.everywhere:
        code = f"{{}} = {{}} + {small:g}  # x: what `{place.type}` and other ops take".replace("{}", "x")
        edit = Edit(programs=(case.value_edit(place, lambda x: x + tf.cast(small, x.dtype)),))
        return Fix("epsilon", {"value": small, "where": "all uses of the operand"}, edit, code, case.source(place.op))
    operand = case.operand(place)
    if place.type in _NEGATIVE_TOO and operand is not None and operand.size and (operand < 0).any():
        return _at(case, place, "epsilon", {"value": small, "how": "maximum"}, lambda x: at_least(x, small), f"tf.maximum({{}}, {small:g})")
    if place.type in ("Acos", "Asin", "Atanh", "Acosh"):
        return clamp(case, value)
    return _at(case, place, "epsilon", {"value": small}, lambda x: x + tf.cast(small, x.dtype), f"{{}} + {small:g}")


def double_where(case: Case, value: str | None) -> Fix:
    """Put 1 in the place of operands at a pole before the op sees them, so that its gradient does not see them either."""
    place = next(case.places())
    if place.type in DIVISIONS | {"Reciprocal", "Inv"}:
        return _at(case, place, "double_where", {}, _unless(lambda x: tf.not_equal(x, 0)), "tf.where({0} != 0, {0}, 1.0)")
    if place.type in ("Acos", "Asin", "Atanh"):
        return _at(
            case, place, "double_where", {}, lambda x: tf.where(tf.abs(x) < 1, x, tf.zeros_like(x)), "tf.where(tf.abs({0}) < 1, {0}, 0.0)"
        )
    if place.type in ("Exp", "Expm1"):
        raise CannotTryError("`Exp` has no pole that a `where` could leave out.")
    return _at(case, place, "double_where", {}, _unless(lambda x: x > 0), "tf.where({0} > 0, {0}, 1.0)")


def clamp(case: Case, value: str | None) -> Fix:
    """Cut the operand to where the op and its gradient are finite."""
    place = next(case.places())
    if place.type in ("Acos", "Asin", "Atanh"):
        high = 1 - number(value, 1e-6)
        return _at(
            case,
            place,
            "epsilon",
            {"value": 1 - high, "how": "clip"},
            lambda x: between(x, -high, high),
            f"tf.clip_by_value({{}}, {-high:g}, {high:g})",
        )
    if place.type in ("Exp", "Expm1"):
        return _at(
            case,
            place,
            "stable_op",
            {"op": "tf.minimum"},
            lambda x: between(x, -np.inf, _largest_exponent(x.dtype)),
            "tf.minimum({}, 80.0)",
        )
    small = number(value, EPSILON)
    return _at(case, place, "epsilon", {"value": small, "how": "maximum"}, lambda x: at_least(x, small), f"tf.maximum({{}}, {small:g})")


def _largest_exponent(dtype: Any) -> float:
    return 11.0 if dtype == tf.float16 else 80.0


def _at(case: Case, place: Place, name: str, params: dict[str, Any], change: Callable[[Any], Any], template: str) -> Fix:
    source = case.source(place.op)
    code = rewritten(source, place.type, template)
    return Fix(name, params, Edit(programs=(case.operand_edit(place, change),)), code, source)


def _unless(is_safe: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda x: tf.where(is_safe(x), x, tf.ones_like(x))


def at_least(x: Any, low: float) -> Any:
    """`tf.maximum(x, low)`."""
    return tf.maximum(x, tf.cast(low, x.dtype))


def between(x: Any, low: float, high: float) -> Any:
    """`tf.clip_by_value(x, low, high)`."""
    return tf.minimum(tf.maximum(x, tf.cast(low, x.dtype)), tf.cast(high, x.dtype))
