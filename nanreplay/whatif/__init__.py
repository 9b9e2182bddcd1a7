"""Trying fixes on a recorded failure.

The program, the data, the start or the learning rate is changed, and the window is replayed.
"""

from __future__ import annotations

from nanreplay.whatif.fix_names import FixError, check_fix

__all__ = ["FixError", "check_fix"]
