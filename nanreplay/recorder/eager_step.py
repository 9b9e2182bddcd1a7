"""A step that runs eagerly: state and batch are kept before each call, and an incident's step is run once more under watch."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay.program import private_tf
from nanreplay.program.describe import watch_layout
from nanreplay.program.draws import Draws
from nanreplay.program.fingerprint import Layout, ulp_distance
from nanreplay.program.flat import EagerRun, FlatProgram, describe_eager, observe_eager
from nanreplay.program.observe import Observer
from nanreplay.program.sources import SourceTable
from nanreplay.program.trace import is_variable
from nanreplay.program.watch import Watch, build_watch, has_nonfinite
from nanreplay.recorder.reexecute import Reexecution, change, dense_gradient
from nanreplay.recorder.session import EagerIncident, Session
from nanreplay.recorder.trigger import exception_trigger
from nanreplay.records import Trigger

State = Mapping[int, Any]


@dataclass
class Run:
    """One call of the step."""

    leaves: Sequence[Any]
    """What the step was given: its arrays."""
    paths: Sequence[str]
    again: Callable[[], Any]
    """Makes the same call once more."""
    observer: Observer
    first_reads: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    """In the first call: the first value read of each variable, by the id of its handle."""
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

    def __init__(self, session: Session, step: Callable[..., Any], on_incident: Callable[[Trigger, int], None]) -> None:
        self._session = session
        self._step = step
        self._on_incident = on_incident
        self._layouts: dict[tuple[str, ...], Layout] = {}
        self._is_first = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one step; returns what the step returns."""
        session = self._session
        if session.detached or tf.inside_function():
            return self._step(*args, **kwargs)
        run: Run | None = session.guard(lambda: self._prepare(args, kwargs))
        if run is None:
            return self._step(*args, **kwargs)
        step = session.step
        try:
            result = self._step(*args, **kwargs)
        except BaseException as error:
            session.guard(run.stop.close)
            trigger = session.guard(functools.partial(exception_trigger, error))
            if trigger is not None:
                session.guard(lambda: self._register(run))
                session.guard(lambda: self._record_ops(run, None))
                self._on_incident(trigger, step)
            raise
        session.guard(run.stop.close)
        trigger = session.guard(lambda: self._after(run, result))
        if trigger is not None:
            values = session.ring.entries[-1].fingerprint if session.ring else None
            session.guard(lambda: self._record_ops(run, values))
            self._on_incident(trigger, step)
        return result

    def expect(self, *specs: Any) -> None:
        """What the arguments may look like is of no matter to a step that is not traced."""

    def _prepare(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Run:
        """Keep what the step is given, and begin to observe it."""
        leaves, paths = batch_leaves((args, kwargs) if kwargs else args)
        self._session.before("", leaves, paths, every_step=True)  # the state before the failing step is needed
        run = Run(leaves, paths, _repeatable(self._step, args, kwargs), Observer(clock=lambda: (0, 0)))
        with run.stop:
            run.stop.enter_context(run.observer)
            run.stop.enter_context(run.draws.recorded())
            if self._is_first:
                run.stop.callback(private_tf.add_op_callback(_note_first_reads(run.first_reads)))
            run.stop = run.stop.pop_all()
        return run

    def _after(self, run: Run, result: Any) -> Trigger | None:
        session, seen = self._session, run.observer.observation
        if run.observer.failed is not None:
            raise run.observer.failed
        seen.note_result(result)
        self._register(run)
        watch = build_watch(seen, self._watched_handles())
        names = watch_layout(watch.entries, session.variables.index)
        layout = self._layouts.setdefault(names, Layout.parse(names))
        return session.after(layout, _values(watch))

    def _watched_handles(self) -> list[Any]:
        variables = self._session.variables
        unwatched = {id(handle) for handle in variables.unwatched()}
        pairs = zip(variables.handles, variables.infos, strict=True)
        return [handle for handle, info in pairs if id(handle) not in unwatched and tf.dtypes.as_dtype(info.dtype).is_floating]

    def _register(self, run: Run) -> None:
        """Name what the step used; after the first step, learn the variables that nobody named."""
        seen, first_reads = run.observer.observation, run.first_reads
        variables, ring = self._session.variables, self._session.ring
        if self._is_first:
            for layer in {id(layer): layer for layer in seen.layers}.values():
                variables.name_model(layer)
            for optimizer in seen.optimizers:
                variables.name_optimizer(optimizer)
        sources = [variable for call in seen.tape_gradients for variable in call.sources if hasattr(variable, "handle")]
        handles = [handle for handle, _ in first_reads.values()] if self._is_first else [source.handle for source in sources]
        variables.add([handle for handle in handles if is_variable(handle)], sources)
        if self._is_first and ring is not None and self._session.step in ring.keyframes:
            known = {variables.index[key]: value for key, (_, value) in first_reads.items() if key in variables.index}
            ring.keyframes[self._session.step] = {**known, **ring.keyframes[self._session.step]}
        self._is_first = False

    def _record_ops(self, run: Run, values: Any) -> None:
        """Run the failing step once more from the state before it, with the numbers it drew, and keep its ops as a flat program."""
        session = self._session
        ring = session.ring
        if ring is None or not ring.entries:
            return
        number = ring.entries[-1].step
        if number not in ring.keyframes:  # there was no room for it
            return
        before, after = ring.keyframes[number], session.read_state()
        self._put_back(before)
        try:
            with run.draws.repeated():
                again = observe_eager(run.again)
            handles = self._watched_handles()
            watch = build_watch(again.seen, handles)
            proof = self._prove(again, number, before, watch, values)
        finally:
            self._put_back(after)
        if values is None:
            ring.entries[-1].fingerprint = _values(watch)

        def describe(program_id: str, sources: SourceTable) -> FlatProgram:
            return describe_eager(
                again, program_id, watch, variable_index=session.variables.index, leaves=run.leaves, paths=run.paths, sources=sources
            )

        session.eager = EagerIncident(number, describe, proof)

    def _prove(self, run: EagerRun, step: int, before: State, watch: Watch, recorded: Any) -> Reexecution:
        """Compare the second run with the first, and take its weights and gradients."""
        variables = self._session.variables
        found = _values(watch)
        proof = Reexecution(reproduced=has_nonfinite(found))
        if recorded is not None:
            if len(found) != len(recorded):
                raise ValueError("the step took another way when it was run once more")
            proof.max_ulp = ulp_distance(found, recorded)
        if proof.max_ulp:
            self._session.notes.append("The step gave other numbers when it was run once more: it draws from a state that is no variable.")
        trainable = variables.of_role("trainable")
        after = {index: value.numpy() for index, value in self._session.read_state().items() if index in trainable}
        proof.weights[step] = after
        proof.update_ratios[step] = {index: change(np.asarray(before[index]), after[index])[0] for index in after if index in before}
        for gradient, variable in run.seen.gradients():
            index = variables.index.get(id(private_tf.handle_of(variable)))
            if index is not None:
                proof.gradients.setdefault(step, {})[index] = dense_gradient(gradient)
        return proof

    def _put_back(self, state: State) -> None:
        for index, value in state.items():
            tf.raw_ops.AssignVariableOp(resource=self._session.variables.handles[index], value=value)


def _values(watch: Watch) -> Any:
    return np.zeros(0, np.float32) if watch.vector is None else watch.vector.numpy()


def _repeatable(step: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[[], Any]:
    """The call with what it was given at first: a loop may reuse the buffers of numpy arrays, which the step may change."""
    held = tf.nest.map_structure(lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, (list(args), dict(kwargs)))
    return lambda: step(*copy.copy(held[0]), **held[1])


def _note_first_reads(found: dict[int, tuple[Any, Any]]) -> Callable[..., None]:
    """An op callback that keeps the first value read of each variable: its value before the step."""

    def callback(op_type: Any, inputs: Any, attrs: Any, outputs: Any, op_name: Any = None, graph: Any = None) -> None:
        if graph is not None or not inputs or inputs[0].dtype != tf.resource or id(inputs[0]) in found:
            return
        if op_type in ("ReadVariableOp", b"ReadVariableOp"):
            found[id(inputs[0])] = (inputs[0], outputs[0])

    return callback


def batch_leaves(args: Any) -> tuple[list[Any], list[str]]:
    """Arrays and tensors of the step's arguments, numpy arrays copied, with a readable path each."""
    only = args[0] if isinstance(args, tuple) and len(args) == 1 else args
    leaves, paths = [], []
    for path, leaf in private_tf.flatten_with_paths(only):
        if isinstance(leaf, np.ndarray):
            leaves.append(leaf.copy())
            paths.append(path)
        elif tf.is_tensor(leaf) and not isinstance(leaf, tf.Variable):
            leaves.append(leaf)
            paths.append(path)
    return leaves, paths
