"""Updates that loss scaling skips: normal, until they do not end."""

from __future__ import annotations

from typing import Any

from nanreplay.program.fingerprint import Layout
from nanreplay.records import Trigger

WHOLE = 1.0
"""A loss that is scaled up no more: a gradient that overflows then does so by itself."""


class Skips:
    """Counts skipped updates in a row.

    Args:
        limit: How many are an incident.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        self._scale: float | None = None

    def note(self, layout: Layout, values: Any, *, skipped: bool) -> Trigger | None:
        """Note a step; an incident when skipping goes on, or the scale falls no further.

        Keras 3 halves the scale without end. Where an optimizer has a floor, two updates that are skipped at the same scale
        show it.
        """
        before, self._scale = self._scale, None
        self._count = self._count + 1 if skipped else 0
        if not skipped:
            return None
        if "loss_scale" in layout.names:
            self._scale = float(values[layout.names.index("loss_scale")])
        if self._count >= self._limit:
            return Trigger("gradient", "loss scale", f"{self._count} updates in a row were skipped")
        if self._scale is not None and self._scale == before and self._scale <= WHOLE:
            return Trigger("gradient", "loss scale", f"an update was skipped at the floor of {self._scale:g}")
        return None
