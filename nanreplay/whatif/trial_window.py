"""Replaying the window with changes: from its first keyframe through the failing step to its end.

`trial` runs each fix over it; a rerun of current code runs the recorded program over it unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay.capture.arrays import as_array
from nanreplay.errors import ReplayError, StepRaisedError
from nanreplay.program.fingerprint import ulp_distance
from nanreplay.program.float_types import TO_FLOAT32, widened, widened_variables
from nanreplay.program.graph_editor import ProgramEditor
from nanreplay.records import ProgramRecord, Signature, Trigger
from nanreplay.replay import Replay, StepResult
from nanreplay.replay.replay_programs import Program
from nanreplay.replay.replay_state import LiveState
from nanreplay.replay.step_results import compare_step, step_error
from nanreplay.whatif.eager_windows import steps_of_program
from nanreplay.whatif.edits import CannotTryError, Edit

_LATER_STEPS = 4
"""How many steps go on after the window, to see whether the training lives."""
_TRACING_S, _TRACED_OP_S = 0.2, 5e-4
"""About how long it takes to trace a changed program, and each of its ops."""
_SLIGHT_ULP = 64
"""Units in the last place between a replayed state and a keyframe that are another machine's."""


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """What replaying the window with changes gave."""

    results: tuple[StepResult, ...]
    skipped: tuple[int, ...] = ()
    """Steps whose update was undone."""
    raised: Trigger | None = None
    """What the failing step raised, as it did in training; None when it ran."""
    idle: tuple[int, ...] = ()
    """Steps with loss scaling that changed no weight."""
    later: tuple[StepResult, ...] = ()
    """A few more steps after the window, on batches of its healthy steps."""
    norms: tuple[float, float] = (0.0, 0.0)
    """Norm of all trainable variables before the window and after it."""
    before_failure: Mapping[int, Any] | None = None
    """The variables before the first step that was not finite, by index."""

    @property
    def failed(self) -> StepResult | None:
        """The first step that was not finite, or None."""
        for result in self.results:
            if not result.finite and result.step not in self.skipped:
                return result
        return None


