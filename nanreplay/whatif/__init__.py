"""Trying fixes on a recorded failure: the program, the data, the start or the learning rate is changed, and the window replayed."""

from nanreplay.whatif.trial import FixError, check_fix, what_if

__all__ = ["FixError", "check_fix", "what_if"]
