"""What a fix is made from: the capture's replay, the origin, the causes, and where in the program the fatal operand is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    "Log Log1p Sqrt Rsqrt Reciprocal Inv Pow Xlogy Xlog1py Acos Asin Acosh Atanh Exp Expm1 Lgamma Digamma Atan2 Erfinv Ndtri"
)
"""Ops with an operand at which they, or their gradients, are not finite."""
MATRICES = words(
    "MatrixInverse Cholesky MatrixSolve MatrixTriangularSolve LogMatrixDeterminant MatrixDeterminant"
)
"""Ops of a matrix that may be singular; their operand is the first input."""
_SECOND = DIVISIONS | words("Xlogy Xlog1py")
_COPIES = COPIES | words("ExpandDims Squeeze Cast BroadcastTo Transpose")
_LONGEST_SEARCH = 12


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
        """The op at which the fix belongs: the origin, or the forward op whose gradient it computes.

        Raises:
            CannotTryError: There is no such op.
        """
        origin = self.origin
        if origin is None or origin.op_name is None:
            raise CannotTryError(
                "There is no op to fix: the batch itself is not finite."
                if origin
                else "No origin was found."
            )
        suspect = self.bisection.suspect
        key = (
            suspect.fact.key
            if suspect is not None and suspect.fact is not None
            else ("", origin.op_name)
        )
        return self.forward_of(key)

    @property
    def is_optimizers_own(self) -> bool:
        """Whether the origin is an op of the optimizer's that no line of the user's code computes."""
        origin = self.origin
        return (
            origin is not None
            and origin.where == "optimizer"
            and operand_text(origin.source, origin.op_type or "") is None
        )

    def check_users_own(self) -> None:
        """Fail when the origin is an op of the optimizer, which a user cannot write in another way.

        Raises:
            CannotTryError: It is.
        """
        if self.is_optimizers_own:
            raise CannotTryError("The op is the optimizer's own.")

    def forward_of(self, key: OpKey) -> OpKey:
        """Return the forward op whose gradient an op computes; the op itself when it is a forward op."""
        info = self.infos.get(key)
        return (info.forward_function, info.forward) if info is not None and info.forward else key

    def places(self) -> Iterator[OpLocation]:
        """Return operands at which an op has a pole: of the origin, then of the ops that its operand comes from.

        Raises:
            CannotTryError: None is near.
        """
        editor = ProgramEditor(self.window.replay.program(self.step).record)
        found = list(self._poles(editor, self.op))
        if not found:
            raise CannotTryError(
                f"`{editor.node(self.op).op}` has no operand that could be moved away from a pole."
            )
        yield from found
        yield replace(found[0], everywhere=True)

    def _poles(self, editor: ProgramEditor, key: OpKey) -> Iterator[OpLocation]:
        """The op itself, then ops with a pole that made its operand, through copies, sums and products."""
        pending, seen = [key], {key}
        while pending and len(seen) < _LONGEST_SEARCH:
            current = pending.pop(0)
            op_type = editor.node(current).op
            if op_type in POLES | MATRICES:
                position = 1 if op_type in _SECOND else 0
                yield OpLocation(current, op_type, position)
                sources = [editor.data_inputs(current)[position]] if op_type in POLES else []
            elif current == key or op_type in _COPIES | words("Mul Add AddV2 Neg Maximum Minimum"):
                sources = editor.data_inputs(current)
            else:
                continue
            for tensor in sources:
                following = (current[0], tensor.partition(":")[0])
                if following not in seen and following in self.infos:
                    seen.add(following)
                    pending.append(following)

    def operand_edit(self, place: OpLocation, change: Any) -> ProgramEdit:
        """Return the edit that gives an op, and the ops of its gradient, `change(operand)` in place of its operand.

        Args:
            place: The operand.
            change: A Python function of a tensor.
        """
        popped = self._popped(place)

        def edit(editor: ProgramEditor) -> None:
            op = editor.locate(place.op)
            old = editor.data_inputs(op)[place.position]
            new = editor.add(op[0], change, [old])[0]
            editor.set_input(op, place.position, new)
            backward = {
                key
                for key, info in editor.infos.items()
                if (info.forward_function, info.forward) == op
            }
            editor.reroute(op[0], old, new, only=lambda key: key in backward)
            for key, position in ((editor.locate(key), position) for key, position in popped):
                taken = editor.data_inputs(key)[position]
                editor.set_input(key, position, editor.add(key[0], change, [taken])[0])

        return edit

    def value_edit(self, place: OpLocation, change: Any) -> ProgramEdit:
        """Return the edit that gives `change(operand)` to all ops of the main graph that take an operand, and to their gradients.

        The gradient of the op that made the operand keeps what that op gave.
        """

        def edit(editor: ProgramEditor) -> None:
            op = editor.locate(place.op)
            old = editor.data_inputs(op)[place.position]
            maker = (op[0], old.partition(":")[0])
            new = editor.add(op[0], change, [old])[0]
            editor.reroute(op[0], old, new, only=lambda key: self.forward_of(key) != maker)

        return edit

    def _popped(self, place: OpLocation) -> set[tuple[OpKey, int]]:
        """Inputs of the op's gradient, in other functions (bodies of backward loops), that hold the operand."""
        trace = self.trace
        if trace is None:
            return set()
        operands, gradient = set(), []
        for fact in trace.facts.values():
            if fact.key == place.op:
                operands.add(_source(trace, fact.input_ids[place.position]))
                continue
            info = self.infos.get(fact.key)
            if fact.function == place.op[0] or fact.type.startswith(
                ("TensorList", "Stack")
            ):  # storage hands the operand on
                continue
            if info is not None and (info.forward_function, info.forward) == place.op:
                gradient.append(fact)
        return {
            (fact.key, k)
            for fact in gradient
            for k, value in enumerate(fact.input_ids)
            if _source(trace, value) in operands
        }

    def facts(self, key: OpKey) -> list[Fact]:
        """Return the executions of an op in the origin's step."""
        return (
            []
            if self.trace is None
            else [fact for fact in self.trace.facts.values() if fact.key == key]
        )

    def operand(self, place: OpLocation) -> Any:
        """Return an operand's values at the origin's step (numpy), None when they were not kept."""
        trace, facts = self.trace, self.facts(place.op)
        if trace is None or not facts:
            return None
        for fact in facts:
            if fact.event is not None:
                return np.asarray(fact.event.inputs[place.position])
        return None

    def source(self, key: OpKey) -> Frame | None:
        """Return the line of the user's code that made an op."""
        info = self.infos.get(key)
        return None if info is None else self.window.replay.source(info.stack)


def _source(trace: StepTrace, value: ValueId) -> ValueId:
    """The value that another is a copy of, or was read back from storage as."""
    while value.serial >= 0 and (fact := trace.facts.get(value.serial)) is not None:
        if len(fact.via) == 1:
            value = fact.via[0]
        elif fact.type in ("Identity", "StopGradient", "PreventGradient") and fact.input_ids:
            value = fact.input_ids[0]
        else:
            break
    return value
