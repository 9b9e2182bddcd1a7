"""`Explorer`: what a front end asks for a step, a tensor or a batch.

The terminal interface has one in its worker process, scripts make one of a replay. It remembers
what it had to run. One thread at a time may use it.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from nanreplay.bisect import Bisection
from nanreplay.bisect.event_outputs import with_updated
from nanreplay.bisect.failing_step import Scene, judged_tensors
from nanreplay.bisect.op_trace import Fact, is_update
from nanreplay.bisect.step_runner import ErrorHandler, Observer, StepRunner, repaired
from nanreplay.bisect.tensor_stats import dtype_name, is_opaque, measure
from nanreplay.capture.arrays import as_array
from nanreplay.errors import MissingPartError
from nanreplay.explore.batch_view import BatchView, Spread, spread_of, view_batch
from nanreplay.explore.step_tree import scene_at, view_of
from nanreplay.explore.step_view import StepView
from nanreplay.explore.tensor_history import TensorAtStep, tensor_over_steps
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
"""Ops that lead to a wanted one whose tensors are kept from the same run.

Going to them costs nothing.
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
        scene = self._scene(step)
        if value.serial < 0:
            # A negative serial is of what enters the step: batch, variables, constants.
            arrival = scene.walk.leaves.get(value)
            failing = None if arrival is None else arrival.mask
        else:
            failing = _failing_masks(scene, value.serial).get(value.output)
        name, tensor = self.step_view(step).name(value), self._tensor(step, value)
        return view_tensor(value, name, tensor, failing=failing, at=at)

    def array(self, step: int, value: ValueId) -> NDArray[Any]:
        """Return a tensor of a step as an array; runs what leads to it when it was not kept.

        Raises:
            MissingPartError: There is no such tensor, or it holds no numbers.
        """
        tensor = self._tensor(step, value)
        if is_opaque(tensor):
            name = self.step_view(step).name(value)
            raise MissingPartError(f"`{name}` is a {dtype_name(tensor)}: it holds no numbers.")
        return as_array(tensor)

    def _tensor(self, step: int, value: ValueId) -> Any:
        if value.serial < 0:
            tensor = self._scene(step).trace.value(value)
        else:
            event = self._event(step, value.serial)
            tensor = None if event is None else _output(event, value.output)
        if tensor is None:
            name = self.step_view(step).name(value)
            raise MissingPartError(f"Nothing is known of the values of `{name}` in step {step}.")
        return tensor

    def over_steps(
        self, step: int, value: ValueId, at: Index = (), steps: Sequence[int] | None = None
    ) -> Iterator[TensorAtStep]:
        """Yield a tensor of a step as it is in the steps of the window up to that one.

        Args:
            step: The step.
            value: The tensor.
            at: The element that is followed.
            steps: Which steps; the last 64 of the window unless given.

        Raises:
            MissingPartError: It cannot be followed.
        """
        yield from tensor_over_steps(self._runner, self._scene(step).trace, value, at, steps)

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
        values = []
        for tensor, source in pairs:
            values.append(_readable_value(scene, tensor, source))
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
            others = []
            for other in self._runner.steps:
                if other != step:
                    others.append(self._runner.batch(other).leaves)
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
            # A scene holds tensors of its step; a view without its scene could answer nothing.
            old, _ = self._scenes.popitem(last=False)
            self._views.pop(old, None)
            self._events.pop(old, None)
        return self._scenes[step]

    def holds(self, step: int, value: ValueId) -> bool:
        """Whether a tensor of a step that was viewed is known without a run."""
        if not self.was_viewed(step):
            return False
        return value.serial < 0 or self._held(self._scenes[step], step, value.serial) is not None

    def was_viewed(self, step: int) -> bool:
        """Whether `step_view` was asked for a step, and remembers the answer."""
        return step in self._views and step in self._scenes

    def has_run(self, step: int) -> bool:
        """Whether `step_view` shows a step without a run of its own."""
        if step in self._scenes:
            return True
        search = None if self._bisection is None else self._bisection.search
        return search is not None and any(scene.step == step for scene in search.scenes)

    def _held(self, scene: Scene, step: int, serial: int) -> OpEvent | None:
        """The execution with its tensors, where the run of the step left it in memory."""
        fact = scene.trace.facts.get(serial)
        if fact is None:
            return None
        # Of an update, what is held besides `event` has handles alone for outputs.
        recent = None if is_update(fact.type) else scene.trace.recent.get(serial)
        return fact.event or recent or self._events.get(step, {}).get(serial)

    def _event(self, step: int, serial: int) -> OpEvent | None:
        """The execution with its tensors: kept by the trace, or caught in one more run."""
        scene = self._scene(step)
        fact = scene.trace.facts.get(serial)
        if fact is None:
            return None
        event = self._held(scene, step, serial)
        if event is None:
            # What leads to an op is a part of the step; to run all of the step always works.
            caught = _catch_ancestors(self._runner, scene, fact)
            if serial not in caught:
                caught = _catch(self._runner, step, serial)
            self._events[step] = caught
            event = caught.get(serial)
        return event


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


