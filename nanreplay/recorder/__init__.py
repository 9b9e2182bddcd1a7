"""Recording a training into a capture file."""

from nanreplay.recorder.callback import Recorder

__all__ = ["Recorder"]
