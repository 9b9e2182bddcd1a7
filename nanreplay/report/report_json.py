"""The report as JSON: the stable contract of `docs/report-format.md`. Every key is always there; an absent fact is null."""

from __future__ import annotations

from typing import Any

from nanreplay.findings import Cause, ChainLink, DifferingOp, FixResult, ModeDifference, Origin
from nanreplay.records import Frame
from nanreplay.report.contents import Report
from nanreplay.report.numbers import jsonable

FORMAT = "nanreplay-report"
VERSION = 1


def to_json(report: Report) -> dict[str, Any]:
    """`report` as plain dicts, lists, texts and numbers; NaN and infinities as the texts "nan", "inf" and "-inf"."""
    verdict, findings = report.verdict, report.findings
    value = {
        "format": FORMAT,
        "version": VERSION,
        "capture": {
            "path": report.path,
            "steps": report.steps,
            "incident_step": report.incident_step,
            "trigger": {
                "what": report.trigger.what,
                "name": report.trigger.name,
                "value": report.trigger.value,
            },
        },
        "verdict": {
            "kind": verdict.kind,
            "bit_exact": verdict.bit_exact,
            "evidence": [
                {
                    "mode": each.mode,
                    "finite": each.finite,
                    "bit_exact": each.bit_exact,
                    "max_ulp": each.max_ulp,
                }
                for each in verdict.evidence
            ],
            "reason": verdict.reason,
            "difference": None if verdict.difference is None else _difference(verdict.difference),
        },
        "origin": None if findings.origin is None else _origin(findings.origin),
        "other_origins": [_origin(each) for each in findings.other_origins],
        "chain": [_link(each) for each in findings.chain],
        "upstream": [_link(each) for each in findings.upstream],
        "root": None
        if findings.root is None
        else {"step": findings.root.step, "reason": findings.root.reason},
        "cause": _cause(report.causes[0]) if report.causes else None,
        "other_causes": [_cause(each) for each in report.causes[1:]],
        "fixes": [fix_to_json(each) for each in report.fixes],
        "notes": findings.notes,
        "reason": findings.reason,
        "sentence": report.sentence,
    }
    plain: dict[str, Any] = jsonable(value)
    return plain


def _difference(difference: ModeDifference) -> dict[str, Any]:
    return {
        "modes": difference.modes,
        "first": None if difference.first is None else _differing(difference.first),
        "first_nonfinite": None
        if difference.first_nonfinite is None
        else _differing(difference.first_nonfinite),
    }


def _differing(op: DifferingOp) -> dict[str, Any]:
    return {
        "op_type": op.op_type, "op_name": op.op_name, "phase": op.phase, "layer_path": op.layer_path, "max_ulp": op.max_ulp,
    }  # fmt: skip


def _origin(origin: Origin) -> dict[str, Any]:
    return {
        "step": origin.step,
        "phase": origin.phase,
        "where": origin.where,
        "layer": origin.layer,
        "layer_path": origin.layer_path,
        "op_type": origin.op_type,
        "op_name": origin.op_name,
        "loop": [{"op": each.op, "iteration": each.iteration} for each in origin.loop],
        "source": _source(origin.source),
        "outputs": [
            {
                "dtype": each.dtype, "shape": each.shape, "nonfinite": each.nonfinite, "size": each.size, "indices": each.indices,
                "value": each.value,
            }
            for each in origin.outputs
        ],
        "operands": [
            {"name": each.name, "dtype": each.dtype, "shape": each.shape, "value": each.value, "min": each.min, "max": each.max}
            for each in origin.operands
        ],
        "rows": origin.rows,
        "rows_reason": origin.rows_reason,
        "kind": origin.kind,
        "replica": origin.replica,
        "worker": origin.worker,
    }  # fmt: skip


def _source(source: Frame | None) -> dict[str, Any] | None:
    return (
        None
        if source is None
        else {
            "file": source.file,
            "line": source.line,
            "function": source.function,
            "code": source.code,
        }
    )


def _cause(cause: Cause) -> dict[str, Any]:
    return {
        "kind": cause.kind,
        "confidence": cause.confidence,
        "sentence": cause.sentence,
        "evidence": cause.evidence,
    }


def fix_to_json(fix: FixResult) -> dict[str, Any]:
    """One fix that was tried."""
    bad = fix.nonfinite
    return {
        "name": fix.name, "params": fix.params, "prevents": fix.prevents, "steps_checked": fix.steps_checked,
        "nonfinite": None if bad is None else {"step": fix.nonfinite_step, "what": bad.what, "name": bad.name, "value": bad.value},
        "loss_change": fix.loss_change, "final_loss": fix.final_loss, "code": fix.code, "source": _source(fix.source), "note": fix.note,
    }  # fmt: skip


def _link(link: ChainLink) -> dict[str, Any]:
    return {
        "op_type": link.op_type, "op_name": link.op_name, "phase": link.phase, "layer_path": link.layer_path, "shape": link.shape,
        "nonfinite": link.nonfinite, "value": link.value, "absmax": link.absmax,
    }  # fmt: skip
