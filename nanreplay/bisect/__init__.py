"""Finding the op that made the first non-finite value, by walking back from what failed. Imports no TensorFlow."""

from __future__ import annotations

from nanreplay.bisect.origin import Bisection, bisect, find_origin, locate

__all__ = ["Bisection", "bisect", "find_origin", "locate"]
