"""Fixes at the very operand: kept away from a pole, exchanged where it is one, cut to where the op is defined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import tensorflow as tf

from nanreplay.whatif.edits import CannotTryError, Edit, Fix
from nanreplay.whatif.failure import DIVISIONS, MATRICES, Failure, OpLocation
from nanreplay.whatif.fix_code import operand_text, rewritten, short
from nanreplay.whatif.fixes.update_fixes import number, optimizer_of

EPSILON = 1e-7
"""Keras's `keras.config.epsilon()`."""
EPSILON_FLOAT16 = 1e-3
"""The same where numbers have 11 bits: about the smallest that does not vanish beside 1."""
_NEGATIVE_TOO = frozenset({"Log", "Sqrt", "Rsqrt", "Pow", "Xlogy", "Lgamma"})
"""Ops that take no operand below 0: an epsilon that is added does not help where the operand is far below."""


def epsilon(failure: Failure, value: str | None, place: OpLocation | None = None) -> Fix:
    """Add a small number to the operand that is 0, or, where it is negative, put that number in its place.

    Args:
        failure: The capture.
        value: The number; `keras.config.epsilon()` unless given.
        place: Which operand; that of the origin unless given.
    """
    place = place or next(failure.places())
    small = number(value, EPSILON if _dtype(failure) != "float16" else EPSILON_FLOAT16)
    if place.type in MATRICES:
        return _on_diagonal(failure, place, small)
    if place.everywhere:
        return _everywhere(failure, place, small)
    operand = failure.operand(place)
    if place.type in ("Acos", "Asin", "Atanh", "Acosh"):
        return clamp(failure, value)
    if place.type in _NEGATIVE_TOO and operand is not None and (operand < 0).any():
        return _at_least(failure, place, small)
    fix = _at(
        failure,
        place,
        "epsilon",
        {"value": small},
        lambda x: x + tf.cast(small, x.dtype),
        f"{{}} + {short(small)}",
    )
    if failure.is_optimizers_own:
        return replace(
            fix,
            source=None,
            code=f"keras.optimizers.{optimizer_of(failure)}(..., epsilon={short(small)})",
        )
    return fix


def _dtype(failure: Failure) -> str | None:
    outputs = failure.origin.outputs if failure.origin is not None else ()
    return outputs[0].dtype if outputs else None


def _on_diagonal(failure: Failure, place: OpLocation, small: float) -> Fix:
    """Jitter: what makes a singular matrix regular."""
    template = f"{{}} + {short(small)} * tf.eye(n)"

    def change(x: Any) -> Any:
        return tf.linalg.set_diag(x, tf.linalg.diag_part(x) + tf.cast(small, x.dtype))

    return _at(
        failure,
        replace(place, everywhere=False),
        "epsilon",
        {"value": small, "where": "the diagonal"},
        change,
        template,
    )


def _everywhere(failure: Failure, place: OpLocation, small: float) -> Fix:
    source = failure.source(place.op)
    name = operand_text(source, place.type) or "x"
    edit = Edit(programs=(failure.value_edit(place, lambda x: x + tf.cast(small, x.dtype)),))
    code = (
        f"{name} = {name} + {short(small)}  # before `{place.type}` and the other ops that take it"
    )
    return Fix("epsilon", {"value": small, "where": "all uses of the operand"}, edit, code, source)


def double_where(failure: Failure, value: str | None) -> Fix:
    """Put 1 in the place of operands at a pole before the op sees them, so that its gradient does not see them either."""
    failure.check_users_own()
    place = next(failure.places())
    if place.type in ("Exp", "Expm1"):
        raise CannotTryError("`Exp` has no pole that a `where` could leave out.")
    if place.type in DIVISIONS | {"Reciprocal", "Inv"}:
        is_safe, template = _is_not_zero, "tf.where({0} != 0, {0}, 1.0)"
    elif place.type in ("Acos", "Asin", "Atanh"):
        is_safe, template = _is_inside, "tf.where(tf.abs({0}) < 1, {0}, 0.0)"
    else:
        is_safe, template = _is_positive, "tf.where({0} > 0, {0}, 1.0)"
    other = 0 if is_safe is _is_inside else 1
    return _at(
        failure,
        place,
        "double_where",
        {},
        lambda x: tf.where(is_safe(x), x, tf.cast(other, x.dtype)),
        template,
    )


def clamp(failure: Failure, value: str | None) -> Fix:
    """Cut the operand to where the op and its gradient are finite."""
    place = next(failure.places())
    if place.type in ("Acos", "Asin", "Atanh"):
        margin = number(value, 1e-6)
        high = 1 - margin
        template = f"tf.clip_by_value({{}}, {-high:.8g}, {high:.8g})"
        return _at(
            failure,
            place,
            "epsilon",
            {"value": margin, "how": "clip"},
            lambda x: _between(x, -high, high),
            template,
        )
    if place.type in ("Exp", "Expm1"):
        template = "tf.minimum({}, 80.0)"
        return _at(
            failure,
            place,
            "stable_op",
            {"op": "tf.minimum"},
            lambda x: _at_most(x, _largest_exponent(x.dtype)),
            template,
        )
    low = 1 + number(value, 1e-6) if place.type == "Acosh" else number(value, EPSILON)
    return _at_least(failure, place, low)


def _at_least(failure: Failure, place: OpLocation, low: float) -> Fix:
    return _at(
        failure,
        place,
        "epsilon",
        {"value": low, "how": "maximum"},
        partial(_raised, low),
        f"tf.maximum({{}}, {short(low)})",
    )


def _largest_exponent(dtype: Any) -> float:
    return 11.0 if dtype == tf.float16 else 80.0


def _at(
    failure: Failure,
    place: OpLocation,
    name: str,
    params: dict[str, Any],
    change: Callable[[Any], Any],
    template: str,
) -> Fix:
    source = failure.source(place.op)
    code = rewritten(source, place.type, template)
    return Fix(name, params, Edit(programs=(failure.operand_edit(place, change),)), code, source)


def _is_not_zero(x: Any) -> Any:
    return tf.not_equal(x, 0)


def _is_positive(x: Any) -> Any:
    return x > 0


def _is_inside(x: Any) -> Any:
    return tf.abs(x) < 1


def _raised(low: float, x: Any) -> Any:
    return tf.maximum(x, tf.cast(low, x.dtype))


def _at_most(x: Any, high: float) -> Any:
    return tf.minimum(x, tf.cast(high, x.dtype))


def _between(x: Any, low: float, high: float) -> Any:
    return _at_most(_raised(low, x), high)
