"""Replaying the window with changes: from its first keyframe through the failing step to its end.

`trial` runs each fix over it; a rerun of current code runs the recorded program over it unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import takewhile
from typing import Any

import numpy as np

from nanreplay.capture.arrays import as_array
from nanreplay.errors import ReplayError
from nanreplay.program.fingerprint import ulp_distance
from nanreplay.records import Signature
from nanreplay.replay import Replay, StepResult
from nanreplay.replay.replay_programs import Program
from nanreplay.replay.replay_state import LiveState
from nanreplay.tensorflow_internals.tf_functions import Optimizers
from nanreplay.whatif.eager_windows import steps_of_program
from nanreplay.whatif.edits import Edit
from nanreplay.whatif.window_run import LATER_STEPS, TrialOutcome, WindowRun, trainable_norm

_TRACING_S, _TRACED_OP_S = 0.06, 2e-4
"""About how long it takes to trace a changed program, and each of its ops."""
_XLA_OP_S = 2e-3
"""The same where XLA compiles it."""
_EAGER_OP_S = 4e-5
"""About how long TensorFlow takes to call one op eagerly, whatever it computes."""
_SLIGHT_ULP = 64
"""Units in the last place between a replayed state and a keyframe that are another machine's."""


@dataclass(frozen=True, slots=True)
class UnchangedSteps:
    """The steps of a window that a fix leaves as they are."""

    results: tuple[StepResult, ...]
    """What they gave; empty where the fix changes the first one, or that is not known."""
    state: Callable[[], Mapping[int, Any]]
    """The variables just before the step that follows them, by index."""


