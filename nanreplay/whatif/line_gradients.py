"""Where the gradients of some ops take the operands of these ops.

A fix that changes an operand changes it for the gradient too. In the function that holds the op,
the gradient takes the very tensor. In another (the body of a backward loop, the backward function
of a `tf.function`), the recorded run tells which of its tensors holds the operand.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from nanreplay.bisect.op_trace import Fact, StepTrace
from nanreplay.program.graph_editor import OpKey, ProgramEditor
from nanreplay.replay.provenance import ValueId


@dataclass(frozen=True, slots=True)
class OpLocation:
    """One operand of one op of the program."""

    op: OpKey
    type: str
    position: int
    """Which of the op's inputs."""
    everywhere: bool = False
    """Whether all other uses of the operand are meant as well."""


def maker_of(function: str, tensor: str) -> OpKey:
    """Return the op that makes a tensor: TensorFlow names outputs `op:0` or `op:output:0`."""
    return function, tensor.partition(":")[0]


def gradient_ops(editor: ProgramEditor, forward: Iterable[OpKey]) -> set[OpKey]:
    """Return the ops that compute the gradient of some forward ops, or the gradient of that."""
    gradient_keys: set[OpKey] = set()
    pending = list(forward)
    while pending:
        of_op = []
        for key in editor.gradients.get(pending.pop(), ()):
            if key not in gradient_keys:
                of_op.append(key)
        gradient_keys.update(of_op)
        pending += of_op
    return gradient_keys


def hand_gradient_through(
    editor: ProgramEditor, op: OpKey, operand: str, change: Callable[[Any], Any]
) -> None:
    """Multiply the gradient that leaves an op by that of a change of its operand.

    Nothing is done where the gradient is not in the op's function, or where it may be that of
    another operand: what leaves a quotient may be the gradient of the dividend alone.

    Args:
        editor: Holds the program.
        op: Takes `change(operand)` now.
        operand: The tensor that it took before.
        change: A Python function of a tensor.
    """
    if len(editor.data_inputs(op)) > 1:
        return
    backward = gradient_ops(editor, [op])
    takers: dict[str, set[OpKey]] = {}
    for key in backward:
        if key[0] == op[0]:
            for tensor in editor.outputs(key):
                users = {user for user, _ in editor.consumers(op[0], tensor)}
                if users - backward:
                    takers[tensor] = users - backward
    if len(takers) != 1:
        return
    ((gradient, users),) = takers.items()
    if editor.dtype(op[0], gradient) != editor.dtype(op[0], operand):
        return

    def through(x: Any, upstream: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = change(x)
        return tape.gradient(y, x, output_gradients=upstream)

    new = editor.add(op[0], through, [operand, gradient])[0]
    editor.reroute(op[0], gradient, new, only=users.__contains__)


def operands_elsewhere(
    trace: StepTrace | None,
    editor: ProgramEditor,
    ops: Collection[OpKey],
    place: OpLocation,
) -> set[tuple[OpKey, int]]:
    """Return inputs of the ops' gradients, in other functions, that hold the ops' operands.

    A loop pushes the operand of each iteration onto a list, and the backward loop pops it. No
    tensor of the graph connects the two.

    Args:
        trace: The step as it ran op by op; without one, none is found.
        editor: Holds its program.
        ops: Ops of one line.
        place: Which of their inputs.
    """
    if trace is None:
        return set()
    gradients = {op: gradient_ops(editor, [op]) for op in ops}
    forward_of = {}
    for op, keys in gradients.items():
        for key in keys:
            forward_of[key] = op
    operands: dict[OpKey, set[ValueId]] = {op: set() for op in ops}
    gradient_facts: list[tuple[Fact, OpKey]] = []
    for fact in trace.facts.values():
        if fact.key in operands:
            operands[fact.key].add(_copied_value(trace, fact.input_ids[place.position]))
        forward = forward_of.get(fact.key)
        # storage hands the operand on
        is_storage = fact.type.startswith(("TensorList", "Stack"))
        if forward is not None and fact.function != forward[0] and not is_storage:
            gradient_facts.append((fact, forward))
    places = set()
    for fact, forward in gradient_facts:
        for position, value in enumerate(fact.input_ids):
            if _copied_value(trace, value) in operands[forward]:
                places.add((fact.key, position))
    return places


def _copied_value(trace: StepTrace, value: ValueId) -> ValueId:
    """The value that another is a copy of, or was read back from storage as."""
    while value.serial >= 0:
        fact = trace.facts.get(value.serial)
        if fact is None:
            break
        if len(fact.via) == 1:
            value = fact.via[0]
        elif fact.type in ("Identity", "StopGradient", "PreventGradient") and fact.input_ids:
            value = fact.input_ids[0]
        else:
            break
    return value
