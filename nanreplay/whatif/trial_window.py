"""Replaying the window with changes: from its first keyframe through the failing step to its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay.errors import NanreplayError, ReplayError
from nanreplay.program.fingerprint import ulp_distance
from nanreplay.program.float_types import TO_FLOAT32, widened, widened_variables
from nanreplay.program.graph_editor import ProgramEditor
from nanreplay.records import BatchRecord, ProgramRecord, Signature
from nanreplay.replay import Replay, StepResult
from nanreplay.replay.replay_programs import Program
from nanreplay.replay.replay_state import LiveState
from nanreplay.replay.step_results import compare_step
from nanreplay.whatif.edits import Edit

# Steps of an eager loop before the failing one: they have no program of their own, but may be
# shown to run the failing step's.


def steps_of_program(replay: Replay, failing: int) -> tuple[int, ...]:
    """Return the steps up to `failing` that its program is proved to compute; `failing` alone when there are no others.

    An eager step is recorded as a flat program only once it fails. The steps before it ran the same Python code, and the
    proof is in the recording: from a keyframe on, the program must give every recorded fingerprint, and in the end the
    state before the failing step, bit for bit.

    Args:
        replay: The capture's replay.
        failing: The step whose program it is.
    """
    keyframes = [step for step in replay.capture.keyframe_steps if step < failing]
    for first in keyframes:
        steps = range(first, failing)
        try:
            if all(_is_alike(replay, step, failing) for step in steps) and _is_proved(
                replay, steps, failing
            ):
                return (*steps, failing)
        except NanreplayError:  # a batch is not held, or an op takes no such batch
            continue
    return (failing,)


def _is_alike(replay: Replay, step: int, failing: int) -> bool:
    if step not in replay.capture.steps:
        return False
    one, other = replay.batch(step), replay.batch(failing)
    if one.program or one.fingerprint is None or other.fingerprint is None:
        return False
    if np.shape(one.fingerprint) != np.shape(
        other.fingerprint
    ):  # another layout: it took another way
        return False
    return [_form(leaf) for leaf in one.leaves] == [_form(leaf) for leaf in other.leaves]


def _form(leaf: Any) -> tuple[Any, ...]:
    return np.shape(leaf), np.asarray(leaf).dtype


def _is_proved(replay: Replay, steps: range, failing: int) -> bool:
    program, live = replay.program(failing), LiveState(replay.variables)
    live.assign(replay.capture.keyframe(steps[0]))
    for step in steps:
        batch: BatchRecord = replay.batch(step)
        live.assign(batch.overrides)
        found = program.step("recorded", batch.arrays, live.variables, batch.fingerprint)
        recorded = np.asarray(batch.fingerprint)
        if (
            found is None
            or found.shape != recorded.shape
            or ulp_distance(found, recorded.astype(found.dtype))
        ):
            return False
    held, reached = replay.capture.keyframe(failing), live.read()
    return all(
        np.asarray(reached[index]).tobytes() == np.asarray(value).tobytes()
        for index, value in held.items()
    )


# --- whatif.window

_SLIGHT_ULP = 64
"""Differences between a replayed state and a keyframe up to this much are another machine's rounding."""


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """What replaying the window with changes gave."""

    results: tuple[StepResult, ...]
    skipped: tuple[int, ...] = ()
    """Steps whose update was undone."""
    raised: str | None = None
    """What the failing step raised, as it did in training; None when it ran."""

    @property
    def failed(self) -> StepResult | None:
        """The first step that was not finite, or None."""
        return next(
            (
                result
                for result in self.results
                if not result.finite and result.step not in self.skipped
            ),
            None,
        )


class TrialWindow:
    """The steps of a capture that lead to its incident, to be replayed as often as asked.

    Args:
        replay: The capture's replay.

    Raises:
        ReplayError: The incident cannot be replayed.
    """

    def __init__(self, replay: Replay) -> None:
        """Find the steps; nothing runs yet."""
        self.replay = replay
        self.failing = replay.incident.step
        held = set(replay.steps)
        if self.failing not in held:
            raise ReplayError(
                f"{replay.capture.path}: step {self.failing} cannot be replayed, so no fix can be tried."
            )
        self._borrows = replay.signature(self.failing).compilation == "eager"
        if self._borrows:
            self.steps = steps_of_program(replay, self.failing)
            return
        first = last = self.failing
        while first - 1 in held:
            first -= 1
        while last + 1 in held:
            last += 1
        self.steps = tuple(range(first, last + 1))
        self._changes: dict[int, dict[int, Any]] | None = None

    @property
    def reaches_start(self) -> bool:
        """Whether the window begins with the first step of the training."""
        return self.steps[0] == 0

    @property
    def changes(self) -> Mapping[int, Mapping[int, Any]]:
        """Variables that something outside of the step changed within the window (metrics reset, a callback), by step."""
        if self._borrows:  # that nothing but the steps changed the state is part of their proof
            return {}
        if self._changes is None:
            keyframes = [
                step
                for step in self.replay.capture.keyframe_steps
                if self.steps[0] < step <= self.steps[-1]
            ]
            self._changes = {step: self._changed_at(step) for step in keyframes}
        return self._changes

    def _changed_at(self, step: int) -> dict[int, Any]:
        """What a keyframe holds otherwise than the steps before it left it."""
        left, held = self.replay.state_after(step - 1), self.replay.capture.keyframe(step)
        return {
            index: value
            for index, value in held.items()
            if not _same(np.asarray(left[index]), value)
        }

    def program(self, step: int) -> Program:
        """Return the program that a step ran."""
        return self.replay.program(self.failing if self._borrows else step)

    def signature(self) -> Signature:
        """Return how the failing step's program is called."""
        return self.program(self.failing).signature

    def first_state(self) -> Mapping[int, Any]:
        """Return the variables just before the window's first step, by index."""
        return (
            self.replay.capture.keyframe(self.steps[0])
            if self._borrows
            else self.replay.state(self.steps[0])
        )

    def run(self, edit: Edit) -> TrialOutcome:
        """Replay the window with changes, up to the first step that is not finite.

        Raises:
            ReplayError: A step could not be run.
        """
        return _WindowRun(self, edit).outcome()