class TrialWindow:
    """The steps of a capture that lead to its incident, to be replayed as often as asked.

    Args:
        replay: The capture's replay.
        pause: Called before each step of a run, which has a state of its own: it may use the
            replay. Does nothing unless given.

    Raises:
        ReplayError: The incident cannot be replayed.
    """

    def __init__(self, replay: Replay, *, pause: Callable[[], None] | None = None) -> None:
        """Find the steps; nothing runs yet."""
        self.replay = replay
        self.pause = pause or (lambda: None)
        self.failing = replay.incident.step
        held = set(replay.steps)
        if self.failing not in held:
            raise ReplayError(
                f"{replay.capture.path}: step {self.failing} cannot be replayed, "
                "so no fix can be tried."
            )
        self._changes: dict[int, dict[int, Any]] | None = None
        self._first_norm: float | None = None
        self.borrows_program = replay.signature(self.failing).compilation == "eager"
        """Whether the steps before the failing one, eager ones, have no program of their own."""
        if self.borrows_program:
            self.steps = steps_of_program(replay, self.failing)
            return
        first = last = self.failing
        while first - 1 in held:
            first -= 1
        while last + 1 in held:
            last += 1
        if self._has_parted():
            first = self.failing
        self.steps = tuple(range(first, last + 1))

    def _has_parted(self) -> bool:
        """Whether the window fails only because the recording holds the state before its failure.

        On another machine a chaotic training parts from the recording. What it does then without a
        fix says nothing of what a fix prevents, so fixes are tried on the failing step alone.
        """
        failing, replay = self.failing, self.replay
        before = replay.recorded_results.get(failing - 1)
        if failing not in replay.capture.state_steps or before is None:
            return False
        if (before.max_ulp or 0) <= _SLIGHT_ULP:
            return False
        results = replay.run_window("recorded", last=failing, takes_state=False)
        return [result.finite for result in results] != [True] * (len(results) - 1) + [False]

    def work_s(self) -> float:
        """Return how long one replay of the window takes, in seconds, as it is estimated.

        The estimate knows the recording alone, not how busy this machine is.
        """
        ops = len(self.replay.ops(self.failing))
        times = self.replay.capture.timeline_record().columns.get("step_time_s", ())
        known = np.asarray(times, np.float64)
        known = known[np.isfinite(known)]
        step_s = float(np.median(known)) if known.size else 0.0
        return _TRACING_S + ops * _TRACED_OP_S + (len(self.steps) + 1) * step_s

    @property
    def reaches_start(self) -> bool:
        """Whether the window begins with the first step of the training."""
        return self.steps[0] == 0

    @property
    def changes(self) -> Mapping[int, Mapping[int, Any]]:
        """Variables that something outside of the step changed within the window, by step.

        Such as metrics that were reset, or a callback that sets the learning rate.
        """
        if self.borrows_program:
            return {}  # that nothing but the steps changed the state is part of their proof
        if self._changes is None:
            first, last = self.steps[0], self.steps[-1]
            keyframes = self.replay.capture.keyframe_steps
            within = [step for step in keyframes if first < step <= last]
            self._changes = {step: self._changed_at(step) for step in within}
        return self._changes

    def _changed_at(self, step: int) -> dict[int, Any]:
        """What a keyframe holds otherwise than the steps before it left it."""
        left, variables = self.replay.state_after(step - 1), self.replay.variables
        before = self.replay.recorded_results.get(step - 1)
        # Where the replay has left the recording, what the steps trained differs by itself.
        is_near = before is None or (before.max_ulp or 0) <= _SLIGHT_ULP
        return {
            index: value
            for index, value in self.replay.capture.keyframe(step).items()
            if (is_near or not variables[index].is_trained)
            and not _is_same_value(as_array(left[index]), value)
        }

    def program(self, step: int) -> Program:
        """Return the program that a step ran."""
        return self.replay.program(self.failing if self.borrows_program else step)

    def signature(self) -> Signature:
        """Return how the failing step's program is called."""
        return self.program(self.failing).signature

    def rates(self) -> Sequence[int]:
        """Return the variables that hold a learning rate, of all optimizers.

        Empty where that of the failing step is a schedule or a plain number.
        """
        rate = self.signature().learning_rate
        if rate is None:
            return ()
        others = [
            index
            for index, info in enumerate(self.replay.variables)
            if info.role == "optimizer" and not info.shape and info.path.endswith("/learning_rate")
        ]
        return [rate, *(index for index in others if index != rate)]

    @cached_property
    def unchanged_losses(self) -> Mapping[int, float | None]:
        """The loss of each step as the replay gives it without a change."""
        return {result.step: result.loss for result in self.run(Edit()).results}

    def first_state(self) -> Mapping[int, Any]:
        """Return the variables just before the window's first step, by index."""
        first = self.steps[0]
        if self.borrows_program:
            return self.replay.capture.keyframe(first)
        return self.replay.state(first)

    def first_norm(self) -> float:
        """Return the norm of all trainable variables before the window."""
        if self._first_norm is None:
            first = self.steps[0]
            is_held = first in self.replay.capture.keyframe_steps
            held = self.replay.capture.lazy_keyframe(first) if is_held else self.first_state()
            self._first_norm = _norm(self.replay, held)
        return self._first_norm

    def changed_program(self, edit: Edit, step: int) -> Program:
        """Return the program of a step with changes made."""
        return _WindowRun(self, edit).program(step)

    def run(self, edit: Edit) -> TrialOutcome:
        """Replay the window with changes, up to the first step that is not finite.

        Raises:
            ReplayError: A step could not be run.
        """
        self.replay.make_room()
        return _WindowRun(self, edit).outcome()


def _norm(replay: Replay, values: Any) -> float:
    """The norm of all trainable variables, from their values by index."""
    squares = [
        float(tf.reduce_sum(tf.square(tf.cast(values[index], tf.float64))))
        for index, info in enumerate(replay.variables)
        if info.role == "trainable" and "float" in info.dtype
    ]
    return math.sqrt(sum(squares))


