"""Where two ways of replaying one step part: the first op with other bits, and the first that is finite in one of them only."""

from __future__ import annotations

from typing import Any

import numpy as np

from nanreplay.bisect.attribution import Attribution
from nanreplay.bisect.trace import Fact
from nanreplay.findings import DifferingOp, ModeDifference
from nanreplay.program.fingerprint import MAX_ULP, ulp_distance
from nanreplay.program.hashes import hash_array
from nanreplay.replay.events import OpEvent
from nanreplay.replay.session import Replay
from nanreplay.tensors import as_array

_FLOATS = ("float16", "bfloat16", "float32", "float64")


def compiled_difference(replay: Replay, step: int) -> ModeDifference | None:
    """Return where a step compiled as it was trained parts from the step run op by op; None when nowhere.

    Float tensors of the main graph are compared by hashes, so inside of loops, branches and called functions nothing is
    seen. Measuring may change how XLA fuses ops, so that the step as it was trained may part from it at another op.

    Args:
        replay: The capture's replay.
        step: One of `replay.steps`.

    Raises:
        ReplayError: The step cannot be run in one of the ways.
    """
    ops: dict[str, Fact] = {}
    by_op: dict[str, Any] = {}

    def see(event: OpEvent) -> None:
        if not event.calls and not _is_watch(replay, step, event):
            for name, value in _floats(event).items():
                by_op[name], ops[name] = hash_array(value), _fact(event)

    replay.run(step, see)
    compiled = replay.compiled_hashes(step, list(by_op))
    first = next((name for name in by_op if compiled[name] != by_op[name]), None)
    parted = next((name for name in by_op if bool(compiled[name].nonfinite) != bool(by_op[name].nonfinite)), None)
    if first is None:
        return None
    size = MAX_ULP if first == parted else _size(replay, step, first)
    place = Attribution(replay.ops(step))
    return ModeDifference(
        ("ops", "recorded") if parted is not None and by_op[parted].nonfinite else ("recorded", "ops"),
        _described(place, ops[first], size),
        None if parted is None else _described(place, ops[parted], MAX_ULP),
    )


def _size(replay: Replay, step: int, tensor: str) -> int:
    """How many ulp lie between the two ways in one tensor."""
    found: list[Any] = []

    def see(event: OpEvent) -> None:
        if not event.calls:
            found.extend(value for name, value in _floats(event).items() if name == tensor)

    replay.run(step, see)
    compiled = replay.compiled_values(step, [tensor])[tensor]
    return ulp_distance(as_array(compiled), as_array(found[0]))


def float64_difference(replay: Replay, step: int) -> ModeDifference | None:
    """Return the first op of a step that is non-finite op by op and finite in float64; None when there is none.

    Args:
        replay: The capture's replay.
        step: One of `replay.steps`.

    Raises:
        ReplayError: The step cannot be run in one of the ways.
    """
    narrow, wide = _nonfinite_ops(replay, step, "ops"), _nonfinite_ops(replay, step, "float64")
    parted = next((fact for key, (fact, is_bad) in narrow.items() if is_bad and key in wide and not wide[key][1]), None)
    if parted is None:
        return None
    return ModeDifference(("ops", "float64"), None, _described(Attribution(replay.ops(step)), parted, None))


def _nonfinite_ops(replay: Replay, step: int, mode: Any) -> dict[Any, tuple[Fact, bool]]:
    """Whether each execution of an op is non-finite, in the order in which they ran."""
    found: dict[Any, tuple[Fact, bool]] = {}

    def see(event: OpEvent) -> None:
        if not _is_watch(replay, step, event):
            is_bad = any(not np.isfinite(as_array(value)).all() for value in _floats(event).values())
            found[event.function, event.name, event.calls] = _fact(event), is_bad

    watch = replay.signature(step).watch
    replay.run(step, see, fetches=[watch] if watch else None, mode=mode)  # the verdict has run these fetches: their plan is there
    return found


def _floats(event: OpEvent) -> dict[str, Any]:
    return {f"{event.name}:{k}": value for k, value in enumerate(event.outputs) if value.dtype.name in _FLOATS}


def _is_watch(replay: Replay, step: int, event: OpEvent) -> bool:
    info = replay.ops(step).get((event.function, event.name))
    return info is not None and info.phase == "watch"


def _fact(event: OpEvent) -> Fact:
    return Fact(event.serial, event.function, event.name, event.type, event.calls, event.input_ids, event.via, ())


def _described(attribution: Attribution, fact: Fact, ulp: int | None) -> DifferingOp:
    place = attribution.place(fact)
    return DifferingOp(fact.type, fact.name, place.phase, place.layer_path or None, ulp)
