"""Writing what is shown to files, and what can be copied of a report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from nanreplay.errors import NanreplayError
from nanreplay.report.contents import Report
from nanreplay.report.report_json import to_json
from nanreplay.report.sentence import fix_label
from nanreplay.tui.panes.base import Copyable


class ExportError(NanreplayError):
    """A file could not be written."""


def copyables(report: Report | None) -> Sequence[Copyable]:
    """What every tab offers to copy: the sentence, the JSON, the code of the first fix that helps."""
    if report is None:
        return ()
    found = [
        Copyable("the sentence", report.sentence),
        Copyable("the report as JSON", json.dumps(to_json(report), indent=2, ensure_ascii=False)),
    ]
    helpful = next((fix for fix in report.fixes if fix.prevents and fix.code), None)
    return (
        found
        if helpful is None
        else [*found, Copyable(f"the fix {fix_label(helpful)}", helpful.code or "")]
    )


def export_path(folder: Path, capture: str, pane: str, suffix: str) -> Path:
    """A file that does not exist yet: `log_of_zero-overview.svg`, `log_of_zero-overview-2.svg`."""
    stem, number = f"{Path(capture).stem}-{pane}", 1
    while (
        path := folder / (f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}")
    ).exists():
        number += 1
    return path


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8 that ends with a newline."""
    path.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
