"""`Explorer`: what a front end asks for a step, a tensor or a batch.

The terminal interface has one in its worker process, scripts make one of a replay. It remembers
what it had to run. One thread at a time may use it.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from nanreplay.bisect import Bisection
from nanreplay.bisect.failing_step import Scene, watched
from nanreplay.bisect.op_trace import is_update, with_updated
from nanreplay.bisect.step_runner import ErrorHandler, Observer, StepRunner, repaired
from nanreplay.bisect.tensor_stats import dtype_name, is_opaque
from nanreplay.errors import MissingPartError
from nanreplay.explore.batch_view import BatchView, Spread, spread_of, view_batch
from nanreplay.explore.step_tree import scene_at, view_of
from nanreplay.explore.step_view import StepView
from nanreplay.explore.tensor_view import (
    Index,
    OperandElement,
    TensorView,
    operands_at,
    view_tensor,
)
from nanreplay.findings import Origin
from nanreplay.records import ArrayLike
from nanreplay.replay.provenance import OpEvent, ValueId

Tick = Callable[[int], None]
_MOST_SCENES = 3
_AROUND = 40
"""Ops before and after a wanted one whose tensors are kept from the same run.

Stepping to them costs nothing.
"""
_MOST_BYTES = 64 * 2**20
"""Bytes of the tensors that are kept so."""


class Explorer:
    """Answers questions about the steps of a capture, and remembers what it had to run for them.

    ```python
    with Capture("run.h5") as capture, Replay(capture) as replay:
        explorer = Explorer(replay, bisect(replay))
        view = explorer.step_view(capture.incident.step)
        print(explorer.tensor(view.step, view.origins[0]).stat)
    ```

    Args:
        runner: What replays.
        bisection: What was found in a run of this process; its steps are not run again.
        origin: What bisecting found, for who has only that; the bisection's unless given.
        tick: Called with the number of ops run, at every op of a run. What it raises ends the run
            and passes through.
    """

    def __init__(
        self,
        runner: StepRunner,
        bisection: Bisection | None = None,
        *,
        origin: Origin | None = None,
        tick: Tick | None = None,
    ) -> None:
        """Nothing runs yet."""
        self._runner = runner if tick is None else cast("StepRunner", _TickingRunner(runner, tick))
        self._bisection = bisection
        self._origin = origin
        if origin is None and bisection is not None:
            self._origin = bisection.findings.origin
        self._scenes: OrderedDict[int, Scene] = OrderedDict()
        self._views: dict[int, StepView] = {}
        self._events: dict[int, dict[int, OpEvent]] = {}
        """Executions with their tensors, by serial, by step."""
        self._spread: tuple[int, Spread] | None = None
        """What is usual in the batches besides that of a step, and this step."""

    @property
    def steps(self) -> Sequence[int]:
        """Steps that can be looked at, ascending."""
        return self._runner.steps

    def step_view(self, step: int) -> StepView:
        """Run a step op by op, unless that is known, and return what it shows.

        Raises:
            MissingPartError: The step cannot be replayed.
            ReplayError: It cannot be run op by op.
        """
        if step not in self._views:
            self._views[step] = view_of(self._scene(step), self._origin)
        return self._views[step]

    def tensor(self, step: int, value: ValueId, at: Index | None = None) -> TensorView:
        """Return a tensor of a step; runs the step again when its values were not kept.

        Args:
            step: The step.
            value: The tensor.
            at: The element that its table is to show; the first failing one unless given.

        Raises:
            MissingPartError: There is no such tensor.
        """
        scene, view = self._scene(step), self.step_view(step)
        if value.serial < 0:
            tensor = scene.trace.value(value)
            arrival = scene.walk.leaves.get(value)
            failing = None if arrival is None else arrival.mask
        else:
            event = self._event(step, value.serial)
            tensor = None if event is None else _output(event, value.output)
            failing = _failing_masks(scene, value.serial).get(value.output)
        name = view.name(value)
        if tensor is None:
            raise MissingPartError(f"Nothing is known of the values of `{name}` in step {step}.")
        return view_tensor(value, name, tensor, failing=failing, at=at)

    def operands(self, step: int, value: ValueId, index: Index) -> tuple[OperandElement, ...]:
        """Return the inputs of the op that made a tensor, at one of its elements.

        They are shown at what the element was computed from.

        Args:
            step: The step.
            value: The tensor.
            index: The element.
        """
        event = self._event(step, value.serial) if value.serial >= 0 else None
        output = None if event is None else _output(event, value.output)
        # An update has the variable as its output, which is not computed from its inputs alone.
        if event is None or output is None or is_opaque(output) or is_update(event.type):
            return ()
        scene, view = self._scene(step), self.step_view(step)
        pairs = zip(event.inputs, event.input_ids, strict=True)
        values = [_readable_value(scene, tensor, source) for tensor, source in pairs]
        names = [view.name(source) for source in event.input_ids]
        return tuple(operands_at(event, value.output, index, names, values, self._runner.execute))

    def batch(self, step: int, row: int | None = None, around: int = 2) -> BatchView:
        """Return the batch of a step beside the other batches of the window; nothing is run for it.

        Args:
            step: The step.
            row: The sample to show; the first of those to blame unless given.
            around: How many samples before and after it are shown.
        """
        record, origin = self._runner.batch(step), self._origin
        if self._spread is None or self._spread[0] != step:
            other_steps = [other for other in self._runner.steps if other != step]
            others = [self._runner.batch(other).leaves for other in other_steps]
            self._spread = step, spread_of(record.leaves, record.paths, others)
        is_origins_step = origin is not None and origin.step == step
        return view_batch(
            step,
            record.leaves,
            record.paths,
            self._spread[1],
            rows=origin.recorded_rows if origin is not None and is_origins_step else None,
            reason=origin.rows_reason if origin is not None and is_origins_step else None,
            row=row,
            around=around,
        )

    def _scene(self, step: int) -> Scene:
        if step not in self._scenes:
            self._scenes[step] = scene_at(self._runner, step, self._bisection)
        self._scenes.move_to_end(step)
        while len(self._scenes) > _MOST_SCENES:
            old, _ = self._scenes.popitem(last=False)
            self._views.pop(old, None)
            self._events.pop(old, None)
        return self._scenes[step]

    def _event(self, step: int, serial: int) -> OpEvent | None:
        """The execution with its tensors: kept by the trace, or caught in one more run."""
        fact = self._scene(step).trace.facts.get(serial)
        if fact is None:
            return None
        if fact.event is not None:
            return fact.event
        events = self._events.setdefault(step, {})
        if serial not in events:
            events.clear()
            events.update(_catch(self._runner, step, serial))
        return events.get(serial)


def _output(event: OpEvent, position: int) -> Any:
    """An output of an execution, None when it has no such output."""
    return event.outputs[position] if position < len(event.outputs) else None


def _failing_masks(scene: Scene, serial: int) -> Mapping[int, Any]:
    """Failing elements of an op by output: of an origin those that it made."""
    for suspect in scene.judgement.suspects:
        if suspect.fact is not None and suspect.fact.serial == serial:
            return suspect.masks
    return scene.walk.failing.get(serial, {})


def _readable_value(scene: Scene, tensor: Any, value: ValueId) -> Any:
    """What an input holds: of a variable's handle the variable, None of other opaque tensors."""
    if not is_opaque(tensor):
        return tensor
    is_variable = dtype_name(tensor) == "resource" and value.serial < 0
    return scene.trace.value(value) if is_variable else None


