"""A step that runs eagerly: state and batch are kept before each call, and an incident's step is run once more under watch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay.program import private_tf
from nanreplay.program.fingerprint import Layout
from nanreplay.program.flat import EagerRun, describe_eager, observe_eager
from nanreplay.program.observe import Observation, Observer
from nanreplay.program.sources import SourceTable
from nanreplay.program.trace import is_variable
from nanreplay.program.watch import Watch, build_watch
from nanreplay.recorder.session import Session
from nanreplay.records import ProgramRecord, Trigger


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
        self._state: dict[int, Any] = {}
        self._layouts: dict[tuple[int, ...], Layout] = {}
        self._is_first = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one step; returns what the step returns."""
        session = self._session
        if session.detached or tf.inside_function():
            return self._step(*args, **kwargs)
        leaves, paths = batch_leaves((args, kwargs) if kwargs else args)
        session.guard(lambda: self._before(leaves, paths))
        if session.detached:
            return self._step(*args, **kwargs)
        first_reads: dict[int, tuple[Any, Any]] = {}
        undo = private_tf.add_op_callback(_note_first_reads(first_reads)) if self._is_first else None
        observer = Observer(clock=lambda: (0, 0))
        try:
            with observer as seen:
                result = self._step(*args, **kwargs)
        except Exception as error:
            session.write(Trigger("exception", type(error).__name__, (str(error).splitlines() or [""])[0][:500]), session.step)
            raise
        finally:
            if undo:
                undo()
        step = session.step
        trigger = session.guard(lambda: self._after(seen, result, first_reads))
        if trigger is not None:
            session.guard(lambda: self._record_ops(lambda: self._step(*args, **kwargs), leaves, paths))
            self._on_incident(trigger, step)
        return result

    def _before(self, leaves: Sequence[Any], paths: Sequence[str]) -> None:
        session = self._session
        session.request_keyframe()
        session.before("", leaves, paths)
        if session.ring is not None:
            self._state = dict(session.ring.keyframes[session.step])
            for step in [step for step in session.ring.keyframes if step < session.step]:
                del session.ring.keyframes[step]

    def _after(self, seen: Observation, result: Any, first_reads: Mapping[int, tuple[Any, Any]]) -> Trigger | None:
        session = self._session
        seen.note_result(result)
        self._register(seen, first_reads)
        unwatched = {id(handle) for handle in session.variables.unwatched()}
        handles = [
            handle
            for handle, info in zip(session.variables.handles, session.variables.infos, strict=True)
            if id(handle) not in unwatched and tf.dtypes.as_dtype(info.dtype).is_floating
        ]
        self._watch = build_watch(seen, handles)
        names = _layout_names(self._watch, session)
        layout = self._layouts.setdefault(names, Layout.parse(names))
        values = np.zeros(0, np.float32) if self._watch.vector is None else self._watch.vector.numpy()
        return session.after(layout, values)

    def _register(self, seen: Observation, first_reads: Mapping[int, tuple[Any, Any]]) -> None:
        """Name what the step used; after the first step, learn the variables that nobody named."""
        variables = self._session.variables
        for layer in {id(layer): layer for layer in seen.layers}.values() if self._is_first else ():
            variables.name_model(layer)
        for optimizer in seen.optimizers if self._is_first else ():
            variables.name_optimizer(optimizer)
        sources = [variable for call in seen.tape_gradients for variable in call.sources if hasattr(variable, "handle")]
        handles = [handle for handle, _ in first_reads.values()] if self._is_first else [source.handle for source in sources]
        variables.add([handle for handle in handles if is_variable(handle)], sources)
        if self._is_first and self._session.ring is not None:
            known = {variables.index[key]: value for key, (_, value) in first_reads.items() if key in variables.index}
            self._state = {**known, **self._state}
            self._session.ring.keyframes[self._session.step] = self._state
        self._is_first = False

    def _record_ops(self, step: Callable[[], Any], leaves: Sequence[Any], paths: Sequence[str]) -> None:
        """Run the failing step once more from the state before it, and keep its ops as a flat program."""
        session = self._session
        after = session.read_state()
        self._put_back(self._state)
        try:
            run = observe_eager(step)
        finally:
            self._put_back(after)
        watch = self._watch
        learning_rate = next((i for i, info in enumerate(session.variables.infos) if info.role == "optimizer" and info.path.endswith("learning_rate")), None)

        def describe(program_id: str, sources: SourceTable) -> ProgramRecord:
            return describe_eager(
                run, program_id, watch, variable_index=session.variables.index, leaves=leaves, paths=paths, sources=sources, learning_rate=learning_rate
            )

        session.eager_program = describe
        if session.ring is not None:
            session.ring.entries[-1].program = "p0"
        self._note_differences(run)

    def _note_differences(self, run: EagerRun) -> None:
        if run.error is not None:
            self._session.notes.append(f"The step raised when it was run once more to note its ops: {type(run.error).__name__}: {run.error}")

    def _put_back(self, state: Mapping[int, Any]) -> None:
        for index, value in state.items():
            tf.raw_ops.AssignVariableOp(resource=self._session.variables.handles[index], value=value)


def _layout_names(watch: Watch, session: Session) -> tuple[str, ...]:
    from nanreplay.program.describe import watch_layout

    return watch_layout(watch.entries, session.variables.index)


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
