"""From replays to a verdict."""

from nanreplay.diagnose.verdict import judge

__all__ = ["judge"]
