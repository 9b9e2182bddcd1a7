"""What is kept of each step: the plan, which follows the pace of the training, and the keyframes that are due."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from nanreplay.program.fingerprint import read_variable
from nanreplay.program.python_effects import AssignmentWatch
from nanreplay.recorder.pace import LONGEST, Pace, time_copy
from nanreplay.recorder.ring import (
    USUAL_EVERY,
    Needs,
    Ring,
    StepEntry,
    every_for,
    least_every_for,
    make_plan,
    shortfall,
    size_of,
)
from nanreplay.recorder.settings import Settings
from nanreplay.recorder.variable_table import VariableTable

REPLAN_AFTER = 8
"""Steps after which the plan is made again, from newer times and sizes."""


class Keeper:
    """Fills the ring.

    Args:
        settings: What the recorder was asked to do.
        variables: The variables of the recording.
        to_host: Moves a keyframe off its device while training goes on.
    """

    def __init__(
        self,
        settings: Settings,
        variables: VariableTable,
        to_host: Callable[[dict[int, Any]], None],
    ) -> None:
        self._settings = settings
        self._variables = variables
        self._to_host = to_host
        self._pace = Pace()
        self._due = True
        self._last = 0
        self._passing: int | None = None
        self._unusual = True
        self._copy_s = 0.0
        self._planned_at = 0
        self._batch_bytes = 0
        self._state_bytes = 0
        self._largest = 0
        self._known = -1
        self.assignments = AssignmentWatch(variables.index)
        """What is set between the steps."""
        self.shrunk: str | None = None
        """A sentence when less than was asked for is kept; it goes into the capture."""
        self.reserved_bytes = 0
        """What the timeline takes of the memory limit."""
        self.device_lag = 0
        """Steps that may run before a step's numbers have been read."""
        self.soft_lag = LONGEST - 1
        """Steps that may run, beside these, before a step's variables have been looked at."""

    def request_keyframe(self) -> None:
        """Something outside the step may have changed the state: copy it before the next step."""
        self._due = True
        self._pace.pause()

    def begin(self, ring: Ring | None, entry: StepEntry, *, every_step: bool) -> tuple[Ring, bool]:
        """Keep the batch of a step that is about to run, and the state when a keyframe is due.

        Args:
            ring: What is held; None before the first step.
            entry: The step.
            every_step: Keep the state before this step until the next one, whatever the plan says.

        Returns:
            The ring, and whether the plan's keyframe was taken.
        """
        now_s = time.perf_counter()
        if not every_step and not self.assignments.is_on:
            self.assignments.start()
        ring = self._planned(ring, entry, every_step)
        due = self._due or entry.step - self._last >= ring.plan.keyframe_every
        if self._passing is not None:
            ring.keyframes.pop(self._passing, None)
            self._passing = None
        if ring.plan.keyframe_every and (due or every_step):
            self._take(ring, entry, passing=not due)
        self._pace.begin(entry.step, now_s=now_s, with_keyframe=due, is_usual=not self._unusual)
        self._unusual = False
        before = ring.batch_bytes
        ring.add(entry)
        self._batch_bytes = max(
            self._batch_bytes - self._batch_bytes // 64, ring.batch_bytes - before
        )
        if (changed := self.assignments.take()) and not (due and entry.step in ring.keyframes):
            ring.override(
                {index: read_variable(self._variables.handles[index]) for index in changed}
            )
        self._fit(ring)
        return ring, due

    def hold(self, ring: Ring, entry: StepEntry, fed: Sequence[Any]) -> None:
        """Keep outputs of the step that has run, with its batch."""
        before = ring.batch_bytes
        ring.hold(entry, fed)
        self._batch_bytes = max(
            self._batch_bytes, size_of(entry.leaves) + ring.batch_bytes - before
        )
        self._fit(ring)

    def learn_batch(self, ring: Ring, size_bytes: int) -> None:
        """A step has fetched a batch of this size by itself."""
        self._batch_bytes = max(self._batch_bytes - self._batch_bytes // 64, size_bytes)
        self._fit(ring)

    @property
    def step_s(self) -> float | None:
        """Time of a step; None while it is not known."""
        return self._pace.step_s

    def _fit(self, ring: Ring) -> None:
        if ring.keyframes and not ring.make_room(self._state_bytes, self._limit, keyframe=False):
            self._due = True

    def _take(self, ring: Ring, entry: StepEntry, *, passing: bool) -> None:
        if not ring.make_room(
            self._state_bytes, self._limit - size_of(entry.leaves), keyframe=True
        ):
            return
        values = self.read_state()
        ring.add_keyframe(entry.step, values)
        if self.device_lag:
            self._to_host(values)
        if passing:
            self._passing = entry.step
        else:
            self._due, self._last = False, entry.step

    def read_state(self) -> dict[int, Any]:
        """All variables by index; the tensors share the variables' buffers, and TensorFlow copies on the next write."""
        return {
            index: read_variable(handle) for index, handle in enumerate(self._variables.handles)
        }

    @property
    def _limit(self) -> int:
        return self._settings.memory_limit - self.reserved_bytes

    def _planned(self, ring: Ring | None, entry: StepEntry, every_step: bool) -> Ring:
        """The ring with a plan that fits the present sizes and times."""
        if len(self._variables.infos) != self._known:
            self._learn_variables()
        elif ring is not None and entry.step - self._planned_at < REPLAN_AFTER:
            return ring
        self._planned_at = entry.step
        if ring is None:
            self._batch_bytes = size_of(entry.leaves)
        needs = Needs(
            window=self._settings.window,
            every=self._wanted_every(),
            limit=self._spared(self._limit - every_step * self._state_bytes),
            state_bytes=self._state_bytes,
            batch_bytes=self._batch_bytes,
            lag=self.device_lag,
            soft_lag=self.soft_lag,
            least_every=self._least_every(),
        )
        plan = make_plan(needs)
        self._say(
            shortfall(needs, plan, self._settings.memory_limit, self._share(plan.keyframe_every))
        )
        if ring is None:
            return Ring(plan)
        if ring.plan.keyframe_every and not plan.keyframe_every:
            ring.keyframes.clear()
        ring.plan = plan
        return ring

    def _spared(self, limit: int) -> int:
        """What is left of `limit` beside the next batch, which is there before the oldest one goes, and two gaps as large as a variable.

        TensorFlow's allocator returns no memory to the system, and what others need between large pieces leaves such gaps.
        """
        spare = self._batch_bytes + 2 * self._largest
        return (
            limit - spare if limit - spare >= self._state_bytes + 2 * self._batch_bytes else limit
        )

    def _learn_variables(self) -> None:
        """Variables were added: the state is larger, and the step that follows was traced just now."""
        sizes = self._variables.sizes
        self._known, self._state_bytes, self._unusual = len(sizes), sum(sizes), True
        self._largest = max(sizes, default=0)
        self._copy_s = (
            time_copy(self._variables.handles, sizes)
            if self._settings.keyframe_every is None
            else 0.0
        )

    def _wanted_every(self) -> int:
        """Steps between keyframes: as given, or as many as bring their cost to half a hundredth of the steps."""
        if self._settings.keyframe_every is not None:
            return self._settings.keyframe_every
        step_s = self._pace.step_s
        if step_s is None:
            return min(USUAL_EVERY, self._settings.window)
        return every_for(self._pace.keyframe_s(self._copy_s), step_s, self._settings.window)

    def _least_every(self) -> int:
        """The interval that costs half a hundredth of the steps; 0 where it was given, or is not known yet."""
        step_s = self._pace.step_s
        if self._settings.keyframe_every is not None or step_s is None:
            return 0
        return least_every_for(self._pace.keyframe_s(self._copy_s), step_s)

    def _share(self, every: int) -> float | None:
        """What keyframes add to the time of the steps, where that was left to the recorder and is known."""
        step_s = self._pace.step_s
        if not every or step_s is None or self._settings.keyframe_every is not None:
            return None
        return self._pace.keyframe_s(self._copy_s) / (every * step_s)

    def _say(self, shrunk: str | None) -> None:
        """Warn once; the capture says what held at the end."""
        if shrunk and not self.shrunk:
            warnings.warn(f"nanreplay: {shrunk}", stacklevel=2)
        self.shrunk = shrunk or self.shrunk
