"""What is kept of each step: the plan, which follows the pace of the training, and the keyframes.

`Recording` has one `Keeper`, and tells it before each step.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from nanreplay.program.nonfinite_values import read_variable
from nanreplay.program.python_effects import AssignmentTracker
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
        self._is_due = True
        """Whether the next step needs a keyframe, whatever the interval."""
        self._last_keyframe = 0
        """Step of the last keyframe that the plan asked for."""
        self._passing: int | None = None
        """Step of a keyframe that is held until the next step only."""
        self._is_unusual = True
        """Whether the next step says nothing of the pace: it is traced, or compiled."""
        self._copy_s = 0.0
        """Seconds that a copy of the state takes."""
        self._planned_at = 0
        self._batch_bytes = 0
        """Size of the largest batch of late."""
        self._state_bytes = 0
        self._largest_bytes = 0
        """Size of the largest variable."""
        self._n_known = -1
        """Variables that the sizes are of."""
        self.assignments = AssignmentTracker(variables.index)
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
        """Copy the state before the next step: something outside may have changed it."""
        self._is_due = True
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
        is_due = self._is_due or entry.step - self._last_keyframe >= ring.plan.keyframe_every
        if self._passing is not None:
            ring.keyframes.pop(self._passing, None)
            self._passing = None
        if ring.plan.keyframe_every and (is_due or every_step):
            self._take_keyframe(ring, entry, passing=not is_due)
        is_usual = not self._is_unusual
        self._pace.begin(entry.step, now_s=now_s, with_keyframe=is_due, is_usual=is_usual)
        self._is_unusual = False
        bytes_before = ring.batch_bytes
        ring.add(entry)
        self._learn_size(ring.batch_bytes - bytes_before)
        changed = self.assignments.take()
        # A keyframe has the values already.
        if changed and not (is_due and entry.step in ring.keyframes):
            handles = self._variables.handles
            ring.override({index: read_variable(handles[index]) for index in changed})
        self._fit(ring)
        return ring, is_due

    def _learn_size(self, batch_bytes: int) -> None:
        """Note the size of a batch; that of a larger one before counts less with each step."""
        faded = self._batch_bytes - self._batch_bytes // 64
        self._batch_bytes = max(faded, batch_bytes)

    def hold(self, ring: Ring, entry: StepEntry, fed: Sequence[Any]) -> None:
        """Keep outputs of the step that has run, with its batch."""
        bytes_before = ring.batch_bytes
        ring.hold(entry, fed)
        fed_bytes = ring.batch_bytes - bytes_before
        self._batch_bytes = max(self._batch_bytes, size_of(entry.leaves) + fed_bytes)
        self._fit(ring)

    def learn_batch(self, ring: Ring, size_bytes: int) -> None:
        """A step has fetched a batch of this size by itself."""
        self._learn_size(size_bytes)
        self._fit(ring)

    @property
    def step_s(self) -> float | None:
        """Time of a step; None while it is not known."""
        return self._pace.step_s

    def _fit(self, ring: Ring) -> None:
        """Keep the ring within the limit; without room, a new keyframe lets older batches go."""
        if ring.keyframes and not ring.make_room(self._state_bytes, self._limit, keyframe=False):
            self._is_due = True

    def _take_keyframe(self, ring: Ring, entry: StepEntry, *, passing: bool) -> None:
        """Keep the state before a step, if there is room; `passing` ones until the next step."""
        limit = self._limit - size_of(entry.leaves)
        if not ring.make_room(self._state_bytes, limit, keyframe=True):
            return
        values = self.read_state()
        ring.add_keyframe(entry.step, values)
        if self.device_lag:
            self._to_host(values)
        if passing:
            self._passing = entry.step
        else:
            self._is_due, self._last_keyframe = False, entry.step

    def read_state(self) -> dict[int, Any]:
        """All variables by index.

        The tensors share the variables' buffers: TensorFlow copies a buffer that somebody else
        holds when it next writes to the variable.
        """
        handles = self._variables.handles
        return {index: read_variable(handle) for index, handle in enumerate(handles)}

    # Planning

    @property
    def _limit(self) -> int:
        return self._settings.memory_limit - self.reserved_bytes

    def _planned(self, ring: Ring | None, entry: StepEntry, every_step: bool) -> Ring:
        """The ring with a plan that fits the present sizes and times."""
        if len(self._variables.infos) != self._n_known:
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
        share = self._share(plan.keyframe_every)
        self._say(shortfall(needs, plan, self._settings.memory_limit, share))
        if ring is None:
            return Ring(plan)
        if ring.plan.keyframe_every and not plan.keyframe_every:
            ring.keyframes.clear()
        ring.plan = plan
        return ring

    def _spared(self, limit: int) -> int:
        """What is left of `limit` beside the next batch and two gaps as large as a variable.

        The next batch is there before the oldest one goes. TensorFlow's allocator returns no memory
        to the system, and what others need between large pieces leaves such gaps. Where that leaves
        too little for a keyframe and two batches, nothing is spared.
        """
        spared = limit - self._batch_bytes - 2 * self._largest_bytes
        return spared if spared >= self._state_bytes + 2 * self._batch_bytes else limit

    def _learn_variables(self) -> None:
        """Variables were added: the state is larger, and the next step was traced just now."""
        sizes = self._variables.sizes
        self._n_known, self._state_bytes, self._is_unusual = len(sizes), sum(sizes), True
        self._largest_bytes = max(sizes, default=0)
        self._copy_s = 0.0
        if self._settings.keyframe_every is None:
            self._copy_s = time_copy(self._variables.handles, sizes)

    def _wanted_every(self) -> int:
        """Steps between keyframes: as given, or as many as bring their cost down to `SHARE`."""
        if self._settings.keyframe_every is not None:
            return self._settings.keyframe_every
        step_s = self._pace.step_s
        if step_s is None:
            return min(USUAL_EVERY, self._settings.window)
        return every_for(self._pace.keyframe_s(self._copy_s), step_s, self._settings.window)

    def _least_every(self) -> int:
        """The interval whose cost is `SHARE`; 0 where one was given, or it is not known yet."""
        step_s = self._pace.step_s
        if self._settings.keyframe_every is not None or step_s is None:
            return 0
        return least_every_for(self._pace.keyframe_s(self._copy_s), step_s)

    def _share(self, every: int) -> float | None:
        """What keyframes add to the time of steps; None where that was given, or is unknown."""
        step_s = self._pace.step_s
        if not every or step_s is None or self._settings.keyframe_every is not None:
            return None
        return self._pace.keyframe_s(self._copy_s) / (every * step_s)

    def _say(self, shrunk: str | None) -> None:
        """Warn once; the capture says what held at the end."""
        if shrunk and not self.shrunk:
            warnings.warn(f"nanreplay: {shrunk}", stacklevel=2)
        self.shrunk = shrunk or self.shrunk
