"""One recording: what is kept of each step, when it is an incident, and the file that is then written."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay.capture.storage import Location
from nanreplay.program.describe import watch_layout
from nanreplay.program.fingerprint import Layout
from nanreplay.program.flat import FlatProgram
from nanreplay.program.observation import Observation
from nanreplay.program.sources import SourceTable
from nanreplay.program.trace import TracedProgram
from nanreplay.program.watch import WatchEntry, has_nonfinite, read_variable
from nanreplay.recorder.keep import Keeper
from nanreplay.recorder.late import Checked, LateReader, lag_of
from nanreplay.recorder.loss_scale import Skips
from nanreplay.recorder.reexecute import Reexecution
from nanreplay.recorder.ring import Ring, StepEntry
from nanreplay.recorder.settings import Settings
from nanreplay.recorder.timeline import TimelineRing, TimelineRow
from nanreplay.recorder.trigger import find_trigger, variable_trigger
from nanreplay.recorder.variables import VariableTable
from nanreplay.records import Trigger

Found = tuple[Trigger, int]
"""An incident and its step."""


@dataclass(slots=True)
class ProgramSlot:
    """A program of the recording."""

    id: str
    traced: TracedProgram
    paths: Sequence[str]
    layout: Layout
    entries: tuple[WatchEntry, ...]


@dataclass(frozen=True, slots=True)
class EagerIncident:
    """The failing step of an eager loop, run once more with every op noted."""

    step: int
    describe: Callable[[str, SourceTable], FlatProgram]
    """Makes the flat program, given its id and the table of sources."""
    proof: Reexecution
    """What the second run gave."""


@dataclass
class Session:
    """What a recorder holds while a training runs."""

    settings: Settings
    variables: VariableTable = field(default_factory=VariableTable)
    programs: list[ProgramSlot] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    step: int = 0
    """Index of the step that runs next."""
    ring: Ring | None = None
    detached: bool = False
    """Nothing is recorded (any more)."""
    unhealthy: bool = False
    """Since an incident no step has been healthy: nothing is kept, and nothing is a new incident."""
    written: list[Location] = field(default_factory=list)
    """The files of this recording."""
    dated: Found | None = None
    """The incident as the last file has it; it may have begun in an earlier step than the one that was seen to fail."""
    writing: bool = False
    """Whether a file is being written."""
    on_detach: Callable[[], None] = lambda: None
    """Called when an error of the recorder's own has detached it."""
    eager: EagerIncident | None = None
    loss_of: tuple[str, ...] = ()
    """Whose each loss of the step is, where a strategy runs several replicas."""

    def __post_init__(self) -> None:
        self.skips = Skips(self.settings.max_skipped)
        self.timeline = TimelineRing(self.settings.history)
        self.late = LateReader()
        self.keeper = Keeper(self.settings, self.variables, self.late.to_host)
        self._is_keyframe = False
        self._began_s = 0.0
        self._looked_at: set[int] = set()
        self._kept_from = 0
        self._told_at = 0

    def add_program(self, traced: TracedProgram, paths: Sequence[str]) -> ProgramSlot:
        """Register a trace and the variables it captures."""
        for slot in self.programs:
            if slot.traced.function is traced.function:
                return slot
        seen = traced.trace.seen
        self.loss_of = tuple(f"replica {replica}" for replica in seen.loss_replicas())
        self._name(seen)
        named = [variable for call in seen.tape_gradients for variable in call.sources if hasattr(variable, "handle")]
        if self.variables.add(traced.handles, [*named, *traced.trace.graph.variables]):
            self.request_keyframe()
            self._note_born_nonfinite()
        self.keeper.lag = lag_of(self.variables.handles)
        names = watch_layout(traced.trace.watch.entries, self.variables.index)
        self._bound_timeline(len(names))
        slot = ProgramSlot(f"p{len(self.programs)}", traced, paths, Layout.parse(names), traced.trace.watch.entries)
        self.programs.append(slot)
        return slot

    def _bound_timeline(self, width: int) -> None:
        """Let the timeline take at most a tenth of the memory limit, and the rest to what it leaves."""
        shortened = self.timeline.bound(width, self.settings.memory_limit // 10)
        if shortened:
            self.notes.append(shortened)
        self.keeper.reserved_bytes = self.timeline.size_bytes

    def _name(self, seen: Observation) -> None:
        for layer in seen.layers:
            self.variables.name_model(layer)
        for optimizer in seen.optimizers:
            self.variables.name_optimizer(optimizer)

    def unwatched(self, seen: Observation) -> list[Any]:
        """Variables that the watch of a traced step leaves out: metrics, seeds, and the optimizer's slots.

        Reading all slots in every step would cost as much as the rest of the watch. A slot turns non-finite when the
        square of a gradient overflows, which the gradient's own sum of squares shows: then, and at each keyframe, the
        slots are read and looked at.
        """
        self._name(seen)
        return self.variables.unwatched(slots=True)

    def _note_born_nonfinite(self) -> None:
        """A state variable that starts as an infinity (a running minimum, say) is meant so, and is no incident."""
        for index, info in enumerate(self.variables.infos):
            if index not in self._looked_at and info.role in ("state", "optimizer", "other"):
                self._looked_at.add(index)
                if has_nonfinite(read_variable(self.variables.handles[index])):
                    self.variables.born_nonfinite.add(index)
                    self.notes.append(f"{info.path} was non-finite before the first recorded step; it is not watched.")

    def request_keyframe(self) -> None:
        """Something outside the step may have changed the state: copy it before the next step."""
        self.keeper.request_keyframe()

    def before(self, program: str, leaves: Sequence[Any], paths: Sequence[str], *, every_step: bool = False) -> None:
        """Keep the batch, and the state when a keyframe is due; with `every_step`, the state before the step in any case."""
        if self.unhealthy:
            self._is_keyframe, self._kept_from = False, self.step + 1
            self._began_s = time.perf_counter()
            return
        entry = StepEntry(self.step, program, leaves, paths)
        self.ring, self._is_keyframe = self.keeper.begin(self.ring, entry, every_step=every_step)
        self._began_s = time.perf_counter()

    def read_state(self) -> dict[int, Any]:
        """All variables by index; the tensors share the variables' buffers, and TensorFlow copies on the next write."""
        return self.keeper.read_state()

    def after(self, layout: Layout, values: Any) -> Trigger | None:
        """Note the watch of the step that has run, a numpy vector, and say whether the step is an incident."""
        found = self._check(self._ran(layout)(values))
        return None if found is None else found[0]

    def after_late(self, layout: Layout, watch: Any, fed: Sequence[Any] = ()) -> Found | None:
        """Note the watch of the step that has run, a tensor that may still be computed; says which step is an incident.

        Args:
            layout: What the watch's values are.
            watch: The watch.
            fed: Outputs of ops that another run would not repeat.
        """
        if fed and self.ring is not None:
            self.keeper.hold(self.ring, fed)
        ran = self._ran(layout)
        if not self.keeper.lag:
            return self._check(ran(watch.numpy()))
        self.late.add(watch, ran)
        return self._check_all(self.keeper.lag)

    def flush(self) -> Found | None:
        """Check the steps whose watches have not been looked at yet; says which one is an incident."""
        return self._check_all(0)

    def _ran(self, layout: Layout) -> Callable[[Any], Checked]:
        """Count the step that has run; returns what makes a result of its watch."""
        step, elapsed_s, with_keyframe = self.step, time.perf_counter() - self._began_s, self._is_keyframe
        self.step += 1
        return lambda values: Checked(step, layout, elapsed_s, with_keyframe, values)

    def _check_all(self, lag: int) -> Found | None:
        for checked in self.late.take(lag):
            found = self._check(checked)
            if found is not None:
                self.late.forget()
                return found
        return None

    def _check(self, checked: Checked) -> Found | None:
        """Note a step's watch values and say whether the step is an incident.

        Variables are read where the values leave a doubt. With a lag they are those of a later step: what squares that
        overflow do to a slot or a weight may then be dated as many steps too early.
        """
        layout, values = checked.layout, checked.values
        entry = None if self.ring is None else self.ring.entry(checked.step)
        if entry is not None:
            entry.fingerprint = values
        trigger: Trigger | None = None
        skipped, is_finite = False, bool(np.isfinite(values).all())
        if not is_finite or (self.unhealthy and layout.unmeasured(values)):
            trigger, skipped = find_trigger(layout, values, self.variables, self.loss_of)
        if trigger is None and not skipped and (checked.with_keyframe or self.unhealthy or not (is_finite or layout.gradients_fit(values))):
            slot = self.variables.bad_slot(self._state_of(checked))
            trigger = None if slot is None else variable_trigger(self.variables, slot)
        stuck = self.skips.note(layout, values, skipped=skipped)
        self.timeline.add(TimelineRow(checked.step, layout.names, values, checked.elapsed_s, skipped))
        trigger = trigger or stuck
        if checked.step < self._kept_from:
            self.unhealthy = trigger is not None or skipped
            return None
        return None if trigger is None else (trigger, checked.step)

    def _state_of(self, checked: Checked) -> Mapping[int, Any] | None:
        """The keyframe before a step that is looked at late: the variables have moved on."""
        return self.ring.keyframes.get(checked.step) if self.keeper.lag and checked.with_keyframe and self.ring is not None else None

    def rearm(self, *, unhealthy: bool) -> None:
        """Go on after an incident; when that left things `unhealthy`, a healthy step comes first. Then a new window begins."""
        self.unhealthy, self.ring, self.eager = unhealthy, None, None
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
        return self.ring is not None and self._told_at != self.step and any(entry.step < self.step for entry in self.ring.entries)

    def guard(self, work: Callable[[], Any]) -> Any:
        """Run the recorder's own work; an error in it detaches the recorder and never reaches the training."""
        try:
            return work()
        except Exception as error:
            self.detach(error)
            return None

    def detach(self, error: BaseException) -> None:
        """Stop recording after an error of the recorder's own, with one warning."""
        if not self.detached:
            self.detached = True
            for let_go in (self.release, self.on_detach, lambda: error.with_traceback(None)):  # its frames hold the model and data
                with contextlib.suppress(Exception):  # may fail for the same reason
                    let_go()
            report = f"Please report this: {type(error).__name__}: {error}"
            warnings.warn(f"nanreplay: the recorder failed and detached itself; training goes on without it. {report}", stacklevel=2)

    def release(self) -> None:
        """Let go of batches, keyframes, and steps that were not looked at."""
        self.ring = None
        self.keeper.assignments.stop()
        self.late.close()

    def write(self, trigger: Trigger, step: int, *, prove: bool = True) -> tuple[Location | None, str]:
        """Write the capture; returns the file, else None and a sentence that says so.

        Args:
            trigger: Why it is written.
            step: The failing step, else the last whole one.
            prove: Re-execute the window, which takes a while.
        """
        from nanreplay.recorder.dump import write_dump

        self.writing, self._told_at = True, self.step
        try:
            with tf.init_scope():  # somebody may be tracing, or taking gradients
                path, self.dated = write_dump(self, trigger, step, prove=prove)
        except (OSError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            return None, f"The capture could not be written: {reason}."
        except Exception as error:
            self.detach(error)
            return None, "The capture could not be written."
        finally:
            self.writing = False
        self.written.append(path)
        return path, ""
