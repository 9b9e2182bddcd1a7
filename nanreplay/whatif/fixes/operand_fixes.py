"""Fixes at the very operand that is fatal to an op.

It is kept away from the pole (`epsilon`), replaced where it is at the pole (`double_where`), or cut
to where the op is defined (`clamp`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import tensorflow as tf

from nanreplay.diagnose.keras_lines import is_inside_keras
from nanreplay.program.graph_editor import OpKey, ProgramEditor
from nanreplay.program.graph_nodes import constant_array
from nanreplay.whatif.edits import CannotTryError, Edit, Fix
from nanreplay.whatif.failure import MATRICES, Failure
from nanreplay.whatif.fix_code import (
    in_words,
    line_edit,
    operand_text,
    rewritten,
    short_number,
    with_expression,
)
from nanreplay.whatif.fixes.op_domains import ATAN2_TEMPLATE, domain_of, guarded_atan2
from nanreplay.whatif.fixes.update_fixes import in_optimizers, optimizer_of, positive_number
from nanreplay.whatif.line_gradients import (
    OpLocation,
    gradient_ops,
    maker_of,
    operands_elsewhere,
)

TensorFunction: TypeAlias = Callable[[Any], Any]
EPSILON = 1e-7
"""Keras's `keras.config.epsilon()`."""
EPSILON_FLOAT16 = 1e-3
"""The same where numbers have 11 bits: about the smallest that does not vanish beside 1."""
_NEGATIVE_TOO = frozenset({"Log", "Sqrt", "Rsqrt", "Pow", "Xlogy", "Lgamma"})
"""Ops that take no operand below 0: adding an epsilon does not help one that is far below."""
_FLOORS = {"Log1p": -1.0, "Xlog1py": -1.0}
"""Ops that take no operand below another number than 0."""
_INVERSE_SINES = ("Acos", "Asin", "Atanh")
"""Ops that are defined from -1 to 1; they, or their gradients, are infinite at both ends."""
_EXPONENTIALS = ("Exp", "Expm1")
LOST_IN_SUM = "TensorFlow computes `a - b + c` as `a - (b - c)`, and `b - c` rounds to `b`"
"""Constant folding brings constants together so, and a, b and c are not of one size."""


def epsilon(failure: Failure, value: str | None, place: OpLocation | None = None) -> Fix:
    """Add a small number to the operand that is 0; where it is negative, put the number there.

    Args:
        failure: The capture.
        value: The number; `keras.config.epsilon()` unless given.
        place: Which operand; that of the origin unless given.
    """
    place = place or next(failure.places())
    small = positive_number(value, EPSILON_FLOAT16 if _is_float16(failure) else EPSILON)
    if failure.is_optimizers_own and place.type == "Pow":
        return _power_of_schedule(failure, place, small)
    if failure.is_optimizers_own:
        return _larger_epsilon(failure, place, small)
    if place.type in MATRICES:
        return _on_diagonal(failure, place, small)
    if place.everywhere:
        return _everywhere(failure, place, small)
    operand = failure.operand(place)
    if place.type in (*_INVERSE_SINES, "Acosh"):
        return clamp(failure, value)
    if place.type in _NEGATIVE_TOO and operand is not None and (operand < 0).any():
        return _at_least(failure, place, small)
    floor = _FLOORS.get(place.type)
    if floor is not None and operand is not None and (operand < floor).any():
        return _at_least(failure, place, small, floor)
    added, advice = f"{{}} + {short_number(small)}", f"Add {short_number(small)} to {{}}"
    params = {"value": small}
    fix = _operand_fix(
        failure, place, "epsilon", params, _plus(small), added, advice, is_added=True
    )
    argument = None if fix.edits else _epsilon_of_layer(failure, place, small)
    return fix if argument is None else replace(fix, code=argument)


def _epsilon_of_layer(failure: Failure, place: OpLocation, small: float) -> str | None:
    """The larger `epsilon` of a layer of Keras's that adds it to the operand; None of others."""
    origin = failure.origin
    part = None if origin is None else origin.part
    if origin is None or part is None or place.op != failure.op or not is_inside_keras(origin):
        return None
    if part.place != "layer" or not any(text.startswith("epsilon=") for text in part.settings):
        return None
    try:
        own = _own_epsilon(failure, place)[1]
    except CannotTryError:
        return None
    return f"{part.kind}(..., epsilon={short_number(own + small)})  # layer `{part.path}`"


def raised_epsilon(failure: Failure) -> Fix:
    """Put the small number there in place of what is smaller, where adding it does not last."""
    place = next(failure.places())
    if failure.is_optimizers_own or place.type in MATRICES:
        raise CannotTryError("The operand is not a plain number of the user's code.")
    small = EPSILON_FLOAT16 if _is_float16(failure) else EPSILON
    fix = _at_least(failure, place, small)
    return replace(fix, note=f"{short_number(small)} that is added there is lost: {LOST_IN_SUM}.")


