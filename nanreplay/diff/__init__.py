"""Where two recordings part: two captures, two ways of replaying one, or a capture and today's code."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanreplay.diff.capture_diff import diff_captures as diff_captures
    from nanreplay.diff.capture_diff import diff_today as diff_today
    from nanreplay.diff.diff_findings import Diff as Diff
    from nanreplay.diff.mode_diff import diff_modes as diff_modes

_PUBLIC = {
    "diff_captures": "nanreplay.diff.capture_diff",
    "diff_modes": "nanreplay.diff.mode_diff",
    "diff_today": "nanreplay.diff.capture_diff",
    "Diff": "nanreplay.diff.diff_findings",
}
__all__ = ["Diff", "diff_captures", "diff_modes", "diff_today"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