def _catch_ancestors(runner: StepRunner, scene: Scene, fact: Fact) -> dict[int, OpEvent]:
    """Run only what leads to an op, and return its execution and those before it, by serial.

    Serials are those of the whole run. Empty for an op that gives nothing to fetch, and where the
    short run gave other values: a random op of TensorFlow's may draw the next number of a sequence
    that ops beside the way take part in.
    """
    if is_update(fact.type) or not fact.outputs:
        return {}
    # A loop or a call runs as a whole: nothing inside of it can be fetched by name.
    fetched = f"{fact.calls[0].op if fact.calls else fact.name}:0"
    serials = {}
    for known in scene.trace.facts.values():
        serials[(known.calls, known.key)] = known.serial
    events: dict[int, OpEvent] = {}

    def observe(event: OpEvent) -> None:
        serial = serials.get((event.calls, (event.function, event.name)))
        if serial is None or not fact.serial - _AROUND <= serial <= fact.serial:
            return
        # The short run counts its ops anew; everybody else knows them by the serials of the whole
        # run.
        whole = scene.trace.facts[serial]
        events[serial] = replace(event, serial=serial, input_ids=whole.input_ids, via=whole.via)
        _let_go(events, fact.serial)
        if serial == fact.serial:
            raise _EnoughSeenError

    with contextlib.suppress(_EnoughSeenError):
        runner.run(scene.step, observe, on_error=_repair(runner), fetches=[fetched], update=False)
    caught = events.get(fact.serial)
    if caught is None or tuple(map(measure, caught.outputs)) != fact.outputs:
        return {}
    return events


def _let_go(events: dict[int, OpEvent], serial: int) -> None:
    """Keep as many executions before one as there is room for, the nearest."""
    sizes = {}
    for each, event in events.items():
        sizes[each] = sum(map(_size_in_bytes, event.outputs))
    total = sum(sizes.values())
    for each in sorted(sizes):
        if total <= _MOST_BYTES or each == serial:
            return
        total -= sizes[each]
        del events[each]


def _repair(runner: StepRunner) -> ErrorHandler:
    """Return a handler of kernels that raise: the run goes on as bisecting went on, or ends."""

    def repair(event: OpEvent) -> Sequence[Any]:
        outputs = repaired(event, runner.execute)
        if outputs is None:
            raise _EnoughSeenError
        return outputs

    return repair


def _catch(runner: StepRunner, step: int, serial: int) -> dict[int, OpEvent]:
    """Run a whole step op by op up to an op, and return its execution by its serial."""
    events: dict[int, OpEvent] = {}

    def observe(event: OpEvent) -> None:
        if event.serial == serial:
            events[serial] = with_updated(runner, event) if is_update(event.type) else event
            raise _EnoughSeenError

    # What is fetched decides the order in which ops run: the same as for the trace.
    fetches = judged_tensors(runner, step)
    with contextlib.suppress(_EnoughSeenError):
        runner.run(step, observe, on_error=_repair(runner), fetches=fetches, update=True)
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