def _larger_epsilon(failure: Failure, place: OpLocation, small: float) -> Fix:
    """A larger `epsilon` of the optimizer, where it adds that to what it divides by."""
    place, own = _own_epsilon(failure, place)
    operand = failure.operand(place)
    if operand is not None and operand.size and operand.min() < 0:
        # a difference of averages that is rounded to below 0: the next power of ten makes it more
        small = max(small, 10.0 ** math.ceil(math.log10(-2.0 * float(operand.min()))))
    edit = Edit(programs=(failure.operand_edit(place, _plus(small), is_added=True),))
    code = in_optimizers(failure, f"..., epsilon={short_number(own + small)}")
    edits = [{"optimizer": optimizer_of(failure), "argument": "epsilon", "value": own + small}]
    ops = failure.line_ops(place.op)
    return Fix("epsilon", {"value": own + small}, edit, code, edits=edits, ops=ops)


def _power_of_schedule(failure: Failure, place: OpLocation, small: float) -> Fix:
    """A base that is not negative, of a power in a learning-rate schedule of Keras's.

    At its last step `PolynomialDecay` takes the power of 0, which rounding makes negative.
    """
    base = failure.origin.operands[0].value if failure.origin and failure.origin.operands else None
    if not isinstance(base, (int, float)) or not base < 0:
        raise CannotTryError("The base of the optimizer's power is not negative.")
    fix = _at_least(failure, place, small)
    words_for_it = (
        "# In a keras.optimizers.schedules.LearningRateSchedule of your own, let the base of the "
        f"power be at least {short_number(small)}: tf.maximum(base, {short_number(small)}) ** power"
    )
    return replace(fix, code=words_for_it, edits=())


def _own_epsilon(failure: Failure, place: OpLocation) -> tuple[OpLocation, float]:
    """Where an optimizer or a layer adds its epsilon before an operand, and how much that is."""
    editor = failure.editor
    maker = maker_of(place.op[0], editor.data_inputs(place.op)[place.position])
    if editor.holds(maker) and editor.node(maker).op == "Sqrt":  # some add it under the root
        place = OpLocation(maker, "Sqrt", 0)
        maker = maker_of(maker[0], editor.data_inputs(maker)[0])
    if editor.holds(maker) and editor.node(maker).op in ("AddV2", "Add"):
        for tensor in editor.data_inputs(maker):
            constant = _constant(failure, maker[0], tensor)
            if constant is not None:
                return place, float(f"{constant:.6g}")  # as it was written: float32 has no 1e-7
    raise CannotTryError("Nothing adds an epsilon to what is divided by there.")


def _constant(failure: Failure, function: str, tensor: str) -> float | None:
    """The value of a tensor that is a constant of one element; None for any other."""
    maker = maker_of(function, tensor)
    if not failure.editor.holds(maker) or failure.editor.node(maker).op != "Const":
        return None
    constant = constant_array(failure.editor.node(maker).attr["value"].tensor)
    return float(constant.reshape(-1)[0]) if constant.size == 1 else None


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
    advice = f"Add {short_number(small)} to the diagonal of {{}}"
    return _operand_fix(
        failure, place, "epsilon", params, jittered, template, advice, is_added=True
    )


def _everywhere(failure: Failure, place: OpLocation, small: float) -> Fix:
    """An epsilon for all ops that take the operand."""
    source = failure.source(place.op)
    name = operand_text(source, place.type) or ""
    edit = Edit(programs=(failure.value_edit(place, _plus(small)),))
    advice = f"Add {short_number(small)} to {{}} before all ops that take it"
    code = advised(failure, place.op, advice)
    if name.isidentifier():
        before = f"before `{place.type}` and the other ops that take it"
        code = f"{name} = {name} + {short_number(small)}  # {before}"
    params: dict[str, Any] = {"value": small, "where": "all uses of the operand"}
    return Fix("epsilon", params, edit, code, source, ops=failure.line_ops(place.op))


def double_where(failure: Failure, value: str | None) -> Fix:
    """Put a harmless number in the place of operands at a pole, before the op sees them.

    A `where` after the op is not enough: the gradient of the op is multiplied by 0 there, and 0
    times infinity is NaN. With a `where` before it, the gradient does not see the pole either.
    Operands within the op's own domain stay as they are.
    """
    failure.check_users_own()
    place = next(failure.places())
    if place.type == "Atan2":
        return _double_where_of_atan2(failure, place)
    domain = domain_of(place.type, _exponent(failure, place))
    advice = f"Put {domain.stand_in} in the place of {{}} unless " + domain.condition.format("it")
    return _operand_fix(failure, place, "double_where", {}, domain.guarded, domain.template, advice)


