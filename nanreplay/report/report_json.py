"""The report as JSON, and back: the stable contract of `docs/report-format.md`.

Every key is always there; an absent fact is null. Keys are written out, although most are names of
fields, so that renaming a field does not change the format.
"""

from __future__ import annotations

from typing import Any

from nanreplay.capture.tables import build, typed
from nanreplay.errors import FormatError
from nanreplay.findings import (
    Cause,
    ChainLink,
    DifferingOp,
    Evidence,
    Findings,
    FixResult,
    ModeDifference,
    OperandFacts,
    Origin,
    OutputFacts,
    Root,
    Verdict,
)
from nanreplay.records import Frame, KerasPart, Trigger
from nanreplay.report.contents import Report
from nanreplay.report.numbers import jsonable

FORMAT = "nanreplay-report"
VERSION = 1


def to_json(report: Report) -> dict[str, Any]:
    """A report as plain dicts, lists, texts and numbers.

    NaN and infinities, which JSON does not have, are the texts "nan", "inf" and "-inf".
    """
    findings = report.findings
    value = {
        "format": FORMAT,
        "version": VERSION,
        "capture": {
            "path": report.path,
            "steps": report.steps,
            "incident_step": report.incident_step,
            "trigger": _trigger(report.trigger),
        },
        "verdict": _verdict(report.verdict),
        "origin": _origin(findings.origin),
        "other_origins": list(map(_origin, findings.other_origins)),
        "chain": list(map(_link, findings.chain)),
        "upstream": list(map(_link, findings.upstream)),
        "root": _root(findings.root),
        "cause": _cause(report.causes[0]) if report.causes else None,
        "other_causes": list(map(_cause, report.causes[1:])),
        "fixes": list(map(fix_to_json, report.fixes)),
        "notes": findings.notes,
        "reason": findings.reason,
        "consequence": findings.consequence,
        "sentence": report.sentence,
        "memory": {"state_bytes": report.state_bytes, "peak_bytes": report.peak_bytes},
    }
    plain: dict[str, Any] = jsonable(value)
    return plain


def _trigger(trigger: Trigger) -> dict[str, Any]:
    return {"what": trigger.what, "name": trigger.name, "value": trigger.value}


def _root(root: Root | None) -> dict[str, Any] | None:
    return None if root is None else {"step": root.step, "reason": root.reason}


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "kind": verdict.kind,
        "bit_exact": verdict.bit_exact,
        "evidence": list(map(_evidence, verdict.evidence)),
        "reason": verdict.reason,
        "difference": _difference(verdict.difference),
    }


def _evidence(evidence: Evidence) -> dict[str, Any]:
    return {
        "mode": evidence.mode,
        "finite": evidence.finite,
        "bit_exact": evidence.bit_exact,
        "max_ulp": evidence.max_ulp,
    }


