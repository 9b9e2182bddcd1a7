"""What replaying an incident says of it.

Reproduced, only under XLA, only in its precision, transient, healthy, or undecided: `judge`
replays the window as it was trained and the failing step in every mode, and decides.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nanreplay.bisect.failing_step import StepTraces, judged_tensors
from nanreplay.bisect.growth import find_root
from nanreplay.bisect.tensor_stats import is_float
from nanreplay.capture.arrays import as_array
from nanreplay.diagnose.faults import (
    KeyframeComparison,
    believable,
    find_departure,
    reason_of,
    replay_without,
)
from nanreplay.diagnose.mode_differences import (
    Executions,
    compiled_difference,
    executions_of,
    float64_difference,
    noting,
)
from nanreplay.diagnose.trained_window import TrainedWindow, claims_nonfinite, is_as_trained
from nanreplay.errors import (
    ReplayError,
    StepRaisedError,
    UnsafeProgramError,
    UnsupportedOpError,
)
from nanreplay.findings import Evidence, Verdict
from nanreplay.program.fingerprint import MAX_ULP
from nanreplay.replay.session import Replay, StepResult


def judge(
    replay: Replay,
    *,
    progress: Callable[[int, int], None] | None = None,
    traces: StepTraces | None = None,
) -> Verdict:
    """Replay the steps up to the failing one as they were trained, and that one in every mode.

    ```python
    with Capture("run.h5") as capture, Replay(capture) as replay:
        print(judge(replay).kind)  # reproduced
    ```

    Args:
        replay: The capture's replay. Its notes tell afterwards what could not be run, and what
            came out otherwise when it ran again.
        progress: Called with (steps done, steps in all).
        traces: Takes the run of the failing step op by op, for who looks into it afterwards.

    Raises:
        UnsafeProgramError: The program reaches beyond tensors.
        UnsupportedOpError: The program holds ops that cannot be replayed.
    """
    failing = replay.incident.step
    if failing not in replay.steps:
        return Verdict("inconclusive", None, reason=_why_not(replay))
    window = TrainedWindow(replay, _earliest(replay.steps, failing), progress)
    try:
        results = window.run()
    except UnsafeProgramError:
        raise
    except ReplayError as error:
        return _not_run(replay, str(error), at_incident=window.next_step == failing)
    exception = results[-1].exception
    if exception is not None:
        exact = _exact(results[:-1])
        reason = f"Step {failing} raised when it was replayed: {exception.name}: {exception.value}"
        return Verdict("reproduced", exact, (Evidence("recorded", False, exact),), reason=reason)
    return _judge_results(replay, results, window.keyframes, traces or StepTraces(replay))


def _judge_results(
    replay: Replay,
    results: Sequence[StepResult],
    keyframes: KeyframeComparison,
    traces: StepTraces,
) -> Verdict:
    """Decide what the window says that was replayed as it was trained."""
    failing = results[-1].step
    if failing in replay.capture.state_steps and _exact(results[:-1]) is False:
        replay.notes.append(
            f"The steps before step {failing} come out otherwise than they were recorded, so step "
            f"{failing} begins with the recorded state."
        )
    unrecorded: set[str] = set()
    for result in results:
        unrecorded.update(replay.program(result.step).unrecorded)
    is_first_run = bool(unrecorded) or not is_as_trained(results[-1], replay.incident.trigger)
    is_stable = _runs_alike(replay, results[-1]) if is_first_run else True
    if unrecorded and not _exact(results):
        return _drawing_anew(
            replay, results, sorted(unrecorded), traces, is_stable=is_stable is not None
        )
    if is_stable is None:
        evidence = (_evidence("recorded", results),)
        reason = "Two replays of the step disagree."
        return Verdict("inconclusive", _exact(results), evidence, reason=reason)
    return _transient(replay, results, keyframes) or _by_modes(replay, results, traces)


def _why_not(replay: Replay) -> str:
    recorded_steps, failing = replay.capture.steps, replay.incident.step
    if failing not in recorded_steps:
        return f"The capture does not hold the batch of step {failing}."
    if not replay.batch(failing).program:
        return f"The capture holds no program for step {failing}."
    return f"No keyframe reaches step {failing}."


def _earliest(steps: Sequence[int], failing: int) -> int:
    """The first step from which all steps up to the failing one can be replayed."""
    replayable, first = set(steps), failing
    while first - 1 in replayable:
        first -= 1
    return first


def _not_run(replay: Replay, message: str, *, at_incident: bool) -> Verdict:
    if at_incident:
        return Verdict("inconclusive", None, reason=message)
    reason = f"A step before the incident could not be replayed. {message}"
    return Verdict("inconclusive", None, reason=reason)


def _runs_alike(replay: Replay, result: StepResult) -> bool | None:
    """Whether the failing step, which has just run, gives the same bits when it runs again.

    None when it is finite once and non-finite once.
    """
    # checksums: what the step left takes as much memory as the model and its optimizer
    after = {}
    for index, value in replay.now().items():
        after[index] = value_checksum(value)
    again = replay.run_window("recorded", first=result.step, last=result.step)[0]
    if again.finite != result.finite:
        return None
    if all(value_checksum(value) == after[index] for index, value in replay.now().items()):
        return True
    replay.notes.append(
        f"Two replays of step {result.step} from the same state and batch "
        "differ in their last bits."
    )
    return False


def value_checksum(value: Any) -> int:
    """A checksum of a tensor's bits; any NaN counts as one.

    Which NaN a kernel makes, and of which sign, hangs on the place of an element in memory.
    """
    array = np.ascontiguousarray(as_array(value)).reshape(-1)
    if is_float(array):
        is_nan = np.isnan(array)
        if is_nan.any():
            array = np.where(is_nan, array.dtype.type(np.nan), array)
    return zlib.crc32(array.tobytes() if array.dtype.hasobject else array.view(np.uint8).data)


def _drawing_anew(
    replay: Replay,
    results: Sequence[StepResult],
    ops: Sequence[str],
    traces: StepTraces,
    *,
    is_stable: bool,
) -> Verdict:
    """Decide where each run of the program is another one.

    A NaN that comes each time is one; its absence says nothing.

    Args:
        replay: The capture's replay.
        results: The replayed steps, the failing one last.
        ops: Ops whose outputs were not recorded.
        traces: Takes the run op by op.
        is_stable: Whether two runs of the failing step agree in being finite.
    """
    evidence = [_evidence("recorded", results)]
    if replay.signature(results[-1].step).compilation != "eager":
        op_by_op = _run_ops(replay, traces)
        if op_by_op is not None:
            evidence.append(_evidence("ops", [op_by_op]))
    exact = _exact(results)
    if is_stable and not any(run.finite for run in evidence):
        return Verdict("reproduced", exact, tuple(evidence))
    if not claims_nonfinite(replay.incident.trigger) and all(run.finite for run in evidence):
        return Verdict("healthy", exact, tuple(evidence))
    shown = ", ".join(ops[:3]) + (f" and {len(ops) - 3} more" if len(ops) > 3 else "")
    reason = f"Outputs of some ops were not recorded; a replay has others: {shown}."
    return Verdict("inconclusive", exact, tuple(evidence), reason=reason)


def _transient(
    replay: Replay, results: Sequence[StepResult], keyframes: KeyframeComparison
) -> Verdict | None:
    """A fault that went into a keyframe is replayed with it: look at the same steps without it."""
    failing, departure = results[-1].step, find_departure(replay, results)
    flips = believable(keyframes, replay, results)
    is_in_keyframe = departure is not None and any(
        departure < step <= failing for step in replay.capture.keyframe_steps
    )
    if results[-1].finite or not claims_nonfinite(replay.incident.trigger):
        return None
    if not flips and (not is_in_keyframe or _calls_python(replay, results)):
        return None
    spared = replay_without(replay, results, departure, flips)
    if not spared[-1].finite:
        return None
    reason = reason_of(replay, departure, flips)
    evidence = (_evidence("recorded", spared),)
    return Verdict("transient", _exact(spared), evidence, reason=reason)


def _calls_python(replay: Replay, results: Sequence[StepResult]) -> bool:
    """Whether a step calls Python functions, which may have changed what a replay does not."""
    return any(replay.program(result.step).calls_python for result in results)


def _by_modes(replay: Replay, results: Sequence[StepResult], traces: StepTraces) -> Verdict:
    """Run the failing step in the other modes, and decide."""
    recorded = results[-1]
    compilation = replay.signature(recorded.step).compilation
    executions: Executions = {}
    evidence = [_evidence("recorded", results)]
    if compilation == "xla":
        uncompiled = _run_graph(replay)
        if uncompiled is not None:
            evidence.append(_beside(recorded, "graph", uncompiled))
    op_by_op = recorded if compilation == "eager" else _run_ops(replay, traces)
    if op_by_op is None:
        evidence.append(Evidence("ops", False, None))
    else:
        evidence.append(_beside(recorded, "ops", op_by_op))
    if not (recorded.finite and evidence[-1].finite):
        wide = _is_finite_in_float64(replay, executions)
        if wide is not None:
            evidence.append(Evidence("float64", wide, None))
    verdict = _decide(replay, results, evidence)
    if verdict.kind == "precision_only":
        return _with_float64(replay, verdict, traces, executions)
    return _with_difference(replay, verdict, raised=op_by_op is None)


def _run_ops(replay: Replay, traces: StepTraces) -> StepResult | None:
    """The failing step op by op, None when a kernel raises; its run tells the origin as well."""
    failing = replay.incident.step
    if failing in traces:  # what that run left in the variables is no longer there
        traces = StepTraces(replay)
    trace = traces.of(failing)
    if trace.stopped or trace.raised:
        return None
    return replay.result_after(failing, trace.fetched)


def _is_finite_in_float64(replay: Replay, executions: Executions) -> bool | None:
    """Whether the failing step is finite in float64; None when it cannot be run so.

    Mostly a loss tells that it is not; only where none does, the whole step is run.

    Args:
        replay: The capture's replay.
        executions: Takes what the whole step showed.
    """
    failing = replay.incident.step
    try:
        if replay.loses_in_float64(failing):
            return False
        see, names = noting(replay, failing, executions), judged_tensors(replay, failing)
        fetched = replay.run(failing, see, fetches=names, mode="float64")
        return replay.result_after(failing, fetched, "float64").finite
    except (ReplayError, UnsupportedOpError) as error:
        executions.clear()
        why = str(error)
        if isinstance(error, StepRaisedError) and replay.incident.trigger.what == "exception":
            why = f"It raised {error.kind}: {error.reason}"
        replay.notes.append(f"Step {failing} could not be replayed in float64. {why}")
        return None


def _run_graph(replay: Replay) -> StepResult | None:
    """The failing step compiled without XLA; None when it cannot be run so."""
    failing = replay.incident.step
    try:
        result = replay.run_window("graph", first=failing, last=failing)[0]
        if result.exception is None:
            return result
        why = f"It raised {result.exception.name}: {result.exception.value}"
    except (ReplayError, UnsupportedOpError) as error:
        why = str(error)
    replay.notes.append(f"Step {failing} could not be replayed without XLA. {why}")
    return None


def _decide(replay: Replay, results: Sequence[StepResult], evidence: Sequence[Evidence]) -> Verdict:
    """Decide by which modes are finite."""
    exact, runs = _exact(results), tuple(evidence)
    finite = {run.mode: run.finite for run in evidence}
    if finite["recorded"]:
        return _decide_finite(replay, results, runs, is_finite_by_ops=finite["ops"])
    if finite["ops"] and replay.signature(results[-1].step).compilation == "xla":
        return Verdict("xla_only", exact, runs)
    return Verdict("precision_only" if _is_precision(replay, finite) else "reproduced", exact, runs)


def _decide_finite(
    replay: Replay,
    results: Sequence[StepResult],
    evidence: tuple[Evidence, ...],
    *,
    is_finite_by_ops: bool,
) -> Verdict:
    """Decide about a failing step that is finite when it runs as it was trained."""
    trigger, exact = replay.incident.trigger, _exact(results)
    if not is_finite_by_ops and claims_nonfinite(trigger):
        return Verdict("reproduced", False, evidence)
    if trigger.what == "exception":
        reason = "The step raised in training and does not raise when it is replayed."
        if replay.signature(results[-1].step).compilation == "eager":
            reason = f"{reason[:-1]}: a replay runs its ops, not its Python code."
        return Verdict("inconclusive", exact, evidence, reason=reason)
    if not claims_nonfinite(trigger):
        return Verdict("healthy", exact, evidence)
    departure = find_departure(replay, results)
    if departure is not None or exact or (len(results) == 1 and exact is None):
        if _calls_python(replay, results):
            reason = (
                "Replaying the program gives finite values. It calls Python functions, of which "
                "the recording has what they returned, and not what else they changed."
            )
            return Verdict("inconclusive", exact, evidence, reason=reason)
        reason = reason_of(replay, departure, ())
        return Verdict("transient", exact, evidence, reason=reason)
    worst = max((result.max_ulp or 0 for result in results[:-1]), default=0)
    reason = "The step was recorded on another machine."
    if worst:
        reason = f"The steps before the incident differ from the recording by up to {worst} ulp."
    return Verdict("inconclusive", exact, evidence, reason=reason)


def _is_precision(replay: Replay, finite: Mapping[str, bool]) -> bool:
    """Whether more precision alone would have kept the step finite.

    A divergence does not count: it outgrows any precision a few steps later.
    """
    failing = replay.incident.step
    if finite["ops"] or not finite.get("float64", False):
        return False
    return find_root(replay.capture.timeline_record(), failing).step >= failing


def _with_float64(
    replay: Replay, verdict: Verdict, traces: StepTraces, executions: Executions
) -> Verdict:
    """Add the first op that float64 keeps finite."""
    failing = replay.incident.step
    try:
        narrow = executions_of(traces.of(failing))
        difference = float64_difference(replay, failing, narrow, executions or None)
        return replace(verdict, difference=difference)
    except (ReplayError, UnsupportedOpError) as error:
        replay.notes.append(f"Where the modes part could not be found. {error}")
    return verdict


def _with_difference(replay: Replay, verdict: Verdict, *, raised: bool) -> Verdict:
    """Add where the modes part, when one is finite and another is not."""
    finite = {run.mode: run.finite for run in verdict.evidence}
    failing = replay.incident.step
    try:
        if not raised and finite["recorded"] != finite["ops"]:
            return replace(verdict, difference=compiled_difference(replay, failing))
    except (ReplayError, UnsupportedOpError) as error:
        replay.notes.append(f"Where the modes part could not be found. {error}")
    return verdict


def _exact(steps: Sequence[StepResult]) -> bool | None:
    known = []
    for step in steps:
        if step.bit_exact is not None:
            known.append(step.bit_exact)
    return all(known) if known else None


def _evidence(mode: str, steps: Sequence[StepResult]) -> Evidence:
    known = []
    for step in steps:
        if step.max_ulp is not None:
            known.append(step.max_ulp)
    return Evidence(mode, steps[-1].finite, _exact(steps), max(known) if known else None)


def _beside(recorded: StepResult, mode: str, other: StepResult) -> Evidence:
    """Judge another mode of the failing step beside the mode that it was trained in.

    A fingerprint does not hold what the update gives: it can be the same where one mode is finite
    after the update, and the other is not.
    """
    evidence = _evidence(mode, [other])
    if recorded.finite == other.finite or not evidence.bit_exact:
        return evidence
    return replace(evidence, bit_exact=False, max_ulp=MAX_ULP)