def _exponent(failure: Failure, place: OpLocation) -> float | None:
    """The exponent of a power, where it is one constant."""
    if place.type != "Pow":
        return None
    return _constant(failure, place.op[0], failure.editor.data_inputs(place.op)[1])


def _double_where_of_atan2(failure: Failure, place: OpLocation) -> Fix:
    """The pole of `atan2` is where both operands are 0."""
    x_place = replace(place, position=1)
    if operands_elsewhere(failure.trace, failure.editor, failure.line_ops(place.op), x_place):
        raise CannotTryError("The gradient of `Atan2` takes its operands from a loop's storage.")

    def edit(editor: ProgramEditor) -> None:
        for op in failure.ops_in(editor, place.op):
            y, x = editor.data_inputs(op)
            new = editor.add(op[0], guarded_atan2, [y, x])[0]
            editor.set_input(op, 1, new)
            editor.reroute(op[0], x, new, only=gradient_ops(editor, [op]).__contains__)

    source, number = failure.source(place.op), operand_number(failure, place.op)
    line = with_expression(source, "Atan2", ATAN2_TEMPLATE, number)
    words_for_it = "Put 1.0 in the place of the second operand where it and {} are both 0"
    code = line or advised(failure, place.op, words_for_it)
    edits, ops = line_edit(source, code) if line else [], failure.line_ops(place.op)
    edit_of_all = Edit(programs=(edit,))
    return Fix("double_where", {}, edit_of_all, code, source, edits=edits, ops=ops)


def clamp(failure: Failure, value: str | None) -> Fix:
    """Cut the operand to where the op and its gradient are finite."""
    place = next(failure.places())
    if place.type in _INVERSE_SINES:
        margin = positive_number(value, 1e-3 if _is_float16_operand(failure, place) else 1e-6)
        high = 1 - margin
        params = {"value": margin, "how": "clip"}
        template = f"tf.clip_by_value({{}}, {-high:.8g}, {high:.8g})"
        advice = f"Clip {{}} to {-high:.8g} and {high:.8g}"
        change = _clipped(-high, high)
        return _operand_fix(failure, place, "epsilon", params, change, template, advice)
    if place.type in _EXPONENTIALS:
        params = {"op": "tf.minimum"}
        # exp(11.1) is above 65504, the largest float16; exp(88.8) is above the largest float32.
        largest = 11.0 if _is_float16_operand(failure, place) else 80.0
        template, advice = f"tf.minimum({{}}, {largest})", f"Let {{}} be at most {largest}"
        change = _cut_to(largest)
        return _operand_fix(failure, place, "stable_op", params, change, template, advice)
    low = positive_number(value, 1e-6 if place.type == "Acosh" else EPSILON)
    return _at_least(failure, place, low, 1.0 if place.type == "Acosh" else 0.0)


def _at_least(failure: Failure, place: OpLocation, small: float, floor: float = 0.0) -> Fix:
    params = {"value": small, "how": "maximum"}
    low = floor + small
    bound = f"{low:.9g}" if floor else short_number(low)  # six digits may be those of the pole
    template, advice = f"tf.maximum({{}}, {bound})", f"Let {{}} be at least {bound}"
    return _operand_fix(failure, place, "epsilon", params, _raised_to(low), template, advice)


def _operand_fix(
    failure: Failure,
    place: OpLocation,
    name: str,
    params: dict[str, Any],
    change: TensorFunction,
    template: str,
    advice: str,
    *,
    is_added: bool = False,
) -> Fix:
    """A fix that gives an op and its gradient `change(operand)`.

    Args:
        failure: The capture.
        place: The operand.
        name: Name of the fix.
        params: What the report says of it.
        change: What is made of the operand.
        template: The same as code; `{}` or `{0}` stands for the operand.
        advice: The same in words, for a line that does not show the operand.
        is_added: Whether the change adds a constant.
    """
    source = failure.source(place.op)
    line = rewritten(source, place.type, template, operand_number(failure, place.op))
    code = line or advised(failure, place.op, advice)
    edits = line_edit(source, code) if line else []
    edit = Edit(programs=(failure.operand_edit(place, change, is_added=is_added),))
    return Fix(name, params, edit, code, source, edits=edits, ops=failure.line_ops(place.op))


def operand_number(failure: Failure, op: OpKey) -> int | None:
    """Which of the operands that the line shows it is; None where that is not known."""
    site = failure.site(op)
    return site.operand if site is not None and site.operands else None


def advised(failure: Failure, op: OpKey, advice: str) -> str:
    """Return a recipe in words, for an op whose line does not show the operand."""
    info, op_type = failure.infos.get(op), failure.editor.node(op).op
    layer = "" if info is None else info.layer_path
    return in_words(failure.source(op), op_type, advice, layer)


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
