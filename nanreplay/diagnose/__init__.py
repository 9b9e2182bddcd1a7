"""From replays to a verdict (`judge`), and from an origin to its causes (`causes_of`)."""

from __future__ import annotations

from nanreplay.diagnose.causes import causes_of
from nanreplay.diagnose.verdict import judge

__all__ = ["causes_of", "judge"]
