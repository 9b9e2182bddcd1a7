"""What can be copied of a report, and the files that an export writes.

The capture screen uses both for its keys `y` and `e`, and the command palette for its entries.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from nanreplay.capture.temporary import written_whole
from nanreplay.errors import NanreplayError
from nanreplay.report.contents import Report
from nanreplay.report.fix_words import fix_label
from nanreplay.report.report_json import to_json
from nanreplay.tui.panes.base import Copyable


class ExportError(NanreplayError):
    """A file could not be written."""


def copyables(report: Report | None) -> Sequence[Copyable]:
    """What every tab offers to copy: the sentence, the JSON, the code of the first fix that helps.

    Args:
        report: The report; there is nothing to copy while it is None.
    """
    if report is None:
        return ()
    report_json = json.dumps(to_json(report), indent=2, ensure_ascii=False)
    offered = [
        Copyable("the sentence", report.sentence),
        Copyable("the report as JSON", report_json),
    ]
    helpful = next((fix for fix in report.fixes if fix.prevents and fix.code), None)
    if helpful is not None:
        offered.append(Copyable(f"the fix {fix_label(helpful)}", helpful.code or ""))
    return offered


def export_path(folder: Path, capture: str, pane: str, suffix: str) -> Path:
    """A file that does not exist yet: `log_of_zero-overview.svg`, `log_of_zero-overview-2.svg`.

    Args:
        folder: Where the file goes.
        capture: File name of the capture.
        pane: Id of the tab.
        suffix: `.svg` or `.txt`.
    """
    stem = f"{Path(capture).stem}-{pane}"
    path = folder / f"{stem}{suffix}"
    for number in itertools.count(2):
        if not path.exists():
            break
        path = folder / f"{stem}-{number}{suffix}"
    return path


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8 that ends with one newline; a full disk leaves no part of it."""
    with written_whole(path) as part:
        part.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
