"""Where two ways of replaying one step part.

That is the first op with other bits, and the first that is finite in one of them only. Ops that the
recorder added for the fingerprint are left out. `verdict` asks where modes disagree; `diff` does,
too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from nanreplay.bisect.judge import Attribution
from nanreplay.bisect.op_trace import Fact, StepTrace, fact_of, is_update
from nanreplay.capture.arrays import as_array
from nanreplay.findings import DifferingOp, ModeDifference
from nanreplay.program.bit_hashes import hash_array
from nanreplay.program.fingerprint import MAX_ULP, ulp_distance
from nanreplay.replay.provenance import OpEvent
from nanreplay.replay.session import Replay

_COMPARED = ("float16", "bfloat16", "float32", "float64")
"""Dtypes that are compared."""


def compiled_difference(replay: Replay, step: int) -> ModeDifference | None:
    """Return where a step compiled as it was trained parts from the step run op by op.

    Float tensors of the main graph are compared by hashes, so inside of loops, branches and
    called functions nothing is seen. Measuring may change how XLA fuses ops, so that the step as
    it was trained may part from it at another op.

    Args:
        replay: The capture's replay.
        step: One of `replay.steps`.

    Returns:
        The first differing ops; None when nothing differs.

    Raises:
        ReplayError: The step cannot be run in one of the ways.
    """
    ops: dict[str, Fact] = {}
    hashes: dict[str, Any] = {}

    def see(event: OpEvent) -> None:
        if not event.calls and not _is_for_fingerprint(replay, step, event):
            for name, value in _compared_outputs(event).items():
                hashes[name], ops[name] = hash_array(value), fact_of(event)

    replay.run(step, see)
    compiled = replay.compiled_hashes(step, list(hashes))
    differing = [name for name in hashes if compiled[name] != hashes[name]]
    if not differing:
        return None
    first = differing[0]
    parted = next((n for n in hashes if _parts(compiled[n], hashes[n])), None)
    ulp = MAX_ULP if first == parted else _ulp_between(replay, step, first)
    attribution = Attribution(replay.ops(step))
    is_compiled_finite = parted is not None and bool(hashes[parted].nonfinite)
    return ModeDifference(
        ("ops", "recorded") if is_compiled_finite else ("recorded", "ops"),
        _described(attribution, ops[first], ulp),
        None if parted is None else _described(attribution, ops[parted], MAX_ULP),
    )


def _parts(one: Any, other: Any) -> bool:
    """Whether one of two hashed tensors is finite and the other is not."""
    return bool(one.nonfinite) != bool(other.nonfinite)


def _ulp_between(replay: Replay, step: int, tensor: str) -> int:
    """How many ulp lie between the two ways in one tensor."""
    values: list[Any] = []

    def see(event: OpEvent) -> None:
        outputs = {} if event.calls else _compared_outputs(event)
        if tensor in outputs:
            values.append(outputs[tensor])

    replay.run(step, see)
    compiled = replay.compiled_values(step, [tensor])[tensor]
    return ulp_distance(as_array(compiled), as_array(values[0]))


Executions: TypeAlias = dict[Any, tuple[Fact, bool]]
"""Whether each execution of an op is non-finite, by function, name and calls, as they ran."""


def float64_difference(
    replay: Replay,
    step: int,
    narrow: Executions | None = None,
    wide: Executions | None = None,
) -> ModeDifference | None:
    """Return the first op of a step that is non-finite op by op and finite in float64.

    Args:
        replay: The capture's replay.
        step: One of `replay.steps`.
        narrow: What the step showed op by op; it runs unless given.
        wide: What it showed in float64; it runs unless given.

    Returns:
        The op; None when there is none.

    Raises:
        ReplayError: The step cannot be run in one of the ways.
    """
    narrow = _nonfinite_ops(replay, step, "ops") if narrow is None else narrow
    wide = _nonfinite_ops(replay, step, "float64") if wide is None else wide
    for key, (fact, is_bad) in narrow.items():
        if is_bad and key in wide and not wide[key][1]:
            op = _described(Attribution(replay.ops(step)), fact, None)
            return ModeDifference(("ops", "float64"), None, op)
    return None


def executions_of(trace: StepTrace) -> Executions:
    """Whether each execution of an op was non-finite in a run that was traced."""
    executions = {}
    for fact in trace.facts.values():
        is_bad = not is_update(fact.type) and any(
            stat.nonfinite for stat in fact.outputs if stat.dtype in _COMPARED
        )
        executions[fact.function, fact.name, fact.calls] = fact, is_bad
    return executions


def noting(replay: Replay, step: int, executions: Executions) -> Callable[[OpEvent], None]:
    """Return an observer that notes of each execution whether it is non-finite."""

    def see(event: OpEvent) -> None:
        if not _is_for_fingerprint(replay, step, event):
            outputs = _compared_outputs(event).values()
            is_bad = any(not np.isfinite(as_array(value)).all() for value in outputs)
            executions[event.function, event.name, event.calls] = fact_of(event), is_bad

    return see


def _nonfinite_ops(replay: Replay, step: int, mode: Any) -> Executions:
    executions: Executions = {}

    # The verdict has run these fetches, so the interpreter has a plan for them already.
    fingerprint = replay.signature(step).watch
    see = noting(replay, step, executions)
    replay.run(step, see, fetches=[fingerprint] if fingerprint else None, mode=mode)
    return executions


def _compared_outputs(event: OpEvent) -> dict[str, Any]:
    """Return the outputs of an op that are compared, by tensor name."""
    outputs = {}
    for k, value in enumerate(event.outputs):
        outputs[f"{event.name}:{k}"] = value
    return {name: value for name, value in outputs.items() if value.dtype.name in _COMPARED}


def _is_for_fingerprint(replay: Replay, step: int, event: OpEvent) -> bool:
    info = replay.ops(step).get((event.function, event.name))
    return info is not None and info.phase == "watch"


def _described(attribution: Attribution, fact: Fact, ulp: int | None) -> DifferingOp:
    place = attribution.place(fact)
    return DifferingOp(fact.type, fact.name, place.phase, place.layer_path or None, ulp)
