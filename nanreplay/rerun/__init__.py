"""Recorded weights and batches through the user's current code: does it still fail?

Imports TensorFlow only when something is replayed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanreplay.rerun.rerun import replay_with as replay_with
    from nanreplay.rerun.rerun_result import RerunResult as RerunResult

__all__ = ["RerunResult", "replay_with"]


def __getattr__(name: str) -> Any:
    if name == "RerunResult":
        from nanreplay.rerun.rerun_result import RerunResult

        return RerunResult
    if name == "replay_with":
        from nanreplay.rerun.rerun import replay_with

        return replay_with
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
