"""Pages in notebooks: an object asks for its own here, and the room of reports knows how it looks.

The package root says who draws what, so that a capture need not import the reports.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

PAGES: dict[str, str] = {}
"""By the name of a class, the function that draws its page: `module:function`."""


def page_of(shown: Any) -> str:
    """The HTML of an object, for its `_repr_html_`."""
    module, _, function = PAGES[type(shown).__name__].partition(":")
    page: str = getattr(import_module(module), function)(shown)
    return page
