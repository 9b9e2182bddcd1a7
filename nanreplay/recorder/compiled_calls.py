"""Calls of compiled functions, seen from outside: each one that trains is a step, whoever makes it.

What trains is the very function that would train without a recorder; where it fetches its batch by itself, a variant of it that
tells what it fetched (see `program/fetching`).
"""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import tensorflow as tf

from nanreplay.program import listening
from nanreplay.program.fetching import Variant, components_of
from nanreplay.program.fingerprint import read_variable
from nanreplay.program.step_programs import program_of
from nanreplay.program.traced_program import (
    TracedProgram,
    argument_leaves,
    element_specs,
    is_variable,
)
from nanreplay.program.training_functions import TrainingFunction
from nanreplay.recorder.lifecycle import Suspicion, exception_trigger
from nanreplay.recorder.program_slots import Fetch
from nanreplay.recorder.recorded_function import (
    SMALL_BYTES,
    RecordedFunction,
    look_after_failure,
    output_positions,
)
from nanreplay.recorder.recording import Recording
from nanreplay.recorder.ring import FetchedElement, StepEntry, size_of
from nanreplay.tensorflow_internals import tf_functions

FORGOTTEN_AFTER = 8
"""Calls of several steps after which what these returned is forgotten, unless a file is written."""


@dataclass
class CompiledCalls:
    """Records the compiled functions that are called while it is told of them.

    Args:
        session: The recording.
        on_suspicion: Called after a step in which something is not as it should be, and with a step that raised.
    """

    session: Recording
    on_suspicion: Callable[[Suspicion], None]
    trained: int = 0
    """How many steps were recorded."""
    is_eager: bool = False
    """Whether a gradient was computed or applied outside of compiled functions, since this was last set to False."""
    on_error: Callable[[BaseException], None] = lambda error: None
    """Told of what a recorded step raised, after all else."""
    last: RecordedFunction | None = None
    """The function that ran last."""
    before_step: Callable[[], None] = lambda: None
    """Called before each step is recorded."""
    named: Any = None
    """The `tf.function`, or ConcreteFunction, that was named as a step: it is one, whatever it does. Of others, those that train."""
    _known: dict[int, tuple[Any, TrainingFunction]] = field(default_factory=dict)
    _recorded: dict[tuple[Any, ...], RecordedFunction] = field(default_factory=dict)
    _plain: dict[int, RecordedFunction] = field(default_factory=dict)
    """Those whose arguments are all arrays, by the id of the function."""
    _refused: set[int] = field(default_factory=set)

    def trained_eagerly(self) -> None:
        """Note that Python code trains by itself."""
        self.is_eager = True

    def call(
        self, function: Any, inputs: list[Any], captured: list[Any], run: Callable[[], Any]
    ) -> Any:
        """Run a compiled function, and record it if it trains."""
        session = self.session
        if not session.lifecycle.is_active or tf_functions.is_tape_recording():
            return self._watched(function, inputs, captured, run)
        begun = session.guard(lambda: self._begin(function, inputs, captured))
        if begun is None:
            return run()
        recorded, entry = begun
        try:
            result, flat = self._run(recorded, function, inputs, captured, run)
        except BaseException as error:
            try:
                self._raised(recorded, entry, error)
            finally:
                self.on_error(error)
            raise
        outputs = (
            session.guard(lambda: recorded.outputs_of(flat)) if recorded.steps_in_call else None
        )
        found = session.guard(lambda: self._after(recorded, entry, flat, outputs))
        if found is not None:
            self._suspect(found)
        return result

    def call_directly(
        self, function: Any, inputs: list[Any], captured: list[Any]
    ) -> tuple[bool, list[Any] | None]:
        """Run a function that has been recorded before.

        Args:
            function: The ConcreteFunction; has a variant that returns what its program returns.
            inputs: Its flat arguments.
            captured: What it captured.

        Returns:
            Whether it ran, and what its program returned in its last step; None where the data ended before that.
        """
        session = self.session
        begun = session.guard(lambda: self._begin(function, inputs, captured))
        if begun is None:
            return False, None
        recorded, entry = begun
        variant = recorded.variant
        if variant is None:
            return False, None
        try:
            flat = variant.run([*inputs, *captured])
        except BaseException as error:
            try:
                self._raised(recorded, entry, error)
            finally:
                self.on_error(error)
            raise
        outputs = recorded.outputs_of(flat)
        found = session.guard(lambda: self._after(recorded, entry, flat, outputs))
        if found is not None:
            self._suspect(found)
        return True, outputs

    def _suspect(self, found: Suspicion) -> None:
        try:
            self.on_suspicion(found)
        except BaseException as error:
            self.on_error(error)
            raise

    def _watched(
        self, function: Any, inputs: list[Any], captured: list[Any], run: Callable[[], Any]
    ) -> Any:
        """After a failure of the recorder's own: look at the numbers that training functions return, nothing else."""
        result = run()
        if self.session.lifecycle.has_failed:
            with listening.muted():
                found = look_after_failure(self.session, result)
            if found is not None:
                self.on_suspicion(found)
        return result

    def _run(
        self,
        recorded: RecordedFunction,
        function: Any,
        inputs: list[Any],
        captured: list[Any],
        run: Callable[[], Any],
    ) -> tuple[Any, list[Any]]:
        """(what the caller gets, flat outputs: those of the function, then those of the variant)."""
        variant = recorded.variant
        if variant is None:
            result = run()
            if not recorded.outputs:
                return result, []
            if isinstance(result, tf.Tensor):
                return result, [result]
            return result, [
                leaf
                for leaf in tf.nest.flatten(result, expand_composites=True)
                if tf.is_tensor(leaf)
            ]
        flat = variant.run([*inputs, *captured])
        return tf_functions.packed(function, flat[: variant.n_original]), flat

    # Before

    def _begin(
        self, function: Any, inputs: list[Any], captured: list[Any]
    ) -> tuple[RecordedFunction, StepEntry] | None:
        recorded = self._function(function, inputs, captured)
        if recorded is None:
            return None
        self.before_step()
        leaves = inputs if id(function) in self._plain else argument_leaves(inputs)
        entry = self.session.before(recorded.slot.id, leaves, recorded.slot.traced.leaf_paths)
        return recorded, entry

    def _function(
        self, function: Any, inputs: list[Any], captured: list[Any]
    ) -> RecordedFunction | None:
        plain = self._plain.get(id(function))
        if plain is not None and plain.function() is function:
            return plain
        handles = tuple(
            id(value) for value in inputs if value.dtype == tf.resource and is_variable(value)
        )
        key = (id(function), handles)
        recorded = self._recorded.get(key)
        if recorded is not None and recorded.function() is function:
            return recorded
        training = self._training(function)
        if not training.trains and not tf_functions.is_of(function, self.named):
            self._note_writes(training, captured)
            return None
        program = program_of(training, captured, inputs)
        if program is None:
            self._refuse(training)
            return None
        variables = self.session.variables
        program = replace(
            program, layer_names=variables.layer_names, optimizer_names=variables.optimizer_names
        )
        made = self._make(training, program)
        self._recorded[key] = made
        if all(value.dtype not in (tf.resource, tf.variant) for value in inputs):
            self._plain[id(function)] = made
        return made

    def note_other(self, function: Any, captured: list[Any]) -> None:
        """A function that is no step is about to run."""
        self._note_writes(self._training(function), captured)

    def _training(self, function: Any) -> TrainingFunction:
        known = self._known.get(id(function))
        if known is None or known[0]() is not function:
            known = self._known[id(function)] = weakref.ref(function), TrainingFunction(function)
        return known[1]

    def _note_writes(self, training: TrainingFunction, captured: list[Any]) -> None:
        """A function that is no step may set what steps use: gradients that were added up are applied, an average is taken."""
        variables = self.session.variables
        for position in training.written_captures:
            index = variables.index.get(id(captured[position]))
            if index is not None and variables.infos[index].role not in ("metric", "seed"):
                self.session.request_keyframe()
                return

    def _make(self, training: TrainingFunction, program: TracedProgram) -> RecordedFunction:
        fetches = bool(training.fetching)
        variant = Variant(training, program) if fetches or program.outside else None
        fetch = None
        if variant is not None and fetches:
            specs = element_specs(training.function)
            is_element = (
                len(training.fetching) == 1 and not program.taken and len(program.sources) < 2
            )
            fetch = Fetch(variant.kinds, specs[0] if is_element and len(specs) == 1 else None)
        slot = self.session.add_program(program, fetch)
        has_batch = bool(
            program.sources or program.taken or program.loop
        )  # of the one step that a call is
        in_loop = (
            fetches
            and not has_batch
            and any(graph is not training.graph for graph, _ in training.fetching)
        )
        optional_kinds = [tensor.dtype for tensor in program.outputs] if in_loop else ()
        outputs = [] if in_loop else output_positions(training, program, variant)
        if not in_loop:  # what the caller makes of a number before it returns it cannot be compared
            slot.outputs = [
                each for each in slot.outputs if any(each[0] == name for name, _ in outputs)
            ]
        return RecordedFunction(
            weakref.ref(training.function),
            slot,
            variant,
            outputs,
            optional_kinds,
            in_loop,
            is_stacked=program.loop is not None,
        )

    def _refuse(self, training: TrainingFunction) -> None:
        """Say once what cannot be recorded, and which line would record it."""
        if id(training) in self._refused:
            return
        self._refused.add(id(training))
        name = getattr(training.function, "name", "a tf.function")
        name = name.decode() if isinstance(name, bytes) else str(name)
        shown = name.removeprefix("__inference_").rstrip("0123456789").rstrip("_")
        warnings.warn(
            f"nanreplay: `{shown}` is not recorded: it trains in a loop over its data inside of one tf.function, where the batches "
            "cannot be had. To record it, loop in Python: `for batch in data: step(batch)`, with `step` compiled.",
            stacklevel=2,
        )

    # After

    def _after(
        self,
        recorded: RecordedFunction,
        entry: StepEntry,
        flat: list[Any],
        outputs: list[Any] | None,
    ) -> Suspicion | None:
        session, variant = self.session, recorded.variant
        self.trained += 1
        self.last = recorded
        steps = 1
        numbers: Mapping[str, Any] = {
            name: flat[position] for name, position in recorded.outputs if position < len(flat)
        }
        if variant is not None:
            n_outside = len(recorded.slot.traced.outside)
            if n_outside and session.ring is not None:
                session.keeper.hold(session.ring, entry, flat[len(flat) - n_outside :])
            if variant.batches is not None:
                steps, numbers = self._fetched(recorded, entry, outputs, numbers)
                if not steps:
                    session.forget_unfinished()
                    return None
        return session.after(recorded.slot, numbers, steps=steps, mean=self._mean(recorded, flat))

    def _mean(self, recorded: RecordedFunction, flat: list[Any]) -> tuple[Any, Any] | None:
        """What the running mean of the losses has added up, and of how much."""
        variant, slot = recorded.variant, recorded.slot
        if variant is not None and variant.has_mean:
            first = variant.n_original + variant.n_returned
            return flat[first], flat[first + 1]
        return (
            None
            if slot.mean is None
            else (read_variable(slot.mean[0]), read_variable(slot.mean[1]))
        )

    def _fetched(
        self,
        recorded: RecordedFunction,
        entry: StepEntry,
        outputs: list[Any] | None,
        numbers: Mapping[str, Any],
    ) -> tuple[int, Mapping[str, Any]]:
        """How many steps the call ran, and the numbers of the last one."""
        session = self.session
        if recorded.is_stacked:
            self._take_stacked(recorded, entry)
            return 1, numbers
        if not recorded.steps_in_call:
            recorded.waiting.append(entry)
            if len(recorded.waiting) >= (
                recorded.together if 0 < recorded.batch_bytes < SMALL_BYTES else 1
            ):
                self._take(recorded)
            return 1, numbers
        count = recorded.steps_per_call if outputs is not None else 0
        is_together = bool(count) and 0 < recorded.batch_bytes < SMALL_BYTES
        optionals = None
        if not is_together:
            optionals = recorded.take()
            staged = 0 if optionals is None else int(optionals.shape[0])
            count = staged - len(recorded.waiting)
            while (
                outputs is None
                and count
                and not bool(tf.raw_ops.OptionalHasValue(optional=optionals[staged - 1]))
            ):
                count, staged = count - 1, staged - 1  # the data ended
        for number in range(count):
            recorded.waiting.append(entry if number == 0 else session.follow(entry, number))
        if optionals is not None:
            self._give(recorded, optionals, range(len(recorded.waiting)))
        elif len(recorded.waiting) >= recorded.together:
            self._take(recorded)
        recorded.calls += 1
        if (
            recorded.calls % FORGOTTEN_AFTER == 0
            and recorded.variant is not None
            and recorded.variant.batches is not None
        ):
            recorded.variant.batches.forget_returned()  # taking it would cost more than all else
        return count, {} if outputs is None else {
            name: outputs[index] for name, index in recorded.slot.outputs
        }

    def _take(self, recorded: RecordedFunction) -> None:
        optionals = recorded.take()
        if optionals is not None:
            self._give(recorded, optionals, range(int(optionals.shape[0])))

    def _give(self, recorded: RecordedFunction, optionals: Any, indices: Sequence[int]) -> None:
        session = self.session
        if indices and (not recorded.batch_bytes or recorded.batch_bytes >= SMALL_BYTES):
            assert recorded.slot.fetch is not None
            components = components_of(optionals[indices[0]], recorded.slot.fetch.kinds) or []
            recorded.batch_bytes = (
                size_of(
                    [
                        each
                        for each in components
                        if each.dtype not in (tf.variant, tf.resource, tf.string)
                    ]
                )
                or 1
            )
        session.fetched(recorded.waiting, optionals, indices, recorded.batch_bytes)
        if session.ring is not None:
            session.keeper.learn_batch(session.ring, recorded.batch_bytes)

    def _take_stacked(self, recorded: RecordedFunction, entry: StepEntry) -> None:
        """Take what the iterations of one call have fetched."""
        optionals, fetch = recorded.take(), recorded.slot.fetch
        if optionals is None or fetch is None or self.session.ring is None:
            return
        count = int(optionals.shape[0])
        recorded.batch_bytes = count * size_of(components_of(optionals[0], fetch.kinds) or [])
        self.session.ring.fetched(entry, FetchedElement(optionals, None, recorded.batch_bytes))
        self.session.keeper.learn_batch(self.session.ring, recorded.batch_bytes)

    def take_all(self) -> None:
        """Take what steps have fetched from the staging areas: a file is about to be written."""
        for recorded in self._recorded.values():
            if recorded.waiting:
                self._take(recorded)
            self._take_returned(recorded)

    def _take_returned(self, recorded: RecordedFunction) -> None:
        """Give the last steps of calls that run several what they returned."""
        ring, area = (
            self.session.ring,
            None if recorded.variant is None else recorded.variant.batches,
        )
        if ring is None or area is None or not recorded.steps_in_call:
            return
        returned = area.take_returned()
        count = 0 if returned is None else int(returned.shape[0])
        entries = [
            entry
            for entry in ring.entries
            if entry.program == recorded.slot.id and entry.step < self.session.step
        ]
        for number, entry in enumerate(
            entries[-count:] if count else (), max(0, count - len(entries))
        ):
            entry.returned = FetchedElement(returned, number, 0)

    def _raised(self, recorded: RecordedFunction, entry: StepEntry, error: BaseException) -> None:
        session = self.session
        trigger = session.guard(functools.partial(exception_trigger, error))
        if trigger is None:
            session.guard(session.forget_unfinished)
            return
        session.guard(lambda: self._keep_fetched(recorded, entry))
        earlier = session.guard(session.flush)
        self.on_suspicion(earlier or Suspicion(trigger, session.step, is_certain=True))

    def _keep_fetched(self, recorded: RecordedFunction, entry: StepEntry) -> None:
        """The batch of a step that raised was staged before."""
        if recorded.variant is None or recorded.variant.batches is None:
            return
        if recorded.is_stacked:
            self._take_stacked(recorded, entry)
            return
        if not recorded.steps_in_call:
            recorded.waiting.append(entry)
            self._take(recorded)
            return
        optionals = recorded.take()
        count = 0 if optionals is None else int(optionals.shape[0])
        for number in range(count):
            recorded.waiting.append(entry if number == 0 else self.session.follow(entry, number))
        self._give(recorded, optionals, range(count))
        self.session.step += max(0, count - 1)  # the last one that was fetched raised

    def release(self) -> None:
        """Let go of the functions."""
        self._known.clear()
        self._recorded.clear()
        self._plain.clear()
