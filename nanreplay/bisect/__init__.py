"""Finding the op that made the first non-finite value, by walking back from what failed.

`bisect` is the whole search, `locate` its quick form for who replays the same window many times.
Imports no TensorFlow: a `StepRunner` runs the ops.
"""

from __future__ import annotations

from nanreplay.bisect.origin import Bisection, bisect, find_origin, locate

__all__ = ["Bisection", "bisect", "find_origin", "locate"]
