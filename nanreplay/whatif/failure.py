"""What a fix is made from: the window, the origin, the causes, and where the fatal operand is.

Each function of `fixes` takes a `Failure`. It tells the op at which a fix belongs and the operands
near it at which an op has a pole, and it makes the edits of the program that change an operand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from nanreplay.bisect import Bisection
from nanreplay.bisect.growth import find_growth
from nanreplay.bisect.influence import COPIES
from nanreplay.bisect.op_trace import Fact, StepTrace
from nanreplay.bisect.tensor_stats import words
from nanreplay.capture.arrays import as_array
from nanreplay.diagnose.outliers import find_outliers
from nanreplay.errors import ReplayError
from nanreplay.findings import Cause, Origin
from nanreplay.program.graph_editor import SCOPE, OpKey, ProgramEditor
from nanreplay.program.nondeterministic_ops import fed_ops
from nanreplay.program.safety import PYTHON_OPS
from nanreplay.records import Frame, OpInfo
from nanreplay.whatif.edits import CannotTryError, ProgramEdit
from nanreplay.whatif.fix_code import operand_text
from nanreplay.whatif.line_gradients import (
    OpLocation,
    gradient_ops,
    hand_gradient_through,
    maker_of,
    operands_elsewhere,
)
from nanreplay.whatif.line_ops import CodeSite, code_site
from nanreplay.whatif.source_operands import DIVISIONS
from nanreplay.whatif.training_health import TrainingHealth
from nanreplay.whatif.trial_window import TrialWindow

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

    @cached_property
    def health(self) -> TrainingHealth:
        """What the training is like while it is healthy."""
        return TrainingHealth(self.window)

    @property
    def origin(self) -> Origin | None:
        """The origin, or None when there is none."""
        return self.bisection.findings.origin

    @property
    def step(self) -> int:
        """The step of the origin; of the incident when there is no origin."""
        return self.window.failing if self.origin is None else self.origin.step

    @cached_property
    def data_step(self) -> int:
        """The step whose batch is to blame: an earlier one where a far-out row made values jump."""
        replay = self.window.replay
        if all(cause.kind != "data_outlier" for cause in self.causes):
            return self.step
        paths = [info.path for info in replay.variables]
        growth = find_growth(replay.capture.timeline_record(), self.step, paths)
        if growth is None or not growth.is_jump or growth.step not in self.window.steps:
            return self.step
        is_earlier = not find_outliers(replay, self.step) and find_outliers(replay, growth.step)
        return growth.step if is_earlier else self.step

    def names_data(self, path: str) -> bool:
        """Whether the path of an array begins with a variable of the user's loop."""
        name = path.partition("/")[0]
        is_name = name.isidentifier() and name not in ("next", "fetched")  # in its body
        return is_name and self.window.replay.signature(self.step).names_data

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
            bad = "the batch itself" if origin.is_of_batch else "what the step was given"
            raise CannotTryError(f"There is no op to fix: {bad} is not finite.")
        suspect = self.bisection.suspect
        if suspect is not None and suspect.fact is not None:
            return self.forward_of(suspect.fact.key)
        return self.forward_of(("", origin.op_name))

    def check_not_recorded(self) -> None:
        """Fail when what the origin gave was recorded, as of a Python function.

        Raises:
            CannotTryError: It was. Every replay is given it as it was, whatever a fix changes.
        """
        origin = self.origin
        recorded = fed_ops(self.window.replay.signature(self.step))
        if origin is not None and origin.op_name in recorded:
            raise CannotTryError(
                f"What `{origin.op_type}` gave was recorded: no replay computes it anew."
            )

    def check_batch_decides(self) -> None:
        """Fail when something outside of the graph, such as a Python function, gave values.

        Raises:
            CannotTryError: It did. It may have computed them from the batch, and would give others
                for another batch.
        """
        for name in sorted(fed_ops(self.window.replay.signature(self.step))):
            info = self.infos.get(("", name))
            if info is not None and (info.type in PYTHON_OPS or info.type.startswith("Lookup")):
                raise CannotTryError(
                    f"What `{info.type}` gave was recorded: it stays as it was with another batch."
                )

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
        poles = list(self._poles(self.editor, self.op))
        if not poles:
            op_type = self.editor.node(self.op).op
            raise CannotTryError(
                f"`{op_type}` has no operand that could be moved away from a pole."
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

    # Edits of a line: at every op that it makes

    @cached_property
    def editor(self) -> ProgramEditor:
        """The program of the origin's step, to look things up in."""
        return ProgramEditor(self.window.replay.program(self.step).record)

    def site(self, key: OpKey) -> CodeSite | None:
        """Return the piece of code that made an op, None where that is not known."""
        return code_site(self.editor, self.window.replay.source, key)

    def line_ops(self, key: OpKey) -> list[OpKey]:
        """Return all ops of the origin's step that the code of one makes; at least that one."""
        return self._ops_in(self.editor, key, self.site(key))

    def count_runs(self, ops: Collection[OpKey]) -> int:
        """Return how many of some ops the origin's step ran, however often a loop repeats them.

        An op of a function counts once for each call of the function. Copies of a function that
        did not run, as TensorFlow makes them for gradients, do not count.
        """
        if self.trace is None:
            return len(ops)
        return len(
            {
                (fact.key, tuple((call.function, call.op) for call in fact.calls))
                for fact in self.trace.facts.values()
                if fact.key in ops
            }
        )

    def ops_in(self, editor: ProgramEditor, key: OpKey) -> list[OpKey]:
        """Return the same for another program of the capture; empty where it has no such op."""
        return self._ops_in(editor, key, self.site(key))

    def _ops_in(self, editor: ProgramEditor, key: OpKey, site: CodeSite | None) -> list[OpKey]:
        made = [] if site is None else list(site.ops(editor, self.window.replay.source))
        with contextlib.suppress(ReplayError):
            own = editor.locate(key)
            if own not in made:  # a program that has it in another function, or an unknown line
                made.append(own)
        return made

    def operand_edit(
        self, place: OpLocation, change: Any, *, is_added: bool = False
    ) -> ProgramEdit:
        """Return the edit that gives an op, and its gradient, `change(operand)` for its operand.

        So do all ops that the same line makes. What made the operand gets the gradient of the
        change: none where a bound cuts the operand off.

        Args:
            place: The operand.
            change: A Python function of a tensor.
            is_added: Whether it adds a constant, which leaves the gradient as it is.
        """
        elsewhere = operands_elsewhere(self.trace, self.editor, self.line_ops(place.op), place)

        def edit(editor: ProgramEditor) -> None:
            for op in self.ops_in(editor, place.op):
                old = editor.data_inputs(op)[place.position]
                new = editor.add(op[0], change, [old])[0]
                editor.set_input(op, place.position, new)
                backward = gradient_ops(editor, [op])
                editor.reroute(op[0], old, new, only=backward.__contains__)
                if not is_added:
                    hand_gradient_through(editor, op, old, change)
            for key, position in elsewhere:
                with contextlib.suppress(ReplayError):  # a program without this gradient
                    own = editor.locate(key)
                    operand = editor.data_inputs(own)[position]
                    editor.set_input(own, position, editor.add(own[0], change, [operand])[0])

        return edit

    def value_edit(self, place: OpLocation, change: Any) -> ProgramEdit:
        """Return the edit that gives `change(operand)` to all ops that take an operand.

        These are ops of its function and of their gradients, for each op that the same line makes.
        The gradient of the op that made the operand keeps what that op gave.
        """

        def edit(editor: ProgramEditor) -> None:
            for op in self.ops_in(editor, place.op):
                old = editor.data_inputs(op)[place.position]
                if old.startswith(SCOPE):
                    continue  # another op of the line takes the same value
                maker = maker_of(op[0], old)
                users = {key for key, _ in editor.consumers(op[0], old)}
                users -= gradient_ops(editor, [maker])
                new = editor.add(op[0], change, [old])[0]
                editor.reroute(op[0], old, new, only=users.__contains__)

        return edit

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
                return as_array(fact.event.inputs[place.position])
        return None
