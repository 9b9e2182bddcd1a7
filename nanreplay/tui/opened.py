"""What of a capture is shown before anything is replayed: its tables, read at once, without TensorFlow and pandas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanreplay.capture import Capture
from nanreplay.capture.storage import Location
from nanreplay.records import Incident, Timeline, VariableInfo
from nanreplay.report.inventory import inventory


@dataclass(frozen=True)
class OpenedCapture:
    """Tables of one capture; no tensors."""

    path: Location
    facts: Mapping[str, Any]
    """What `nanreplay info --json` prints."""
    incident: Incident
    steps: tuple[int, ...]
    """Steps whose batches are held, ascending."""
    timeline: Timeline
    variables: Sequence[VariableInfo]

    @property
    def name(self) -> str:
        """File name, for titles."""
        return self.path.name


def open_capture(path: Location) -> OpenedCapture:
    """Read the tables of a capture.

    Raises:
        CaptureError: The file cannot be read.
    """
    with Capture(path) as capture:
        return OpenedCapture(path, inventory(capture), capture.incident, capture.steps, capture.timeline_record(), capture.variables_info)
