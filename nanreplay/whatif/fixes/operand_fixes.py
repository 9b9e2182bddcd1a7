"""Fixes at the very operand that is fatal to an op.

It is kept away from the pole (`epsilon`), replaced where it is at the pole (`double_where`), or cut
to where the op is defined (`clamp`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import tensorflow as tf

from nanreplay.program.graph_nodes import constant_array
from nanreplay.whatif.edits import CannotTryError, Edit, Fix
from nanreplay.whatif.failure import DIVISIONS, MATRICES, Failure
from nanreplay.whatif.fix_code import (
    count_operands,
    line_edit,
    operand_text,
    rewritten,
    short_number,
)
from nanreplay.whatif.fixes.update_fixes import in_optimizers, optimizer_of, positive_number
from nanreplay.whatif.line_gradients import OpLocation, maker_of

TensorFunction: TypeAlias = Callable[[Any], Any]
EPSILON = 1e-7
"""Keras's `keras.config.epsilon()`."""
EPSILON_FLOAT16 = 1e-3
"""The same where numbers have 11 bits: about the smallest that does not vanish beside 1."""
_NEGATIVE_TOO = frozenset({"Log", "Sqrt", "Rsqrt", "Pow", "Xlogy", "Lgamma"})
"""Ops that take no operand below 0: adding an epsilon does not help one that is far below."""
_INVERSE_SINES = ("Acos", "Asin", "Atanh")
"""Ops that are defined from -1 to 1; they, or their gradients, are infinite at both ends."""
_EXPONENTIALS = ("Exp", "Expm1")


def epsilon(failure: Failure, value: str | None, place: OpLocation | None = None) -> Fix:
    """Add a small number to the operand that is 0; where it is negative, put the number there.

    Args:
        failure: The capture.
        value: The number; `keras.config.epsilon()` unless given.
        place: Which operand; that of the origin unless given.
    """
    place = place or next(failure.places())
    small = positive_number(value, EPSILON_FLOAT16 if _is_float16(failure) else EPSILON)
    if place.type in MATRICES:
        return _on_diagonal(failure, place, small)
    if place.everywhere:
        return _everywhere(failure, place, small)
    operand = failure.operand(place)
    if place.type in (*_INVERSE_SINES, "Acosh"):
        return clamp(failure, value)
    if place.type in _NEGATIVE_TOO and operand is not None and (operand < 0).any():
        return _at_least(failure, place, small)
    added = f"{{}} + {short_number(small)}"
    fix = _operand_fix(failure, place, "epsilon", {"value": small}, _plus(small), added)
    if not failure.is_optimizers_own:
        return fix
    whole = small + _own_epsilon(failure, place)
    code = in_optimizers(failure, f"..., epsilon={short_number(whole)}")
    edits = [{"optimizer": optimizer_of(failure), "argument": "epsilon", "value": whole}]
    return replace(fix, params={"value": whole}, source=None, code=code, edits=edits)


def _own_epsilon(failure: Failure, place: OpLocation) -> float:
    """The constant that the optimizer adds to the operand already."""
    operand = failure.editor.data_inputs(place.op)[place.position]
    adder = maker_of(place.op[0], operand)
    if not failure.editor.holds(adder) or failure.editor.node(adder).op not in ("AddV2", "Add"):
        return 0.0
    for tensor in failure.editor.data_inputs(adder):
        maker = maker_of(adder[0], tensor)
        if failure.editor.holds(maker) and failure.editor.node(maker).op == "Const":
            constant = constant_array(failure.editor.node(maker).attr["value"].tensor)
            return float(constant.reshape(-1)[0]) if constant.size == 1 else 0.0
    return 0.0


def _is_float16(failure: Failure) -> bool:
    outputs = failure.origin.outputs if failure.origin is not None else ()
    return bool(outputs) and outputs[0].dtype == "float16"


def _is_float16_operand(failure: Failure, place: OpLocation) -> bool:
    operand = failure.editor.data_inputs(place.op)[place.position]
    return bool(failure.editor.dtype(place.op[0], operand) == tf.float16)


def _on_diagonal(failure: Failure, place: OpLocation, small: float) -> Fix:
    """Jitter: what makes a singular matrix regular."""

    def jittered(matrix: Any) -> Any:
        diagonal = tf.linalg.diag_part(matrix) + tf.cast(small, matrix.dtype)
        return tf.linalg.set_diag(matrix, diagonal)

    params = {"value": small, "where": "the diagonal"}
    operand = failure.editor.data_inputs(place.op)[place.position]
    name = failure.editor.dtype(place.op[0], operand).name
    dtype = "" if name == "float32" else f', dtype="{name}"'
    template = f"{{0}} + {short_number(small)} * tf.eye(tf.shape({{0}})[-1]{dtype})"
    place = replace(place, everywhere=False)
    return _operand_fix(failure, place, "epsilon", params, jittered, template)


