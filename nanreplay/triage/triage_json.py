"""The result of a triage as JSON: the stable contract of `docs/report-format.md`."""

from __future__ import annotations

from typing import Any

from nanreplay.report.numbers import jsonable
from nanreplay.triage.failure_groups import FailureGroup, TriagedCapture, TriageResult
from nanreplay.triage.failure_key import failure_key

FORMAT = "nanreplay-triage"
VERSION = 1
_STATUSES = ("nonfinite", "finite", "undecided", "unreadable")


def triage_to_json(result: TriageResult) -> dict[str, Any]:
    """A result as plain dicts, lists, texts and numbers."""
    plain: dict[str, Any] = jsonable(
        {
            "format": FORMAT,
            "version": VERSION,
            "counts": {status: len(result.of_status(status)) for status in _STATUSES},
            "groups": [_group(group) for group in result.groups],
            "captures": [_capture(each) for each in result.captures],
        }
    )
    return plain


def _group(group: FailureGroup) -> dict[str, Any]:
    first, last = group.seen
    key = group.key
    return {
        "fingerprint": key.fingerprint,
        "cause": key.cause or None,
        "op_type": key.op_type or None,
        "layer": key.layer or None,
        "file": key.file or None,
        "lines": group.lines,
        "code": key.code or None,
        "trigger": key.trigger or None,
        "count": len(group.captures),
        "runs": group.runs,
        "first_seen": first,
        "last_seen": last,
        "sentence": group.cheapest.answer.sentence,
        "cheapest": {
            "path": group.cheapest.answer.path,
            "size_bytes": group.cheapest.size_bytes,
        },
        "captures": [each.answer.path for each in group.captures],
    }


def _capture(each: TriagedCapture) -> dict[str, Any]:
    answer = each.answer
    key = failure_key(answer)
    origin = (answer.report or {}).get("origin") or {}
    return {
        "path": answer.path,
        "status": answer.status,
        "fingerprint": None if key is None else key.fingerprint,
        "sentence": answer.sentence,
        "step": origin.get("step"),
        "recorded": answer.recorded,
        "size_bytes": each.size_bytes,
        "elapsed_s": answer.elapsed_s,
        "cached": answer.is_cached,
    }
