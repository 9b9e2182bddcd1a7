"""Fixes that compute the same in another way, one that stays finite.

Log-softmax in place of the logarithm of a softmax and the like (`log_chains`), a softmax of which
the largest is taken off, a quotient that is 0 where its divisor is.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from nanreplay.program.graph_editor import OpKey, ProgramEditor
from nanreplay.program.graph_nodes import constant_array
from nanreplay.records import Frame
from nanreplay.whatif.edits import CannotTryError, Edit, Fix
from nanreplay.whatif.failure import Failure
from nanreplay.whatif.fix_code import (
    line_edit,
    rewritten,
    with_call_of_inner,
    with_expression,
)
from nanreplay.whatif.fixes.log_chains import FINDERS, Chain, FindChain
from nanreplay.whatif.fixes.operand_fixes import advised, clamp, operand_number
from nanreplay.whatif.fixes.shifted_sums import shifted_sum_fix
from nanreplay.whatif.line_gradients import gradient_ops, maker_of

_COPIES = ("Identity", "StopGradient", "Cast", "Reshape")
_LOGS = ("Log", "Log1p")
_MOST_OPS_TO_LOG = 4
"""How many ops after an exponential its logarithm is looked for."""


def stable_op(failure: Failure, value: str | None) -> Fix:
    """Replace the ops around the origin by one that is finite there."""
    failure.check_users_own()
    editor = ProgramEditor(failure.window.replay.program(failure.step).record)
    op_type, source = editor.node(failure.op).op, failure.source(failure.op)
    if op_type in ("RealDiv", "Div"):
        # exp(x) / sum(exp(x)) is 0 / 0 where all exponentials round to 0
        numerator = maker_of(failure.op[0], editor.data_inputs(failure.op)[0])
        is_exponential = editor.holds(numerator) and editor.node(numerator).op == "Exp"
        shifted = _softmax_fix(failure, editor, numerator) if is_exponential else None
        return shifted or _divide_no_nan_fix(failure, failure.op, source)
    logs = [failure.op] if op_type in _LOGS else _logs_after(editor, failure.op)
    for log in logs:
        for find_chain in FINDERS:
            chain = find_chain(editor, log)
            if chain is None or failure.op not in chain.ops:
                continue
            if op_type in _LOGS or not _is_used_elsewhere(editor, chain):
                return _chain_fix(failure, find_chain, chain, failure.source(log))
    if op_type == "Exp":
        # the logarithm of a sum would change where the largest value is taken off alone
        find = shifted_sum_fix if logs else _softmax_fix
        return find(failure, editor, failure.op) or clamp(failure, None)
    if op_type in ("Expm1", "Acos", "Asin", "Atanh", "Acosh"):
        return clamp(failure, None)
    raise CannotTryError(
        f"No op is known that computes what `{op_type}` does here and stays finite."
    )


def _divide_no_nan_fix(failure: Failure, op: OpKey, source: Frame | None) -> Fix:
    """A quotient that is 0 where its divisor is, and so are those of its gradient."""

    def edit(editor: ProgramEditor) -> None:
        quotients = failure.ops_in(editor, op)
        for key in (*quotients, *gradient_ops(editor, quotients)):
            # what a gradient takes may be an argument of its function, and no op of it
            if editor.holds(key) and editor.node(key).op in ("RealDiv", "Div"):
                editor.node(key).op = "DivNoNan"

    template, number = "tf.math.divide_no_nan({0}, {1})", operand_number(failure, op)
    line = with_expression(source, "RealDiv", template, number)
    advice = "Use `tf.math.divide_no_nan`, which gives 0 where {} is 0"
    code = line or advised(failure, op, advice)
    params, edits = {"op": "tf.math.divide_no_nan"}, line_edit(source, code) if line else []
    ops = failure.line_ops(op)
    return Fix("stable_op", params, Edit(programs=(edit,)), code, source, edits=edits, ops=ops)


def _logs_after(editor: ProgramEditor, exponential: OpKey) -> list[OpKey]:
    """The logarithms that an exponential comes to through a sum: it overflows before they do."""
    if editor.node(exponential).op not in ("Exp", "Cosh"):
        return []
    logs, pending = [], [exponential]
    for _ in range(_MOST_OPS_TO_LOG):
        users = []
        for key in pending:
            for output in editor.outputs(key):
                users += [user for user, _ in editor.consumers(key[0], output)]
        pending = []
        for user in users:
            if editor.node(user).op in _LOGS:
                logs.append(user)
            elif editor.node(user).op in ("AddV2", "Add", "Sum", "Cumsum", *_COPIES):
                pending.append(user)
    return logs


def _softmax_fix(failure: Failure, editor: ProgramEditor, exponential: OpKey) -> Fix | None:
    """Take the largest of the row off first in a softmax by hand, exp(x) / sum(exp(x)).

    This changes nothing of the quotient: exp(x - c) / sum(exp(x - c)) has the factor exp(-c) above
    and below. With c = max(x) no exponent is above 0. None when the op is in no such softmax.
    """
    axis = _axis_of_softmax(editor, exponential)
    if axis is None:
        return None
    source = failure.source(exponential)

    def shifted(x: Any, axis: Any) -> Any:
        return x - tf.stop_gradient(tf.reduce_max(x, axis, keepdims=True))

    def edit(editor: ProgramEditor) -> None:
        for op in failure.ops_in(editor, exponential):
            own_axis = _axis_of_softmax(editor, op)
            if own_axis is not None:
                (operand,) = editor.data_inputs(op)
                new = editor.add(op[0], shifted, [operand, own_axis])[0]
                editor.set_input(op, 0, new)

    number = _constant_number(editor, (exponential[0], axis.partition(":")[0]))
    template = f"{{0}} - tf.reduce_max({{0}}, axis={number}, keepdims=True)"
    op_type = editor.node(exponential).op
    line = rewritten(source, op_type, template, operand_number(failure, exponential))
    advice = f"Take the largest value along axis {number} off {{}}"
    code = line or advised(failure, exponential, advice)
    edits = line_edit(source, code) if line else []
    params, ops = {"op": "tf.nn.softmax"}, failure.line_ops(exponential)
    return Fix("stable_op", params, Edit(programs=(edit,)), code, source, edits=edits, ops=ops)


def _axis_of_softmax(editor: ProgramEditor, op: OpKey) -> str | None:
    """The axis of the sum in exp(x) / sum(exp(x)); None where the exponential is in no such."""
    (exponential,) = editor.outputs(op)
    users = [key for key, _ in editor.consumers(op[0], exponential)]
    sums = []
    for key in users:
        if editor.node(key).op == "Sum":
            sums.append(key)
    is_divided = any(editor.node(key).op == "RealDiv" for key in users)
    return editor.data_inputs(sums[0])[1] if len(sums) == 1 and is_divided else None


def _constant_number(editor: ProgramEditor, key: OpKey) -> int | list[int]:
    """The number, or numbers, of a constant; -1 for what is no constant."""
    if not editor.holds(key) or editor.node(key).op != "Const":
        return -1
    values = constant_array(editor.node(key).attr["value"].tensor).reshape(-1).tolist()
    return int(values[0]) if len(values) == 1 else list(map(int, values))


# In the program the stable op of a chain gets the operand of the first op, and its result goes to
# whoever took the logarithm. The old ops stay, for those who take a value between.


def _chain_fix(failure: Failure, find_chain: FindChain, chain: Chain, source: Frame | None) -> Fix:
    line, log_type = None, failure.infos[chain.ops[0]].type
    if "(" not in chain.function:
        line = with_call_of_inner(source, log_type, chain.function)
    code = line or _chain_in_words(failure, chain, source)

    def edit(editor: ProgramEditor) -> None:
        for op in failure.ops_in(editor, chain.ops[0]):
            found = find_chain(editor, op)
            if found is not None:
                _replace_chain(editor, found)

    ops, edits = failure.line_ops(chain.ops[0]), line_edit(source, code) if line else []
    params = {"op": chain.function}
    return Fix("stable_op", params, Edit(programs=(edit,)), code, source, edits=edits, ops=ops)


def _chain_in_words(failure: Failure, chain: Chain, source: Frame | None) -> str:
    """What to call, where the logarithm and what it is taken of are not one nested call."""
    function = chain.function
    if "(" not in function:
        function = f"{function}(x{chain.options})"
    first = failure.source(chain.ops[-1])
    first_type = failure.infos[chain.ops[-1]].type
    x = f"what `{first_type}` is taken of"
    if first is not None and first.code and source is not None and first.line != source.line:
        code = first.code.strip().replace("{", "{{").replace("}", "}}")
        x += f" in `{code}` (line {first.line})"
    advice = f"Write `{function}`, x being {x}, instead of the logarithm of {{}}"
    return advised(failure, chain.ops[0], advice)


def _replace_chain(editor: ProgramEditor, chain: Chain) -> None:
    """Put the stable function, and its gradient, in the place of a chain."""
    (result,) = editor.outputs(chain.ops[0])
    backward = gradient_ops(editor, chain.ops)
    if backward:
        _replace_gradient(editor, chain, backward)
    dtype = editor.dtype("", result)

    def compute(x: Any, old: Any) -> Any:
        return tf.reshape(chain.compute(tf.cast(x, dtype)), tf.shape(old))

    new = editor.add("", compute, [chain.operand, result])[0]
    editor.reroute("", result, new, only=lambda key: key not in backward)


def _replace_gradient(editor: ProgramEditor, chain: Chain, backward: set[OpKey]) -> None:
    """Put the gradient of the new function where that of the old ops came out.

    The old gradient has to be a part of the graph with one tensor that comes in, the gradient of
    the result, and one that goes out, the gradient of the operand.
    """
    if _is_used_elsewhere(editor, chain):
        raise CannotTryError(_used_in_several_ways(chain))
    own = set()
    for op in chain.ops:
        own.update(editor.data_inputs(op))
        own.update(editor.outputs(op))
    incoming, outgoing = set(), set()
    for key in backward:
        for tensor in editor.data_inputs(key):
            if tensor not in own and _is_upstream_gradient(editor, tensor, backward):
                incoming.add(tensor)
        for tensor in editor.outputs(key):
            if any(user not in backward for user, _ in editor.consumers("", tensor)):
                outgoing.add(tensor)
    if len(incoming) != 1 or len(outgoing) != 1:
        raise CannotTryError(_used_in_several_ways(chain))

    def gradient(x: Any, upstream: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = chain.compute(tf.cast(x, upstream.dtype))
            y = tf.reshape(y, tf.shape(upstream))
        return tape.gradient(y, x, output_gradients=upstream)

    new = editor.add("", gradient, [chain.operand, incoming.pop()])[0]
    editor.reroute("", outgoing.pop(), new, only=lambda key: key not in backward)


def _is_used_elsewhere(editor: ProgramEditor, chain: Chain) -> bool:
    """Whether a gradient of another op is added to that of the chain on its way back."""
    backward = gradient_ops(editor, chain.ops)
    for op in chain.ops[1:]:
        for tensor in editor.outputs(op):
            for user, _ in editor.consumers("", tensor):
                if user not in chain.ops and user not in backward and editor.gradients.get(user):
                    return True
    return False


def _used_in_several_ways(chain: Chain) -> str:
    return (
        f"The value is used in several ways, so `{chain.function}` cannot stand for it on the "
        "recording."
    )


def _is_upstream_gradient(editor: ProgramEditor, tensor: str, backward: set[OpKey]) -> bool:
    """Whether a tensor that a backward op takes is a float that was made outside the gradient.

    Constants and shapes are inputs of many backward ops, and no gradients.
    """
    maker = maker_of("", tensor)
    if maker in backward or editor.node(maker).op in ("Const", "Shape", "BroadcastGradientArgs"):
        return False
    return bool(editor.dtype("", tensor).is_floating)
