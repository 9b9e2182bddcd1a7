"""What a fix is made from: the window, the origin, the causes, and where the fatal operand is.

Each function of `fixes` takes a `Failure`. It tells the op at which a fix belongs and the operands
near it at which an op has a pole, and it makes the edits of the program that change an operand.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from nanreplay.bisect import Bisection
from nanreplay.bisect.influence import COPIES
from nanreplay.bisect.op_trace import Fact, StepTrace
from nanreplay.bisect.tensor_stats import words
from nanreplay.findings import Cause, Origin
from nanreplay.program.graph_editor import OpKey, ProgramEditor
from nanreplay.records import Frame, OpInfo
from nanreplay.replay.provenance import ValueId
from nanreplay.whatif.edits import CannotTryError, ProgramEdit
from nanreplay.whatif.fix_code import operand_text
from nanreplay.whatif.trial_window import TrialWindow

DIVISIONS = words("RealDiv Div FloorDiv TruncateDiv FloorMod Mod Xdivy DivNoNan")
POLES = DIVISIONS | words(
    "Log Log1p Sqrt Rsqrt Reciprocal Inv Pow Xlogy Xlog1py Acos Asin Acosh Atanh Exp Expm1 Lgamma "
    "Digamma Atan2 Erfinv Ndtri"
)
"""Ops with an operand at which they, or their gradients, are not finite."""
MATRICES = words(
    "MatrixInverse Cholesky MatrixSolve MatrixTriangularSolve LogMatrixDeterminant "
    "MatrixDeterminant"
)
"""Ops of a matrix that may be singular; their operand is the first input."""
_POLE_IN_SECOND = DIVISIONS | words("Xlogy Xlog1py")
"""Ops whose pole lies in their second input; that of the others lies in the first."""
_HANDING_ON = (
    COPIES
    | words("ExpandDims Squeeze Cast BroadcastTo Transpose")
    | words("Mul Add AddV2 Neg Maximum Minimum")
)
"""Ops through which a search for a pole goes on: copies, sums and products."""
_MOST_OPS_SEARCHED = 12


@dataclass(frozen=True, slots=True)
class OpLocation:
    """One operand of one op of the program."""

    op: OpKey
    type: str
    position: int
    """Which of the op's inputs."""
    everywhere: bool = False
    """Whether all other uses of the operand are meant as well."""


