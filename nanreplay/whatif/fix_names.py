"""How fixes are asked for: `clipnorm=1.0`.

For the command line and the what-if pane. Imports no TensorFlow, so that a wrong name is said at
once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from nanreplay.errors import NanreplayError

FixGroup: TypeAlias = Literal["code", "data", "optimizer"]
FIX_KINDS: Mapping[str, tuple[FixGroup, str]] = {
    "lr": ("optimizer", "lowers the learning rate"),
    "clipnorm": ("optimizer", "bounds the norm of each gradient"),
    "clipvalue": ("optimizer", "bounds each element of the gradients"),
    "global_clipnorm": ("optimizer", "bounds the norm of all gradients together"),
    "epsilon": ("code", "adds a small number to the operand"),
    "clip_data": ("data", "bounds columns to their usual range"),
    "clean_data": ("data", "removes what is not finite, or its rows"),
    "float32": ("code", "computes in float32 what was in 16 bits"),
    "leaky_relu": ("code", "takes leaky_relu in place of relu"),
    "init": ("code", "draws the initial kernels anew"),
    "double_where": ("code", "puts 1 in the place of operands at the pole"),
    "stable_op": ("code", "takes the function that stays finite"),
    "finite_mask": ("code", "masks with a large number in place of -inf"),
    "skip_step": ("optimizer", "leaves out updates that are not finite"),
}
"""Every fix: what it changes, and what it does in a few words."""
NAMES = tuple(FIX_KINDS)


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
