"""Telling two ways of replaying one capture apart."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nanreplay.bisect.judge import Attribution
from nanreplay.bisect.op_trace import Fact
from nanreplay.capture import Capture
from nanreplay.diagnose.verdict import compiled_difference, float64_difference
from nanreplay.diff.array_diff import compare, largest_ulp
from nanreplay.diff.diff_findings import Diff, PartingOp, Value, sentence_of
from nanreplay.errors import MissingPartError, ReplayError, UnsupportedOpError
from nanreplay.findings import DifferingOp
from nanreplay.program.compiled_program import hash_array
from nanreplay.records import OpInfo
from nanreplay.replay import Replay, StepResult
from nanreplay.replay.provenance import OpEvent
from nanreplay.replay.replay_programs import Mode
from nanreplay.rerun.variable_match import uncounted

# The first op that gives other values on two sides: both run one step op by op, and their ops are
# lined up.

_NO_NUMBERS = ("resource", "variant")


class _SideRun:
    """One side's step, run op by op.

    Args:
        replay: The capture's replay.
        step: The step.
        by_name: Line ops up by their names; else by type, layer and phase, in the order in which they run.
    """

    def __init__(self, replay: Replay, step: int, *, by_name: bool) -> None:
        self.replay, self.step, self._by_name = replay, step, by_name
        self._infos: Mapping[tuple[str, str], OpInfo] = replay.ops(step)
        self.hashes: dict[Hashable, tuple[Any, ...]] = {}
        self.totals: Counter[Hashable] = Counter()
        self._each(
            lambda key, event: self.hashes.__setitem__(key, tuple(map(_hash, _arrays(event))))
        )

    def _each(self, see: Any) -> None:
        counts: Counter[Hashable] = Counter()

        def observe(event: OpEvent) -> None:
            info = self._infos.get((event.function, event.name))
            if (info is not None and info.phase == "watch") or not _arrays(event):
                return
            kind = self._kind(event, info)
            see((kind, counts[kind]), event)
            counts[kind] += 1

        self.replay.run(self.step, observe)
        self.totals = counts

    def _kind(self, event: OpEvent, info: OpInfo | None) -> Hashable:
        if self._by_name:
            return (
                event.function,
                event.name,
                tuple((call.op, call.iteration) for call in event.calls),
            )
        return event.type, *(("", "") if info is None else (uncounted(info.layer_path), info.phase))

    def event(self, key: Hashable) -> OpEvent:
        """The event of one op; the step runs once more."""
        found: list[OpEvent] = []
        self._each(lambda each, event: found.append(event) if each == key else None)
        return found[0]


def parting_op(left: Replay, right: Replay, step: int) -> PartingOp | None:
    """Return the first op of a step, in the left side's order, whose values are not the right side's; None when all are.

    Ops of one program are lined up by name. Those of two programs are lined up by type, layer and phase, in the order in
    which they run, where both have as many of them.

    Args:
        left: Replay of the left capture.
        right: Replay of the right capture.
        step: A step that both can replay.

    Raises:
        ReplayError: The step cannot be run op by op.
        UnsupportedOpError: Nor can it.
    """
    by_name = _names(left, step) == _names(right, step)
    one, other = _SideRun(left, step, by_name=by_name), _SideRun(right, step, by_name=by_name)
    comparable = {kind for kind, count in one.totals.items() if other.totals[kind] == count}
    for key, hashes in one.hashes.items():
        if key[0] in comparable and other.hashes.get(key) != hashes:  # type: ignore[index]
            return _described(one.event(key), other.event(key), right, step)
    return None


def _names(replay: Replay, step: int) -> set[tuple[str, str, str]]:
    return {(op.function, op.name, op.type) for op in replay.ops(step).values()}


def _arrays(event: OpEvent) -> list[Any]:
    return [output.numpy() for output in event.outputs if output.dtype.name not in _NO_NUMBERS]


def _hash(value: Any) -> Hashable:
    array = np.asarray(value)
    if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        return array.shape, hash_array(array)
    return array.shape, zlib.crc32(
        repr(array.tolist()).encode() if array.dtype.kind == "O" else array.tobytes()
    )


def _described(left: OpEvent, right: OpEvent, replay: Replay, step: int) -> PartingOp:
    fact = Fact(
        right.serial,
        right.function,
        right.name,
        right.type,
        right.calls,
        right.input_ids,
        right.via,
        (),
    )
    place = Attribution(replay.ops(step)).place(fact)
    pairs = list(zip(_arrays(left), _arrays(right), strict=False))
    one, other = next((pair for pair in pairs if _hash(pair[0]) != _hash(pair[1])), pairs[0])
    shapes = tuple(map(int, np.shape(one))), tuple(map(int, np.shape(other)))
    alike = shapes[0] == shapes[1]
    return PartingOp(
        right.type, right.name, place.phase, place.layer_path or None, replay.source(place.stack), shapes,
        compare(right.name, one, other) if alike else None, largest_ulp(one, other) if alike else None,
    )  # fmt: skip


# --- diff.modes


def diff_modes(
    path: str | os.PathLike[str], left: Mode, right: Mode, *, trust: bool = False
) -> Diff:
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
        one, other = _ModeRun.of(replay, left), _ModeRun.of(replay, right)
        found = Diff(left, right, same=None, sentence="", steps=(replay.steps[0], replay.steps[-1]))
        pairs = zip(one.results, other.results, strict=False)
        parted = next(
            (pair for pair in pairs if pair[0].finite != pair[1].finite or _values(*pair)), None
        )
        raised = [run for run in (one, other) if run.raised]
        if parted is not None:
            found = _with_op(
                replace(found, step=parted[0].step, values=tuple(_values(*parted))),
                replay,
                left,
                right,
            )
        elif raised:
            first = min(raised, key=lambda run: len(run.results))
            notes = tuple(f"Mode {run.mode}: {run.raised}" for run in raised)
            alike = len(raised) == 2 and len(one.results) == len(other.results)
            found = replace(
                found, step=None if alike else replay.steps[len(first.results)], notes=notes
            )
        known = not raised and all(
            result.bit_exact is not None for result in (*one.results, *other.results)
        )
        same = False if found.step is not None else True if known else None
        found = replace(found, same=same, notes=(*found.notes, *dict.fromkeys(replay.notes)))
        return replace(found, sentence=sentence_of(found))


@dataclass(frozen=True, slots=True)
class _ModeRun:
    """The steps of a capture in one mode."""

    mode: Mode
    results: Sequence[StepResult]
    raised: str | None
    """What the step after them raised, or None."""

    @staticmethod
    def of(replay: Replay, mode: Mode) -> _ModeRun:
        """Run all steps, up to one that raises."""
        done: list[int] = []
        try:
            return _ModeRun(
                mode, replay.run_window(mode, progress=lambda count, of: done.append(count)), None
            )
        except ReplayError as error:
            last = replay.steps[len(done) - 1] if done else None
            return _ModeRun(
                mode, [] if last is None else replay.run_window(mode, last=last), str(error)
            )


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
            return replace(
                found,
                notes=("Which op parts is told between recorded and ops, and against float64.",),
            )
    except (ReplayError, UnsupportedOpError, MissingPartError) as error:
        return replace(found, notes=(f"Which op parts is not told. {error}",))
    op = None if difference is None else difference.first or difference.first_nonfinite
    return replace(
        found, op=None if op is None else _parting(op), notes=(said,) if said and difference else ()
    )


def _parting(op: DifferingOp) -> PartingOp:
    return PartingOp(op.op_type, op.op_name, op.phase, op.layer_path, None, None, None, op.max_ulp)
