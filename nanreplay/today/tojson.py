"""A replay with today's code as JSON: `nanreplay replay --model` in `docs/report-format.md`."""

from __future__ import annotations

from typing import Any

from nanreplay.report.steps import steps_to_json
from nanreplay.report.tojson import to_json
from nanreplay.today.result import TodayResult


def today_to_json(result: TodayResult) -> dict[str, Any]:
    """One capture of the document, with the keys of a replay of the recorded program and some of its own."""
    return {
        **steps_to_json(result.path, "today", result.steps, result.notes),
        "finite": result.finite,
        "model": result.model,
        "fixed": result.fixed,
        "sentence": result.sentence,
        "report": None if result.report is None else to_json(result.report),
    }
