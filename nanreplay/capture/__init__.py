"""The capture file: written by the recorder, read by everything else. Imports no TensorFlow."""

from __future__ import annotations

from nanreplay.capture.reader import Capture
from nanreplay.capture.writer import write_capture

__all__ = ["Capture", "write_capture"]
