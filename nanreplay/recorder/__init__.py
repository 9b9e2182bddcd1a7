"""Recording a training: the callback, the wrapper of loops, and all that they keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanreplay.recorder.callback import Recorder as Recorder

__all__ = ["Recorder"]


def __getattr__(name: str) -> Any:
    if (
        name != "Recorder"
    ):  # imports Keras, which `nanreplay run` leaves to the program that it runs
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nanreplay.recorder.callback import Recorder

    return Recorder
