"""The report as JSON: the stable contract of `docs/report-format.md`. Every key is always there; an absent fact is null."""

from __future__ import annotations

from typing import Any

from nanreplay.findings import ChainLink, Origin, Report
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
            "trigger": {"what": report.trigger.what, "name": report.trigger.name, "value": report.trigger.value},
        },
        "verdict": {
            "kind": verdict.kind,
            "bit_exact": verdict.bit_exact,
            "evidence": [
                {"mode": each.mode, "finite": each.finite, "bit_exact": each.bit_exact, "max_ulp": each.max_ulp}
                for each in verdict.evidence
            ],
            "reason": verdict.reason,
        },
        "origin": None if findings.origin is None else _origin(findings.origin),
        "other_origins": [_origin(each) for each in findings.other_origins],
        "chain": [_link(each) for each in findings.chain],
        "upstream": [_link(each) for each in findings.upstream],
        "root": None if findings.root is None else {"step": findings.root.step, "reason": findings.root.reason},
        "cause": report.cause,
        "fixes": list(report.fixes),
        "notes": findings.notes,
        "reason": findings.reason,
        "sentence": report.sentence,
    }
    plain: dict[str, Any] = jsonable(value)
    return plain


def _origin(origin: Origin) -> dict[str, Any]:
    source = origin.source
    return {
        "step": origin.step,
        "phase": origin.phase,
        "where": origin.where,
        "layer": origin.layer,
        "layer_path": origin.layer_path,
        "op_type": origin.op_type,
        "op_name": origin.op_name,
        "loop": [{"op": each.op, "iteration": each.iteration} for each in origin.loop],
        "source": None if source is None else {"file": source.file, "line": source.line, "function": source.function, "code": source.code},
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
    }  # fmt: skip


def _link(link: ChainLink) -> dict[str, Any]:
    return {
        "op_type": link.op_type, "op_name": link.op_name, "phase": link.phase, "layer_path": link.layer_path, "shape": link.shape,
        "nonfinite": link.nonfinite, "value": link.value, "absmax": link.absmax,
    }  # fmt: skip
