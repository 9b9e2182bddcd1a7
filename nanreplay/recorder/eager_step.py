"""A step that runs eagerly: what is kept of it, and what becomes of it if it fails.

State and batch are kept before each call, and an incident's step is run once more with every op
noted (`eager_rerun`). Used for wrapped plain functions, `fit` with `run_eagerly=True`, and loops.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nanreplay.program import listening
from nanreplay.program.fingerprint import build_fingerprint
from nanreplay.program.observe import EagerObserver
from nanreplay.program.program_record import fingerprint_layout
from nanreplay.program.python_effects import RandomDraws, replace_functions
from nanreplay.program.traced_program import is_variable
from nanreplay.program.training_functions import hands_gradient_out
from nanreplay.recorder.eager_reads import (
    NotedIterator,
    Reads,
    batch_leaves,
    note_first_reads,
    read_before,
    read_new,
    repeatable,
    with_noted_iterators,
)
from nanreplay.recorder.eager_rerun import EagerRerun, checked_handles, vector_of
from nanreplay.recorder.lifecycle import Suspicion, exception_trigger
from nanreplay.recorder.open_shapes import tell_open_shapes
from nanreplay.recorder.recording import Recording
from nanreplay.recorder.ring import StepEntry
from nanreplay.recorder.variable_table import tape_sources
from nanreplay.tensorflow_internals import tf_eager, tf_variables


@dataclass
class EagerCall:
    """One call of the step."""

    entry: StepEntry
    again: Callable[[], Any]
    """Makes the same call once more."""
    observer: EagerObserver
    first_reads: Reads = field(default_factory=dict)
    """Where variables are to be learned: the first value read of each."""
    is_learning: bool = False
    """Whether the call may use variables that are not known yet."""
    handed_out: list[Any] = field(default_factory=list)
    """What compiled functions returned that compute a gradient: the loss is among it."""
    draws: RandomDraws = field(default_factory=RandomDraws)
    """The random numbers of the call."""
    noted: list[NotedIterator] = field(default_factory=list)
    """Iterators of Python's that it was given."""
    stop: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    """Ends the observation."""


