"""Where the first non-finite value is born once a fix is made.

An epsilon may keep one op finite, and the next one fails. The step that fails with the fix is run
op by op, as the recorded one was, and walked back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import tensorflow as tf

from nanreplay.bisect import locate
from nanreplay.errors import NanreplayError
from nanreplay.findings import Origin
from nanreplay.records import ArrayLike, BatchRecord, Frame, Incident, OpInfo, Signature
from nanreplay.replay import StepResult
from nanreplay.replay.interpreter import ErrorHandler, Observer
from nanreplay.replay.kernels import run_kernel
from nanreplay.replay.matrix_changes import MatrixChange
from nanreplay.replay.provenance import FeedKind, OpEvent
from nanreplay.replay.replay_programs import Program
from nanreplay.replay.replay_state import LiveState
from nanreplay.whatif.edits import Edit
from nanreplay.whatif.trial_window import TrialWindow
from nanreplay.whatif.window_run import TrialOutcome


def moved_origin(
    window: TrialWindow, edit: Edit, outcome: TrialOutcome, recorded: Origin | None
) -> Origin | None:
    """Return the origin of a window that fails with a fix, None where it is the recorded one.

    Of a window that is finite, and of which a step after it fails, the origin in that step. None
    too where it cannot be told, as where only the compiled step fails.

    Args:
        window: The steps.
        edit: The fix.
        outcome: What running the window with the fix gave.
        recorded: The origin of the recording.
    """
    failed, before = outcome.failed, outcome.before_failure
    if failed is None and outcome.before_later is not None:
        failed, before = outcome.later[-1], outcome.before_later
    if failed is None or before is None:
        return None
    try:
        origins = locate(_ChangedStep(window, edit, failed, before))
    except (NanreplayError, tf.errors.OpError, ValueError, TypeError, KeyError, IndexError):
        return None  # it fails all the same; where, is not known
    if not origins or origins[0].op_type is None or _is_same(origins[0], recorded):
        return None
    return origins[0]


def _is_same(origin: Origin, other: Origin | None) -> bool:
    if other is None:
        return False
    places = [(one.op_name, one.loop, one.step) for one in (origin, other)]
    return places[0] == places[1]


class _ChangedStep:
    """The step that fails with a fix, as bisecting asks for it."""

    def __init__(
        self, window: TrialWindow, edit: Edit, failed: StepResult, before: Mapping[int, Any]
    ) -> None:
        self._replay = replay = window.replay
        self._step, self._state = failed.step, before
        self._program: Program = window.changed_program(edit, self._step)
        # a fix of a line leaves the batch as it is
        self._batch = replace(replay.batch(self._step), overrides={})
        self._live = LiveState(replay.variables)
        self.steps = (self._step,)
        self.variables = replay.variables
        trigger = failed.nonfinite or replay.incident.trigger
        self.incident: Incident = replace(replay.incident, step=self._step, trigger=trigger)

    def signature(self, step: int) -> Signature:
        return self._program.signature

    def ops(self, step: int) -> Mapping[tuple[str, str], OpInfo]:
        return self._program.infos

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
        self._live.assign(self._state)
        return self._program.run_ops(
            self._batch.arrays if batch is None else batch,
            self._live.variables,
            fetches=fetches or (),
            update=update,
            observer=observer,
            on_error=on_error,
        )

    def execute(self, event: OpEvent, inputs: Sequence[Any]) -> Sequence[Any]:
        return run_kernel(event.type, event.attrs, inputs)

    def batch(self, step: int) -> BatchRecord:
        return self._batch

    def constants(self, step: int) -> Sequence[ArrayLike]:
        return self._program.record.constants

    def feed_names(self, step: int) -> Sequence[tuple[FeedKind, int]]:
        return self._program.feed_names

    def state(self, step: int) -> Mapping[int, ArrayLike]:
        return self._state

    def change(self, step: int) -> MatrixChange:
        raise NanreplayError("Only the step that fails is looked at.")

    def source(self, stack: int) -> Frame | None:
        return self._replay.source(stack)

    def inputs_of(self, step: int) -> Mapping[str, Sequence[str]]:
        return self._program.inputs_of

    def probe(self, step: int) -> Mapping[str, tuple[bool, bool]]:
        raise NanreplayError("Only ops that run one by one are looked at.")

    def compiled_event(self, step: int, op: str, *, one_by_one: bool = False) -> OpEvent | None:
        raise NanreplayError("Only ops that run one by one are looked at.")
