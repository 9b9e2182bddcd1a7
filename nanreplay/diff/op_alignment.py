"""The first op that gives other values on two sides, for `capture_diff`.

Both sides run one step op by op, and their ops are lined up. Only hashes of the outputs are kept,
since the tensors of a whole step may not fit into memory; the ops that differ run once more.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from nanreplay.bisect.judge import Attribution
from nanreplay.bisect.op_trace import Fact
from nanreplay.capture.arrays import as_array
from nanreplay.diff.array_diff import compare, largest_ulp
from nanreplay.diff.diff_findings import PartingOp
from nanreplay.program.bit_hashes import hash_array
from nanreplay.records import OpInfo
from nanreplay.replay import Replay
from nanreplay.replay.provenance import OpEvent
from nanreplay.rerun.variable_match import uncounted

AlignmentKey: TypeAlias = tuple[object, ...]
"""What ops of both sides have in common: function, name and loop iterations, or type and place."""
ExecutionKey: TypeAlias = tuple[AlignmentKey, int]
"""The key, and how many executions of the same key came before."""
_NO_NUMBERS = ("resource", "variant")


def parting_op(left: Replay, right: Replay, step: int) -> PartingOp | None:
    """Return the first op of a step whose values are not the same on both sides.

    Ops come in the order of the left side. Those of one program are lined up by name. Those of two
    programs are lined up by type, layer and phase, in the order in which they run, where both have
    as many of them: of `MatMul` in layer `hidden`, forward, the first goes with the first.

    Args:
        left: Replay of the left capture.
        right: Replay of the right capture.
        step: A step that both can replay.

    Returns:
        The op; None when all values are the same.

    Raises:
        ReplayError: The step cannot be run op by op.
        UnsupportedOpError: It holds an op that cannot be replayed.
    """
    by_name = _op_names(left, step) == _op_names(right, step)
    left_run = _SideRun(left, step, by_name=by_name)
    right_run = _SideRun(right, step, by_name=by_name)
    for execution, hashes in left_run.hashes.items():
        key, _ = execution
        if left_run.totals[key] != right_run.totals[key]:
            continue  # which of them belong together is not known
        if right_run.hashes.get(execution) != hashes:
            return _described(left_run.event(execution), right_run.event(execution), right, step)
    return None


def _op_names(replay: Replay, step: int) -> set[tuple[str, str, str]]:
    return {(op.function, op.name, op.type) for op in replay.ops(step).values()}


class _SideRun:
    """One side's step, run op by op.

    Args:
        replay: The capture's replay.
        step: The step.
        by_name: Line ops up by their names; else by type, layer and phase.
    """

    def __init__(self, replay: Replay, step: int, *, by_name: bool) -> None:
        self._replay, self._step, self._by_name = replay, step, by_name
        self._infos: Mapping[tuple[str, str], OpInfo] = replay.ops(step)
        self.hashes: dict[ExecutionKey, tuple[object, ...]] = {}
        """Hashes of the outputs, in the order of the executions."""
        self.totals: Counter[AlignmentKey] = Counter()
        """How many executions each key has."""

        def note(execution: ExecutionKey, event: OpEvent) -> None:
            self.hashes[execution] = tuple(map(_hash, _arrays(event)))
            self.totals[execution[0]] += 1

        self._run(note)

    def event(self, wanted: ExecutionKey) -> OpEvent:
        """The event of one op; the step runs once more."""
        events: list[OpEvent] = []

        def note(execution: ExecutionKey, event: OpEvent) -> None:
            if execution == wanted:
                events.append(event)

        self._run(note)
        return events[0]

    def _run(self, note: Callable[[ExecutionKey, OpEvent], None]) -> None:
        counts: Counter[AlignmentKey] = Counter()

        def observe(event: OpEvent) -> None:
            info = self._infos.get((event.function, event.name))
            # Ops of the phase "watch" are the recorder's: they compute the fingerprint.
            if (info is not None and info.phase == "watch") or not _arrays(event):
                return
            key = self._key(event, info)
            note((key, counts[key]), event)
            counts[key] += 1

        self._replay.run(self._step, observe)

    def _key(self, event: OpEvent, info: OpInfo | None) -> AlignmentKey:
        if self._by_name:
            iterations = tuple((call.op, call.iteration) for call in event.calls)
            return event.function, event.name, iterations
        if info is None:
            return event.type, "", ""
        return event.type, uncounted(info.layer_path), info.phase


def _arrays(event: OpEvent) -> list[Any]:
    return [output.numpy() for output in event.outputs if output.dtype.name not in _NO_NUMBERS]


def _hash(value: Any) -> tuple[object, ...]:
    array = as_array(value)
    if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        return array.shape, hash_array(array)
    # The bytes of an object array are addresses; its texts are what counts.
    data = repr(array.tolist()).encode() if array.dtype.kind == "O" else array.tobytes()
    return array.shape, zlib.crc32(data)


def _described(left: OpEvent, right: OpEvent, replay: Replay, step: int) -> PartingOp:
    fact = Fact(
        serial=right.serial,
        function=right.function,
        name=right.name,
        type=right.type,
        calls=right.calls,
        input_ids=right.input_ids,
        via=right.via,
        outputs=(),
    )
    place = Attribution(replay.ops(step)).place(fact)
    pairs = list(zip(_arrays(left), _arrays(right), strict=False))
    left_array, right_array = pairs[0]
    for one, other in pairs:
        if _hash(one) != _hash(other):
            left_array, right_array = one, other
            break
    left_shape = tuple(map(int, np.shape(left_array)))
    right_shape = tuple(map(int, np.shape(right_array)))
    is_same_shape = left_shape == right_shape
    return PartingOp(
        op_type=right.type,
        op_name=right.name,
        phase=place.phase,
        layer_path=place.layer_path or None,
        source=replay.source(place.stack),
        shapes=(left_shape, right_shape),
        difference=compare(right.name, left_array, right_array) if is_same_shape else None,
        max_ulp=largest_ulp(left_array, right_array) if is_same_shape else None,
    )