def _is_same_value(left: Any, right: Any) -> bool:
    if left.dtype.kind != "f" or left.dtype != right.dtype:
        return bool(left.tobytes() == right.tobytes())
    return ulp_distance(left, right) <= _SLIGHT_ULP


def _raised(step: int, error: ReplayError) -> Trigger:
    """What the step raised, as the recorder tells it."""
    told = step_error(step, error)
    if isinstance(told, StepRaisedError):
        return Trigger("exception", told.kind, told.reason)
    return Trigger("exception", type(told).__name__, str(told))


class _WindowRun:
    """One replay of the window."""

    def __init__(self, window: TrialWindow, edit: Edit) -> None:
        self.window = window
        self.replay = window.replay
        self.edit = edit
        variables = self.replay.variables
        if edit.widen_half:
            variables = widened_variables(variables, TO_FLOAT32)
        self.live = LiveState(variables)
        self.programs: dict[str, Program] = {}

    def outcome(self) -> TrialOutcome:
        """Run step after step."""
        skipped: list[int] = []
        results = self.unchanged_results()
        steps = self.window.steps[len(results) :]
        first = steps[0]
        state = dict(self.replay.state(first) if results else self.window.first_state())
        for change in self.edit.state:
            state |= change(state)
        self.assign(state)
        del state  # as large as the model and its optimizer
        norm = self.window.first_norm() if results else self.norm()
        idle: list[int] = []
        for step in steps:
            if step > first:  # the first state holds what was changed before its step
                self.assign(self._outside_changes(step))
            before = self.live.read()
            try:
                result = self.step(step)
            except CannotTryError:
                raise
            except ReplayError as error:
                if self.replay.incident.trigger.what != "exception" or step != self.window.failing:
                    raise
                return TrialOutcome(tuple(results), tuple(skipped), raised=_raised(step, error))
            results.append(result)
            if result.finite:
                self.shrink_update(step, before)
                idle += [step] * self.is_idle(step, before)
            elif self.edit.skips_nonfinite:
                skipped.append(step)
                self.undo_update(before)
            else:
                return TrialOutcome(tuple(results), tuple(skipped), before_failure=before)
        norms = (norm, self.norm())
        return TrialOutcome(tuple(results), tuple(skipped), None, tuple(idle), self.later(), norms)

    def unchanged_results(self) -> list[StepResult]:
        """What the steps before the failing one gave, where nothing of them is changed.

        They ran for the verdict already. Empty where that is not so, and all of them run.
        """
        edit, window = self.edit, self.window
        before = [step for step in window.steps if step < window.failing]
        is_changed = edit.programs or edit.state or edit.widen_half or edit.learning_rate != 1.0
        if is_changed or window.borrows_program or window.signature().loss_scaled:
            return []
        known = [self.replay.recorded_results.get(step) for step in before]
        results = [result for result in known if result is not None and result.finite]
        return results if len(results) == len(before) and all(map(self.keeps, before)) else []

    def keeps(self, step: int) -> bool:
        """Whether the batch of a step is fed as it was recorded."""
        leaves = recorded = self.replay.batch(step).leaves
        for change in self.edit.batches:
            leaves = change(step, leaves)
        return len(leaves) == len(recorded) and all(
            leaf is old or as_array(leaf).tobytes() == as_array(old).tobytes()
            for leaf, old in zip(leaves, recorded, strict=True)
        )

    def later(self) -> tuple[StepResult, ...]:
        """Go on for a few steps, on the batches of the steps before the failing one.

        On that of the failing step where the window holds no other.
        """
        healthy = [step for step in self.window.steps if step < self.window.failing]
        batches = healthy[:_LATER_STEPS] or [self.window.failing]
        results = []
        for turn in range(_LATER_STEPS):
            step = batches[turn % len(batches)]
            before = self.live.read()
            try:
                results.append(self.step(step))
            except ReplayError:
                break
            if not results[-1].finite:
                break
            self.shrink_update(step, before)
        return tuple(results)

    def norm(self) -> float:
        """The norm of all trainable variables."""
        return _norm(self.replay, self.live.variables)

    def is_idle(self, step: int, before: Mapping[int, Any]) -> bool:
        """Whether loss scaling left a step's update out: no weight is another than before."""
        if not self.program(step).signature.loss_scaled:
            return False
        return all(
            bool(tf.reduce_all(tf.equal(self.live.variables[index], before[index])))
            for index, info in enumerate(self.replay.variables)
            if info.role == "trainable"
        )

    def _outside_changes(self, step: int) -> dict[int, Any]:
        """What something outside of the steps changed just before a step."""
        return {**self.window.changes.get(step, {}), **self.replay.batch(step).overrides}

    def assign(self, values: Mapping[int, Any]) -> None:
        """Set variables; learning rates that are variables are set to their part."""
        values = dict(values)
        if self.edit.learning_rate != 1.0:
            for rate in self.window.rates():
                if rate in values:
                    values[rate] = as_array(values[rate]) * self.edit.learning_rate
        self.live.assign(values)

    def shrink_update(self, step: int, before: Mapping[int, Any]) -> None:
        """Take a part of what the step changed, where the learning rate is no variable.

        It is a schedule or a plain number then. With the updates of SGD this is the same as a
        smaller rate: w - 0.1 * (rate * g) is w - (0.1 * rate) * g.
        """
        factor = self.edit.learning_rate
        if factor == 1.0 or self.program(step).signature.learning_rate is not None:
            return
        for index, info in enumerate(self.replay.variables):
            if info.role == "trainable":
                variable, old = self.live.variables[index], before[index]
                variable.assign(old + tf.cast(factor, variable.dtype) * (variable - old))

    def undo_update(self, before: Mapping[int, Any]) -> None:
        """Put all variables back but metrics and seeds, which go on in a step that is left out."""
        infos = self.replay.variables
        kept_roles = ("metric", "seed")
        self.live.assign(
            {index: before[index] for index in before if infos[index].role not in kept_roles}
        )

    def program(self, step: int) -> Program:
        """The step's program with the changes made."""
        recorded = self.window.program(step)
        if not self.edit.programs and not self.edit.widen_half:
            return recorded
        name = recorded.record.id
        if name not in self.programs:
            # The recorded program was checked when it was loaded, and fixes add no unsafe op.
            self.programs[name] = Program(self.changed(recorded.record), trust=True)
        return self.programs[name]

    def changed(self, record: ProgramRecord) -> ProgramRecord:
        """The recorded program with the changes made."""
        editor = ProgramEditor(record)
        for change in self.edit.programs:
            change(editor)
        record = editor.edited()
        return widened(record, TO_FLOAT32) if self.edit.widen_half else record

    def step(self, step: int) -> StepResult:
        """Run one step as it was trained, but for the changes."""
        self.window.pause()
        program, batch = self.program(step), self.replay.batch(step)
        infos = self.replay.variables
        leaves: Sequence[Any] = batch.leaves
        for change in self.edit.batches:
            leaves = change(step, leaves)
        if program.mean_variables is not None:
            # A step's loss is what it adds to the mean, and beside an outlier's that is rounding.
            self.live.assign({index: np.float32(0) for index in program.mean_variables})
        bad_before = self.bad_variables()
        inputs = (*leaves, *batch.fed)
        try:
            fingerprint = program.step("recorded", inputs, self.live.variables, batch.fingerprint)
        except tf.errors.OpError as error:
            raise step_error(step, error) from error
        return compare_step(
            step,
            program.signature,
            fingerprint,
            batch.fingerprint,
            paths=[info.path for info in infos],
            count_skips=self.replay.incident.trigger.what == "gradient",
            bad_variable=lambda index: "" if index in bad_before else self.live.bad_kind(index),
            slots=[i for i, info in enumerate(infos) if info.role == "optimizer" and info.shape],
            step_loss=program.step_loss,
            recorded_loss=self.replay.timeline_loss(step),
        )

    def bad_variables(self) -> set[int]:
        """Variables that are non-finite before a step, as a running minimum may be at the start."""
        return {
            index
            for index, info in enumerate(self.replay.variables)
            if info.role in ("state", "other") and self.live.is_bad(index)
        }