def _same(left: Any, right: Any) -> bool:
    if left.dtype.kind != "f" or left.dtype != right.dtype:
        return bool(left.tobytes() == right.tobytes())
    return ulp_distance(left, right) <= _SLIGHT_ULP


class _WindowRun:
    """One replay of the window."""

    def __init__(self, window: TrialWindow, edit: Edit) -> None:
        self.window = window
        self.replay = window.replay
        self.edit = edit
        variables = self.replay.variables
        self.live = LiveState(
            widened_variables(variables, TO_FLOAT32) if edit.widen_half else variables
        )
        self.programs: dict[str, Program] = {}

    def outcome(self) -> TrialOutcome:
        """Run step after step."""
        steps = self.window.steps
        results: list[StepResult] = []
        skipped: list[int] = []
        state = dict(self.window.first_state())
        for change in self.edit.state:
            state |= change(state)
        self.assign(steps[0], state)
        for step in steps:
            self.assign(
                step,
                {**self.window.changes.get(step, {}), **self.replay.batch(step).overrides}
                if step > steps[0]
                else {},
            )
            before = self.live.read()
            try:
                result = self.step(step)
            except ReplayError as error:
                if self.replay.incident.trigger.what != "exception" or step != self.window.failing:
                    raise
                return TrialOutcome(tuple(results), tuple(skipped), raised=str(error))
            results.append(result)
            if not result.finite and not self.edit.skips_nonfinite:
                break
            if not result.finite:
                skipped.append(step)
                self.live.assign(
                    {
                        index: before[index]
                        for index in before
                        if self.replay.variables[index].role not in ("metric", "seed")
                    }
                )
            elif self.edit.learning_rate != 1.0:
                self.shrink_update(step, before)
        return TrialOutcome(tuple(results), tuple(skipped))

    def assign(self, step: int, values: Mapping[int, Any]) -> None:
        """Set variables; a learning rate that is a variable is set to its part."""
        rate = self.program(step).signature.learning_rate
        self.live.assign(
            {
                i: np.asarray(value) * self.edit.learning_rate if i == rate else value
                for i, value in values.items()
            }
        )

    def shrink_update(self, step: int, before: Mapping[int, Any]) -> None:
        """Where the learning rate is no variable (a schedule, a plain number): take its part of what the step changed."""
        if self.program(step).signature.learning_rate is not None:
            return
        for index, info in enumerate(self.replay.variables):
            if info.role == "trainable":
                variable = self.live.variables[index]
                variable.assign(
                    before[index]
                    + tf.cast(self.edit.learning_rate, variable.dtype) * (variable - before[index])
                )

    def program(self, step: int) -> Program:
        """The step's program with the changes made."""
        recorded = self.window.program(step)
        name = recorded.record.id
        if name not in self.programs:
            self.programs[name] = (
                Program(self.changed(recorded.record), trust=True)
                if self.changes_programs
                else recorded
            )
        return self.programs[name]

    @property
    def changes_programs(self) -> bool:
        """Whether the programs differ from those recorded."""
        return bool(self.edit.programs) or self.edit.widen_half

    def changed(self, record: ProgramRecord) -> ProgramRecord:
        """The recorded program with the changes made; it was checked when it was loaded, and fixes add no unsafe op."""
        editor = ProgramEditor(record)
        for change in self.edit.programs:
            change(editor)
        record = editor.edited()
        return widened(record, TO_FLOAT32) if self.edit.widen_half else record

    def step(self, step: int) -> StepResult:
        """Run one step as it was trained, but for the changes."""
        program, batch = self.program(step), self.replay.batch(step)
        leaves: Sequence[Any] = batch.leaves
        for change in self.edit.batches:
            leaves = change(step, leaves)
        bad = self.bad_variables(program.signature)
        slots = [
            index
            for index, info in enumerate(self.replay.variables)
            if info.role == "optimizer" and info.shape
        ]
        try:
            found = program.step(
                "recorded", (*leaves, *batch.fed), self.live.variables, batch.fingerprint
            )
        except tf.errors.OpError as error:
            raise ReplayError(
                f"Step {step} raised with the fix: {(str(error).splitlines() or [''])[0]}"
            ) from error
        return compare_step(
            step,
            program.signature,
            found,
            batch.fingerprint,
            paths=[info.path for info in self.replay.variables],
            count_skips=self.replay.incident.trigger.what == "gradient",
            bad_variable=lambda index: "" if index in bad else self.live.bad_kind(index),
            slots=slots,
            step_loss=program.step_loss,
            recorded_loss=self.replay.timeline_loss(step),
        )

    def bad_variables(self, signature: Signature) -> set[int]:
        """Variables that were non-finite before the window began, as a running minimum is."""
        return {
            index
            for index, info in enumerate(self.replay.variables)
            if info.role in ("state", "other") and self.live.is_bad(index)
        }
