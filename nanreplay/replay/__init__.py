"""Replaying the steps of a capture.

`Replay` is imported when it is first asked for, since it needs TensorFlow; `provenance`, which
holds the events of a run, does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanreplay.replay.session import Replay as Replay
    from nanreplay.replay.session import StepResult as StepResult

__all__ = ["Replay", "StepResult"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nanreplay.replay import session

    return getattr(session, name)
