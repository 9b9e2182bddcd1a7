"""Running one step of a capture on variables: the half of `Replay` that holds the state.

Steps run compiled as in training or op by op, on one set of variables, each from the state before
it, which is reached from a keyframe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from nanreplay.capture.reader import Capture
from nanreplay.errors import MissingPartError
from nanreplay.program.float_types import widened_variables
from nanreplay.program.nonfinite_values import nonfinite_kind
from nanreplay.records import BatchRecord, Trigger
from nanreplay.replay.determinism import OpDeterminism, begun_anew
from nanreplay.replay.matrix_changes import MatrixChange, change_between, matrices_in
from nanreplay.replay.recorded_steps import RecordedSteps, in_words
from nanreplay.replay.replay_programs import Mode, Program
from nanreplay.replay.replay_state import KnownStates, LiveState
from nanreplay.replay.step_results import StepResult, compare_step

T = TypeVar("T")


class StepRuns(RecordedSteps):
    """Runs single steps of a capture, and reaches the states before them.

    Args:
        capture: An open capture.
        trust: Let ops that touch files, the network or processes run.
    """

    def __init__(self, capture: Capture, *, trust: bool = False) -> None:
        """Find the steps that can be replayed; nothing runs yet."""
        super().__init__(capture, trust=trust)
        self._states = KnownStates(capture.variables_info, capture.incident.step)
        self._live = LiveState(capture.variables_info)
        self._wide = LiveState(widened_variables(capture.variables_info))
        self._bad_before: dict[int, set[int]] = {}
        """Variables that were not finite before a step, by step."""
        self.recorded_results: dict[int, StepResult] = {}
        """Steps that ran as they were trained, as part of a window, with what each gave."""
        self._changes: dict[int, MatrixChange] = {}
        self._determinism = OpDeterminism()
        self._held_states = set(capture.state_steps)
        """Steps just before which the recording holds the state that its own replay reached."""

    def close(self) -> None:
        """Let go of the state and put op determinism back."""
        self._determinism.release()
        self._programs.clear()
        self._states.clear()
        self._live.clear()
        self._wide.clear()

    # The variables before and after steps.

    @property
    def has_large_state(self) -> bool:
        """Whether the variables take so much memory that no copy is kept that is not needed."""
        return self._states.are_large

    @begun_anew
    def state(self, step: int) -> Mapping[int, Any]:
        """Return the variables just before a step, by index.

        Raises:
            MissingPartError: The step cannot be replayed.
        """
        if step not in self.steps:
            raise MissingPartError(
                f"{self.capture.path}: step {step} cannot be replayed; "
                f"there are {in_words(self.steps)}."
            )
        if step not in self._states:
            if self._is_read_from_file(step):
                return self.capture.lazy_keyframe(step)
            self._seek(step)
        return self._states[step]

    def _is_read_from_file(self, step: int) -> bool:
        """Whether a large state need not be held, since the file has all of it.

        That of the incident is held: it is asked for again and again.
        """
        if not self._states.are_large or step == self.incident.step:
            return False
        if step not in self.capture.keyframe_steps or step in self._held_states:
            return False
        if self.batch(step).overrides:
            return False
        return len(self.capture.lazy_keyframe(step)) == len(self.variables)

    def change(self, step: int) -> MatrixChange:
        """Return how far a step moved the trainable matrices.

        Of an eager loop the recording may hold the states around a step that cannot be replayed.

        Raises:
            MissingPartError: The state before the step, or after it, is not known.
        """
        if step not in self._changes:
            before, after = map(self._known_state, (step, step + 1))
            self._changes[step] = change_between(self.variables, before, after)
        return self._changes[step]

    def _known_state(self, step: int) -> Mapping[int, Any]:
        if step in self.capture.keyframe_steps and step not in self.steps:
            return self.capture.lazy_keyframe(step)
        return self.state(step)

    def _note_change(self, step: int, before: Mapping[int, Any]) -> Mapping[int, Any]:
        """Measure how far the step before the incident moves matrices, as a replay passes it.

        Args:
            step: The step that is about to run.
            before: What the last call returned.

        Returns:
            The matrices before that step, while they are needed.
        """
        incident = self.incident.step
        if not self._states.are_large or incident - 1 in self._changes:
            return {}
        if step == incident and before:
            now = self._live.read(before)
            self._changes[step - 1] = change_between(self.variables, before, now)
        return self._live.read(matrices_in(self.variables)) if step == incident - 1 else {}

    def _seek(self, step: int) -> None:
        """Reach the state before a step from the nearest earlier one that is known."""
        known = (*self.capture.keyframe_steps, *self._states)
        base = max(earlier for earlier in known if earlier <= step)
        is_kept = base in self._states
        self._live.assign(self._states[base] if is_kept else self.capture.lazy_keyframe(base))
        self._states.make_room()
        for between in range(base, step):
            self._run_step(between, "recorded")
        self._set_held_state(step)
        self._remember(step)

    def _set_held_state(self, step: int) -> None:
        """Set what the recording holds of the state before a step that the replay has reached.

        On the machine that made it that is what is there already. On another one, last bits
        differ, and of a training that is chaotic soon all of it.
        """
        if step in self._held_states:
            self._live.assign(self.capture.lazy_state(step))

    def _remember(self, step: int) -> None:
        """Keep the variables as they are as the state just before a step."""
        self._live.assign(self.batch(step).overrides)
        self._states.add(step, self._live.read())

    def _run_step(self, step: int, mode: Mode) -> StepResult:
        """Run a step on the variables as they are, update them, and compare with the recording."""
        batch, (program, live) = self.batch(step), self._program_and_state(step, mode)
        live.assign(batch.overrides)
        trigger, layout = self.incident.trigger, program.signature.watch_layout
        claimed = trigger.name if trigger.what == "variable" else None
        bad_before = live.already_bad(layout, claimed)
        if mode != "float64":
            self._bad_before[step] = bad_before
        # `wide` is a program in float64 already, and that is how it runs
        way: Mode = "ops" if mode == "float64" else mode
        # Loss scaling skips an update for a bad gradient and leaves no trace of it in the state,
        # so the gradients of such an incident are asked for once more, from the state before it.
        asks_gradients = trigger.what == "gradient" and step == self.incident.step
        before = live.read() if asks_gradients else {}
        fingerprint = self._determined(
            step, lambda: program.step(way, batch.arrays, live.variables, batch.fingerprint)
        )
        result = compare_step(
            step,
            program.signature,
            fingerprint,
            batch.fingerprint,
            paths=[info.path for info in self.variables],
            count_skips=trigger.what == "gradient",
            bad_variable=lambda index: "" if index in bad_before else live.bad_kind(index),
            slots=self.optimizer_slots,
            step_loss=program.step_loss,
            recorded_loss=self.timeline_loss(step),
        )
        if asks_gradients and result.finite and result.nonfinite is None:
            gradient = self._determined(
                step, lambda: self._bad_gradient(step, program, way, batch, before, live)
            )
            if gradient is not None:
                return replace(result, finite=False, nonfinite=gradient)
        return result

    def _bad_gradient(
        self,
        step: int,
        program: Program,
        way: Mode,
        batch: BatchRecord,
        before: Mapping[int, Any],
        live: LiveState,
    ) -> Trigger | None:
        """The first non-finite gradient of a step that began with the variables `before`.

        The step runs on `live`, whose variables are afterwards as they are now.
        """
        after, specs = live.read(), program.signature.gradients
        names = [spec.tensor for spec in specs]
        live.assign(before)
        if way in ("recorded", "graph") and program.signature.compilation != "eager":
            jit = program.signature.compilation == "xla" and way == "recorded"
            compiled = program.compiled(names, jit=jit)
            _, gradients = compiled(batch.arrays, live.variables, program.record.constants)
        else:
            fetched = program.run_ops(batch.arrays, live.variables, fetches=names, update=False)
            gradients = [fetched[name] for name in names]
        live.assign(after)
        return self._first_bad(gradients, step)

    def _first_bad(self, gradients: Sequence[Any], step: int) -> Trigger | None:
        """The first of a step's gradients that is not finite."""
        for spec, gradient in zip(self.signature(step).gradients, gradients, strict=True):
            kind = nonfinite_kind(gradient)
            if kind:
                return Trigger("gradient", self.variables[spec.variable].path, kind)
        return None

    def _program_and_state(self, step: int, mode: Mode) -> tuple[Program, LiveState]:
        program = self.program(step)
        if mode != "float64":
            return program, self._live
        self._note_narrow(program.wide.narrow_ops)
        return program.wide, self._wide

    def _note_narrow(self, types: Sequence[str]) -> None:
        """Say which types of ops do not run in float64."""
        note = (
            "In float64, these ops ran in their own type, since they have no float64 kernel: "
            f"{', '.join(types)}."
        )
        if types and note not in self.notes:
            self.notes.append(note)

    def _determined(self, step: int, work: Callable[[], T]) -> T:
        """Do some work of a step with op determinism; see `begun_anew` for ops that lack it."""
        return self._determinism.do(step, work, self.notes)
