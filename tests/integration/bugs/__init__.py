"""Bugs that turn a training NaN, each as people write it, with its cause, the fixes that help and
those that do not.

A bug is a function that trains with a recorder; modules register theirs with `@bug`. Given the
name of a fix, it trains with
that fix in its code, as a user would write it.
"""

from __future__ import annotations

import importlib

from bugs.base import BUGS, Bug

__all__ = ["BUGS", "Bug"]

for _module in (
    "data",
    "divisions",
    "exponentials",
    "growth",
    "halves",
    "linear_algebra",
    "logs",
    "roots",
):
    importlib.import_module(f"bugs.{_module}")
