"""`Explorer`: what a front end asks for a step, a tensor or a batch. One thread at a time may use it."""

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
_SCENES_KEPT = 3
_AROUND = 40
"""Ops before and after a wanted one whose tensors are kept from the same run: stepping to them costs nothing."""
_KEPT_BYTES = 64 * 2**20


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
        tick: Called with the number of ops run, at every op of a run; what it raises ends the run and passes through.
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
        self._runner = runner if tick is None else cast("StepRunner", _Ticking(runner, tick))
        self._bisection = bisection
        self._origin = (
            bisection.findings.origin if origin is None and bisection is not None else origin
        )
        self._scenes: OrderedDict[int, Scene] = OrderedDict()
        self._views: dict[int, StepView] = {}
        self._events: dict[int, dict[int, OpEvent]] = {}
        self._spread: tuple[int, Spread] | None = None

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
            tensor = (
                event.outputs[value.output]
                if event is not None and value.output < len(event.outputs)
                else None
            )
            failing = self._failing(scene, value.serial).get(value.output)
        if tensor is None:
            raise MissingPartError(
                f"Nothing is known of the values of `{view.name(value)}` in step {step}."
            )
        return view_tensor(value, view.name(value), tensor, failing=failing, at=at)

    def operands(self, step: int, value: ValueId, index: Index) -> tuple[OperandElement, ...]:
        """Return the inputs of the op that made a tensor, at what one of its elements was computed from."""
        event = self._event(step, value.serial) if value.serial >= 0 else None
        if (
            event is None
            or value.output >= len(event.outputs)
            or is_opaque(event.outputs[value.output])
        ):
            return ()
        if is_update(event.type) or (event.error is not None and not event.outputs):
            return ()
        scene, view = self._scene(step), self.step_view(step)
        held = [
            self._held(scene, tensor, source)
            for tensor, source in zip(event.inputs, event.input_ids, strict=True)
        ]
        names = [view.name(source) for source in event.input_ids]
        return tuple(operands_at(event, value.output, index, names, held, self._runner.execute))

    def batch(self, step: int, row: int | None = None, around: int = 2) -> BatchView:
        """Return the batch of a step beside the other batches of the window; nothing is run for it.

        Args:
            step: The step.
            row: The sample to show; the first of those to blame unless given.
            around: How many samples before and after it are shown.
        """
        record, origin = self._runner.batch(step), self._origin
        if self._spread is None or self._spread[0] != step:
            others = [
                self._runner.batch(other).leaves for other in self._runner.steps if other != step
            ]
            self._spread = step, spread_of(record.leaves, record.paths, others)
        known = origin is not None and origin.step == step
        rows, reason = (
            (origin.rows, origin.rows_reason) if origin is not None and known else (None, None)
        )
        return view_batch(
            step,
            record.leaves,
            record.paths,
            self._spread[1],
            rows=rows,
            reason=reason,
            row=row,
            around=around,
        )

    def _scene(self, step: int) -> Scene:
        if step not in self._scenes:
            self._scenes[step] = scene_at(self._runner, step, self._bisection)
        self._scenes.move_to_end(step)
        while len(self._scenes) > _SCENES_KEPT:
            old, _ = self._scenes.popitem(last=False)
            self._views.pop(old, None)
            self._events.pop(old, None)
        return self._scenes[step]

    def _failing(self, scene: Scene, serial: int) -> Mapping[int, Any]:
        """Failing elements of an op: of an origin those that it made."""
        for suspect in scene.judgement.suspects:
            if suspect.fact is not None and suspect.fact.serial == serial:
                return suspect.masks
        return scene.walk.failing.get(serial, {})

    def _held(self, scene: Scene, tensor: Any, value: ValueId) -> Any:
        if not is_opaque(tensor):
            return tensor
        return (
            scene.trace.value(value)
            if dtype_name(tensor) == "resource" and value.serial < 0
            else None
        )

    def _event(self, step: int, serial: int) -> OpEvent | None:
        """The execution with its tensors: kept by the trace, caught before, or caught in one more run."""
        fact = self._scene(step).trace.facts.get(serial)
        if fact is None:
            return None
        if fact.event is not None:
            return fact.event
        caught = self._events.setdefault(step, {})
        if serial not in caught:
            caught.clear()
            caught.update(catch(self._runner, step, serial))
        return caught.get(serial)


def catch(runner: StepRunner, step: int, serial: int) -> dict[int, OpEvent]:
    """Run a step op by op up to an op, and a little further, and return its execution and those around it, by serial."""
    found: dict[int, OpEvent] = {}
    size = 0

    def see(event: OpEvent) -> None:
        nonlocal size
        if event.serial > serial and (event.serial > serial + _AROUND or size > _KEPT_BYTES):
            raise _EnoughSeenError
        if abs(event.serial - serial) <= _AROUND:
            kept = with_updated(runner, event) if is_update(event.type) else event
            size += sum(_bytes(tensor) for tensor in kept.outputs)
            found[event.serial] = kept
            if size > _KEPT_BYTES:
                for other in [other for other in found if other < serial]:
                    del found[other]

    def repair(event: OpEvent) -> Sequence[Any]:
        outputs = repaired(event, runner.execute)
        if outputs is None:
            raise _EnoughSeenError
        return outputs

    with contextlib.suppress(_EnoughSeenError):
        runner.run(step, see, on_error=repair, fetches=watched(runner.signature(step)), update=True)
    return found


class _EnoughSeenError(Exception):
    """Ends a run that has shown what it was run for."""


class _Ticking:
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
        done = 0

        def see(event: OpEvent) -> Sequence[Any] | None:
            nonlocal done
            done += 1
            self._tick(done)
            return observer(event) if observer is not None else None

        return self._inner.run(
            step, see, batch=batch, on_error=on_error, fetches=fetches, update=update
        )


def _bytes(tensor: Any) -> int:
    return 0 if is_opaque(tensor) else int(np.prod(tensor.shape, dtype=np.int64)) * 8
