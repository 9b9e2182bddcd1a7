"""A finite mask: a large negative number in the place of the -inf that softmax takes.

The line to edit is the one that makes the -inf, not the one that calls softmax.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from nanreplay.bisect.op_trace import Fact, StepTrace
from nanreplay.bisect.tensor_stats import words
from nanreplay.program.graph_editor import SCOPE, OpKey, ProgramEditor
from nanreplay.replay.provenance import ValueId
from nanreplay.whatif.edits import CannotTryError, Edit, Fix
from nanreplay.whatif.failure import Failure
from nanreplay.whatif.fix_code import line_edit, short_number, with_finite_mask
from nanreplay.whatif.fixes.update_fixes import positive_number
from nanreplay.whatif.line_gradients import OpLocation, gradient_ops

_SOFTMAXES = words("Softmax LogSoftmax")
_LOWEST = -1e9
_LOWEST_FLOAT16 = -1e4
"""-1e9 is beyond float16, where it would be -inf again."""


def finite_mask(failure: Failure, value: str | None) -> Fix:
    """Put a large negative number in the place of -inf where softmax takes it."""
    position = _infinite_factor(failure)
    if position is not None:
        return _finite_factor(failure, value, position)
    softmaxes = []
    for key, info in failure.infos.items():
        if info.type in _SOFTMAXES:
            softmaxes.append(key)
    # The softmax that failed is enough, and the others keep the masks that work.
    if failure.op in softmaxes:
        softmaxes = [failure.op]
    if not softmaxes:
        raise CannotTryError("The step holds no softmax that takes a mask.")
    maker = _mask_maker(failure, softmaxes)
    if maker is None and failure.trace is not None and failure.op not in softmaxes:
        raise CannotTryError("No softmax of the step takes an infinity.")
    output = failure.editor.outputs(maker)[0] if maker is not None else None
    scores = output or failure.editor.data_inputs(softmaxes[0])[0]
    low = _lowest(failure, value, (maker or softmaxes[0])[0], scores)

    def masked(scores: Any) -> Any:
        return tf.maximum(scores, tf.cast(max(low, scores.dtype.min), scores.dtype))

    def edit(editor: ProgramEditor) -> None:
        if maker is not None:
            for key in failure.ops_in(editor, maker):
                _change_output(editor, key, masked)
            return
        for softmax in softmaxes:
            for key in failure.ops_in(editor, softmax):
                taken = editor.data_inputs(key)[0]
                if not taken.startswith(SCOPE):
                    editor.set_input(key, 0, editor.add(key[0], masked, [taken])[0])

    place = maker or softmaxes[0]
    source = failure.source(place)
    own_line = with_finite_mask(source, low) if maker is not None else None
    code = own_line or f"# Put {short_number(low)} in the place of the -inf that softmax takes"
    edits = line_edit(source, code) if own_line else []
    ops = failure.line_ops(place)
    edit_of_all = Edit(programs=(edit,))
    return Fix("finite_mask", {"value": low}, edit_of_all, code, source, edits=edits, ops=ops)


def _lowest(failure: Failure, value: str | None, function: str, tensor: str) -> float:
    """The number in the place of -inf, as asked for, or one that the type of a tensor holds."""
    is_half = failure.editor.dtype(function, tensor) == tf.float16
    default = _LOWEST_FLOAT16 if is_half else _LOWEST
    return -positive_number(value and value.lstrip("-"), -default)


def _infinite_factor(failure: Failure) -> int | None:
    """Which factor of the product that failed is infinite; None where it is no such product."""
    if failure.infos[failure.op].type != "Mul" or failure.trace is None:
        return None
    for fact in failure.facts(failure.op):
        for position, taken in enumerate(fact.input_ids):
            if _holds_infinity(failure.trace, taken):
                return position
    return None


def _finite_factor(failure: Failure, value: str | None, position: int) -> Fix:
    """Put a large number in the place of an infinity that is multiplied: 0 times it is 0."""
    place = OpLocation(failure.op, "Mul", position)
    function, factor = place.op[0], failure.editor.data_inputs(place.op)[position]
    low = _lowest(failure, value, function, factor)

    def bounded(x: Any) -> Any:
        limit = tf.cast(min(-low, x.dtype.max), x.dtype)
        return tf.maximum(tf.minimum(x, limit), -limit)

    source = failure.source(place.op)
    own_line = with_finite_mask(source, low)
    code = own_line or f"# Put {short_number(low)} in the place of the -inf that `Mul` takes"
    edits = line_edit(source, code) if own_line else []
    edit = Edit(programs=(failure.operand_edit(place, bounded, is_added=True),))
    ops = failure.line_ops(place.op)
    return Fix("finite_mask", {"value": low}, edit, code, source, edits=edits, ops=ops)


def _change_output(editor: ProgramEditor, key: OpKey, change: Any) -> None:
    """Give `change(output)` to all that take an op's output, but for its own gradient."""
    output = editor.outputs(key)[0]
    # The gradient of the op is computed from what the op itself gave.
    backward = gradient_ops(editor, [key])
    new = editor.add(key[0], change, [output])[0]
    editor.reroute(key[0], output, new, only=lambda user: user not in backward)


def _mask_maker(failure: Failure, softmaxes: list[OpKey]) -> OpKey | None:
    """The op that makes the -inf which a softmax takes, from finite values or a constant."""
    trace = failure.trace
    if trace is None:
        return None
    for fact in trace.facts.values():
        if fact.key in softmaxes and fact.input_ids and _holds_infinity(trace, fact.input_ids[0]):
            maker = _first_maker(trace, fact.input_ids[0])
            if maker is not None and failure.editor.holds(maker.key):
                return maker.key
    return None


def _first_maker(trace: StepTrace, value: ValueId) -> Fact | None:
    """The op before which nothing but constants is infinite."""
    maker: Fact | None = None
    while value.serial >= 0:
        fact = trace.facts.get(value.serial)
        if fact is None or fact.type == "Const":
            return maker
        maker = fact
        infinite = []
        for one in fact.sources:
            if _holds_infinity(trace, one):
                infinite.append(one)
        # What comes here is finite: this op made the infinity.
        if not infinite:
            return maker
        value = infinite[0]
    return maker


def _holds_infinity(trace: StepTrace, value: ValueId) -> bool:
    stat = trace.stat(value)
    return stat is not None and stat.inf > 0
