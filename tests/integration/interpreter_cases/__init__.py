"""Steps made of the ops that TensorFlow puts into training, each a plain function to be traced.

A case is a function of no arguments that returns (step, arguments). Modules register theirs with
`@case`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

Case = Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]
CASES: dict[str, Case] = {}


def case(build: Case) -> Case:
    """Register a case under its module's and its own name."""
    CASES[f"{build.__module__.rpartition('.')[2]}-{build.__name__}"] = build
    return build


for _module in (
    "control_flow",
    "layers",
    "arithmetic",
    "arrays",
    "kernels",
    "state",
    "text_and_sets",
):
    importlib.import_module(f"{__name__}.{_module}")
