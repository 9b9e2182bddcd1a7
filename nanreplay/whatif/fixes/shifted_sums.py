"""log(sum(exp(x))) in the body of a loop, with the largest of x taken off before the exponential.

The gradient of a loop is in another function, and what it takes of each iteration was pushed onto
lists. With shifted exponentials these lists hold what the same gradient needs.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from nanreplay.program.graph_editor import OpKey, ProgramEditor
from nanreplay.whatif.edits import Edit, Fix
from nanreplay.whatif.failure import Failure
from nanreplay.whatif.fix_code import line_edit, with_call_of_inner
from nanreplay.whatif.fixes.operand_fixes import advised
from nanreplay.whatif.line_gradients import gradient_ops

_FUNCTION = "tf.reduce_logsumexp"


def shifted_sum_fix(failure: Failure, editor: ProgramEditor, exponential: OpKey) -> Fix | None:
    """Take the largest exponent off, and add it to the logarithm; None for what is no such sum."""
    found = _log_of_sum(editor, exponential)
    if found is None:
        return None
    log = found[0]

    def edit(editor: ProgramEditor) -> None:
        for op in failure.ops_in(editor, exponential):
            own = _log_of_sum(editor, op)
            if own is not None:
                _shift(editor, op, *own)

    source = failure.source(log)
    line = with_call_of_inner(source, "Log", _FUNCTION)
    advice = f"Write `{_FUNCTION}(x)` of what `Exp` is taken of, instead of the logarithm of {{}}"
    code = line or advised(failure, log, advice)
    edits, ops = line_edit(source, code) if line else [], failure.line_ops(log)
    params = {"op": _FUNCTION}
    return Fix("stable_op", params, Edit(programs=(edit,)), code, source, edits=edits, ops=ops)


def _log_of_sum(editor: ProgramEditor, exponential: OpKey) -> tuple[OpKey, str] | None:
    """The logarithm, and the axes of the sum, where nothing else of a function takes the values."""
    total = _only_user(editor, exponential, "Sum")
    log = None if total is None else _only_user(editor, total, "Log")
    if total is None or log is None:
        return None
    return log, editor.data_inputs(total)[1]


def _only_user(editor: ProgramEditor, key: OpKey, op_type: str) -> OpKey | None:
    """The op that takes what an op gave, besides those for its gradient."""
    (result,) = editor.outputs(key)
    users = {user for user, _ in editor.consumers(key[0], result)} - gradient_ops(editor, [key])
    forward = [user for user in users if editor.node(user).op != "TensorListPushBack"]
    is_it = key[0] and len(forward) == 1 and editor.node(forward[0]).op == op_type
    return forward[0] if is_it else None


def _shift(editor: ProgramEditor, exponential: OpKey, log: OpKey, axes: str) -> None:
    def largest_of(x: Any, axes: Any) -> Any:
        largest = tf.reduce_max(x, axes, keepdims=True)
        return tf.where(tf.math.is_finite(largest), largest, tf.zeros_like(largest))

    function, (operand,) = exponential[0], editor.data_inputs(exponential)
    largest = editor.add(function, largest_of, [operand, axes])[0]
    shifted = editor.add(function, tf.subtract, [operand, largest])[0]
    editor.set_input(exponential, 0, shifted)
    (result,) = editor.outputs(log)

    def added(y: Any, largest: Any) -> Any:
        return y + tf.reshape(largest, tf.shape(y))

    editor.reroute(function, result, editor.add(function, added, [result, largest])[0])