@dataclass
class Failure:
    """One capture that is to be fixed.

    Args:
        window: The steps to be replayed.
        bisection: Where the first non-finite value was born.
        causes: Why, the likeliest first.
    """

    window: TrialWindow
    bisection: Bisection
    causes: Sequence[Cause]

    @property
    def origin(self) -> Origin | None:
        """The origin, or None when there is none."""
        return self.bisection.findings.origin

    @property
    def step(self) -> int:
        """The step of the origin; of the incident when there is no origin."""
        return self.window.failing if self.origin is None else self.origin.step

    @property
    def trace(self) -> StepTrace | None:
        """The origin's step as it ran op by op, or None."""
        scene = self.bisection.scene
        return None if scene is None else scene.trace

    @cached_property
    def infos(self) -> dict[OpKey, OpInfo]:
        """What is known of each op of the program of the origin's step."""
        return dict(self.window.replay.ops(self.step))

    @cached_property
    def op(self) -> OpKey:
        """The op at which the fix belongs: the origin, or the forward op whose gradient it is.

        Raises:
            CannotTryError: There is no such op.
        """
        origin = self.origin
        if origin is None:
            raise CannotTryError("No origin was found.")
        if origin.op_name is None:
            raise CannotTryError("There is no op to fix: the batch itself is not finite.")
        suspect = self.bisection.suspect
        if suspect is not None and suspect.fact is not None:
            return self.forward_of(suspect.fact.key)
        return self.forward_of(("", origin.op_name))

    @property
    def is_optimizers_own(self) -> bool:
        """Whether the origin is an op of the optimizer's that no line of the user's code makes."""
        origin = self.origin
        if origin is None or origin.where != "optimizer":
            return False
        return operand_text(origin.source, origin.op_type or "") is None

    def check_users_own(self) -> None:
        """Fail when the origin is the optimizer's, which a user cannot write in another way.

        Raises:
            CannotTryError: It is.
        """
        if self.is_optimizers_own:
            raise CannotTryError("The op is the optimizer's own.")

    def forward_of(self, key: OpKey) -> OpKey:
        """Return the forward op whose gradient an op computes; a forward op itself."""
        info = self.infos.get(key)
        return (info.forward_function, info.forward) if info is not None and info.forward else key

    def source(self, key: OpKey) -> Frame | None:
        """Return the line of the user's code that made an op."""
        info = self.infos.get(key)
        return None if info is None else self.window.replay.source(info.stack)

    def places(self) -> Iterator[OpLocation]:
        """Return operands at which an op has a pole.

        Those of the origin come first, then those of the ops that its operand comes from. The last
        one is the first again, with all other uses of the operand.

        Raises:
            CannotTryError: None is near.
        """
        editor = ProgramEditor(self.window.replay.program(self.step).record)
        poles = list(self._poles(editor, self.op))
        if not poles:
            raise CannotTryError(
                f"`{editor.node(self.op).op}` has no operand that could be moved away from a pole."
            )
        yield from poles
        yield replace(poles[0], everywhere=True)

    def _poles(self, editor: ProgramEditor, key: OpKey) -> Iterator[OpLocation]:
        """Poles of an op, then of the ops that made its operand.

        The search goes backwards, breadth first, through copies, sums and products, and from a pole
        through its operand. Of `log(sqrt(x) + y)` it finds the operand of `log`, then that of
        `sqrt`.
        """
        pending, seen = [key], {key}
        while pending and len(seen) < _MOST_OPS_SEARCHED:
            current = pending.pop(0)
            op_type = editor.node(current).op
            inputs: list[str] = []
            if op_type in POLES | MATRICES:
                position = 1 if op_type in _POLE_IN_SECOND else 0
                yield OpLocation(current, op_type, position)
                if op_type in POLES:
                    inputs = [editor.data_inputs(current)[position]]
            elif current == key or op_type in _HANDING_ON:
                inputs = editor.data_inputs(current)
            for tensor in inputs:
                maker = maker_of(current[0], tensor)
                if maker not in seen and maker in self.infos:
                    seen.add(maker)
                    pending.append(maker)

    # Edits of an operand

    def operand_edit(self, place: OpLocation, change: Any) -> ProgramEdit:
        """Return the edit that gives an op, and its gradient, `change(operand)` for its operand.

        Args:
            place: The operand.
            change: A Python function of a tensor.
        """
        operands_elsewhere = self._operands_in_other_functions(place)

        def edit(editor: ProgramEditor) -> None:
            op = editor.locate(place.op)
            old = editor.data_inputs(op)[place.position]
            new = editor.add(op[0], change, [old])[0]
            editor.set_input(op, place.position, new)
            backward = gradient_ops(editor, [op])
            editor.reroute(op[0], old, new, only=lambda key: key in backward)
            for recorded_key, position in operands_elsewhere:
                key = editor.locate(recorded_key)
                operand = editor.data_inputs(key)[position]
                editor.set_input(key, position, editor.add(key[0], change, [operand])[0])

        return edit

    def value_edit(self, place: OpLocation, change: Any) -> ProgramEdit:
        """Return the edit that gives `change(operand)` to all ops that take an operand.

        These are ops of its function and of their gradients. The gradient of the op that made the
        operand keeps what that op gave.
        """

        def edit(editor: ProgramEditor) -> None:
            op = editor.locate(place.op)
            old = editor.data_inputs(op)[place.position]
            maker = maker_of(op[0], old)
            new = editor.add(op[0], change, [old])[0]
            editor.reroute(op[0], old, new, only=lambda key: self.forward_of(key) != maker)

        return edit

    def _operands_in_other_functions(self, place: OpLocation) -> set[tuple[OpKey, int]]:
        """Inputs of the op's gradient, in bodies of backward loops, that hold the operand.

        A loop pushes the operand of each iteration onto a list, and the backward loop pops it. No
        tensor of the graph connects the two, so the values of the recorded run tell which input is
        the operand.
        """
        trace = self.trace
        if trace is None:
            return set()
        operands: set[ValueId] = set()
        gradient_facts: list[Fact] = []
        for fact in trace.facts.values():
            if fact.key == place.op:
                operands.add(_copied_value(trace, fact.input_ids[place.position]))
            elif fact.function != place.op[0] and self._is_gradient_of(fact, place.op):
                gradient_facts.append(fact)
        inputs: set[tuple[OpKey, int]] = set()
        for fact in gradient_facts:
            for position, value in enumerate(fact.input_ids):
                if _copied_value(trace, value) in operands:
                    inputs.add((fact.key, position))
        return inputs

    def _is_gradient_of(self, fact: Fact, op: OpKey) -> bool:
        """Whether an op belongs to the gradient of another and computes with its operand."""
        if fact.type.startswith(("TensorList", "Stack")):  # storage hands the operand on
            return False
        info = self.infos.get(fact.key)
        return info is not None and (info.forward_function, info.forward) == op

    # The operand as it was

    def facts(self, key: OpKey) -> list[Fact]:
        """Return the executions of an op in the origin's step."""
        if self.trace is None:
            return []
        return [fact for fact in self.trace.facts.values() if fact.key == key]

    def operand(self, place: OpLocation) -> Any:
        """Return an operand's values at the origin's step (numpy), None when they were not kept."""
        for fact in self.facts(place.op):
            if fact.event is not None:
                return np.asarray(fact.event.inputs[place.position])
        return None


def maker_of(function: str, tensor: str) -> OpKey:
    """Return the op that makes a tensor: TensorFlow names outputs `op:0` or `op:output:0`."""
    return function, tensor.partition(":")[0]


def gradient_ops(editor: ProgramEditor, forward: Container[OpKey]) -> set[OpKey]:
    """Return the ops that compute the gradient of some forward ops."""
    return {
        key
        for key, info in editor.infos.items()
        if (info.forward_function, info.forward) in forward
    }


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