class EagerStep:
    """Runs a plain Python step and records it.

    The state before a step is a set of references: TensorFlow copies a variable's buffer when it
    writes to one that is still held. Nothing of the step is run twice until there is an incident;
    then the state before the failing step is put back, the step runs once more with every op noted,
    and the state after it is put back.

    Args:
        recording: The recording.
        step: The user's step.
        on_suspicion: Called after a step in which something is not as it should be, and with a step
            that raised.
    """

    def __init__(
        self,
        recording: Recording,
        step: Callable[..., Any],
        on_suspicion: Callable[[Suspicion], None],
    ) -> None:
        self.recording = recording
        self._step = step
        self._on_suspicion = on_suspicion
        self._names: tuple[str, ...] = ()
        """Names of the elements of the last fingerprint, the same tuple while they stay so."""
        self._is_first = True
        self.is_certain = False
        """Whether it is known that the step trains in Python."""
        self._used: dict[int, Any] = {}
        """Layers and optimizers that steps have used, by id."""
        self._call: EagerCall | None = None
        """The call that is under way; None where it turned out to be no eager step."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one step; returns what the step returns."""
        if not self.recording.lifecycle.is_active:
            return self._run_unrecorded(args, kwargs)
        noted: list[NotedIterator] = []
        if self.is_certain:
            args, kwargs, noted = with_noted_iterators(args, kwargs)
        arguments = (args, kwargs) if kwargs else args
        call = self.begin(lambda: (arguments, repeatable(self._step, args, kwargs)))
        if call is None:
            return self._step(*args, **kwargs)
        call.noted = noted
        try:
            result = self._step(*args, **kwargs)
        except BaseException as error:
            self.raised(call, error)
            raise
        self.ended(call, result)
        return result

    def _run_unrecorded(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run a step that is not recorded.

        After a failure of the recorder's own, the numbers that it returns are still looked at.
        """
        result = self._step(*args, **kwargs)
        if self.recording.lifecycle.has_failed:
            suspicion = self.recording.health.after_failure(result, self.recording.step)
            if suspicion is not None:
                self._on_suspicion(suspicion)
        return result

    # The course of a call

    def begin(self, arguments: Callable[[], tuple[Any, Callable[[], Any]]]) -> EagerCall | None:
        """A step begins; None where it is not recorded.

        Args:
            arguments: Gives what the step is given, and what makes the same call once more.
        """
        self._call = self.recording.guard(lambda: self._prepare(*arguments()))
        return self._call

    def _prepare(self, arguments: Any, again: Callable[[], Any]) -> EagerCall:
        """Keep what the step is given, and begin to observe it."""
        leaves, paths = batch_leaves(arguments)
        # Any step may fail, and is then run once more: the state before each one is needed.
        entry = self.recording.before("", leaves, paths, every_step=True)
        entry.names_data = isinstance(arguments, dict)  # those of a loop, by name
        call = EagerCall(entry, again, EagerObserver())
        with call.stop:  # undoes what was begun, where an error comes between
            call.stop.enter_context(call.observer)
            call.stop.enter_context(call.draws.recorded())
            call.observer.about_to_use = functools.partial(self._about_to_use, call)
            if self._is_first:
                self._learn_variables(call)
            call.stop = call.stop.pop_all()
        return call

    def raised(self, call: EagerCall, error: BaseException) -> None:
        """The step has raised; its own error goes on, whatever becomes of the recorder."""
        try:
            self._record_raised(call, error)
        except Exception as own_error:
            self.recording.fail(own_error)

    def _record_raised(self, call: EagerCall, error: BaseException) -> None:
        recording, step = self.recording, self.recording.step
        self._stop(call)
        if self._call is not call:  # compiled functions were steps of their own
            return
        trigger = recording.guard(functools.partial(exception_trigger, error))
        if trigger is not None:
            recording.guard(lambda: self._register(call))
            recording.guard(lambda: self._record_ops(call, None))
            self._on_suspicion(Suspicion(trigger, step, is_certain=True))

    def ended(self, call: EagerCall, result: Any) -> None:
        """The step has returned `result`."""
        recording, step = self.recording, self.recording.step
        self._stop(call)
        if self._call is not call:
            return
        suspicion = recording.guard(lambda: self._after(call, result))
        if suspicion is None:
            return
        values = None
        if suspicion.step == step and call.entry.fingerprint is not None:
            values = list(call.entry.fingerprint.values())
        recording.guard(
            lambda: self._record_ops(call, None if values is None else np.array(values))
        )
        self._on_suspicion(suspicion)

    def _stop(self, call: EagerCall) -> None:
        """End the observation; what the step fetched by itself is part of its batch."""
        guard = self.recording.guard
        guard(call.stop.close)
        guard(lambda: self.add_to_batch(call, {"fetched": call.draws.elements}))
        for iterator in call.noted:
            taken = iterator.taken
            guard(self.add_to_batch, call, {"next": taken[0] if len(taken) == 1 else taken})

    def _after(self, call: EagerCall, result: Any) -> Suspicion | None:
        """Measure a step that has run, and have it judged."""
        recording, seen = self.recording, call.observer.observation
        if seen.failed is not None:
            raise seen.failed
        seen.note_result(call.handed_out if result is None and call.handed_out else result)
        self._register(call)
        handles = checked_handles(recording.variables)
        fingerprint = build_fingerprint(seen, handles, seen.learning_rate, seen.loss_scale)
        names = fingerprint_layout(fingerprint.entries, recording.variables.index)
        if names != self._names:  # else the fingerprints of all steps share one set of strings
            self._names = names
        values = vector_of(fingerprint)
        return recording.after_eager(call.entry, self._names, values, seen.loss_keys)

    def _record_ops(self, call: EagerCall, recorded: Any) -> None:
        """Run the failing step once more, and keep its ops for the file."""
        EagerRerun(self.recording, call.entry, call.again, call.draws).record(recorded)

    # What belongs to a call

    def add_to_batch(self, call: EagerCall, arrays: Any) -> None:
        """What a step took from elsewhere while it ran is part of its batch."""
        if self._call is not call or self.recording.ring is None:
            return
        known = {id(leaf) for leaf in call.entry.leaves}
        leaves, paths = batch_leaves(arrays)
        is_new = [id(leaf) not in known for leaf in leaves]
        if any(is_new):
            self.recording.ring.extend(
                call.entry,
                [leaf for leaf, new in zip(leaves, is_new, strict=True) if new],
                [path for path, new in zip(paths, is_new, strict=True) if new],
            )

    def forget_call(self) -> None:
        """The call that is under way is no eager step: what trains in it is compiled."""
        if self._call is not None:
            self._call.stop.close()
            self._call = None
            self.recording.forget_unfinished()

    def call(
        self, function: Any, inputs: list[Any], captured: list[Any], run: Callable[[], Any]
    ) -> Any:
        """Compiled functions that an eager step calls are ops of it."""
        self.note_variables([*inputs, *captured])
        result = run()
        if self._call is not None and self.recording.guard(lambda: hands_gradient_out(function)):
            self._call.handed_out.append(result)
        return result

    def trained_eagerly(self) -> None:
        """That is what an eager step does."""

    # Variables that no one has named

    def note_variables(self, tensors: Sequence[Any]) -> None:
        """While variables are learned: read those that a compiled function may write."""
        if self._call is not None and self._call.is_learning:
            reads = self._call.first_reads
            self.recording.guard(lambda: read_new(tensors, reads))

    def _about_to_use(self, call: EagerCall, used: Any) -> None:
        """Learn the variables of a layer or an optimizer that no step has used yet.

        Not every read of a variable shows as an op: kernels may read by themselves.
        """
        if id(used) in self._used:
            return
        self._used[id(used)] = used
        variables = (used, *tf_variables.variables_in(used))
        handles = []
        for variable in variables:
            handles.append(tf_variables.handle_of(variable))
        handles = [handle for handle in handles if handle is not None and is_variable(handle)]
        if handles:
            self._learn_variables(call)
            read_new(handles, call.first_reads)

    def _learn_variables(self, call: EagerCall) -> None:
        """From now on, keep the first value that the call reads of each variable."""
        if call.is_learning:
            return
        call.is_learning = True
        call.stop.callback(tf_eager.add_op_callback(note_first_reads(call.first_reads)))
        keep_before = functools.partial(read_before, self.recording.guard, call.first_reads)
        functions = tf_variables.assignment_functions()
        call.stop.callback(replace_functions(functions, keep_before))

    def _register(self, call: EagerCall) -> None:
        """Name what the step used, and learn the variables that nobody named."""
        seen, recording = call.observer.observation, self.recording
        variables = recording.variables
        if call.is_learning:
            recording.variables.name_used(seen)
        recording.learn_optimizers(seen.optimizers)
        sources = tape_sources(seen)
        if call.is_learning:
            handles = [handle for handle, _ in call.first_reads.values()]
        else:
            handles = [source.handle for source in sources]
        if self._is_first or call.is_learning:
            tell_open_shapes(recording, handles, sources)
        variables.add([handle for handle in handles if is_variable(handle)], sources)
        if call.is_learning:
            self._complete_keyframe(call)
        self._is_first = False

    def _complete_keyframe(self, call: EagerCall) -> None:
        """Add the variables that were learned in a step to the keyframe before it."""
        recording = self.recording
        ring, index = recording.ring, recording.variables.index
        if ring is None or recording.step not in ring.keyframes:
            return
        learned = {}
        for key, (_, value) in call.first_reads.items():
            if key in index:
                learned[index[key]] = value
        ring.keyframes[recording.step] = {**learned, **ring.keyframes[recording.step]}


def recorded_step(
    recording: Recording,
    on_suspicion: Callable[[Suspicion], None],
    step: Callable[..., Any],
) -> Callable[..., Any]:
    """The train step of a model that runs eagerly, recorded."""
    eager = EagerStep(recording, step, on_suspicion)

    def recorded(*args: Any, **kwargs: Any) -> Any:
        with listening.listening(eager):
            return eager(*args, **kwargs)

    return recorded
