"""Trying fixes on a recorded failure: the program, the data, the start or the learning rate is changed, and the window replayed."""

from nanreplay.whatif.spec import FixError, check_fix

__all__ = ["FixError", "check_fix"]
