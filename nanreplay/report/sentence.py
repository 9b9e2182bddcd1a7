"""The one sentence that a report says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from nanreplay.findings import (
    Cause,
    DifferingOp,
    Evidence,
    Findings,
    FixResult,
    ModeDifference,
    OperandFacts,
    Origin,
    OutputFacts,
    Verdict,
    VerdictKind,
)
from nanreplay.records import Incident, Trigger
from nanreplay.report.numbers import (
    readable_list,
    readable_number,
    readable_steps,
    readable_trigger,
    readable_ulp,
)
from nanreplay.whatif.fix_code import short_number

_LONGEST_CODE = 120
"""Characters of a source line in the sentence."""
_OP_IN_TEXT = re.compile(r"\bNaN in (\w+)")
_JOINED = {
    "Sub": "{} minus {}",
    "Add": "{} plus {}",
    "AddV2": "{} plus {}",
    "Mul": "{} times {}",
    "MulNoNan": "{} times {}",
    "RealDiv": "{} by {}",
    "Div": "{} by {}",
    "DivNoNan": "{} by {}",
    "FloorDiv": "{} by {}",
    "Xdivy": "{} by {}",
    "Pow": "{} to the power {}",
}
"""How two operands read, by op type."""


def sentence(
    verdict: Verdict,
    findings: Findings,
    incident: Incident,
    steps: tuple[int, int],
    causes: Sequence[Cause] = (),
    fixes: Sequence[FixResult] = (),
) -> str:
    """Say where the first non-finite value was born, how it reached the trigger, and how sure that is.

    Args:
        verdict: What replaying said.
        findings: What bisecting found.
        incident: Why the capture was written.
        steps: First and last step of the recorded window.
        causes: Why, the likeliest first.
        fixes: What was tried.
    """
    why = " ".join(filter(None, (cause_in_words(causes), fixes_in_words(fixes))))
    return " ".join(filter(None, (_what(verdict, findings, incident, steps), why)))


def _what(verdict: Verdict, findings: Findings, incident: Incident, steps: tuple[int, int]) -> str:
    if verdict.kind in ("healthy", "transient", "inconclusive") or findings.origin is None:
        return _without_origin(verdict, findings, incident, steps)
    origin = findings.origin
    parts = [f"step {origin.step}", *owner(origin), *_place(origin)]
    if origin.loop:
        parts.append(
            ", ".join(
                f"iteration {loop.iteration} of `{PurePath(loop.op).name}`" for loop in origin.loop
            )
        )
    reached = _OP_IN_TEXT.sub(r"NaN in `\1`", findings.consequence or "")
    stopped = origin.kind == "raised" and incident.trigger.what == "exception"
    consequence = f", which {reached}" if reached and not stopped else ""
    said = [
        " · ".join([*parts, _event(origin, incident.trigger if stopped else None)])
        + f"{consequence}."
    ]
    if origin.source is not None:
        said.append(source_text(origin.source.file, origin.source.line, origin.source.code) + ".")
    return " ".join([*said, certainty(verdict)]).rstrip()


def owner(origin: Origin) -> list[str]:
    """Whose it is where there are several: "worker 1", "replica 0"."""
    return [
        f"{kind} {number}"
        for kind, number in (("worker", origin.worker), ("replica", origin.replica))
        if number is not None
    ]


def source_text(file: str, line: int, code: str | None) -> str:
    """A line of code: "train.py:88 `x / tf.sqrt(var)`"."""
    return f"{PurePath(file).name}:{line}" + (f" `{_shortened(code.strip())}`" if code else "")


def _shortened(code: str) -> str:
    return code if len(code) <= _LONGEST_CODE else f"{code[: _LONGEST_CODE - 4]} ..."


def certainty(verdict: Verdict) -> str:
    """How the replay compares with the recording, and in which modes it is finite."""
    also = {
        "xla_only": "Only the step compiled with XLA is non-finite; op by op it is finite.",
        "precision_only": "In float64 it is finite.",
    }.get(verdict.kind, "")
    return " ".join(filter(None, (_exactness(verdict), also)))


def _exactness(verdict: Verdict) -> str:
    if verdict.bit_exact:
        return "Replays bit for bit."
    if verdict.bit_exact is None:
        return ""
    worst = max(
        (
            each.max_ulp
            for each in verdict.evidence
            if each.mode == "recorded" and each.max_ulp is not None
        ),
        default=None,
    )
    return (
        f"Replays within {worst} ulp of the recording."
        if worst and worst < 2**62
        else "Replays, though not bit for bit."
    )


def _place(origin: Origin) -> list[str]:
    layer = (
        f"layer `{origin.layer_path or origin.layer}`"
        if origin.layer_path or origin.layer
        else None
    )
    if origin.phase == "backward":
        of = layer or {"loss": "the loss", "input": "the input", "metric": "a metric"}.get(
            origin.where
        )
        return ["backward"] + ([f"gradient of {of}"] if of else [])
    if origin.phase == "update":
        return ["update", "optimizer"] if origin.where == "optimizer" else ["update"]
    inside = layer if origin.where in ("layer", "metric") else None
    return [origin.phase, *([inside] if inside else [])]


def _event(origin: Origin, stopped: Trigger | None = None) -> str:
    """What the op did; `stopped` is the exception that it ended the step with."""
    bad = bad_output(origin)
    if origin.op_type is None:
        name = origin.op_name or (origin.operands[0].name if origin.operands else None)
        return f"{f'`{name}`' if name else 'the batch'} holds {_value(bad)}{_at(bad, origin)}"
    if stopped is not None:
        return f"`{origin.op_type}`{_of(origin)}{_at(bad, origin)} raised {readable_trigger(stopped).rstrip('.')}"
    if origin.kind == "raised":
        return f"`{origin.op_type}`{_of(origin)}{_at(bad, origin)} is refused op by op and gives {_value(bad)} when compiled"
    return f"`{origin.op_type}`{_of(origin)}{_at(bad, origin)} gave {_value(bad)}"


def bad_output(origin: Origin) -> OutputFacts | None:
    """The output that holds what the op made bad."""
    return next(
        (each for each in origin.outputs if each.indices),
        next((each for each in origin.outputs if each.nonfinite), None),
    )


def _value(output: OutputFacts | None) -> str:
    return (
        readable_number(output.value)
        if output is not None and output.value is not None
        else "a non-finite value"
    )


def _of(origin: Origin) -> str:
    exact = [each for each in origin.operands if each.value is not None and _is_number(each)]
    if exact and len(exact) == len([each for each in origin.operands if _is_number(each)]) <= 3:
        words = [readable_number(each.value) for each in exact]
        pattern = _JOINED.get(origin.op_type or "") if len(words) == 2 else None
        return " of " + (pattern.format(*words) if pattern else readable_list(words))
    ranges = [
        each
        for each in origin.operands
        if _is_number(each) and each.min is not None and each.max is not None
    ]
    if not ranges:
        return ""
    low, high = (
        min(each.min for each in ranges if each.min is not None),
        max(each.max for each in ranges if each.max is not None),
    )
    return (
        f" of values that are all {readable_number(low)}"
        if low == high
        else f" of values from {readable_number(low)} to {readable_number(high)}"
    )


def _is_number(operand: OperandFacts) -> bool:
    return operand.dtype.lstrip("b").startswith(("float", "complex"))


def _at(output: OutputFacts | None, origin: Origin) -> str:
    at = (
        f" at [{', '.join(map(str, output.indices[0]))}]"
        if output is not None and output.indices and output.indices[0]
        else ""
    )
    if not origin.rows:
        return at
    whose = "the" if not owner(origin) else "its"
    return f"{at} ({'sample' if len(origin.rows) == 1 else 'samples'} {readable_list(origin.rows)} of {whose} batch)"


def _without_origin(
    verdict: Verdict, findings: Findings, incident: Incident, steps: tuple[int, int]
) -> str:
    where = f"step {incident.step} · {_recorded(incident.trigger)}"
    if verdict.kind == "healthy":
        said = f"{readable_steps(range(steps[0], steps[1] + 1))} · nothing non-finite"
        return f"{said}. {certainty(verdict)}".rstrip()
    if verdict.kind == "transient":
        said = f"{where}, but every replay from the same state and batch is finite: a race or a hardware fault."
        return f"{said} {verdict.reason or ''}".rstrip()
    if verdict.kind == "inconclusive":
        return f"{where}; what made it could not be decided. {verdict.reason or ''}".rstrip()
    reason = findings.reason or verdict.reason or "No op could be named."
    return f"{where}, and is so again when replayed. {reason} {certainty(verdict)}".rstrip()


def _recorded(trigger: Trigger) -> str:
    if trigger.what in ("exception", "manual"):
        return readable_trigger(trigger).rstrip(".")
    name = trigger.name if trigger.what == "loss" else f"{trigger.what} `{trigger.name}`"
    return f"{name} was {readable_number(trigger.value)} in training"


# Causes and fixes in the words of the sentence.


def fix_label(fix: FixResult) -> str:
    """A fix as `--fix` takes it: `clipnorm=1.0`, `clean_data=drop_rows`, `float32`."""
    if not fix.params or "+" in fix.name:
        return fix.name
    if fix.name == "clip_data" and "low" in fix.params and fix.params["low"] != -fix.params["high"]:
        return fix.name
    value = fix.params.get("high", next(iter(fix.params.values())))
    return f"{fix.name}={short_number(value) if isinstance(value, float) else value}"


def cause_in_words(causes: Sequence[Cause]) -> str:
    """The likeliest cause: `Cause: the variance is 0.`; "" when none is known."""
    if not causes or causes[0].kind == "other":
        return ""
    return f"Cause: {causes[0].kind.replace('_', ' ')}. {causes[0].sentence}"


def fixes_in_words(fixes: Sequence[FixResult], limit: int = 3) -> str:
    """What prevents it and what does not: `Verified fix: epsilon=1e-7; clipnorm=1 and lr=0.1 do not help.`; "" when none was tried."""
    good = [f"`{fix_label(fix)}`" for fix in fixes if fix.prevents][:limit]
    bad = [f"`{fix_label(fix)}`" for fix in fixes if fix.prevents is False][:limit]
    help_ = f"{readable_list(bad)} {'does' if len(bad) == 1 else 'do'} not help" if bad else ""
    if good:
        return f"Verified fix{'es' if len(good) > 1 else ''}: {readable_list(good)}" + (
            f"; {help_}." if help_ else "."
        )
    return f"Tried: {help_}." if help_ else ""


# What verdicts and modes of replaying mean, in words for people.

VERDICT_MEANINGS: Mapping[VerdictKind, str] = {
    "reproduced": "The step is non-finite again when it is replayed.",
    "xla_only": "Non-finite as XLA compiles it, finite op by op.",
    "precision_only": "Non-finite as it was trained, finite in float64: more precision would have kept it finite.",
    "transient": "Finite in every replay from the recorded state and batch: a race or a hardware fault.",
    "healthy": "Nothing non-finite was recorded, and nothing is when it is replayed.",
    "inconclusive": "Replaying could not decide it.",
}
"""Meaning of each kind of verdict."""
MODE_MEANINGS: Mapping[str, str] = {
    "recorded": "compiled as it was trained",
    "graph": "compiled without XLA",
    "ops": "op by op",
    "float64": "op by op, every float as float64",
}
"""How a step runs in each mode."""


def exactness(evidence: Evidence) -> str:
    """How a mode compares with the recording: "bit for bit", "3 ulp off"; "not compared" where nothing is to be compared."""
    if evidence.bit_exact is None:
        return "not compared"
    return "bit for bit" if evidence.bit_exact else readable_ulp(evidence.max_ulp)


def difference_lines(difference: ModeDifference) -> list[str]:
    """Where two modes part, a line a fact."""
    one, other = difference.modes
    lines = []
    if difference.first is not None:
        size = difference.first.max_ulp
        by = f", by {size} ulp" if size is not None and size < 2**62 else ""
        lines.append(f"{one} and {other} first differ at {_named(difference.first)}{by}.")
    if difference.first_nonfinite is not None:
        lines.append(
            f"{_named(difference.first_nonfinite)} is the first op that is finite in {other} only."
        )
    return lines


def _named(op: DifferingOp) -> str:
    return (
        f"{op.op_type} {op.op_name} ({op.phase}{f' of {op.layer_path}' if op.layer_path else ''})"
    )
