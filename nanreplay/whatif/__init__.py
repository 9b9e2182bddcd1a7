"""Trying fixes on a recorded failure: the program, the data, the start or the learning rate is changed, and the window replayed."""

from __future__ import annotations

from nanreplay.whatif.fix_names import FixError, check_fix

__all__ = ["FixError", "check_fix"]
