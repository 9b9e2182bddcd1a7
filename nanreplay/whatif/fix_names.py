"""How fixes are asked for: `clipnorm=1.0`.

For the command line and the what-if pane. Imports no TensorFlow, so that a wrong name is said at
once.
"""

from __future__ import annotations

from nanreplay.errors import NanreplayError

NAMES = (
    "lr",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "epsilon",
    "clip_data",
    "clean_data",
    "float32",
    "leaky_relu",
    "init",
    "double_where",
    "stable_op",
    "finite_mask",
    "skip_step",
)
"""Every fix."""


class FixError(NanreplayError, ValueError):
    """A fix was asked for that does not exist, or with a value that it does not take."""


def check_fix(text: str) -> tuple[str, str | None]:
    """Take `clipnorm=1.0` apart into name and value.

    Raises:
        FixError: There is no such fix.
    """
    name, has_value, value = text.partition("=")
    if name.strip() not in NAMES:
        raise FixError(f"There is no fix {name.strip()!r}. There are: {', '.join(NAMES)}.")
    return name.strip(), value.strip() if has_value else None
