"""What notebooks show: pages of captures, reports and recorders, and short errors.

A class asks here for its page by its own name, and the package root says which function draws it.
So `capture` and `recorder`, which lie below `report`, import no reports and no matplotlib. IPython
is asked only where the process has loaded it.
"""

from __future__ import annotations

import linecache
import sys
import traceback
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

PAGES: dict[str, str] = {}
"""The function that draws the page of a class, as `module:function`, by the class's name."""
INCIDENT = "incident"
"""The key of the function in `PAGES` that shows the page of a capture below a cell."""
_LIBRARIES = ("/site-packages/", "/dist-packages/")
"""Folders whose frames are none of the user's."""
_OWN_FOLDER = str(Path(__file__).parent)
_waiting: list[Callable[[], None]] = []
"""What is shown when the running cell has ended; one page at most."""


def html_of(shown: Any) -> str:
    """The HTML of an object, for its `_repr_html_`."""
    page: str = _function(type(shown).__name__)(shown)
    return page


def _function(key: str) -> Callable[..., Any]:
    module, _, function = PAGES[key].partition(":")
    renderer: Callable[..., Any] = getattr(import_module(module), function)
    return renderer


# The cell that runs


def is_kernel() -> bool:
    """Whether this process runs cells of a notebook: in Jupyter, VS Code or Colab."""
    return getattr(_shell(), "kernel", None) is not None


def _shell() -> Any:
    """IPython's shell in this process; None without one."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return None if get_ipython is None else get_ipython()


def cell_of(file: str) -> str | None:
    """The cell that a code file stands for, as IPython writes it: `In[3]`; None for another file.

    Args:
        file: As a stack names it.
    """
    name_of = getattr(getattr(_shell(), "compile", None), "format_code_name", None)
    named = None if name_of is None else name_of(file)
    return None if named is None else str(named[1])


def show_incident_after_cell(path: str) -> None:
    """Show the page of a capture below the running cell, once the cell has ended.

    Its error is shown by then. Of several incidents in one cell the last one is shown. Outside of a
    notebook nothing happens.

    Args:
        path: The capture.
    """
    events = getattr(_shell(), "events", None)
    if not is_kernel() or events is None or INCIDENT not in PAGES:
        return

    def show(*_: Any) -> None:
        events.unregister("post_run_cell", show)
        _waiting.clear()
        _function(INCIDENT)(path)

    for earlier in _waiting:
        events.unregister("post_run_cell", earlier)
    _waiting[:] = [show]
    events.register("post_run_cell", show)


# Errors


def short_traceback(error: BaseException, message: str) -> list[str]:
    """The lines that IPython shows of an error: the message, and the frames of the user's code.

    Args:
        error: The error, as it was raised.
        message: What happened.
    """
    return [f"{type(error).__name__}: {message}", *_own_frames(error.__traceback__)]


def full_traceback(error: BaseException) -> list[str]:
    """Every line of an error's traceback, as Python writes it."""
    return "".join(traceback.format_exception(error)).splitlines()


def _own_frames(trace: TracebackType | None) -> Iterator[str]:
    for frame, line in traceback.walk_tb(trace):
        file = frame.f_code.co_filename
        cell = cell_of(file)
        is_library = any(folder in file.replace("\\", "/") for folder in _LIBRARIES)
        if cell is None and (is_library or file.startswith((_OWN_FOLDER, "<"))):
            continue
        code = linecache.getline(file, line).strip()
        yield f"  {f'Cell {cell}' if cell else file}, line {line}: {code}"
