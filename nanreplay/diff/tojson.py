"""A comparison as JSON: `nanreplay diff --json` in `docs/report-format.md`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from nanreplay.diff.findings import Diff
from nanreplay.report.numbers import jsonable


def diff_to_json(diff: Diff) -> dict[str, Any]:
    """All fields of the classes in `findings`."""
    plain: dict[str, Any] = jsonable({"format": "nanreplay-diff", "version": 1, **asdict(diff)})
    return plain