def _everywhere(failure: Failure, place: OpLocation, small: float) -> Fix:
    """An epsilon for all ops that take the operand."""
    source = failure.source(place.op)
    name = operand_text(source, place.type) or "x"
    edit = Edit(programs=(failure.value_edit(place, _plus(small)),))
    code = (
        f"{name} = {name} + {short_number(small)}  "
        f"# before `{place.type}` and the other ops that take it"
    )
    params: dict[str, Any] = {"value": small, "where": "all uses of the operand"}
    return Fix("epsilon", params, edit, code, source, ops=failure.line_ops(place.op))


def double_where(failure: Failure, value: str | None) -> Fix:
    """Put 1 in the place of operands at a pole, before the op sees them.

    A `where` after the op is not enough: the gradient of the op is multiplied by 0 there, and 0
    times infinity is NaN. With a `where` before it, the gradient does not see the pole either.
    """
    failure.check_users_own()
    place = next(failure.places())
    if place.type in _EXPONENTIALS:
        raise CannotTryError("`Exp` has no pole that a `where` could leave out.")

    def safe(x: Any) -> Any:
        if place.type in DIVISIONS | {"Reciprocal", "Inv"}:
            return tf.where(tf.not_equal(x, 0), x, tf.cast(1, x.dtype))
        if place.type in _INVERSE_SINES:
            return tf.where(tf.abs(x) < 1, x, tf.cast(0, x.dtype))
        return tf.where(x > 0, x, tf.cast(1, x.dtype))

    template = "tf.where({0} > 0, {0}, 1.0)"
    if place.type in DIVISIONS | {"Reciprocal", "Inv"}:
        template = "tf.where({0} != 0, {0}, 1.0)"
    elif place.type in _INVERSE_SINES:
        template = "tf.where(tf.abs({0}) < 1, {0}, 0.0)"
    return _operand_fix(failure, place, "double_where", {}, safe, template)


def clamp(failure: Failure, value: str | None) -> Fix:
    """Cut the operand to where the op and its gradient are finite."""
    place = next(failure.places())
    if place.type in _INVERSE_SINES:
        margin = positive_number(value, 1e-3 if _is_float16_operand(failure, place) else 1e-6)
        high = 1 - margin
        params = {"value": margin, "how": "clip"}
        template = f"tf.clip_by_value({{}}, {-high:.8g}, {high:.8g})"
        return _operand_fix(failure, place, "epsilon", params, _clipped(-high, high), template)
    if place.type in _EXPONENTIALS:
        params = {"op": "tf.minimum"}
        # exp(11.1) is above 65504, the largest float16; exp(88.8) is above the largest float32.
        largest = 11.0 if _is_float16_operand(failure, place) else 80.0
        template = f"tf.minimum({{}}, {largest})"
        return _operand_fix(failure, place, "stable_op", params, _cut_to(largest), template)
    low = positive_number(value, 1e-6 if place.type == "Acosh" else EPSILON)
    return _at_least(failure, place, 1 + low if place.type == "Acosh" else low)


def _at_least(failure: Failure, place: OpLocation, low: float) -> Fix:
    params = {"value": low, "how": "maximum"}
    template = f"tf.maximum({{}}, {short_number(low)})"
    return _operand_fix(failure, place, "epsilon", params, _raised_to(low), template)


def _operand_fix(
    failure: Failure,
    place: OpLocation,
    name: str,
    params: dict[str, Any],
    change: TensorFunction,
    template: str,
) -> Fix:
    """A fix that gives an op and its gradient `change(operand)`.

    Args:
        failure: The capture.
        place: The operand.
        name: Name of the fix.
        params: What the report says of it.
        change: What is made of the operand.
        template: The same as code; `{}` or `{0}` stands for the operand.
    """
    source, site = failure.source(place.op), failure.site(place.op)
    number = site.operand if site is not None and site.operands else None
    code = rewritten(source, place.type, template, number)
    is_own_line = count_operands(source, place.type) == 1 or number is not None
    edits = line_edit(source, code) if is_own_line else []
    edit = Edit(programs=(failure.operand_edit(place, change),))
    return Fix(name, params, edit, code, source, edits=edits, ops=failure.line_ops(place.op))


# Functions of a tensor, in its own type.


def _plus(small: float) -> TensorFunction:
    return lambda x: x + tf.cast(small, x.dtype)


def _raised_to(low: float) -> TensorFunction:
    return lambda x: tf.maximum(x, tf.cast(low, x.dtype))


def _clipped(low: float, high: float) -> TensorFunction:
    return lambda x: tf.minimum(
        tf.maximum(x, tf.cast(low, x.dtype)),
        tf.cast(high, x.dtype),
    )


def _cut_to(high: float) -> TensorFunction:
    return lambda x: tf.minimum(x, tf.cast(high, x.dtype))
