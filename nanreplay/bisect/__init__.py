"""Finding the op that made the first non-finite value, by walking back from what failed. Imports no TensorFlow."""

from nanreplay.bisect.origin import find_origin

__all__ = ["find_origin"]
