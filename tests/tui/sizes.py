"""The sizes of a terminal at which its pictures are compared."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pytest

SIZES = [(80, 24), (160, 50)]


def at_sizes(quick: Mapping[str, Collection[int]]) -> list[Any]:
    """Parameters (what, size): each key at each size, slow but at the widths that stand with it."""
    cases = []
    for what, widths in quick.items():
        for size in SIZES:
            marks = () if size[0] in widths else pytest.mark.slow
            cases.append(pytest.param(what, size, id=f"{what}-{size[0]}x{size[1]}", marks=marks))
    return cases
