"""Putting functions of ours in place of TensorFlow's generated ones, for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def replace_functions(
    places: Iterable[tuple[Any, str]], stand_in: Callable[[str, Callable[..., Any]], Callable[..., Any]]
) -> Callable[[], None]:
    """Replace functions of modules; returns what puts them back.

    Args:
        places: Module and name of each.
        stand_in: Given the name and the function, makes what is called in its place.
    """
    originals = [(module, name, getattr(module, name)) for module, name in places]
    for module, name, original in originals:
        setattr(module, name, stand_in(name, original))

    def undo() -> None:
        for place in reversed(originals):
            setattr(*place)

    return undo
