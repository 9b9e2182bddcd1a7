"""What is kept of each step: the plan, which follows the pace of the training, and the keyframes.

`Recording` has one `Keeper`, and tells it before each step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from nanreplay.program.nonfinite_values import read_variable
from nanreplay.program.python_effects import AssignmentTracker
from nanreplay.recorder import notices
from nanreplay.recorder.pace import FIRST_LOOKS, LONGEST, Pace, time_copy
from nanreplay.recorder.retention_plan import (
    UNBOUNDED,
    USUAL_EVERY,
    Needs,
    Remedy,
    RetentionPlan,
    Shortage,
    ample_plan,
    every_for,
    least_every_for,
    make_plan,
    shortfall,
)
from nanreplay.recorder.ring import Ring, StepEntry, size_of
from nanreplay.recorder.room import Room
from nanreplay.recorder.settings import Settings
from nanreplay.recorder.spool import Spool, spool_folder
from nanreplay.recorder.variable_table import VariableTable

USUAL_DISK_BYTES_S = 3e8
"""How fast a disk is taken to be until a keyframe has been written."""
TABLES_BYTES = 2**17
"""What a file takes for its tables and for HDF5 itself, about."""
REPLAN_AFTER = 8
"""Steps after which the plan is made again, from newer times and sizes."""
REPLAN_S = 0.05
"""Seconds before which it is not, once the time of a step is known: short steps change little."""


class Keeper:
    """Fills the ring.

    Args:
        settings: What the recorder was asked to do.
        room: How much it may hold.
        variables: The variables of the recording.
        to_host: Moves a keyframe off its device while training goes on.
        file_bytes: What a file takes beside keyframes and batches.
    """

    def __init__(
        self,
        settings: Settings,
        room: Room,
        variables: VariableTable,
        to_host: Callable[[dict[int, Any]], None],
        file_bytes: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._room = room
        self._file_bytes = file_bytes
        self._spool: Spool | None = None
        """Where keyframes go when memory does not hold them."""
        self._cannot_spool = False
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
        self._replan_s = 0.0
        """When the plan may be made again."""
        self._batch_bytes = 0
        """Size of the largest batch of late."""
        self._state_bytes = 0
        self._largest_bytes = 0
        """Size of the largest variable."""
        self._n_known = -1
        """Variables that the sizes are of."""
        self.assignments = AssignmentTracker(variables.index)
        """What is set between the steps."""
        self.set_before: Sequence[int] = ()
        """Indices of the variables that were set just before the last step."""
        self.shrunk: str | None = None
        """A sentence when less than was asked for is kept; it goes into the capture."""
        self._known_remedy: tuple[str, Remedy] | None = None
        """Sizes of state and batch, and the limits with which more is kept."""
        self.reserved_bytes = 0
        """What the timeline takes of the memory limit."""
        self.device_lag = 0
        """Steps that may run before a step's numbers have been read."""
        self.soft_lag = LONGEST - 1
        """Steps that may run, beside these, before a step's variables have been looked at."""

    def request_keyframe(self, *, is_sure: bool = True) -> None:
        """Copy the state before the next step: something outside may have changed it.

        Args:
            is_sure: Whether it has. Else a keyframe that would take long is left until it is due.
        """
        self._is_due = self._is_due or is_sure or self._spool is None
        self._pace.pause()

    @property
    def is_spooling(self) -> bool:
        """Whether keyframes go to disk."""
        return self._spool is not None

    def release(self) -> None:
        """Let go of the spool; keyframes that somebody still holds can be read."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None

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
            # Nobody saw what was set since the last step: a `fit` had ended, say.
            self.request_keyframe()
        # As in nearly every step: the plan holds.
        if (
            ring is None
            or entry.step - self._planned_at >= REPLAN_AFTER
            or len(self._variables.infos) != self._n_known
        ):
            ring = self._planned(ring, entry, every_step, now_s)
        is_due = self._is_due or entry.step - self._last_keyframe >= ring.plan.keyframe_every
        if self._passing is not None:
            ring.keyframes.pop(self._passing, None)
            self._passing = None
        if ring.plan.keyframe_every and (is_due or every_step):
            self._take_keyframe(ring, entry, passing=not is_due)
        self._pace.begun.append((entry.step, now_s, None if self._is_unusual else is_due))
        self._is_unusual = False
        bytes_before = ring.batch_bytes
        ring.add(entry)
        self.learn_batch(ring, ring.batch_bytes - bytes_before)
        self.set_before = self.assignments.take() if self.assignments.has_news else ()
        # A keyframe has the values already.
        if self.set_before and not (is_due and entry.step in ring.keyframes):
            handles = self._variables.handles
            ring.override({index: read_variable(handles[index]) for index in self.set_before})
            self._fit(ring)
        return ring, is_due

    def hold(self, ring: Ring, entry: StepEntry, fed: Sequence[Any]) -> None:
        """Keep outputs of the step that has run, with its batch."""
        bytes_before = ring.batch_bytes
        ring.hold(entry, fed)
        fed_bytes = ring.batch_bytes - bytes_before
        self._batch_bytes = max(self._batch_bytes, size_of(entry.leaves) + fed_bytes)
        self._fit(ring)

    def learn_batch(self, ring: Ring, size_bytes: int) -> None:
        """Note the size of a batch that is held; that of a larger one fades with each step."""
        self._batch_bytes = max(self._batch_bytes - self._batch_bytes // 64, size_bytes)
        self._fit(ring)

    @property
    def step_s(self) -> float | None:
        """Time of a step; None while it is not known."""
        return self._pace.step_s

    def _fit(self, ring: Ring) -> None:
        """Keep the ring within the limit; without room, a new keyframe lets older batches go."""
        most_bytes = len(ring.keyframes) * self._state_bytes + ring.batch_bytes
        if not ring.keyframes or most_bytes <= self._room.memory_bytes - self.reserved_bytes:
            return  # as in nearly every step
        if not ring.make_room(self._held_bytes, self._limit, keyframe=False):
            self._is_due = True

    def _take_keyframe(self, ring: Ring, entry: StepEntry, *, passing: bool) -> None:
        """Keep the state before a step, if there is room; `passing` ones until the next step."""
        limit, spool = self._limit - size_of(entry.leaves), self._spool
        most = UNBOUNDED if spool is None else spool.most
        if not ring.make_room(self._held_bytes, limit, keyframe=True, most=most):
            return
        values = self.read_state() if spool is None else self._spooled_state(spool)
        if values is None:
            return
        ring.add_keyframe(entry.step, values)
        if self.device_lag and spool is None:
            self._to_host(values)
        if passing:
            self._passing = entry.step
        else:
            self._is_due, self._last_keyframe = False, entry.step

    def _spooled_state(self, spool: Spool) -> dict[int, Any] | None:
        """All variables, on disk; None where the disk fails, and then no more are tried."""
        began_s = time.perf_counter()
        handles = self._variables.handles
        values = ((index, read_variable(handle)) for index, handle in enumerate(handles))
        try:
            spooled = spool.write(values, self._state_bytes)
        except OSError as error:
            self.release()
            self._cannot_spool, self._n_known = True, -1
            self._say(
                f"keyframes can no longer be written to local disk: {error.strerror or error}."
            )
            return None
        self._copy_s = time.perf_counter() - began_s
        return spooled

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
        return self._room.memory_bytes - self.reserved_bytes

    @property
    def _held_bytes(self) -> int:
        """What a keyframe takes of memory."""
        return self._state_bytes if self._spool is None else 0

    def _planned(self, ring: Ring | None, entry: StepEntry, every_step: bool, now_s: float) -> Ring:
        """The ring with a plan that fits the present sizes and times."""
        if len(self._variables.infos) != self._n_known:
            self._learn_variables()
            self._replan_s = 0.0
        self._planned_at = entry.step
        if ring is not None and now_s < self._replan_s:
            return ring
        self._replan_s = 0.0 if self._pace.step_s is None else now_s + REPLAN_S
        held_bytes = 0
        if ring is None:
            self._batch_bytes = size_of(entry.leaves)
        else:
            held_bytes = ring.batch_bytes + len(ring.keyframes) * self._held_bytes
        # A step that may be run once more needs the state before it, beside the plan's keyframes.
        self._room.look(held_bytes, self._state_bytes, self._batch_bytes, 2 + every_step)
        was_spooling = self._spool is not None
        plan = self._plan(every_step)
        if ring is None:
            return Ring(plan)
        if (ring.plan.keyframe_every and not plan.keyframe_every) or (
            self._spool is not None and not was_spooling
        ):
            ring.keyframes.clear()
            self._is_due = True
        ring.plan = plan
        return ring

    def _plan(self, every_step: bool) -> RetentionPlan:
        """Choose what is kept, in memory or else on disk; say what is less than wanted."""
        needs = self._needs(every_step)
        plan = make_plan(needs)
        is_cramped = not plan.keyframe_every or (
            plan.window < needs.window and 2 * needs.state_bytes > needs.limit
        )
        if every_step:
            self.release()  # each step would wait for the disk
        elif self._spool is not None or is_cramped:
            plan = self._plan_on_disk(needs, plan)
        shortage = self._shortage(needs, plan, every_step)
        if shortage is not None:
            self._say(shortage.sentence(needs))
        else:
            share = self._share(plan.keyframe_every)
            text = self._room.memory_text
            self._say(shortfall(needs, plan, text, share, lambda: self._remedy(needs, every_step)))
        return plan

    def _plan_on_disk(self, needs: Needs, in_memory: RetentionPlan) -> RetentionPlan:
        """The plan with keyframes on local disk, where that is better and possible."""
        state_bytes = self._state_bytes
        places = self._room.spool_places(state_bytes, self._batch_bytes)
        if self._spool is not None:
            places = self._spool.most
        # Batches alone need memory, the next one too, and a variable that the dump reads.
        limit = self._limit - self._batch_bytes - self._largest_bytes
        if limit < 2 * self._batch_bytes:
            limit = self._limit
        on_disk = replace(needs, limit=limit, state_bytes=0, most_keyframes=places)
        plan = make_plan(on_disk)
        if self._spool is not None:
            return plan
        if (
            not places
            or self._cannot_spool
            or plan.window <= in_memory.window * bool(in_memory.keyframe_every)
        ):
            return in_memory
        folder = spool_folder(self._room.folder, places * state_bytes)
        try:
            self._spool = None if folder is None else Spool(folder, places)
        except OSError:
            self._cannot_spool = True
        if self._spool is None:
            return in_memory
        self._copy_s, self._is_unusual = state_bytes / USUAL_DISK_BYTES_S, True
        return plan

    def _shortage(self, needs: Needs, plan: RetentionPlan, every_step: bool) -> Shortage | None:
        """Why no step can be replayed; None where one can."""
        state_bytes, batch_bytes, disk = self._state_bytes, self._batch_bytes, self._disk_bytes
        has_disk = disk >= state_bytes + 2 * batch_bytes
        if plan.keyframe_every and has_disk:
            return None
        # What keeps the window cheap: with two batches, each second step would need a keyframe.
        usual_batches = 2 * (self._settings.window + FIRST_LOOKS) * batch_bytes
        batches = max(2 * batch_bytes, min(usual_batches, state_bytes))
        in_memory = (2 + every_step) * state_bytes + batches + 2 * self._largest_bytes
        on_disk = state_bytes + batches + self._file_bytes() + TABLES_BYTES
        return Shortage(
            memory=None if plan.keyframe_every else self._room.memory_text,
            least_memory=in_memory * 10 // 9,  # the timeline takes at most a tenth of it
            disk=None if has_disk else self._room.disk_text(state_bytes, batch_bytes),
            least_disk=on_disk * 10 // 9,  # and of a file
            is_disk_given=self._room.is_disk_given,
        )

    def _remedy(self, needs: Needs, every_step: bool) -> Remedy:
        """The limits with which all is kept that was asked for; asked of the machine once."""
        if self._known_remedy is None or self._known_remedy[0] != needs.sizes:
            ample = ample_plan(needs)
            kept = ample.size_bytes(needs.state_bytes, needs.batch_bytes)
            beside = needs.batch_bytes + 2 * self._largest_bytes + every_step * needs.state_bytes
            memory = (kept + beside) * 10 // 9  # the timeline takes at most a tenth of it
            # A file has gradients and weights of single steps too.
            disk = kept + 2 * needs.state_bytes + self._file_bytes() + TABLES_BYTES
            limit = self._room.disk_bytes(needs.state_bytes, needs.batch_bytes)
            remedy = Remedy(memory, disk if disk > limit else None, self._room.has(memory, disk))
            self._known_remedy = needs.sizes, remedy
        return self._known_remedy[1]

    @property
    def _disk_bytes(self) -> int:
        """What keyframes and batches may take of a file."""
        disk_bytes = self._room.disk_bytes(self._state_bytes, self._batch_bytes)
        return disk_bytes - self._file_bytes() if self._room.is_disk_given else disk_bytes

    def _needs(self, every_step: bool) -> Needs:
        """What is wanted, and what memory there is."""
        # Where a file holds no keyframe at all, what it holds of batches is all the same.
        batches_in_file = (self._disk_bytes - self._state_bytes) // max(1, self._batch_bytes)
        return Needs(
            window=self._settings.window,
            every=self._wanted_every(),
            limit=self._spared(self._limit - every_step * self._state_bytes),
            state_bytes=self._state_bytes,
            batch_bytes=self._batch_bytes,
            lag=self.device_lag,
            soft_lag=self.soft_lag,
            least_every=self._least_every(),
            most_batches=batches_in_file if batches_in_file >= 2 else UNBOUNDED,
        )

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
        self.release()  # its places are too small
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
            notices.say(shrunk)
        self.shrunk = shrunk or self.shrunk