def _catch(runner: StepRunner, step: int, serial: int) -> dict[int, OpEvent]:
    """Run a step op by op up to an op, and a little further.

    Returns the execution of the op and those around it, by serial. When these are too large, the
    ones before the op go first: a user who follows a value goes on more often than back.
    """
    events: dict[int, OpEvent] = {}
    kept_bytes = 0

    def observe(event: OpEvent) -> None:
        nonlocal kept_bytes
        is_after = event.serial > serial
        if is_after and (event.serial > serial + _AROUND or kept_bytes > _MOST_BYTES):
            raise _EnoughSeenError
        if event.serial < serial - _AROUND:
            return
        kept = with_updated(runner, event) if is_update(event.type) else event
        kept_bytes += sum(map(_size_in_bytes, kept.outputs))
        events[event.serial] = kept
        if kept_bytes > _MOST_BYTES:
            for earlier in [other for other in events if other < serial]:
                del events[earlier]

    def repair(event: OpEvent) -> Sequence[Any]:
        outputs = repaired(event, runner.execute)
        if outputs is None:
            raise _EnoughSeenError
        return outputs

    fetches = watched(runner.signature(step))
    with contextlib.suppress(_EnoughSeenError):
        runner.run(step, observe, on_error=repair, fetches=fetches, update=True)
    return events


def _size_in_bytes(tensor: Any) -> int:
    # 8 bytes an element is the most that there is but for complex128; a bound will do.
    return 0 if is_opaque(tensor) else int(np.prod(tensor.shape, dtype=np.int64)) * 8


class _EnoughSeenError(Exception):
    """Ends a run that has shown what it was run for."""


class _TickingRunner:
    """A runner that says, at every op, how many it has run."""

    def __init__(self, runner: StepRunner, tick: Tick) -> None:
        self._inner = runner
        self._tick = tick

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def run(
        self,
        step: int,
        observer: Observer | None,
        *,
        batch: Sequence[ArrayLike] | None = None,
        on_error: ErrorHandler | None = None,
        fetches: Sequence[str] | None = None,
        update: bool = True,
    ) -> Mapping[str, Any]:
        ops_done = 0

        def observe(event: OpEvent) -> Sequence[Any] | None:
            nonlocal ops_done
            ops_done += 1
            self._tick(ops_done)
            return observer(event) if observer is not None else None

        return self._inner.run(
            step, observe, batch=batch, on_error=on_error, fetches=fetches, update=update
        )
