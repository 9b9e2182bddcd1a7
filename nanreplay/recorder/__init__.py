"""Recording a training: the callback, the wrapper of loops, and all that they keep.

A step passes from `callback` (or `loops`, `ambient`) to `compiled_calls` or `eager_step`, and from
there to `recording`, which keeps it (`retention`, `ring`) and has it judged (`health_check`). An
incident goes to `incidents`, and from there to `dump`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanreplay.recorder.callback import Recorder as Recorder

__all__ = ["Recorder"]


def __getattr__(name: str) -> Any:
    # It imports Keras, which `nanreplay run` leaves to the program that it runs.
    if name != "Recorder":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nanreplay.recorder.callback import Recorder

    return Recorder
