"""One replay of the window with changes, step after step, up to the first that is not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from nanreplay.capture.arrays import as_array
from nanreplay.errors import ReplayError, StepRaisedError
from nanreplay.program.float_types import TO_FLOAT32, widened, widened_variables
from nanreplay.program.graph_editor import SCOPE, ProgramEditor
from nanreplay.records import ProgramRecord, Trigger
from nanreplay.replay import Replay, StepResult
from nanreplay.replay.replay_programs import Program
from nanreplay.replay.replay_state import LiveState
from nanreplay.replay.step_results import compare_step, step_error
from nanreplay.tensorflow_internals.tf_functions import Optimizers
from nanreplay.whatif.edits import CannotTryError, Edit

if TYPE_CHECKING:
    from nanreplay.whatif.trial_window import TrialWindow

SUMS = {"Add", "AddV2", "Sub"}
LATER_STEPS = 4
"""How many steps go on after the window, to see whether the training lives."""


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
    fails_anyway: bool = False
    """Whether a later step is not finite with the weights from before the window either."""
    before_later: Mapping[int, Any] | None = None
    """The variables before the later step that was not finite, by index."""
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

    @property
    def fails_later(self) -> bool:
        """Whether a step after the window is not finite, and was with the weights from before."""
        return not self.fails_anyway and any(not result.finite for result in self.later)


def trainable_norm(replay: Replay, *states: Mapping[int, Any]) -> float:
    """The norm of all trainable variables, from their values by index.

    Each is taken from the first of the states that holds it; one that none holds counts as 0.
    """
    squares = []
    for index, info in enumerate(replay.variables):
        held = next((values for values in states if index in values), None)
        if info.role == "trainable" and "float" in info.dtype and held is not None:
            squares.append(float(tf.reduce_sum(tf.square(tf.cast(held[index], tf.float64)))))
    return math.sqrt(sum(squares))


class WindowRun:
    """One replay of the window."""

    def __init__(self, window: TrialWindow, edit: Edit) -> None:
        self.window = window
        self.replay = window.replay
        self.edit = edit
        self.is_changed = edit != Edit()
        """Whether the steps are meant to be others than the recorded ones."""
        variables = self.replay.variables
        if edit.widen_half:
            variables = widened_variables(variables, TO_FLOAT32)
        self.live = LiveState(variables) if edit.widen_half else window.live
        self.programs: dict[str, Program] = {}
        self.takes_few = bool(edit.programs or edit.widen_half) and window.fails_with_few
        """Whether changed programs may be compiled by a part of the graph optimizers."""

    def outcome(self) -> TrialOutcome:
        """Run step after step."""
        skipped: list[int] = []
        shared = self.window.unchanged(self.edit)
        results = list(shared.results)
        steps = self.window.steps[len(results) :]
        first = steps[0]
        state = dict(shared.state())
        for change in self.edit.state:
            state |= change(state)
        self.begin(state)
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
                told = step_error(step, error)
                raised_then = self.replay.incident.trigger.what == "exception"
                is_failing = raised_then and step == self.window.failing
                if not is_failing or not isinstance(told, StepRaisedError):
                    raise  # the step did not run at all
                raised = Trigger("exception", told.kind, told.reason)
                return TrialOutcome(tuple(results), tuple(skipped), raised=raised)
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
        outcome = TrialOutcome(tuple(results), tuple(skipped), idle=tuple(idle), norms=norms)
        return self.with_later(outcome)

    def with_later(self, outcome: TrialOutcome) -> TrialOutcome:
        """Go on for a few steps, on the batches of the steps before the failing one.

        On that of the failing step where the window holds no other.

        Returns:
            The outcome with what they gave, and whether one that is not finite is not so with the
            weights from before the window either: a random draw, say, makes it so, and not the
            weights.
        """
        healthy = [step for step in self.window.steps if step < self.window.failing]
        batches = healthy[:LATER_STEPS] or [self.window.failing]
        results = []
        for turn in range(LATER_STEPS):
            step = batches[turn % len(batches)]
            before = self.live.read()
            try:
                results.append(self.step(step))
            except ReplayError:
                break
            if not results[-1].finite:
                fails_anyway = self._fails_anyway(step, before)
                return replace(
                    outcome, later=tuple(results), fails_anyway=fails_anyway, before_later=before
                )
            self.shrink_update(step, before)
        return replace(outcome, later=tuple(results))

    def _fails_anyway(self, step: int, before: Mapping[int, Any]) -> bool:
        """Whether a step is not finite with the first weights, all else being as before it."""
        first = dict(self.window.first_state())
        for change in self.edit.state:
            first |= change(first)
        trained = {}
        for index, info in enumerate(self.replay.variables):
            # whole numbers are the state of a random generator, whose draws stay
            if info.is_trained and "float" in info.dtype and index in first:
                trained[index] = first[index]
        self.assign({**before, **trained})
        return not self.step(step).finite

    def norm(self) -> float:
        """The norm of all trainable variables."""
        return trainable_norm(self.replay, self.live.read())

    def is_idle(self, step: int, before: Mapping[int, Any]) -> bool:
        """Whether loss scaling left a step's update out: no weight is another than before."""
        if not self.program(step).signature.loss_scaled:
            return False
        now = self.live.read()
        return all(
            bool(tf.reduce_all(tf.equal(now[index], before[index])))
            for index, info in enumerate(self.replay.variables)
            if info.role == "trainable"
        )

    def _outside_changes(self, step: int) -> dict[int, Any]:
        """What something outside of the steps changed just before a step."""
        return {**self.window.changes.get(step, {}), **self.replay.batch(step).overrides}

    def begin(self, values: Mapping[int, Any]) -> None:
        """Set the variables before the first step; of another run nothing is left."""
        self.live.begin(self._with_rates(values))

    def assign(self, values: Mapping[int, Any]) -> None:
        """Set variables; learning rates that are variables are set to their part."""
        self.live.assign(self._with_rates(values))

    def _with_rates(self, values: Mapping[int, Any]) -> dict[int, Any]:
        values = dict(values)
        if self.edit.learning_rate != 1.0:
            for rate in self.window.rates():
                if rate in values:
                    values[rate] = as_array(values[rate]) * self.edit.learning_rate
        return values

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
                now, old = self.live.read([index])[index], before[index]
                self.live.assign({index: old + tf.cast(factor, now.dtype) * (now - old)})

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
            record, adds = self.changed(recorded.record)
            changed = Program(record, trust=True)
            # No recording tells the bits of the changed program: those graph optimizers that
            # decide about bits are enough, where the recorded one fails with them. But all of them
            # compute a - b + 1e-7 as a - (b - 1e-7), where the epsilon is lost, and they need two
            # rounds to find it.
            if self.takes_few and not adds:
                changed.optimizers = Optimizers.DECIDING
            # the recorded program took the same feeds
            changed.checks_feeds = bool(self.edit.batches)
            self.programs[name] = changed
        return self.programs[name]

    def changed(self, record: ProgramRecord) -> tuple[ProgramRecord, bool]:
        """The recorded program with the changes made, and whether one of them is a sum."""
        editor = ProgramEditor(record)
        for change in self.edit.programs:
            change(editor)
        record = editor.edited()
        if self.edit.widen_half:
            record = widened(record, TO_FLOAT32)
        return record, any(key[1].startswith(SCOPE) for key in editor.ops(SUMS))

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
            is_changed=self.is_changed,
        )

    def bad_variables(self) -> set[int]:
        """Variables that are non-finite before a step, as a running minimum may be at the start."""
        return {
            index
            for index, info in enumerate(self.replay.variables)
            if info.role in ("state", "other") and self.live.is_bad(index)
        }
