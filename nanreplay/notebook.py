"""The HTML that notebooks show for captures and reports.

A class asks here for its page by its own name, and the package root says which function draws it.
So `capture`, which lies below `report`, imports no reports and no matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

PAGES: dict[str, str] = {}
"""The function that draws the page of a class, as `module:function`, by the class's name."""


def html_of(shown: Any) -> str:
    """The HTML of an object, for its `_repr_html_`."""
    module, _, function = PAGES[type(shown).__name__].partition(":")
    page: str = getattr(import_module(module), function)(shown)
    return page
