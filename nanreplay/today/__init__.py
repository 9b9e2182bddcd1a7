"""Recorded weights and batches through today's code. Imports TensorFlow only when something is replayed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["TodayResult", "replay_with"]

if TYPE_CHECKING:
    from nanreplay.today.rerun import replay_with as replay_with
    from nanreplay.today.result import TodayResult as TodayResult


def __getattr__(name: str) -> Any:
    if name == "TodayResult":
        from nanreplay.today.result import TodayResult

        return TodayResult
    if name == "replay_with":
        from nanreplay.today.rerun import replay_with

        return replay_with
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
