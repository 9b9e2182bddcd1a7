"""Chains: some ops that end in a logarithm compute what one stable op does.

They are found backwards from the logarithm, through copies and through sums with an epsilon:
log(softmax(x) + 1e-7) is log-softmax too. `stable_forms` puts the stable op in their place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from nanreplay.capture.arrays import as_array
from nanreplay.program.graph_editor import OpKey, ProgramEditor
from nanreplay.program.graph_nodes import constant_array
from nanreplay.whatif.line_gradients import maker_of

_LARGEST_EPSILON = 0.01
"""A constant below this that is added before a logarithm is an epsilon."""
_COPIES = ("Identity", "StopGradient", "Cast", "Reshape")


@dataclass(frozen=True, slots=True)
class Chain:
    """Ops of the main graph that compute one value, and what stands for them."""

    ops: tuple[OpKey, ...]
    """The last one first."""
    operand: str
    """The tensor that they start from."""
    compute: Callable[[Any], Any]
    """The same function, computed so that it does not overflow."""
    function: str
    """Its name in TensorFlow."""
    options: str = ""
    """Its other arguments in code."""


def _log_softmax(editor: ProgramEditor, log: OpKey) -> Chain | None:
    """log(softmax(x))."""
    ops = _ops_before(editor, log)
    if editor.node(log).op != "Log" or not _starts_with(editor, ops, "Softmax"):
        return None
    (operand,) = editor.data_inputs(ops[-1])
    return Chain(ops, operand, tf.nn.log_softmax, "tf.nn.log_softmax")


def _log_sigmoid(editor: ProgramEditor, log: OpKey) -> Chain | None:
    """log(sigmoid(x)), and log(1 - sigmoid(x)), which is -softplus(x)."""
    ops = _ops_before(editor, log)
    if editor.node(log).op != "Log":
        return None
    if _starts_with(editor, ops, "Sigmoid"):
        (operand,) = editor.data_inputs(ops[-1])
        return Chain(ops, operand, tf.math.log_sigmoid, "tf.math.log_sigmoid")
    if not _starts_with(editor, ops, "Sub") or not _is_one(editor, editor.data_inputs(ops[-1])[0]):
        return None
    before = _ops_before(editor, ops[-1], position=1)
    if not _starts_with(editor, before, "Sigmoid"):
        return None
    (operand,) = editor.data_inputs(before[-1])
    all_ops = (*ops, *before[1:])
    return Chain(all_ops, operand, lambda x: -tf.math.softplus(x), "tf.math.log_sigmoid(-x)")


def _log_one_plus_exp(editor: ProgramEditor, log: OpKey, position: int = 0) -> Chain | None:
    """log(1 + exp(x)), and log1p(exp(x))."""
    ops = _ops_before(editor, log, position)
    if editor.node(log).op == "Log1p":
        if not _starts_with(editor, ops, "Exp"):
            return None
        (operand,) = editor.data_inputs(ops[-1])
        return Chain(ops, operand, tf.math.softplus, "tf.math.softplus")
    if not (_starts_with(editor, ops, "AddV2") or _starts_with(editor, ops, "Add")):
        return None
    summands = editor.data_inputs(ops[-1])
    for summand in (0, 1):
        before = _ops_before(editor, ops[-1], summand)
        if _is_one(editor, summands[1 - summand]) and _starts_with(editor, before, "Exp"):
            (operand,) = editor.data_inputs(before[-1])
            return Chain((*ops, *before[1:]), operand, tf.math.softplus, "tf.math.softplus")
    return None


def _over_exponentials(
    editor: ProgramEditor, log: OpKey, kind: str
) -> tuple[Sequence[OpKey], OpKey, OpKey] | None:
    """The ops from a Log back to the Sum or Cumsum of exponentials, the Exp, and its constant axes.

    None where it is no logarithm of such.
    """
    ops = _ops_before(editor, log)
    if editor.node(log).op != "Log" or not _starts_with(editor, ops, kind):
        return None
    summed, axes = editor.data_inputs(ops[-1])
    exponential, axis = maker_of("", summed), maker_of("", axes)
    for key, op in ((exponential, "Exp"), (axis, "Const")):
        if key not in editor.infos or editor.node(key).op != op:
            return None
    return ops, exponential, axis


def _log_sum_exp(editor: ProgramEditor, log: OpKey) -> Chain | None:
    """log(sum(exp(x)))."""
    found = _over_exponentials(editor, log, "Sum")
    if found is None:
        return None
    ops, exponential, axis = found
    (operand,) = editor.data_inputs(exponential)
    numbers = constant_array(editor.node(axis).attr["value"].tensor).reshape(-1).tolist()
    keeps_dimensions = editor.node(ops[-1]).attr["keep_dims"].b
    compute = partial(tf.reduce_logsumexp, axis=numbers, keepdims=keeps_dimensions)
    options = f", axis={numbers[0] if len(numbers) == 1 else numbers}"
    options += ", keepdims=True" if keeps_dimensions else ""
    return Chain((*ops, exponential), operand, compute, "tf.reduce_logsumexp", options)


def _log_cumulated_exp(editor: ProgramEditor, log: OpKey) -> Chain | None:
    """log(cumsum(exp(x))), as in the partial likelihood of a survival model.

    An exclusive one begins with the logarithm of 0, for which the stable op gives another number.
    """
    found = _over_exponentials(editor, log, "Cumsum")
    if found is None:
        return None
    ops, exponential, axis = found
    attributes = editor.node(ops[-1]).attr
    if attributes["exclusive"].b:
        return None
    (operand,) = editor.data_inputs(exponential)
    number = int(constant_array(editor.node(axis).attr["value"].tensor).reshape(-1)[0])
    is_reverse = attributes["reverse"].b
    compute = partial(tf.math.cumulative_logsumexp, axis=number, reverse=is_reverse)
    options = f", axis={number}" + (", reverse=True" if is_reverse else "")
    all_ops = (*ops, exponential)
    return Chain(all_ops, operand, compute, "tf.math.cumulative_logsumexp", options)


def _log_cosh(editor: ProgramEditor, log: OpKey) -> Chain | None:
    """log(cosh(x)), which is x + log(1 + exp(-2x)) - log(2)."""
    ops = _ops_before(editor, log)
    if editor.node(log).op != "Log" or not _starts_with(editor, ops, "Cosh"):
        return None
    (operand,) = editor.data_inputs(ops[-1])

    def compute(x: Any) -> Any:
        return x + tf.math.softplus(-2.0 * x) - math.log(2.0)

    is_float32 = editor.node(log).attr["T"].type == tf.float32.as_datatype_enum
    two = "2.0" if is_float32 else "tf.constant(2.0, x.dtype)"
    return Chain(ops, operand, compute, f"x + tf.math.softplus(-2.0 * x) - tf.math.log({two})")


def _log_of_logistic(editor: ProgramEditor, log: OpKey) -> Chain | None:
    """log(1 / (1 + exp(x))), which is -softplus(x)."""
    ops = _ops_before(editor, log)
    if editor.node(log).op != "Log" or not _starts_with(editor, ops, "RealDiv"):
        return None
    one, total = editor.data_inputs(ops[-1])
    inner = _log_one_plus_exp(editor, ops[-1], position=1)
    if inner is None or not _is_one(editor, one) or maker_of("", total) != inner.ops[1]:
        return None
    all_ops = (*ops, *inner.ops[1:])
    return Chain(all_ops, inner.operand, lambda x: -tf.math.softplus(x), "-tf.math.softplus(x)")


def _ops_before(editor: ProgramEditor, op: OpKey, position: int = 0) -> tuple[OpKey, ...]:
    """The op, copies before one of its inputs, and the first op that is none.

    Only in the main graph: an op of another function has nothing before it.
    """
    ops = [op]
    tensor = editor.data_inputs(op)[position]
    while not op[0]:
        maker = maker_of("", tensor)
        if maker not in editor.infos:
            break
        ops.append(maker)
        copied_input = _copied_input(editor, maker)
        if copied_input is None:
            break
        tensor = editor.data_inputs(maker)[copied_input]
    return tuple(ops)


def _copied_input(editor: ProgramEditor, key: OpKey) -> int | None:
    """Which input an op passes on.

    Of a copy it is the first, of a sum the one that an epsilon is added to; None for other ops.
    """
    node = editor.node(key)
    if node.op in _COPIES:
        return 0
    if node.op not in ("AddV2", "Add"):
        return None
    for position, tensor in enumerate(editor.data_inputs(key)):
        if _is_constant(editor, tensor, lambda x: np.abs(x) < _LARGEST_EPSILON):
            return 1 - position
    return None


def _starts_with(editor: ProgramEditor, ops: Sequence[OpKey], op_type: str) -> bool:
    """Whether the first op of a chain, which is the last one found, is of a type."""
    return len(ops) > 1 and editor.node(ops[-1]).op == op_type


def _is_one(editor: ProgramEditor, tensor: str) -> bool:
    return _is_constant(editor, tensor, lambda x: x == 1)


def _is_constant(editor: ProgramEditor, tensor: str, holds: Callable[[Any], Any]) -> bool:
    """Whether a tensor is a constant of which all elements are so."""
    maker = maker_of("", tensor)
    if maker not in editor.infos or editor.node(maker).op != "Const":
        return False
    value = constant_array(editor.node(maker).attr["value"].tensor)
    return bool(value.dtype.kind in "fiu" and as_array(holds(value)).all())


FindChain: TypeAlias = Callable[[ProgramEditor, OpKey], "Chain | None"]
FINDERS: Sequence[FindChain] = (
    _log_softmax,
    _log_sigmoid,
    _log_one_plus_exp,
    _log_sum_exp,
    _log_cumulated_exp,
    _log_cosh,
    _log_of_logistic,
)
