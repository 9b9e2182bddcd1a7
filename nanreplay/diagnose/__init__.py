"""From replays to a verdict (`judge`), and from an origin to its causes (`causes_of`).

Both are imported when they are asked for: what reports say of a line needs no TensorFlow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanreplay.diagnose.causes import causes_of as causes_of
    from nanreplay.diagnose.verdict import judge as judge

_MODULES = {"causes_of": "nanreplay.diagnose.causes", "judge": "nanreplay.diagnose.verdict"}
__all__ = ["causes_of", "judge"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
