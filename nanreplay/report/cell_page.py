"""The page of a capture in a notebook: below the cell that failed, and of a recorder.

What the file says is shown at once. Another process replays the step meanwhile; how far it is
stands above, until the answer takes the place of both.
"""

from __future__ import annotations

import contextlib
import html
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nanreplay.errors import NanreplayError, first_line, missing_package, own_error
from nanreplay.report.contents import Report
from nanreplay.report.explain_process import explain_elsewhere
from nanreplay.report.stored_answers import content_of, stored_answer

if TYPE_CHECKING:
    from nanreplay.recorder import Recorder

_EVERY_S = 0.5
"""Seconds between two pictures of the progress, at least."""
_known: dict[str, tuple[str, Report]] = {}
"""Reports that this process has made or read, by path, with the content that they are of."""


def show_incident(path: str) -> None:
    """Show the page of a capture below a cell: first what the file says, then the answer.

    Whatever goes wrong becomes one line: the training's own error must stay the news.

    Args:
        path: The capture, which this process has just written.
    """
    try:
        page = _CellOutput(_recorded(path))
        try:
            _explained(path, page)
        except KeyboardInterrupt:
            page.show(f"Stopped. This explains it: nanreplay.explain({path!r})")
        except NanreplayError as error:
            page.show(f"It could not be explained. {first_line(error)}")
        else:
            page.replace(_page(path), _known[path][1].sentence)
    except Exception as error:
        missing = missing_package(error) if isinstance(error, ImportError) else None
        print(f"nanreplay: {missing or own_error('The page could not be shown', error)}")


def recorder_fragment(recorder: Recorder) -> str:
    """Write what became of a recorded training as one element, for a notebook.

    The capture is explained first, where nobody has done that yet.

    Args:
        recorder: The recorder.
    """
    if recorder.path is None:
        steps = f"{recorder.steps} step{'' if recorder.steps == 1 else 's'}"
        seen = f"{steps} seen, all finite." if recorder.steps else "No step was seen yet."
        return _fragment(f"{seen} Nothing was written.", name="recorder.html")
    path = os.fspath(recorder.path)
    try:
        with cell_progress() as page:
            _explained(path, page)
        return _page(path)
    except NanreplayError as error:
        return _fragment(f"{path} could not be explained. {first_line(error)}")


def _explained(path: str, page: _CellOutput) -> None:
    """See to it that the report of a capture is known."""
    from nanreplay.recorder.explanations import finish

    page.say("reading the file")
    finish(Path(path))  # `explain=True` stores the answer in the file
    content = content_of(path)
    if path in _known and _known[path][0] == content:
        return
    stored = stored_answer(path)
    if stored is not None and stored.is_current:
        report = stored.report
    else:
        report = explain_elsewhere(path, page.progress, page.say)
    _known[path] = content, report


def _page(path: str) -> str:
    from nanreplay.report.pages import report_fragment

    return report_fragment(_known[path][1])


def _recorded(path: str) -> str:
    """What the file alone says."""
    from nanreplay.capture import Capture
    from nanreplay.report.pages import capture_fragment

    with Capture(path) as capture:
        return capture_fragment(capture, has_answer_top=True)


def _fragment(line: str, *, name: str = "note.html") -> str:
    from nanreplay.report.pages import fragment, page_environment

    return fragment(page_environment().get_template(name).render(line=line))


# Progress


class _CellOutput:
    """One output of a cell, which is drawn again as work goes on.

    Args:
        below: HTML that stands below the progress.
    """

    def __init__(self, below: str = "") -> None:
        from IPython.display import display

        self._below = below
        self._line, self._done, self._total = "", 0, 0
        self._drawn_at = time.monotonic()
        self._handle = display(_data(below), raw=True, display_id=True)

    def say(self, line: str) -> None:
        """Show a part of the work."""
        self._line, self._total = line, 0
        self._draw()

    def progress(self, done: int, total: int) -> None:
        """Show how many steps of a part are done."""
        self._done, self._total = done, total
        if time.monotonic() - self._drawn_at > _EVERY_S:
            self._draw()

    def show(self, line: str) -> None:
        """Show a last line instead of the progress."""
        self.replace(_fragment(line) + self._below, line)

    def replace(self, page: str, text: str = "") -> None:
        """Show a page instead of all, or a text where no HTML is shown."""
        self._handle.update(_data(page, text), raw=True)

    def _draw(self) -> None:
        self._drawn_at = time.monotonic()
        # plain HTML: the templates of pages may not be installed
        counts = f": {self._done} of {self._total}" if self._total else ""
        value = f' value="{self._done}" max="{self._total}"' if self._total else ""
        line = html.escape(f"nanreplay: {self._line}{counts}")
        self.replace(f"<p><progress{value}></progress> {line}</p>{self._below}")


def _data(page: str, text: str = "") -> dict[str, str]:
    return {"text/html": page, "text/plain": text}


@contextlib.contextmanager
def cell_progress() -> Iterator[_CellOutput]:
    """Show progress in the running cell while work goes on, and nothing of it afterwards."""
    page = _CellOutput()
    try:
        yield page
    finally:
        page.replace("")
