"""Telling two ways of replaying one capture apart."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nanreplay.capture import Capture
from nanreplay.diagnose.difference import compiled_difference, float64_difference
from nanreplay.diff.findings import Diff, PartingOp, Value
from nanreplay.diff.words import sentence_of
from nanreplay.errors import MissingPartError, ReplayError, UnsupportedOpError
from nanreplay.findings import DifferingOp
from nanreplay.replay import Replay, StepResult
from nanreplay.replay.programs import Mode


def diff_modes(path: str | os.PathLike[str], left: Mode, right: Mode, *, trust: bool = False) -> Diff:
    """Say at which step, and at which op, two ways of replaying a capture part.

    Args:
        path: The capture.
        left: "recorded", "graph", "ops" or "float64".
        right: Another.
        trust: Let its program reach files, the network or processes; only for captures of your own.

    Raises:
        CaptureError: The file cannot be read.
        ReplayError: No step can be replayed.
        UnsafeProgramError: The program reaches beyond tensors.
        UnsupportedOpError: The program holds an op that cannot be replayed.
    """
    with Capture(path) as capture, Replay(capture, trust=trust) as replay:
        if not replay.steps:
            raise ReplayError(f"{capture.path}: no recorded step can be replayed.")
        one, other = _Run.of(replay, left), _Run.of(replay, right)
        found = Diff(left, right, same=None, sentence="", steps=(replay.steps[0], replay.steps[-1]))
        pairs = zip(one.results, other.results, strict=False)
        parted = next((pair for pair in pairs if pair[0].finite != pair[1].finite or _values(*pair)), None)
        raised = [run for run in (one, other) if run.raised]
        if parted is not None:
            found = _with_op(replace(found, step=parted[0].step, values=tuple(_values(*parted))), replay, left, right)
        elif raised:
            first = min(raised, key=lambda run: len(run.results))
            notes = tuple(f"Mode {run.mode}: {run.raised}" for run in raised)
            alike = len(raised) == 2 and len(one.results) == len(other.results)
            found = replace(found, step=None if alike else replay.steps[len(first.results)], notes=notes)
        known = not raised and all(result.bit_exact is not None for result in (*one.results, *other.results))
        same = False if found.step is not None else True if known else None
        found = replace(found, same=same, notes=(*found.notes, *dict.fromkeys(replay.notes)))
        return replace(found, sentence=sentence_of(found))


@dataclass(frozen=True, slots=True)
class _Run:
    """The steps of a capture in one mode."""

    mode: Mode
    results: Sequence[StepResult]
    raised: str | None
    """What the step after them raised, or None."""

    @staticmethod
    def of(replay: Replay, mode: Mode) -> _Run:
        """Run all steps, up to one that raises."""
        done: list[int] = []
        try:
            return _Run(mode, replay.run_window(mode, progress=lambda count, of: done.append(count)), None)
        except ReplayError as error:
            last = replay.steps[len(done) - 1] if done else None
            return _Run(mode, [] if last is None else replay.run_window(mode, last=last), str(error))


def _values(left: StepResult, right: StepResult) -> list[Value]:
    """What two results of one step have otherwise; each knows how it differs from the recording."""
    one = {each.name: each for each in left.differences}
    other = {each.name: each for each in right.differences}
    found = []
    for name in dict.fromkeys((*one, *other)):
        a = one[name].replayed if name in one else other[name].recorded
        b = other[name].replayed if name in other else one[name].recorded
        if a != b and not (a != a and b != b):
            ulp = max(each.ulp for each in (one.get(name), other.get(name)) if each is not None)
            found.append(Value(name, a, b, ulp))
    return found


def _with_op(found: Diff, replay: Replay, left: Mode, right: Mode) -> Diff:
    """The op, where two modes can be followed op by op."""
    step = found.step
    assert step is not None
    modes = {left, right}
    try:
        if "float64" in modes:
            step = replay.incident.step if replay.incident.step in replay.steps else step
            difference = float64_difference(replay, step)
            said = f"In float64 all ops give other values; the op is the first of step {step} that is finite there alone."
        elif modes == {"recorded", "ops"}:
            difference, said = compiled_difference(replay, step), ""
        else:
            return replace(found, notes=("Which op parts is told between recorded and ops, and against float64.",))
    except (ReplayError, UnsupportedOpError, MissingPartError) as error:
        return replace(found, notes=(f"Which op parts is not told. {error}",))
    op = None if difference is None else difference.first or difference.first_nonfinite
    return replace(found, op=None if op is None else _parting(op), notes=(said,) if said and difference else ())


def _parting(op: DifferingOp) -> PartingOp:
    return PartingOp(op.op_type, op.op_name, op.phase, op.layer_path, None, None, None, op.max_ulp)