def _difference(difference: ModeDifference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    return {
        "modes": difference.modes,
        "first": _differing_op(difference.first),
        "first_nonfinite": _differing_op(difference.first_nonfinite),
    }


def _differing_op(op: DifferingOp | None) -> dict[str, Any] | None:
    if op is None:
        return None
    return {
        "op_type": op.op_type,
        "op_name": op.op_name,
        "phase": op.phase,
        "layer_path": op.layer_path,
        "max_ulp": op.max_ulp,
    }


def _origin(origin: Origin | None) -> dict[str, Any] | None:
    if origin is None:
        return None
    return {
        "step": origin.step,
        "phase": origin.phase,
        "where": origin.where,
        "layer": origin.layer,
        "layer_path": origin.layer_path,
        "op_type": origin.op_type,
        "op_name": origin.op_name,
        "loop": [{"op": loop.op, "iteration": loop.iteration} for loop in origin.loop],
        "source": _source(origin.source),
        "outputs": list(map(_output, origin.outputs)),
        "operands": list(map(_operand, origin.operands)),
        "rows": origin.rows,
        "replica_rows": origin.replica_rows,
        "rows_reason": origin.rows_reason,
        "kind": origin.kind,
        "message": origin.message,
        "replica": origin.replica,
        "worker": origin.worker,
        "part": None if origin.part is None else _part(origin.part),
    }


def _part(part: KerasPart) -> dict[str, Any]:
    return {
        "place": part.place,
        "path": part.path,
        "kind": part.kind,
        "settings": part.settings,
    }


def _output(output: OutputFacts) -> dict[str, Any]:
    return {
        "dtype": output.dtype,
        "shape": output.shape,
        "nonfinite": output.nonfinite,
        "size": output.size,
        "indices": output.indices,
        "value": output.value,
    }


def _operand(operand: OperandFacts) -> dict[str, Any]:
    return {
        "name": operand.name,
        "dtype": operand.dtype,
        "shape": operand.shape,
        "value": operand.value,
        "min": operand.min,
        "max": operand.max,
    }


def _source(source: Frame | None) -> dict[str, Any] | None:
    if source is None:
        return None
    return {
        "file": source.file,
        "line": source.line,
        "function": source.function,
        "code": source.code,
    }


def _cause(cause: Cause) -> dict[str, Any]:
    return {
        "kind": cause.kind,
        "confidence": cause.confidence,
        "sentence": cause.sentence,
        "evidence": cause.evidence,
    }


def fix_to_json(fix: FixResult) -> dict[str, Any]:
    """One fix that was tried."""
    nonfinite = None
    if fix.nonfinite is not None:
        nonfinite = {"step": fix.nonfinite_step, **_trigger(fix.nonfinite)}
    return {
        "name": fix.name,
        "params": fix.params,
        "prevents": fix.prevents,
        "outcome": fix.outcome,
        "moved_to": _origin(fix.moved_to),
        "steps_checked": fix.steps_checked,
        "nonfinite": nonfinite,
        "loss_change": fix.loss_change,
        "final_loss": fix.final_loss,
        "code": fix.code,
        "source": _source(fix.source),
        "places": fix.places,
        "edits": fix.edits,
        "note": fix.note,
    }


def _link(link: ChainLink) -> dict[str, Any]:
    return {
        "op_type": link.op_type,
        "op_name": link.op_name,
        "phase": link.phase,
        "layer_path": link.layer_path,
        "shape": link.shape,
        "nonfinite": link.nonfinite,
        "value": link.value,
        "absmax": link.absmax,
        "hides": link.hides,
    }


# And back.


def from_json(value: Any, path: str | None = None) -> Report:
    """The report that `to_json` wrote.

    Args:
        value: The JSON object.
        path: Where the capture is now; where it was when the report was made, unless given.

    Raises:
        FormatError: It is no report, of a newer format, or damaged.
    """
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise FormatError("it is no report")
    if value.get("version") != VERSION:
        raise FormatError(f"its version is not {VERSION}")
    try:
        capture, causes = value["capture"], [value["cause"], *value["other_causes"]]
        memory = value.get("memory", {})  # reports before it tell nothing of it
        return Report(
            path=typed(str, capture["path"] if path is None else path, "the path"),
            steps=typed(tuple[int, int], capture["steps"], "the steps"),
            incident_step=typed(int, capture["incident_step"], "the step of the incident"),
            trigger=build(Trigger, capture["trigger"]),
            verdict=build(Verdict, value["verdict"]),
            findings=build(Findings, value),
            sentence=typed(str, value["sentence"], "the sentence"),
            causes=tuple(build(Cause, cause) for cause in causes if cause is not None),
            fixes=tuple(map(_fix_from_json, value["fixes"])),
            state_bytes=typed(int | None, memory.get("state_bytes"), "the size of the state"),
            peak_bytes=typed(int | None, memory.get("peak_bytes"), "the peak of memory"),
        )
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"it is damaged ({error})") from error


def _fix_from_json(value: Any) -> FixResult:
    nonfinite = value["nonfinite"]
    step = None if nonfinite is None else nonfinite["step"]
    return build(FixResult, {**value, "nonfinite_step": step})
