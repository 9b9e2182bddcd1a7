"""One recording: what is kept of each step, when it is an incident, and the file that is then written."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay.capture.storage import Location
from nanreplay.program import listening, observed_calls
from nanreplay.program.fingerprint import (
    Layout,
    Look,
    NonFinite,
    has_nonfinite,
    nonfinite_kind,
    read_variable,
    squares_fit,
)
from nanreplay.program.observation import Observation
from nanreplay.program.traced_program import TracedProgram, is_float_variable
from nanreplay.recorder.lifecycle import Event, Lifecycle, Suspicion, variable_trigger
from nanreplay.recorder.pace import FIRST_LOOKS, LateReader, LookPace, lag_of
from nanreplay.recorder.program_slots import (
    EagerIncident,
    Fetch,
    Found,
    ProgramSlot,
    Ran,
    eager_row,
)
from nanreplay.recorder.retention import Keeper
from nanreplay.recorder.ring import FetchedElement, Ring, StepEntry
from nanreplay.recorder.settings import Settings
from nanreplay.recorder.snapshot import as_number, take_snapshot
from nanreplay.recorder.timeline_ring import (
    LossScales,
    RunningMean,
    Skips,
    TimelineRing,
    TimelineRow,
)
from nanreplay.recorder.variable_table import VariableTable
from nanreplay.records import Trigger, loss_name


@dataclass(slots=True)
class Doubt:
    """A returned number that is not finite, though all that trains is: a mean that overflowed, and stays so until it is reset.

    Whether the loss itself is finite is then asked of a re-execution, after 1, 2, 4, ... more steps, and not for ever.
    """

    next_step: int
    gap: int = 1

    def is_due(self, step: int) -> bool:
        """Whether to ask now."""
        if step < self.next_step or self.gap > MOST_DOUBTED:
            return False
        self.next_step, self.gap = step + self.gap, 2 * self.gap
        return True


MOST_DOUBTED = 32
"""Steps between the last two questions."""


@dataclass
class Recording:
    """What a recorder holds while a training runs."""

    settings: Settings
    variables: VariableTable = field(default_factory=VariableTable)
    programs: list[ProgramSlot] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    step: int = 0
    """Index of the step that runs next."""
    ring: Ring | None = None
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    written: list[Location] = field(default_factory=list)
    """The files of this recording."""
    dated: Found | None = None
    """The incident as the last file has it; it may have begun in an earlier step than the one that was seen to fail."""
    on_detach: Callable[[], None] = lambda: None
    """Called when an error of the recorder's own has ended the recording."""
    eager: EagerIncident | None = None

    def __post_init__(self) -> None:
        self.skips = Skips(self.settings.max_skipped)
        self.scales = LossScales()
        self.timeline = TimelineRing(self.settings.history)
        self.late = LateReader()
        self.keeper = Keeper(self.settings, self.variables, self.late.to_host)
        self.looks = LookPace()
        self._look: Look | None = None
        self._watched: list[int] = []
        self._is_keyframe = False
        self._began_s = 0.0
        self._looked_at: set[int] = set()
        self._told_at = 0
        self._doubts: dict[str, Doubt] = {}
        self._optimizers: list[Any] = []
        self._measured_at = -1

    # Programs and variables

    def add_program(self, traced: TracedProgram, fetch: Fetch | None = None) -> ProgramSlot:
        """Register a trace and the variables it captures."""
        seen = traced.seen
        if seen.failed is not None:
            self.notes.append(
                f"What the layers did was noted in part only: {type(seen.failed).__name__}: {seen.failed}."
            )
        self.name(seen)
        sources = [
            variable
            for call in seen.tape_gradients
            for variable in call.sources
            if hasattr(variable, "handle")
        ]
        self.add_variables(traced.handles, [*sources, *traced.graph.variables])
        replicas = seen.loss_replicas() if len(traced.losses) == len(seen.losses()) else ()
        loss_of = tuple(f"replica {replica}" for replica in replicas)
        slot = ProgramSlot(
            f"p{len(self.programs)}",
            traced,
            traced.layout_of_outputs(),
            loss_of,
            traced.mean_of_losses(),
            fetch,
        )
        self.programs.append(slot)
        self.learn_optimizers(seen.optimizers)
        return slot

    def add_variables(self, handles: Sequence[Any], named: Sequence[Any] = ()) -> None:
        """Register the handles of variables that steps use."""
        if self.variables.add(handles, named):
            self.request_keyframe()
            self._note_born_nonfinite()
            self._look = None
            self._bound_timeline(len(self.variables.infos))
        self.keeper.device_lag = lag_of(self.variables.handles)

    def learn_optimizers(self, optimizers: Iterable[Any]) -> None:
        """Read learning rates and loss scales of these from now on."""
        for optimizer in optimizers:
            if not any(optimizer is each for each in self._optimizers):
                self._optimizers.append(optimizer)
                self.scales.learn(optimizer)

    def _bound_timeline(self, width: int) -> None:
        """Let the timeline take at most a tenth of the memory limit, and the rest to what it leaves."""
        shortened = self.timeline.bound(width, self.settings.memory_limit // 10)
        if shortened:
            self.notes.append(shortened)
        self.keeper.reserved_bytes = self.timeline.size_bytes

    def name(self, seen: Observation) -> None:
        """Take paths and roles of variables from the layers and optimizers that a step used."""
        for layer in {id(layer): layer for layer in seen.layers}.values():
            self.variables.name_model(layer)
        for optimizer in seen.optimizers:
            self.variables.name_optimizer(optimizer)

    def _note_born_nonfinite(self) -> None:
        """A state variable that starts as an infinity (a running minimum, say) is meant so, and is no incident."""
        for index, info in enumerate(self.variables.infos):
            if index not in self._looked_at and info.role in ("state", "optimizer", "other"):
                self._looked_at.add(index)
                if has_nonfinite(read_variable(self.variables.handles[index])):
                    self.variables.born_nonfinite.add(index)
                    self.notes.append(
                        f"{info.path} was non-finite before the first recorded step; it is not watched."
                    )

    @property
    def watched(self) -> list[int]:
        """Indices of the variables that are looked at after steps: all float ones but metrics, seeds and slots."""
        unwatched = {id(handle) for handle in self.variables.unwatched(slots=True)}
        pairs = enumerate(self.variables.handles)
        return [
            index
            for index, handle in pairs
            if id(handle) not in unwatched and is_float_variable(handle)
        ]

    # Steps

    def request_keyframe(self) -> None:
        """Something outside the step may have changed the state: copy it before the next step."""
        self.keeper.request_keyframe()

    def before(
        self, program: str, leaves: Sequence[Any], paths: Sequence[str], *, every_step: bool = False
    ) -> StepEntry:
        """Keep the batch, and the state when a keyframe is due; with `every_step`, the state before the step in any case."""
        entry = StepEntry(self.step, program, leaves, paths)
        if self.lifecycle.is_recording:
            self.ring, self._is_keyframe = self.keeper.begin(
                self.ring, entry, every_step=every_step
            )
        else:
            self._is_keyframe = False
        self._began_s = time.perf_counter()
        self.scales.before()
        return entry

    def read_state(self) -> dict[int, Any]:
        """All variables by index; the tensors share the variables' buffers, and TensorFlow copies on the next write."""
        return self.keeper.read_state()

    def after(
        self,
        slot: ProgramSlot | None,
        outputs: Mapping[str, Any],
        *,
        steps: int = 1,
        mean: tuple[Any, Any] | None = None,
    ) -> Suspicion | None:
        """Note what a compiled step that has run returned, and look at the variables when that is due.

        Args:
            slot: Its program.
            outputs: Numbers that it returned, by name in the fingerprint; tensors that may still be computed.
            steps: How many steps the call ran; `outputs` are those of the last one.
            mean: What the running mean of the losses has added up, and of how much; tensors.

        Returns:
            What is not as it should be, or None.
        """
        elapsed_s = (time.perf_counter() - self._began_s) / steps
        for _ in range(steps - 1):
            self.timeline.add(TimelineRow(self.step, elapsed_s))
            self.step += 1
        ran_at = self.step
        self.step += 1
        look_s = time.perf_counter()
        is_due = self.looks.is_due(ran_at, steps, self.lifecycle.is_unhealthy or self._is_keyframe)
        sums = self._measure() if is_due else None
        rate = self._learning_rate() if is_due else np.nan
        scale = self.scales.after()
        ran = Ran(
            ran_at,
            slot,
            elapsed_s,
            self._is_keyframe,
            outputs,
            sums,
            self._watched,
            scale,
            rate,
            mean,
        )
        if not self.keeper.device_lag:
            found = self._check(ran)
            if is_due:
                self._pace_looks(time.perf_counter() - look_s)
            return found
        self.late.add(ran)
        return self._check_all(self.keeper.device_lag)

    def _measure(self) -> Any:
        if self._look is None:
            self._watched = self.watched
            self._look = Look([self.variables.handles[index] for index in self._watched])
        return self._look()

    def _pace_looks(self, look_s: float) -> None:
        most = self.ring.plan.lag - self.keeper.device_lag + 1 if self.ring is not None else 1
        self.looks.note(look_s, self.keeper.step_s, most)
        self.keeper.soft_lag = max(self.looks.wanted - 1, FIRST_LOOKS)

    def _learning_rate(self) -> float:
        for optimizer in self._optimizers:
            with (
                listening.muted(),
                contextlib.suppress(AttributeError, TypeError, ValueError),
            ):  # a wrapper of the user's own
                rate = observed_calls.learning_rate_now(optimizer)
                if rate is not None:
                    return float(rate)
        return float("nan")

    def after_eager(
        self, entry: StepEntry, names: Sequence[str], values: Any, loss_of: Sequence[str] = ()
    ) -> Suspicion | None:
        """Note the fingerprint of an eager step that has run; says what in it is not as it should be.

        Args:
            entry: The step.
            names: Names of the elements.
            values: A numpy vector.
            loss_of: Whose each loss is, where a strategy runs several replicas.
        """
        elapsed_s, step = time.perf_counter() - self._began_s, self.step
        self.step += 1
        scale = self.scales.after()
        layout = Layout.parse(names)
        entry.fingerprint = dict(zip(names, values, strict=True))
        found, skipped = layout.find_nonfinite(
            values, loss_scaled="loss_scale" in names, bad_variable=self._kind_of_variable
        )  # fmt: skip
        self.timeline.add(eager_row(step, elapsed_s, layout, values, skipped))
        trigger = None if found is None else self._trigger_of(found, loss_of)
        if (
            trigger is None
            and not skipped
            and (
                self._is_keyframe or self.lifecycle.is_unhealthy or not layout.gradients_fit(values)
            )
        ):
            slot = self.variables.bad_slot()
            trigger = None if slot is None else variable_trigger(self.variables, slot)
        stuck = self.skips.note(None if scale is None else scale[0], skipped=skipped)
        trigger = trigger or stuck
        if self.lifecycle.is_unhealthy:
            if trigger is None and not skipped:
                self.lifecycle.note(Event.HEALTHY_STEP)
                self.request_keyframe()
            return None
        return None if trigger is None else Suspicion(trigger, step, is_certain=True)

    def _kind_of_variable(self, index: int) -> str:
        value = read_variable(self.variables.handles[index])
        return (
            ""
            if index in self.variables.born_nonfinite or squares_fit(value)
            else nonfinite_kind(value)
        )

    def _trigger_of(self, found: NonFinite, loss_of: Sequence[str]) -> Trigger:
        name = (
            loss_name(found.subject, loss_of)
            if found.what == "loss"
            else self.variables.path(found.subject)
        )
        return Trigger(found.what, name, found.kind)

    def flush(self) -> Suspicion | None:
        """Check the steps that have not been looked at yet."""
        return self._check_all(0)

    def _check_all(self, lag: int) -> Suspicion | None:
        for ran in self.late.take(lag):
            found = self._check(ran)
            if found is not None:
                self.late.forget()
                return found
        return None

    def _check(self, ran: Ran) -> Suspicion | None:
        """Note the numbers of a step and say what in them is not as it should be."""
        numbers = {name: as_number(value) for name, value in ran.outputs.items()}
        sums = None if ran.sums is None else np.asarray(ran.sums)
        self._note(ran, numbers, sums)
        scale, skipped = ran.scale or (None, False)
        stuck = self.skips.note(scale, skipped=skipped)
        found = self._suspicion(ran, numbers, sums)
        if found is None and stuck is not None:
            found = Suspicion(stuck, ran.step, is_certain=True)
        if not self.lifecycle.is_unhealthy:
            return found
        if found is None and not skipped and sums is not None:
            self.lifecycle.note(Event.HEALTHY_STEP)
            self.request_keyframe()
        return None

    def _note(self, ran: Ran, numbers: Mapping[str, Any], sums: Any) -> None:
        entry = None if self.ring is None else self.ring.entry(ran.step)
        held = {} if sums is None else dict(zip(ran.watched, sums, strict=True))
        if entry is not None:
            entry.fingerprint = (
                {**numbers, **{f"variable_sum:{index}": value for index, value in held.items()}}
                if held
                else numbers
            )
        scale, skipped = ran.scale or (np.nan, False)
        skipped = skipped and all(map(math.isfinite, numbers.values()))
        row = TimelineRow(
            ran.step,
            ran.elapsed_s,
            skipped=skipped,
            loss_scale=scale,
            learning_rate=ran.learning_rate,
        )
        row.sums = None if sums is None else {index: float(value) for index, value in held.items()}
        own = next(
            (float(value) for name, value in numbers.items() if name.startswith("loss:")), None
        )
        if own is not None:
            row.loss = own
        else:
            row.mean = (
                None
                if ran.mean is None
                else RunningMean(*(float(as_number(each)) for each in ran.mean))
            )
        self.timeline.add(row)

    def _suspicion(self, ran: Ran, numbers: Mapping[str, Any], sums: Any) -> Suspicion | None:
        bad = [name for name, value in numbers.items() if not math.isfinite(value)]
        if (
            not bad
            and sums is None
            and not self._doubts
            and not ran.with_keyframe
            and not self.lifecycle.is_unhealthy
        ):
            return None  # as in nearly every step
        self._doubts = {name: doubt for name, doubt in self._doubts.items() if name in bad}
        own = next((name for name in bad if name.startswith("loss:")), None)
        if ran.slot is not None and own is not None:
            return Suspicion(
                Trigger("loss", ran.slot.name_of(own), _kind(numbers[own])),
                ran.step,
                is_certain=True,
            )
        variable = self.bad_variable(sums, ran.watched)
        if variable is None and (
            ran.with_keyframe or self.lifecycle.is_unhealthy or self._may_overflow(sums)
        ):
            variable = self.variables.bad_slot(self._state_of(ran))
        if variable is not None:
            return Suspicion(variable_trigger(self.variables, variable), ran.step, is_certain=True)
        for name in bad:
            if ran.slot is None:
                continue
            kind = _kind(numbers[name])
            if not ran.slot.is_loss(name):
                if name not in self._doubts:
                    self._doubts[name] = Doubt(ran.step)
                    self.notes.append(
                        f"The metric {ran.slot.name_of(name)} is {kind} from step {ran.step} on."
                    )
            elif self._doubts.setdefault(name, Doubt(ran.step)).is_due(ran.step):
                return Suspicion(
                    Trigger("loss", ran.slot.name_of(name), kind), ran.step, is_certain=False
                )
        return None

    def _state_of(self, ran: Ran) -> Mapping[int, Any] | None:
        """The keyframe before a step that is looked at late: the variables have moved on."""
        held = (
            self.ring.keyframes.get(ran.step)
            if self.ring is not None and ran.with_keyframe
            else None
        )
        return held if self.keeper.device_lag else None

    def _may_overflow(self, sums: Any) -> bool:
        return sums is not None and not bool(np.isfinite(sums).all())

    def bad_variable(self, sums: Any, watched: Sequence[int]) -> int | None:
        """Index of the first watched variable that holds NaN or an infinity, given sums of squares; None when all are finite.

        The square of a finite number may overflow the sum: such a variable is read.
        """
        if sums is None or bool(np.isfinite(sums).all()):
            return None
        for index, total in zip(watched, sums, strict=True):
            if np.isfinite(total) or index in self.variables.born_nonfinite:
                continue
            if nonfinite_kind(read_variable(self.variables.handles[index])):
                return index
        return None

    def bad_now(self) -> Suspicion | None:
        """A variable that is not finite now, whatever the state of the recording."""
        for index, (handle, info) in enumerate(
            zip(self.variables.handles, self.variables.infos, strict=True)
        ):
            if info.role in ("metric", "seed") or index in self.variables.born_nonfinite:
                continue
            if nonfinite_kind(read_variable(handle)):
                return Suspicion(
                    variable_trigger(self.variables, index), self.step, is_certain=True
                )
        return None

    def look_now(self) -> Suspicion | None:
        """Look at all variables and slots, because no later step may do so."""
        if not self.lifecycle.is_recording or self.step == 0 or self._measured_at == self.step:
            return None
        self._measured_at = self.step
        sums = np.asarray(self._measure())
        index = self.bad_variable(sums, self._watched)
        if index is None:
            index = self.variables.bad_slot()
        return (
            None
            if index is None
            else Suspicion(variable_trigger(self.variables, index), self.step - 1, is_certain=True)
        )

    # Batches that steps fetch by themselves

    def follow(self, entry: StepEntry, number: int) -> StepEntry:
        """One more step of the call that began with `entry`."""
        more = StepEntry(entry.step + number, entry.program, entry.leaves, entry.paths)
        if self.ring is not None and self.lifecycle.is_recording:
            self.ring.add(more)
        return more

    def fetched(
        self, entries: deque[StepEntry], optionals: Any, indices: Iterable[int], size_bytes: int
    ) -> None:
        """Give the steps that wait the elements that were taken from the staging area, in order."""
        for index in indices:
            if entries:
                entry = entries.popleft()
                if self.ring is not None:
                    self.ring.fetched(entry, FetchedElement(optionals, index, size_bytes))

    # Going on, and ending

    def rearm(self) -> None:
        """Go on after an incident: a new window begins, once a step was healthy."""
        self.ring, self.eager = None, None
        self.request_keyframe()

    def forget_unfinished(self) -> None:
        """Forget a step that was interrupted; what it did to the state is outside of the recording."""
        self.request_keyframe()
        if self.ring is not None:
            self.ring.drop_from(self.step)
        while self.timeline.rows and self.timeline.rows[-1].step >= self.step:
            self.timeline.rows.pop()

    def has_news(self) -> bool:
        """Whether whole steps are held, and any was added since the last file was written, or given up."""
        return (
            self.ring is not None
            and self._told_at != self.step
            and any(entry.step < self.step for entry in self.ring.entries)
        )

    def guard(self, work: Callable[[], Any]) -> Any:
        """Run the recorder's own work; an error in it ends the recording and never reaches the training."""
        before = listening.mute()
        try:
            return work()
        except Exception as error:
            self.fail(error)
            return None
        finally:
            listening.mute(before)

    def fail(self, error: BaseException) -> None:
        """Keep nothing more after an error of the recorder's own, with one warning; what is held goes into a file at the NaN."""
        if self.lifecycle.note(Event.ERROR):
            for let_go in (
                self.keeper.assignments.stop,
                self.late.close,
                self.on_detach,
                lambda: error.with_traceback(None),
            ):
                with contextlib.suppress(
                    Exception
                ):  # may fail for the same reason; its frames hold the model and data
                    let_go()
            said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            self.notes.append(
                f"The recorder failed at step {self.step} ({said}): later steps are not in this file."
            )
            report = f"Please report this: {type(error).__name__}: {error}"
            warnings.warn(
                f"nanreplay: the recorder failed and detached itself; training goes on without it. {report}",
                stacklevel=2,
            )

    def release(self) -> None:
        """Let go of batches, keyframes, and steps that were not looked at."""
        self.ring = None
        self.keeper.assignments.stop()
        self.late.close()

    def note_once(self, what: str, more: str) -> None:
        """Note something for the file, unless it was noted before."""
        if not any(note.startswith(what) for note in self.notes):
            self.notes.append(what + more)

    def confirm(self, suspicion: Suspicion) -> bool | None:
        """Whether re-executing the window shows that something is not finite; None where that cannot be told."""
        from nanreplay.recorder.dump import confirm

        return confirm(take_snapshot(self, suspicion.trigger, suspicion.step, keep=True))

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

        self._told_at = self.step
        with self.lifecycle.writing():
            try:
                with (
                    tf.init_scope(),
                    listening.muted(),
                ):  # somebody may be tracing, or taking gradients
                    path, self.dated = write_dump(take_snapshot(self, trigger, step), prove=prove)
            except (OSError, MemoryError) as error:
                reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                return None, f"The capture could not be written: {reason}."
            except Exception as error:
                self.fail(error)
                return None, "The capture could not be written."
        self.written.append(path)
        return path, ""


def _kind(value: Any) -> str:
    return "nan" if np.isnan(value) else "inf" if value > 0 else "-inf"
