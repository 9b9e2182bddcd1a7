"""A step that runs eagerly: state and batch are kept before each call, and an incident's step is run once more under watch."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay.program.eager_program import EagerRun, FlatProgram, describe_eager, observe_eager
from nanreplay.program.fingerprint import (
    Fingerprint,
    build_fingerprint,
    has_nonfinite,
    read_variable,
    ulp_distance,
)
from nanreplay.program.observe import EagerObserver
from nanreplay.program.op_facts import SourceTable
from nanreplay.program.program_record import fingerprint_layout
from nanreplay.program.python_effects import Draws, replace_functions
from nanreplay.program.traced_program import is_float_variable, is_variable
from nanreplay.program.training_functions import hands_gradient_out
from nanreplay.recorder.eager_reads import (
    batch_leaves,
    fingerprint_values_of,
    is_new,
    note_first_reads,
    read_before,
    repeatable,
)
from nanreplay.recorder.lifecycle import Suspicion, exception_trigger
from nanreplay.recorder.program_slots import EagerIncident
from nanreplay.recorder.recorded_function import look_after_failure
from nanreplay.recorder.recording import Recording
from nanreplay.recorder.reexecution import Reexecution, change, dense_gradient
from nanreplay.recorder.ring import StepEntry
from nanreplay.recorder.timeline_ring import StepNumbers
from nanreplay.tensorflow_internals import tf_eager, tf_variables

State = Mapping[int, Any]
_SEVERAL_REPLICAS = (
    "The step ran several replicas eagerly: TensorFlow adds up their gradients in threads of its own, where no op can be seen. "
    "With `strategy.run` in a tf.function the step can be replayed."
)


@dataclass
class Run:
    """One call of the step."""

    entry: StepEntry
    again: Callable[[], Any]
    """Makes the same call once more."""
    observer: EagerObserver
    first_reads: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    """Where variables are to be learned: the first value read of each, by the id of its handle."""
    is_learning: bool = False
    """Whether the call may use variables that are not known yet."""
    handed_out: list[Any] = field(default_factory=list)
    """What compiled functions returned that compute a gradient: the loss is among it."""
    draws: Draws = field(default_factory=Draws)
    """The random numbers of the call."""
    stop: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    """Ends the observation."""


class EagerStep:
    """Runs a plain Python step and records it.

    The state before a step is a set of references: TensorFlow copies a variable's buffer when it writes to one that is
    still held. Nothing of the step is run twice until there is an incident; then the state before the failing step is
    put back, the step runs once more with every op noted, and the state after it is put back.
    """

    def __init__(
        self,
        session: Recording,
        step: Callable[..., Any],
        on_suspicion: Callable[[Suspicion], None],
    ) -> None:
        self._session = session
        self._step = step
        self._on_suspicion = on_suspicion
        self._names: tuple[str, ...] = ()
        self._is_first = True
        self._used: dict[int, Any] = {}
        """Layers and optimizers that steps have used, by id."""
        self._run: Run | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one step; returns what the step returns."""
        if not self._session.lifecycle.is_active:
            return self._after_failure(args, kwargs)
        given = (args, kwargs) if kwargs else args
        run = self.begin(lambda: (given, repeatable(self._step, args, kwargs)))
        if run is None:
            return self._step(*args, **kwargs)
        try:
            result = self._step(*args, **kwargs)
        except BaseException as error:
            self.raised(run, error)
            raise
        self.ended(run, result)
        return result

    def begin(self, call: Callable[[], tuple[Any, Callable[[], Any]]]) -> Run | None:
        """A step begins; None where it is not recorded.

        Args:
            call: Gives what the step is given, and what makes the same call once more.
        """
        self._run = self._session.guard(lambda: self._prepare(*call()))
        return self._run

    def raised(self, run: Run, error: BaseException) -> None:
        """The step has raised; its own error goes on, whatever becomes of the recorder."""
        try:
            self._record_raised(run, error)
        except Exception as own:
            self._session.fail(own)

    def _record_raised(self, run: Run, error: BaseException) -> None:
        session, step = self._session, self._session.step
        self._stop(run)
        if self._run is not run:  # compiled functions were steps of their own
            return
        trigger = session.guard(functools.partial(exception_trigger, error))
        if trigger is not None:
            session.guard(lambda: self._register(run))
            session.guard(lambda: self._record_ops(run, None))
            self._on_suspicion(Suspicion(trigger, step, is_certain=True))

    def ended(self, run: Run, result: Any) -> None:
        """The step has returned `result`."""
        session, step = self._session, self._session.step
        self._stop(run)
        if self._run is not run:
            return
        found = session.guard(lambda: self._after(run, result))
        if found is not None:
            values = None if found.step != step else run.entry.fingerprint
            session.guard(
                lambda: self._record_ops(
                    run, None if values is None else np.array([*values.values()])
                )
            )
            self._on_suspicion(found)

    def _stop(self, run: Run) -> None:
        """End the observation; what the step fetched by itself is part of its batch."""
        guard = self._session.guard
        guard(run.stop.close)
        guard(lambda: self.add_to_batch(run, {"fetched": run.draws.elements}))

    def add_to_batch(self, run: Run, arrays: Any) -> None:
        """What a step took from elsewhere while it ran is part of its batch."""
        if self._run is not run or self._session.ring is None:
            return
        held = {id(leaf) for leaf in run.entry.leaves}
        more = [
            (leaf, path)
            for leaf, path in zip(*batch_leaves(arrays), strict=True)
            if id(leaf) not in held
        ]
        if more:
            self._session.ring.extend(run.entry, *zip(*more, strict=True))

    def forget_call(self) -> None:
        """The call that is under way is no eager step: what trains in it is compiled."""
        if self._run is not None:
            self._run.stop.close()
            self._run = None
            self._session.forget_unfinished()

    def call(
        self, function: Any, inputs: list[Any], captured: list[Any], run: Callable[[], Any]
    ) -> Any:
        """Compiled functions that an eager step calls are ops of it."""
        self.note_variables([*inputs, *captured])
        result = run()
        if self._run is not None and self._session.guard(lambda: hands_gradient_out(function)):
            self._run.handed_out.append(result)
        return result

    def note_variables(self, tensors: Sequence[Any]) -> None:
        """While variables are learned: read those that a compiled function is about to use, for it may write them."""
        if self._run is not None and self._run.is_learning:
            reads = self._run.first_reads
            self._session.guard(
                lambda: reads.update(
                    {
                        id(each): (each, read_variable(each))
                        for each in tensors
                        if is_new(each, reads)
                    }
                )
            )

    def trained_eagerly(self) -> None:
        """That is what an eager step does."""

    def _after_failure(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        result = self._step(*args, **kwargs)
        if self._session.lifecycle.has_failed:
            found = look_after_failure(self._session, result)
            if found is not None:
                self._on_suspicion(found)
        return result

    def _prepare(self, given: Any, again: Callable[[], Any]) -> Run:
        """Keep what the step is given, and begin to observe it."""
        leaves, paths = batch_leaves(given)
        entry = self._session.before(
            "", leaves, paths, every_step=True
        )  # the state before the failing step is needed
        run = Run(entry, again, EagerObserver())
        with run.stop:
            run.stop.enter_context(run.observer)
            run.stop.enter_context(run.draws.recorded())
            run.observer.about_to_use = functools.partial(self._about_to_use, run)
            if self._is_first:
                self._learn(run)
            run.stop = run.stop.pop_all()
        return run

    def _about_to_use(self, run: Run, used: Any) -> None:
        """What no step has used yet brings variables of its own. Not every read of one shows: kernels may read by themselves."""
        if id(used) in self._used:
            return
        self._used[id(used)] = used
        handles = [
            handle
            for each in (used, *tf_variables.variables_in(used))
            if (handle := tf_variables.handle_of(each)) is not None and is_variable(handle)
        ]
        if handles:
            self._learn(run)
            run.first_reads.update(
                {
                    id(each): (each, read_variable(each))
                    for each in handles
                    if id(each) not in run.first_reads
                }
            )

    def _learn(self, run: Run) -> None:
        if not run.is_learning:
            run.is_learning = True
            run.stop.callback(tf_eager.add_op_callback(note_first_reads(run.first_reads)))
            run.stop.callback(
                replace_functions(
                    tf_variables.assignment_functions(),
                    functools.partial(read_before, self._session.guard, run.first_reads),
                )
            )

    def _after(self, run: Run, result: Any) -> Suspicion | None:
        session, seen = self._session, run.observer.observation
        if seen.failed is not None:
            raise seen.failed
        seen.note_result(run.handed_out if result is None and run.handed_out else result)
        self._register(run)
        watch = build_fingerprint(
            seen, self._watched_handles(), seen.learning_rate, seen.loss_scale
        )
        names = fingerprint_layout(watch.entries, session.variables.index)
        self._names = names if names != self._names else self._names
        return session.after_eager(run.entry, self._names, fingerprint_values_of(watch))

    def _watched_handles(self) -> list[Any]:
        variables = self._session.variables
        unwatched = {id(handle) for handle in variables.unwatched()}
        return [
            handle
            for handle in variables.handles
            if id(handle) not in unwatched and is_float_variable(handle)
        ]

    def _register(self, run: Run) -> None:
        """Name what the step used, and learn the variables that nobody named."""
        seen, first_reads = run.observer.observation, run.first_reads
        session = self._session
        variables, ring = session.variables, session.ring
        if run.is_learning:
            session.name(seen)
        session.learn_optimizers(seen.optimizers)
        sources = [
            variable
            for call in seen.tape_gradients
            for variable in call.sources
            if hasattr(variable, "handle")
        ]
        handles = (
            [handle for handle, _ in first_reads.values()]
            if run.is_learning
            else [source.handle for source in sources]
        )
        variables.add([handle for handle in handles if is_variable(handle)], sources)
        if run.is_learning and ring is not None and session.step in ring.keyframes:
            known = {
                variables.index[key]: value
                for key, (_, value) in first_reads.items()
                if key in variables.index
            }
            ring.keyframes[session.step] = {**known, **ring.keyframes[session.step]}
        self._is_first = False

    def _record_ops(self, run: Run, values: Any) -> None:
        """Run the failing step once more from the state before it, with the numbers it drew, and keep its ops as a flat program."""
        session = self._session
        ring = session.ring
        if ring is None or not ring.entries:
            return
        number = run.entry.step
        if number not in ring.keyframes:  # there was no room for it
            return
        before, after = ring.keyframes[number], session.read_state()
        self._put_back(before)
        try:
            with run.draws.repeated():
                again = observe_eager(run.again)
            if again.n_replicas > 1:
                session.notes.append(_SEVERAL_REPLICAS)
                return
            handles = self._watched_handles()
            watch = build_fingerprint(
                again.seen, handles, again.seen.learning_rate, again.seen.loss_scale
            )
            proof = self._prove(again, number, before, watch, values)
        finally:
            self._put_back(after)
        if values is None:
            names = fingerprint_layout(watch.entries, session.variables.index)
            run.entry.fingerprint = dict(zip(names, fingerprint_values_of(watch), strict=True))

        def describe(program_id: str, sources: SourceTable) -> FlatProgram:
            entry, index = run.entry, session.variables.index
            return describe_eager(
                again,
                program_id,
                watch,
                variable_index=index,
                leaves=entry.leaves,
                paths=entry.paths,
                sources=sources,
            )

        session.eager = EagerIncident(number, describe, proof)

    def _prove(
        self, run: EagerRun, step: int, before: State, watch: Fingerprint, recorded: Any
    ) -> Reexecution:
        """Compare the second run with the first, and take its weights and gradients."""
        variables = self._session.variables
        found = fingerprint_values_of(watch)
        proof = Reexecution(reproduced=has_nonfinite(found))
        if recorded is not None:
            if len(found) != len(recorded):
                raise ValueError("the step took another way when it was run once more")
            proof.max_ulp = ulp_distance(found, recorded)
        if proof.max_ulp:
            self._session.notes.append(
                "The step gave other numbers when it was run once more: it draws from a state that is no variable."
            )
        trainable = variables.of_role("trainable")
        after = {
            index: value.numpy()
            for index, value in self._session.read_state().items()
            if index in trainable
        }
        proof.weights[step] = after
        ratios = {
            index: change(np.asarray(before[index]), after[index])[0]
            for index in after
            if index in before
        }
        proof.numbers[step] = StepNumbers(update_ratios=ratios)
        for gradient, variable in run.seen.gradients():
            index = variables.index.get(id(tf_variables.handle_of(variable)))
            if index is not None:
                proof.gradients.setdefault(step, {})[index] = dense_gradient(gradient)
        return proof

    def _put_back(self, state: State) -> None:
        for index, value in state.items():
            tf.raw_ops.AssignVariableOp(
                resource=self._session.variables.handles[index], value=value
            )
