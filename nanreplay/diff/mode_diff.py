"""Telling two modes of replaying one capture apart, for `nanreplay diff --modes`.

Each mode runs all steps of the capture. The step at which they part is the first whose fingerprints
differ; the op is named where the verdict's comparisons can tell it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nanreplay.capture import Capture
from nanreplay.diagnose.mode_differences import compiled_difference, float64_difference
from nanreplay.diff.diff_findings import Diff, PartingOp, Value, sentence_of
from nanreplay.errors import MissingPartError, ReplayError, UnsupportedOpError
from nanreplay.findings import DifferingOp
from nanreplay.replay import Replay, StepResult
from nanreplay.replay.replay_programs import Mode


def diff_modes(
    path: str | os.PathLike[str], left: Mode, right: Mode, *, trust: bool = False
) -> Diff:
    """Say at which step, and at which op, two modes of replaying a capture part.

    Use it to learn whether a failure depends on the compiler ("recorded" against "ops") or on
    precision ("ops" against "float64").

    ```python
    print(diff_modes("run.h5", "recorded", "ops").sentence)
    ```

    Args:
        path: The capture.
        left: "recorded", "graph", "ops" or "float64".
        right: Another.
        trust: Let its program reach files, the network or processes. Only for captures of your own.

    Raises:
        CaptureError: The file cannot be read.
        ReplayError: No step can be replayed.
        UnsafeProgramError: The program reaches beyond tensors.
        UnsupportedOpError: The program holds an op that cannot be replayed.
    """
    with Capture(path) as capture, Replay(capture, trust=trust) as replay:
        if not replay.steps:
            raise ReplayError(f"{capture.path}: no recorded step can be replayed.")
        runs = _ModeRun.of(replay, left), _ModeRun.of(replay, right)
        diff = Diff(left, right, same=None, sentence="", steps=(replay.steps[0], replay.steps[-1]))
        is_known = False
        parted = _parted_step(*runs)
        if parted is not None:
            diff = _with_op(replace(diff, step=parted[0], values=parted[1]), replay)
        elif runs[0].error or runs[1].error:
            diff = _with_errors(diff, replay, *runs)
        else:
            is_known = all(run.is_compared for run in runs)
        same = True if is_known else None
        if diff.step is not None:
            same = False
        diff = replace(diff, same=same, notes=(*diff.notes, *dict.fromkeys(replay.notes)))
        return replace(diff, sentence=sentence_of(diff))


@dataclass(frozen=True, slots=True)
class _ModeRun:
    """The steps of a capture in one mode."""

    mode: Mode
    results: Sequence[StepResult]
    error: str | None
    """What the step after them raised, or None."""

    @property
    def is_compared(self) -> bool:
        """Whether each step has a fingerprint of the recording that it was compared with."""
        return all(result.bit_exact is not None for result in self.results)

    @staticmethod
    def of(replay: Replay, mode: Mode) -> _ModeRun:
        """Run all steps, up to one that raises."""
        steps_done = 0

        def progress(done: int, of: int) -> None:
            nonlocal steps_done
            steps_done += 1

        try:
            results = replay.run_window(mode, progress=progress)
            raised = results[-1].exception
            if raised is not None:
                return _ModeRun(mode, results[:-1], f"It raised {raised.name}: {raised.value}")
            return _ModeRun(mode, results, None)
        except ReplayError as error:
            if not steps_done:
                return _ModeRun(mode, [], str(error))
            # The results were lost with the exception, so the steps before it run again.
            last = replay.steps[steps_done - 1]
            return _ModeRun(mode, replay.run_window(mode, last=last), str(error))


def _parted_step(left: _ModeRun, right: _ModeRun) -> tuple[int, tuple[Value, ...]] | None:
    """The first step whose results differ, and which values do; None when none does."""
    for one, other in zip(left.results, right.results, strict=False):
        values = _values_that_differ(one, other)
        if values or one.finite != other.finite:
            return one.step, values
    return None


def _values_that_differ(left: StepResult, right: StepResult) -> tuple[Value, ...]:
    """Elements of the fingerprint that two results of one step do not share.

    A result lists only what differs from the recording. Where one side does not list an element, it
    has the recorded value, which the other side knows.
    """
    left_changes = {change.name: change for change in left.differences}
    right_changes = {change.name: change for change in right.differences}
    values = []
    for name in dict.fromkeys((*left_changes, *right_changes)):
        changes = []
        for side in (left_changes, right_changes):
            if name in side:
                changes.append(side[name])
        recorded = changes[0].recorded
        a = left_changes[name].replayed if name in left_changes else recorded
        b = right_changes[name].replayed if name in right_changes else recorded
        are_both_nan = math.isnan(a) and math.isnan(b)
        if a != b and not are_both_nan:
            values.append(Value(name, a, b, max(change.ulp for change in changes)))
    return tuple(values)


def _with_errors(diff: Diff, replay: Replay, left: _ModeRun, right: _ModeRun) -> Diff:
    """The step that raised in one mode alone, and what it raised."""
    failed = [run for run in (left, right) if run.error]
    notes = tuple(f"Mode {run.mode}: {run.error}" for run in failed)
    if len(failed) == 2 and len(left.results) == len(right.results):
        return replace(diff, notes=notes)
    steps_before = min(len(run.results) for run in failed)
    return replace(diff, step=replay.steps[steps_before], notes=notes)


def _with_op(diff: Diff, replay: Replay) -> Diff:
    """The op, where two modes can be followed op by op."""
    step = diff.step
    assert step is not None
    modes = {diff.left, diff.right}
    note = None
    try:
        if "float64" in modes:
            step = replay.incident.step if replay.incident.step in replay.steps else step
            difference = float64_difference(replay, step)
            note = (
                "In float64 all ops give other values; "
                f"the op is the first of step {step} that is finite there alone."
            )
        elif modes == {"recorded", "ops"}:
            difference = compiled_difference(replay, step)
        else:
            note = "Which op parts is told between recorded and ops, and against float64."
            return replace(diff, notes=(note,))
    except (ReplayError, UnsupportedOpError, MissingPartError) as error:
        return replace(diff, notes=(f"Which op parts is not told. {error}",))
    if difference is None:
        return replace(diff, notes=())
    op = difference.first or difference.first_nonfinite
    parting = None if op is None else _parting(op)
    return replace(diff, op=parting, notes=(note,) if note else ())


def _parting(op: DifferingOp) -> PartingOp:
    return PartingOp(
        op_type=op.op_type,
        op_name=op.op_name,
        phase=op.phase,
        layer_path=op.layer_path,
        source=None,
        shapes=None,
        difference=None,
        max_ulp=op.max_ulp,
    )
