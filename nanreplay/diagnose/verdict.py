"""What replaying an incident says of it: reproduced, only under XLA, only in its precision, transient, healthy, undecided."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nanreplay.bisect.growth import find_root
from nanreplay.bisect.judge import Attribution
from nanreplay.bisect.op_trace import Fact
from nanreplay.capture.arrays import as_array
from nanreplay.diagnose.faults import KeyframeWatch, find_departure, reason_of, replay_without
from nanreplay.errors import ReplayError, UnsafeProgramError, UnsupportedOpError
from nanreplay.findings import DifferingOp, Evidence, ModeDifference, Verdict
from nanreplay.program.compiled_program import hash_array
from nanreplay.program.fingerprint import MAX_ULP, ulp_distance
from nanreplay.records import Trigger
from nanreplay.replay.provenance import OpEvent
from nanreplay.replay.replay_programs import Mode
from nanreplay.replay.session import Replay, StepResult

# Where two ways of replaying one step part: the first op with other bits, and the first that is
# finite in one of them only.

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
    parted = next(
        (name for name in by_op if bool(compiled[name].nonfinite) != bool(by_op[name].nonfinite)),
        None,
    )
    if first is None:
        return None
    size = MAX_ULP if first == parted else _size(replay, step, first)
    place = Attribution(replay.ops(step))
    return ModeDifference(
        ("ops", "recorded")
        if parted is not None and by_op[parted].nonfinite
        else ("recorded", "ops"),
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
    parted = next(
        (
            fact
            for key, (fact, is_bad) in narrow.items()
            if is_bad and key in wide and not wide[key][1]
        ),
        None,
    )
    if parted is None:
        return None
    return ModeDifference(
        ("ops", "float64"), None, _described(Attribution(replay.ops(step)), parted, None)
    )


def _nonfinite_ops(replay: Replay, step: int, mode: Any) -> dict[Any, tuple[Fact, bool]]:
    """Whether each execution of an op is non-finite, in the order in which they ran."""
    found: dict[Any, tuple[Fact, bool]] = {}

    def see(event: OpEvent) -> None:
        if not _is_watch(replay, step, event):
            is_bad = any(
                not np.isfinite(as_array(value)).all() for value in _floats(event).values()
            )
            found[event.function, event.name, event.calls] = _fact(event), is_bad

    watch = replay.signature(step).watch
    replay.run(
        step, see, fetches=[watch] if watch else None, mode=mode
    )  # the verdict has run these fetches: their plan is there
    return found


def _floats(event: OpEvent) -> dict[str, Any]:
    return {
        f"{event.name}:{k}": value
        for k, value in enumerate(event.outputs)
        if value.dtype.name in _FLOATS
    }


def _is_watch(replay: Replay, step: int, event: OpEvent) -> bool:
    info = replay.ops(step).get((event.function, event.name))
    return info is not None and info.phase == "watch"


def _fact(event: OpEvent) -> Fact:
    return Fact(
        event.serial,
        event.function,
        event.name,
        event.type,
        event.calls,
        event.input_ids,
        event.via,
        (),
    )


def _described(attribution: Attribution, fact: Fact, ulp: int | None) -> DifferingOp:
    place = attribution.place(fact)
    return DifferingOp(fact.type, fact.name, place.phase, place.layer_path or None, ulp)


# --- diagnose.verdict


def judge(replay: Replay, *, progress: Callable[[int, int], None] | None = None) -> Verdict:
    """Replay the steps up to the failing one as they were trained, and the failing one in every mode.

    Args:
        replay: The capture's replay. Its notes tell what could not be run, and what came out otherwise when it ran again.
        progress: Called with (steps done, steps in all).

    Raises:
        UnsafeProgramError: The program reaches beyond tensors.
        UnsupportedOpError: The program holds ops that cannot be replayed.
    """
    failing = replay.incident.step
    if failing not in replay.steps:
        return Verdict("inconclusive", None, reason=_why_not(replay))
    watch = KeyframeWatch(replay.variables)
    steps = [step for step in replay.steps if _earliest(replay.steps, failing) <= step <= failing]
    done: list[int] = []

    def count(number: int, of: int) -> None:
        done.append(number)
        if progress is not None:
            progress(number, of)

    try:
        results = replay.run_window(
            "recorded", first=steps[0], last=failing, progress=count, at_keyframe=watch
        )
    except UnsafeProgramError:
        raise
    except ReplayError as error:
        return _raised(replay, str(error), at_incident=len(done) == len(steps) - 1)
    is_stable = _runs_alike(replay, results[-1], replay.now())
    anew = sorted({name for step in steps for name in replay.program(step).unrecorded})
    if anew and not _exact(results):
        return _drawing_anew(replay, results, anew, is_stable=is_stable is not None)
    if is_stable is None:
        return Verdict(
            "inconclusive",
            _exact(results),
            (_evidence("recorded", results),),
            reason="Two replays of the step disagree.",
        )
    return _transient(replay, results, watch) or _by_modes(replay, results)


def _earliest(steps: Sequence[int], failing: int) -> int:
    """The first step from which all steps up to the failing one can be replayed."""
    held, first = set(steps), failing
    while first - 1 in held:
        first -= 1
    return first


def _raised(replay: Replay, message: str, *, at_incident: bool) -> Verdict:
    if not at_incident:
        return Verdict(
            "inconclusive",
            None,
            reason=f"A step before the incident could not be replayed. {message}",
        )
    if replay.incident.trigger.what != "exception":
        return Verdict("inconclusive", None, reason=message)
    failing = replay.incident.step
    first = _earliest(replay.steps, failing)
    exact = (
        _exact(replay.run_window("recorded", first=first, last=failing - 1))
        if first < failing
        else None
    )
    return Verdict("reproduced", exact, (Evidence("recorded", False, exact),), reason=message)


def _runs_alike(replay: Replay, result: StepResult, after: Mapping[int, Any]) -> bool | None:
    """Whether the failing step gives the same bits when it runs again; None when it is finite once and non-finite once."""
    again = replay.run_window("recorded", first=result.step, last=result.step)[0]
    if again.finite != result.finite:
        return None
    if all(_bits(value) == _bits(after[index]) for index, value in replay.now().items()):
        return True
    replay.notes.append(
        f"Two replays of step {result.step} from the same state and batch differ in their last bits."
    )
    return False


def _drawing_anew(
    replay: Replay, results: Sequence[StepResult], ops: Sequence[str], *, is_stable: bool
) -> Verdict:
    """Decide where each run of the program is another one: a NaN that comes each time is one, its absence says nothing."""
    evidence = [_evidence("recorded", results)]
    if (
        replay.signature(results[-1].step).compilation != "eager"
        and (ops_result := _run_ops(replay)) is not None
    ):
        evidence.append(_evidence("ops", [ops_result]))
    if is_stable and not any(each.finite for each in evidence):
        return Verdict("reproduced", _exact(results), tuple(evidence))
    if not _claims_nonfinite(replay.incident.trigger) and all(each.finite for each in evidence):
        return Verdict("healthy", _exact(results), tuple(evidence))
    named = ", ".join(ops[:3]) + (f" and {len(ops) - 3} more" if len(ops) > 3 else "")
    return Verdict(
        "inconclusive",
        _exact(results),
        tuple(evidence),
        reason=f"Outputs of some ops were not recorded; a replay has others: {named}.",
    )


def _bits(value: Any) -> bytes:
    return as_array(value).tobytes()


def _transient(
    replay: Replay, results: Sequence[StepResult], watch: KeyframeWatch
) -> Verdict | None:
    """A fault that went into a keyframe is replayed with it: look at the same steps without it."""
    failing, departure = results[-1].step, find_departure(replay, results)
    later = departure is not None and any(
        departure < step <= failing for step in replay.capture.keyframe_steps
    )
    if (
        results[-1].finite
        or not _claims_nonfinite(replay.incident.trigger)
        or not (watch.flips or later)
    ):
        return None
    spared = replay_without(replay, results, departure, watch.flips)
    if not spared[-1].finite:
        return None
    return Verdict(
        "transient",
        _exact(spared),
        (_evidence("recorded", spared),),
        reason=reason_of(departure, watch.flips, failing),
    )


def _by_modes(replay: Replay, results: Sequence[StepResult]) -> Verdict:
    """Run the failing step in the other modes, and decide."""
    recorded, compilation = results[-1], replay.signature(results[-1].step).compilation
    evidence = [_evidence("recorded", results)]
    if compilation == "xla" and (graph := _tried(replay, "graph")) is not None:
        evidence.append(_evidence("graph", [graph]))
    ops = recorded if compilation == "eager" else _run_ops(replay)
    evidence.append(Evidence("ops", False, None) if ops is None else _evidence("ops", [ops]))
    if (
        not (recorded.finite and evidence[-1].finite)
        and (wide := _tried(replay, "float64")) is not None
    ):
        evidence.append(Evidence("float64", wide.finite, None))
    verdict = _decide(replay, results, evidence)
    return _with_difference(replay, verdict, raised=ops is None)


def _run_ops(replay: Replay) -> StepResult | None:
    """The failing step op by op, None when a kernel raises."""
    failing = replay.incident.step
    try:
        return replay.run_window("ops", first=failing, last=failing)[0]
    except (UnsafeProgramError, UnsupportedOpError):
        raise
    except ReplayError:
        return None


def _tried(replay: Replay, mode: Mode) -> StepResult | None:
    """The failing step in a mode that a verdict can do without."""
    failing = replay.incident.step
    try:
        return replay.run_window(mode, first=failing, last=failing)[0]
    except (ReplayError, UnsupportedOpError) as error:
        how = "in float64" if mode == "float64" else "without XLA"
        replay.notes.append(f"Step {failing} could not be replayed {how}. {error}")
        return None


def _decide(replay: Replay, results: Sequence[StepResult], evidence: Sequence[Evidence]) -> Verdict:
    trigger, exact, failing = replay.incident.trigger, _exact(results), results[-1].step
    finite = {each.mode: each.finite for each in evidence}
    found = tuple(evidence)
    if not finite["recorded"]:
        if finite["ops"] and replay.signature(failing).compilation == "xla":
            return Verdict("xla_only", exact, found)
        return Verdict(
            "precision_only" if _is_precision(replay, finite) else "reproduced", exact, found
        )
    if not finite["ops"] and _claims_nonfinite(trigger):
        return Verdict("reproduced", False, found)
    if trigger.what == "exception":
        return Verdict(
            "inconclusive",
            exact,
            found,
            reason="The step raised in training and does not raise when it is replayed.",
        )
    if not _claims_nonfinite(trigger):
        return Verdict("healthy", exact, found)
    departure = find_departure(replay, results)
    if departure is not None or exact or (len(results) == 1 and exact is None):
        return Verdict("transient", exact, found, reason=reason_of(departure, (), failing))
    worst = max(step.max_ulp or 0 for step in results[:-1]) if len(results) > 1 else 0
    elsewhere = f"The steps before the incident differ from the recording by up to {worst} ulp."
    return Verdict(
        "inconclusive",
        exact,
        found,
        reason=elsewhere if worst else "The step was recorded on another machine.",
    )


def _is_precision(replay: Replay, finite: Mapping[str, bool]) -> bool:
    """Whether more precision alone would have kept the step finite; a divergence outgrows any precision a few steps later."""
    failing = replay.incident.step
    if finite["ops"] or not finite.get("float64", False):
        return False
    return find_root(replay.capture.timeline_record(), failing).step >= failing


def _with_difference(replay: Replay, verdict: Verdict, *, raised: bool) -> Verdict:
    finite, failing = {each.mode: each.finite for each in verdict.evidence}, replay.incident.step
    try:
        if verdict.kind == "precision_only":
            return replace(verdict, difference=float64_difference(replay, failing))
        if not raised and finite["recorded"] != finite["ops"]:
            return replace(verdict, difference=compiled_difference(replay, failing))
    except (ReplayError, UnsupportedOpError) as error:
        replay.notes.append(f"Where the modes part could not be found. {error}")
    return verdict


def _claims_nonfinite(trigger: Trigger) -> bool:
    return trigger.what in ("loss", "gradient", "variable")


def _exact(steps: Sequence[StepResult]) -> bool | None:
    known = [step.bit_exact for step in steps if step.bit_exact is not None]
    return all(known) if known else None


def _evidence(mode: str, steps: Sequence[StepResult]) -> Evidence:
    known = [step.max_ulp for step in steps if step.max_ulp is not None]
    return Evidence(mode, steps[-1].finite, _exact(steps), max(known) if known else None)


def _why_not(replay: Replay) -> str:
    held, failing = replay.capture.steps, replay.incident.step
    if failing not in held:
        return f"The capture does not hold the batch of step {failing}."
    if not replay.batch(failing).program:
        return f"The capture holds no program for step {failing}."
    return f"No keyframe reaches step {failing}."