class TrialWindow:
    """The steps of a capture that lead to its incident, to be replayed as often as asked.

    Args:
        replay: The capture's replay.
        origin_step: Step of the origin; that of the incident unless given.
        pause: Called before each step of a run, which has a state of its own: it may use the
            replay. Does nothing unless given.

    Raises:
        ReplayError: The incident cannot be replayed.
    """

    def __init__(
        self,
        replay: Replay,
        origin_step: int | None = None,
        *,
        pause: Callable[[], None] | None = None,
    ) -> None:
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
        self._last_run: WindowRun | None = None
        self.origin_step = self.failing if origin_step is None else min(origin_step, self.failing)
        self.live = LiveState(replay.variables)
        """What the replays of the window run on, one after another."""
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
        n_steps = len(self.steps) + LATER_STEPS
        compilation = self.replay.signature(self.failing).compilation
        if compilation == "eager":
            return n_steps * self.eager_step_s()
        op_s = _XLA_OP_S if compilation == "xla" else _TRACED_OP_S
        return _TRACING_S + self._n_ops * op_s + n_steps * self._step_s

    def eager_step_s(self) -> float:
        """Return how long a step takes that runs eagerly, in seconds, estimated likewise."""
        if self.replay.signature(self.failing).compilation == "eager" and self._step_s:
            return self._step_s
        return self._n_ops * _EAGER_OP_S + self._step_s

    @property
    def _n_ops(self) -> int:
        return len(self.replay.ops(self.failing))

    @cached_property
    def _step_s(self) -> float:
        """The usual time of a step as it was trained; 0 where that was not recorded."""
        times = self.replay.capture.timeline_record().columns.get("step_time_s", ())
        known = np.asarray(times, np.float64)
        known = known[np.isfinite(known)]
        return float(np.median(known)) if known.size else 0.0

    @property
    def reaches_start(self) -> bool:
        """Whether the window begins with the first step of the training."""
        return self.steps[0] == 0

    @property
    def why_not_earlier(self) -> str:
        """Why the window begins with its first step, in words."""
        first = self.steps[0]
        if min(self.replay.capture.steps) >= first:
            return f"The capture holds no step before step {first}"
        if self.borrows_program:
            return f"No step before step {first} is shown to run the program that is recorded"
        return f"The steps before step {first} are not replayed with fixes"

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
        changed = {}
        for index, value in self.replay.capture.keyframe(step).items():
            if self._met_later.get(index) == step:
                continue  # nothing changed it: no program took it before
            is_meant = is_near or not variables[index].is_trained
            if is_meant and not _is_same_value(as_array(left[index]), value):
                changed[index] = value
        return changed

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
        others = []
        for index, info in enumerate(self.replay.variables):
            if info.role == "optimizer" and not info.shape and info.path.endswith("/learning_rate"):
                others.append(index)
        return [rate, *(index for index in others if index != rate)]

    @cached_property
    def unchanged_losses(self) -> Mapping[int, float | None]:
        """The loss of each step as the replay gives it without a change."""
        return {result.step: result.loss for result in self.run(Edit()).results}

    @cached_property
    def _met_later(self) -> Mapping[int, int]:
        """The keyframe that first holds a variable, where that is one within the window, by index.

        A program that ran later was the first to take it.
        """
        capture, first, last = self.replay.capture, self.steps[0], self.steps[-1]
        met: dict[int, int] = {}
        for step in capture.keyframe_steps:
            if step <= last:
                for index in capture.lazy_keyframe(step):
                    met.setdefault(index, step)
        return {index: step for index, step in met.items() if step > first}

    def _values_met_later(self) -> dict[int, Any]:
        lazy_keyframe = self.replay.capture.lazy_keyframe
        return {index: lazy_keyframe(step)[index] for index, step in self._met_later.items()}

    def first_state(self) -> Mapping[int, Any]:
        """Return the variables just before the window's first step, by index.

        Those that a later program was the first to take are as it found them.
        """
        first = self.steps[0]
        known = self.replay.capture.keyframe if self.borrows_program else self.replay.state
        return {**known(first), **self._values_met_later()}

    def first_norm(self) -> float:
        """Return the norm of all trainable variables before the window."""
        if self._first_norm is None:
            first = self.steps[0]
            is_held = first in self.replay.capture.keyframe_steps
            held = self.replay.capture.lazy_keyframe(first) if is_held else self.first_state()
            self._first_norm = trainable_norm(self.replay, self._values_met_later(), held)
        return self._first_norm

    def changed_program(self, edit: Edit, step: int) -> Program:
        """Return the program of a step with changes made; of the edit that ran last, its own."""
        run = self._last_run
        if run is None or run.edit is not edit:
            run = WindowRun(self, edit)
        return run.program(step)

    @cached_property
    def fails_with_few(self) -> bool:
        """Whether the failing step fails as well where a part of the graph optimizers compile it.

        Where it does not, every change would seem to prevent the failure.
        """
        program = self.program(self.failing)
        if program.optimizers is not Optimizers.NONE:
            return program.optimizers is Optimizers.DECIDING
        self.replay.state(self.failing)  # known from here on, as the steps before it left it
        program.optimizers = Optimizers.DECIDING
        try:
            results = self.replay.run_window(
                "recorded", first=self.failing, last=self.failing, takes_state=False
            )
        except ReplayError:  # it is shown by all of them
            return False
        finally:
            program.optimizers = Optimizers.NONE
        return not results[-1].finite

    def run(self, edit: Edit) -> TrialOutcome:
        """Replay the window with changes, up to the first step that is not finite.

        Raises:
            ReplayError: A step could not be run.
        """
        self._last_run = None  # with its compiled program
        run = WindowRun(self, edit)
        self.replay.make_room()
        self._last_run = run
        try:
            return run.outcome()
        finally:
            if self.replay.has_large_state:
                self.live.clear()
                run.live.clear()

    # The steps before the first that a fix changes: they run once for all fixes.

    def unchanged(self, edit: Edit) -> UnchangedSteps:
        """Return the steps that a fix leaves as they are, and the variables after them.

        They ran for the verdict already, or run once for all fixes.
        """
        steps = self._steps_left(edit)
        results = self._known_results(steps) if steps else []
        # a step without a finite result, or that never ran: all of the window runs
        if not results or not all(result.finite for result in results):
            return UnchangedSteps((), self.first_state)
        return UnchangedSteps(tuple(results), partial(self._state_after, steps))

    def _steps_left(self, edit: Edit) -> tuple[int, ...]:
        """The steps before the first that a fix changes."""
        if edit.state or edit.widen_half or edit.learning_rate != 1.0:
            return ()
        last = self.failing
        if self.signature().loss_scaled:
            last = min(last, self.origin_step)  # whether its update is left out is asked for
        before = takewhile(
            lambda step: step < last and edit.leaves_program(step) and self._feeds(edit, step),
            self.steps,
        )
        left = tuple(before)
        # of an eager loop, only the states before the first step and the failing one are known
        return () if self.borrows_program and len(left) < self.steps.index(last) else left

    def _feeds(self, edit: Edit, step: int) -> bool:
        """Whether the batch of a step is fed as it was recorded."""
        leaves = recorded = self.replay.batch(step).leaves
        for change in edit.batches:
            leaves = change(step, leaves)
        return len(leaves) == len(recorded) and all(
            leaf is old or as_array(leaf).tobytes() == as_array(old).tobytes()
            for leaf, old in zip(leaves, recorded, strict=True)
        )

    def _known_results(self, steps: Sequence[int]) -> list[StepResult]:
        """What steps gave without a change; empty where some of them never ran."""
        if self.borrows_program:
            return self._eager_results
        known = [self.replay.recorded_results.get(step) for step in steps]
        results = []
        for result in known:
            if result is not None:
                results.append(_with_recorded_loss(result))
        return results if len(results) == len(steps) else []

    @cached_property
    def _eager_results(self) -> list[StepResult]:
        """The steps of an eager loop before the failing one, which runs their program."""
        run = WindowRun(self, Edit())
        run.begin(self.first_state())
        results = []
        for step in self.steps[: self.steps.index(self.failing)]:
            run.assign(self.replay.batch(step).overrides)
            results.append(run.step(step))
        return results

    def _state_after(self, steps: Sequence[int]) -> Mapping[int, Any]:
        """The variables just before the step that follows some of the window."""
        following = self.steps[len(steps)]
        if self.borrows_program:  # the program was proved to lead there
            return self.replay.capture.keyframe(following)
        return self.replay.state(following)


def _with_recorded_loss(result: StepResult) -> StepResult:
    """A step that came out bit for bit, with the loss that was recorded of it.

    The replay of a window takes it from a running mean, where it is rounded.
    """
    if not result.bit_exact or result.recorded_loss is None:
        return result
    return replace(result, loss=result.recorded_loss)


def _is_same_value(left: Any, right: Any) -> bool:
    if left.dtype.kind != "f" or left.dtype != right.dtype:
        return bool(left.tobytes() == right.tobytes())
    return ulp_distance(left, right) <= _SLIGHT_ULP
