"""One recording: what is kept of each step, what is read of it, and the file that is then written.

`CompiledCalls` and `EagerStep` tell a `Recording` before and after each step. It keeps batch and
state (`Keeper`), has the step judged (`HealthCheck`), and writes captures (`dump`).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay.capture.storage import Location
from nanreplay.errors import first_line
from nanreplay.program import listening
from nanreplay.program.fingerprint import Layout
from nanreplay.program.listening import thread_state
from nanreplay.program.traced_program import TracedProgram
from nanreplay.recorder import notices
from nanreplay.recorder.health_check import HealthCheck, VariableMeter
from nanreplay.recorder.learning_rates import RateReading
from nanreplay.recorder.lifecycle import DatedIncident, Event, Lifecycle, Suspicion
from nanreplay.recorder.loss_scaling import LossScales, Skips
from nanreplay.recorder.pace import FIRST_LOOKS, LateReader, LookPace, lag_of
from nanreplay.recorder.program_slots import EagerIncident, Fetch, ProgramSlot
from nanreplay.recorder.reexecution import CompiledPrograms
from nanreplay.recorder.retention import Keeper
from nanreplay.recorder.ring import Ring, StepEntry
from nanreplay.recorder.room import Room
from nanreplay.recorder.settings import Settings
from nanreplay.recorder.snapshot import take_snapshot
from nanreplay.recorder.timeline_ring import (
    RanStep,
    TimelineRing,
    TimelineRow,
    eager_row,
    numbers_of,
    row_of_numbers,
)
from nanreplay.recorder.variable_table import VariableTable, tape_sources
from nanreplay.records import Trigger


@dataclass
class Recording:
    """What a recorder holds while a training runs."""

    settings: Settings
    variables: VariableTable = field(default_factory=VariableTable)
    programs: list[ProgramSlot] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    step: int = 0
    """Index of the step that runs next."""
    splits_batches: bool = False
    """Whether replicas get parts of one batch, one after another."""
    ring: Ring | None = None
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    written: list[Location] = field(default_factory=list)
    """The files of this recording."""
    dated: DatedIncident | None = None
    """The incident as the last file has it; it may have begun before the step that was seen."""
    on_detach: Callable[[], None] = lambda: None
    """Called when an error of the recorder's own has ended the recording."""
    eager: EagerIncident | None = None

    def __post_init__(self) -> None:
        self.skips = Skips(self.settings.max_skipped)
        self.scales = LossScales()
        self.timeline = TimelineRing(self.settings.history)
        self.late = LateReader()
        self.room = Room(self.settings)
        self.keeper = Keeper(
            self.settings, self.room, self.variables, self.late.to_host, self.file_bytes
        )
        self.looks = LookPace()
        self.meter = VariableMeter(self.variables)
        self.health = HealthCheck(self.variables, self.lifecycle, self.notes)
        self._is_keyframe = False
        self._began_s = 0.0
        self._written_at = 0
        self._measured_at = -1
        self._program_bytes, self._programs_measured = 0, 0
        self.compiled: CompiledPrograms = {}
        """Programs that were compiled to confirm an incident, until its file is written."""

    # Programs and variables

    def add_program(self, traced: TracedProgram, fetch: Fetch | None = None) -> ProgramSlot:
        """Register a trace and the variables it captures."""
        seen = traced.seen
        if seen.failed is not None:
            error = f"{type(seen.failed).__name__}: {seen.failed}"
            self.notes.append(f"What the layers did was noted in part only: {error}.")
        self.variables.name_used(seen)
        self.add_variables(traced.handles, [*tape_sources(seen), *traced.graph.variables])
        slot = ProgramSlot.of(traced, len(self.programs), fetch)
        self.programs.append(slot)
        self.learn_optimizers(seen.optimizers)
        return slot

    def add_variables(self, handles: Sequence[Any], named: Sequence[Any] = ()) -> None:
        """Register the handles of variables that steps use."""
        if self.variables.add(handles, named):
            self.request_keyframe()
            for path in self.variables.find_born_nonfinite():
                self.notes.append(
                    f"{path} was non-finite before the first recorded step; it is not watched."
                )
            self.meter.forget_variables()
            self._bound_timeline(len(self.variables.infos))
        self.keeper.device_lag = lag_of(self.variables.handles)

    def learn_optimizers(self, optimizers: Iterable[Any]) -> None:
        """Read learning rates and loss scales of these from now on."""
        for optimizer in optimizers:
            if self.meter.learn_optimizer(optimizer):
                self.scales.learn(optimizer)

    def _bound_timeline(self, width: int) -> None:
        """Let the timeline take at most a tenth of the limits; the ring gets the rest."""
        shortened = self.timeline.bound(width, self.room.history_bytes)
        if shortened:
            self.notes.append(shortened)
        self.keeper.reserved_bytes = self.timeline.size_bytes

    def file_bytes(self) -> int:
        """What a file takes now beside keyframes and batches: programs and timeline."""
        if self._programs_measured != len(self.programs):
            graphs = (slot.traced.graph.as_graph_def() for slot in self.programs)
            self._program_bytes = sum(graph.ByteSize() for graph in graphs)
            self._programs_measured = len(self.programs)
        n_columns = len(self.variables.of_role("trainable"))
        return self._program_bytes + self.timeline.written_bytes(n_columns, len(self.timeline))

    # Before a step

    def request_keyframe(self, *, is_sure: bool = True) -> None:
        """Copy the state before the next step: something outside may, or surely has, changed it."""
        self.keeper.request_keyframe(is_sure=is_sure)

    def before(
        self, program: str, leaves: Sequence[Any], paths: Sequence[str], *, every_step: bool = False
    ) -> StepEntry:
        """Keep the batch of a step that is about to run, and the state when a keyframe is due.

        Args:
            program: Id of its program; "" for an eager step.
            leaves: The arrays of its batch.
            paths: A readable path of each.
            every_step: Keep the state before this step in any case, until the next one.
        """
        entry = StepEntry(self.step, program, leaves, paths)
        self._is_keyframe = False
        if self.lifecycle.is_recording:
            self.ring, self._is_keyframe = self.keeper.begin(
                self.ring, entry, every_step=every_step
            )
        self._began_s = time.perf_counter()
        if self.scales.optimizers:
            self.scales.before()
        return entry

    def read_state(self) -> dict[int, Any]:
        """All variables by index, in tensors that share the variables' buffers."""
        return self.keeper.read_state()

    # After a compiled step

    def after(
        self,
        slot: ProgramSlot | None,
        outputs: Mapping[str, Any],
        *,
        steps: int = 1,
        mean: tuple[Any, Any] | None = None,
    ) -> Suspicion | None:
        """Note what a compiled step returned, and measure the variables when that is due.

        Args:
            slot: Its program.
            outputs: Numbers that it returned, by name in the fingerprint; tensors that may still be
                computed.
            steps: How many steps the call ran; `outputs` are those of the last one.
            mean: (total, count) of the running mean of the losses; tensors.

        Returns:
            What is not as it should be, or None.
        """
        ended_s = time.perf_counter()
        elapsed_s = (ended_s - self._began_s) / steps
        for _ in range(steps - 1):
            self.timeline.add(TimelineRow(self.step, elapsed_s))
            self.step += 1
        ran_at = self.step
        self.step += 1
        is_due = (
            ran_at + steps > self.looks.next_step
            or self._is_keyframe
            or self.lifecycle.is_unhealthy
        )
        changed = self.keeper.set_before
        was_set = bool(changed) and any(map(self.variables.is_setting, changed))
        asks_rate = is_due or was_set
        if not (asks_rate or self.keeper.device_lag or self.scales.optimizers or self.skips.count):
            numbers = numbers_of(outputs)
            if not self.health.doubts and all(map(math.isfinite, numbers.values())):
                # As nearly every step: it only returned numbers, and all of them are finite.
                self._note_row(row_of_numbers(ran_at, elapsed_s, numbers, mean), numbers)
                return None
        sums = None
        if is_due:
            self.looks.begin(ran_at)
            sums = self.meter.measure()
        rate = self.meter.read_rate(ran_at - steps + 1, was_set=was_set) if asks_rate else None
        scale = self.scales.after() if self.scales.optimizers else None
        ran = RanStep(
            ran_at, slot, elapsed_s, self._is_keyframe, outputs,
            sums, self.meter.checked, scale, rate, mean,
        )  # fmt: skip
        if self.keeper.device_lag:
            self.late.add(ran)
            return self._check_late(self.keeper.device_lag)
        suspicion = self._check(ran)
        if is_due:
            self._pace_looks(time.perf_counter() - ended_s)
        return suspicion

    def _pace_looks(self, look_s: float) -> None:
        """Plan the next look from what this one took; each step between them must be held."""
        most = 1
        if self.ring is not None:
            most = self.ring.plan.lag - self.keeper.device_lag + 1
        self.looks.note(look_s, self.keeper.step_s, most)
        self.keeper.soft_lag = max(self.looks.wanted - 1, FIRST_LOOKS)

    def flush(self) -> Suspicion | None:
        """Check the steps that have not been looked at yet."""
        return self._check_late(0)

    def _check_late(self, lag: int) -> Suspicion | None:
        """Check the steps that have been read, all but the last `lag`."""
        for ran in self.late.take(lag):
            suspicion = self._check(ran)
            if suspicion is not None:
                self.late.forget()
                return suspicion
        return None

    def _check(self, ran: RanStep) -> Suspicion | None:
        """Note the numbers of a step and say what in them is not as it should be."""
        numbers = numbers_of(ran.outputs)
        sums = None if ran.sums is None else np.asarray(ran.sums)
        fingerprint: Mapping[str, Any] = numbers
        if sums is not None:
            named = (f"variable_sum:{index}" for index in ran.checked)
            fingerprint = {**numbers, **dict(zip(named, sums, strict=True))}
        self._note_row(ran.timeline_row(numbers, sums), fingerprint, ran.rate)
        scale, skipped = ran.scale or (None, False)
        stuck = None
        if ran.scale is not None or self.skips.count:
            stuck = self.skips.note(scale, skipped=skipped)
        suspicion = None
        if (
            sums is not None
            or ran.with_keyframe
            or self.lifecycle.is_unhealthy
            or self.health.doubts
            or not all(map(math.isfinite, numbers.values()))
        ):
            state_before = self._state_before(ran) if ran.with_keyframe else None
            suspicion = self.health.suspicion(ran, numbers, sums, state_before)
        if suspicion is None and stuck is not None:
            suspicion = Suspicion(stuck, ran.step, is_certain=True)
        if not self.lifecycle.is_unhealthy:
            return suspicion
        if suspicion is None and not skipped and sums is not None:
            self._recover()
        return None

    def _recover(self) -> None:
        """Keep steps again: the first healthy one after an incident has run."""
        self.lifecycle.note(Event.HEALTHY_STEP)
        self.request_keyframe()

    def _note_row(
        self, row: TimelineRow, fingerprint: Mapping[str, Any], rate: RateReading | None = None
    ) -> None:
        """Keep the fingerprint with the step, and its row for the timeline."""
        entry = None if self.ring is None else self.ring.entry(row.step)
        if entry is not None:
            entry.fingerprint = fingerprint
        self.timeline.add(row, rate)

    def _state_before(self, ran: RanStep) -> Mapping[int, Any] | None:
        """The keyframe before a step that is checked late: the variables have moved on."""
        if self.ring is None or not self.keeper.device_lag or self.keeper.is_spooling:
            return None  # reading it from disk would take long, and what is infinite stays so
        return self.ring.keyframes.get(ran.step)

    def look_now(self) -> Suspicion | None:
        """Look at all variables and slots, because no later step may do so."""
        if not self.lifecycle.is_recording or self.step in (0, self._measured_at):
            return None
        self._measured_at = self.step
        sums = np.asarray(self.meter.measure())
        return self.health.measured_suspicion(sums, self.meter.checked, self.step - 1)

    # After an eager step

    def after_eager(
        self, entry: StepEntry, names: Sequence[str], values: Any, keys: Callable[[], Sequence[str]]
    ) -> Suspicion | None:
        """Note the fingerprint of an eager step; returns what in it is not as it should be.

        Args:
            entry: The step.
            names: Names of the elements.
            values: A numpy vector.
            keys: Gives the `loss_keys` of the step (see `Signature`).
        """
        elapsed_s, step = time.perf_counter() - self._began_s, self.step
        self.step += 1
        scale = self.scales.after()
        layout = Layout.parse(names)
        entry.fingerprint = dict(zip(names, values, strict=True))
        trigger, skipped = self.health.judge_eager(
            layout, values, with_keyframe=self._is_keyframe, loss_keys=keys
        )
        self.timeline.add(eager_row(step, elapsed_s, layout, values, skipped))
        stuck = self.skips.note(None if scale is None else scale[0], skipped=skipped)
        trigger = trigger or stuck
        if self.lifecycle.is_unhealthy:
            if trigger is None and not skipped:
                self._recover()
            return None
        return None if trigger is None else Suspicion(trigger, step, is_certain=True)

    # Going on, and ending

    def rearm(self) -> None:
        """Go on after an incident: a new window begins, once a step was healthy."""
        self.ring, self.eager = None, None
        self.request_keyframe()

    def forget_unfinished(self) -> None:
        """Forget a step that was interrupted; what it did to the state counts as from outside."""
        self.request_keyframe()
        if self.ring is not None:
            self.ring.drop_from(self.step)
        self.timeline.drop_from(self.step)

    def guard(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run the recorder's own work; an error ends the recording, and never the training."""
        before, thread_state.is_muted = thread_state.is_muted, True
        try:
            return work(*arguments)
        except Exception as error:
            self.fail(error)
            return None
        finally:
            thread_state.is_muted = before

    def fail(self, error: BaseException) -> None:
        """Keep nothing more after an error of the recorder's own, with one warning.

        What is held goes into a file at the NaN.
        """
        if not self.lifecycle.note(Event.ERROR):
            return
        for let_go in (
            self.keeper.assignments.stop,
            self.late.close,
            self.on_detach,
            lambda: error.with_traceback(None),  # its frames hold the model and the data
        ):
            with contextlib.suppress(Exception):  # it may fail for the same reason
                let_go()
        reason = first_line(error)
        self.notes.append(
            f"The recorder failed at step {self.step} ({type(error).__name__}: {reason}): "
            "later steps are not in this file."
        )
        notices.say(
            "the recorder failed and detached itself; training goes on without it. "
            f"Please report this: {type(error).__name__}: {error}"
        )

    def release(self) -> None:
        """Let go of batches, keyframes, and steps that were not looked at."""
        self.ring = None
        self.keeper.assignments.stop()
        self.keeper.release()
        self.late.close()

    # Writing

    def has_news(self) -> bool:
        """Whether whole steps are held, and any came after the last file was tried."""
        if self.ring is None or self._written_at == self.step:
            return False
        return any(entry.step < self.step for entry in self.ring.entries)

    def confirm(self, suspicion: Suspicion) -> bool | None:
        """Whether something that trains is not finite; None where that cannot be told."""
        # Imported when it is needed: most trainings never write a capture.
        from nanreplay.recorder.confirmation import confirm

        confirmed = None
        try:
            confirmed = confirm(self, suspicion)
        finally:
            if not confirmed:
                self.compiled.clear()  # no file is written, or the window does not run for it
        return confirmed

    def write(
        self, trigger: Trigger, step: int, *, prove: bool = True
    ) -> tuple[Location | None, str]:
        """Write the capture; returns the file, else None and a sentence that says so.

        Args:
            trigger: Why it is written.
            step: The failing step, else the last whole one.
            prove: Re-execute the window, which takes a while.
        """
        from nanreplay.recorder.dump import write_dump

        self._written_at = self.step
        with self.lifecycle.writing():
            try:
                # Somebody may be tracing, or taking gradients: neither may see what is done here.
                with tf.init_scope(), listening.muted():
                    path, self.dated = write_dump(take_snapshot(self, trigger, step), prove=prove)
            except (OSError, MemoryError) as error:
                reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                return None, f"The capture could not be written: {reason}."
            except Exception as error:
                self.fail(error)
                return None, "The capture could not be written."
            finally:
                self.compiled.clear()
        self.written.append(path)
        return path, ""
