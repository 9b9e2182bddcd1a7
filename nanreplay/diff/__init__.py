"""Where two recordings part: two captures, two modes of replay, or a capture and current code.

For `nanreplay diff` and for users' scripts. Imports TensorFlow only when something is compared.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanreplay.diff.capture_diff import diff_captures as diff_captures
    from nanreplay.diff.capture_diff import diff_with_code as diff_with_code
    from nanreplay.diff.diff_findings import Diff as Diff
    from nanreplay.diff.mode_diff import diff_modes as diff_modes

_PUBLIC = {
    "diff_captures": "nanreplay.diff.capture_diff",
    "diff_modes": "nanreplay.diff.mode_diff",
    "diff_with_code": "nanreplay.diff.capture_diff",
    "Diff": "nanreplay.diff.diff_findings",
}
__all__ = ["Diff", "diff_captures", "diff_modes", "diff_with_code"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
