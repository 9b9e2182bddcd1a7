"""What replaying an incident says of it: reproduced, only under XLA, transient, healthy, or not to be decided."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nanreplay.errors import ReplayError, UnsafeProgramError, UnsupportedOpError
from nanreplay.findings import Evidence, Verdict
from nanreplay.records import Trigger
from nanreplay.replay.session import Replay, StepResult


def judge(replay: Replay, *, progress: Callable[[int, int], None] | None = None) -> Verdict:
    """Replay the failing step as it was trained and op by op, from the last keyframe before it.

    Args:
        replay: The capture's replay.
        progress: Called with (steps done, steps in all).

    Raises:
        UnsafeProgramError: The program reaches beyond tensors.
        UnsupportedOpError: The program holds ops that cannot be replayed.
    """
    failing = replay.incident.step
    if failing not in replay.steps:
        return Verdict("inconclusive", None, reason=_why_not(replay))
    base = max(step for step in replay.capture.keyframe_steps if step <= failing)
    try:
        before = replay.run_window("recorded", first=base, last=failing - 1, progress=progress) if base < failing else []
    except (UnsafeProgramError, UnsupportedOpError):
        raise
    except ReplayError as error:
        return Verdict("inconclusive", None, reason=f"A step before the incident could not be replayed. {error}")
    recorded, raised = _run(replay, "recorded", failing)
    if recorded is None:
        if replay.incident.trigger.what == "exception":
            return Verdict("reproduced", _exact(before), (Evidence("recorded", False, _exact(before)),), reason=raised)
        return Verdict("inconclusive", None, reason=raised)
    ops, _ = _run(replay, "ops", failing)
    evidence = [_evidence("recorded", [*before, recorded]), Evidence("ops", False, None) if ops is None else _evidence("ops", [ops])]
    return _decide(replay, [*before, recorded], recorded.finite, ops is None or not ops.finite, tuple(evidence))


def _run(replay: Replay, mode: str, step: int) -> tuple[StepResult | None, str | None]:
    try:
        return replay.run_window("ops" if mode == "ops" else "recorded", first=step, last=step)[0], None
    except (UnsafeProgramError, UnsupportedOpError):
        raise
    except ReplayError as error:
        return None, str(error)


def _decide(replay: Replay, steps: Sequence[StepResult], is_finite: bool, ops_fail: bool, evidence: tuple[Evidence, ...]) -> Verdict:
    trigger, exact = replay.incident.trigger, _exact(steps)
    if not is_finite:
        compiled = replay.signature(replay.incident.step).compilation
        return Verdict("reproduced" if ops_fail or compiled != "xla" else "xla_only", exact, evidence)
    if ops_fail and _claims_nonfinite(trigger):
        return Verdict("reproduced", False, evidence)
    if not _claims_nonfinite(trigger):
        if trigger.what == "exception":
            return Verdict("inconclusive", exact, evidence, reason="The step raised in training and does not raise when it is replayed.")
        return Verdict("healthy", exact, evidence)
    same_until_then = all(step.bit_exact for step in steps[:-1])
    if same_until_then:
        return Verdict("transient", exact, evidence, reason="Finite in every replay, from the very state and batch that were recorded.")
    worst = max(step.max_ulp or 0 for step in steps[:-1])
    return Verdict("inconclusive", exact, evidence, reason=f"The steps before the incident differ from the recording by up to {worst} ulp.")


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
