"""Reports that captures hold beside their data: what stands in for a replay without TensorFlow.

A report is taken for what it is: made by one version of nanreplay from one content of a file. The
commands and the terminal interface show it where nothing can be replayed, and say whose it is.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from nanreplay import __version__
from nanreplay.capture import Capture
from nanreplay.capture.stored_report import store_report
from nanreplay.capture.tables import build
from nanreplay.errors import FormatError, MissingPackageError
from nanreplay.report.contents import Report
from nanreplay.report.report_json import from_json, to_json

FORMAT: Final = "nanreplay-stored-report"
_BUILDS: Final = ("tensorflow", "tensorflow-cpu", "tf-nightly")
"""Packages that bring a TensorFlow."""


@dataclass(frozen=True, slots=True)
class ReportMaker:
    """Who made a stored report, when, and of what."""

    nanreplay: str
    """Version."""
    tensorflow: str
    """Version; "" where no package of TensorFlow told one."""
    created: str
    """ISO 8601, UTC."""
    content: str
    """What `Capture.content_digest` was."""

    @property
    def words(self) -> str:
        """Who and when: `nanreplay 0.2.0 with TensorFlow 2.21.0 on 2026-01-31`."""
        tensorflow = f" with TensorFlow {self.tensorflow}" if self.tensorflow else ""
        return f"nanreplay {self.nanreplay}{tensorflow} on {self.created[:10]}"


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """A report that a capture holds."""

    report: Report
    maker: ReportMaker
    is_of_this_content: bool
    """Whether the capture is what it was when the report was made."""

    @property
    def is_current(self) -> bool:
        """Whether this very nanreplay made it of this very content."""
        return self.is_of_this_content and self.maker.nanreplay == __version__

    @property
    def line(self) -> str:
        """What to say beside it: who made it, and whether that is another nanreplay."""
        other = "" if self.maker.nanreplay == __version__ else f"; this is {__version__}"
        return f"the stored answer, made by {self.maker.words}{other}"


def has_tensorflow() -> bool:
    """Whether TensorFlow is installed; does not load it."""
    try:
        return importlib.util.find_spec("tensorflow") is not None
    except (ImportError, ValueError):
        return False


def stored_answer(path: str | os.PathLike[str]) -> StoredAnswer | None:
    """The report that the capture at `path` holds; None where it holds none.

    Raises:
        CaptureError: The capture or its report cannot be read.
    """
    with Capture(path) as capture:
        return answer_in(capture)


def answer_in(capture: Capture) -> StoredAnswer | None:
    """The report that an open capture holds; None where it holds none.

    Raises:
        FormatError: It cannot be read.
    """
    table = capture.stored_report()
    if table is None:
        return None
    try:
        maker = _maker(table)
        report = from_json(table.get("report"), str(capture.path))
    except FormatError as error:
        raise FormatError(f"{capture.path}: the stored report cannot be read: {error}") from error
    return StoredAnswer(report, maker, capture.content_digest() == maker.content)


def _maker(table: Mapping[str, Any]) -> ReportMaker:
    if table.get("format") != FORMAT:
        raise FormatError("it is no stored report")
    return build(ReportMaker, table)


def answer_without_tensorflow(path: str | os.PathLike[str]) -> StoredAnswer:
    """The stored report of a capture that cannot be replayed here.

    Raises:
        MissingPackageError: There is none, or one of another content, and TensorFlow is missing.
        CaptureError: The capture cannot be read.
    """
    stored = stored_answer(path)
    install = "pip install 'nanreplay[tensorflow]', or the build of TensorFlow that you train with"
    if stored is None:
        raise MissingPackageError(
            f"{os.fspath(path)}: holds no stored answer, and to replay it needs tensorflow, which "
            f"is not installed: {install}."
        )
    if not stored.is_of_this_content:
        raise MissingPackageError(
            f"{os.fspath(path)}: was changed after {stored.maker.words} stored its answer, which "
            f"so may be wrong; to replay it needs tensorflow, which is not installed: {install}."
        )
    return stored


def content_of(path: str | os.PathLike[str]) -> str:
    """What `store_answer` compares with: a hash of the capture at `path`."""
    with Capture(path) as capture:
        return capture.content_digest()


def store_answer(path: str | os.PathLike[str], report: Report, *, content: str) -> None:
    """Store a report in the capture that it is of.

    Args:
        path: The capture, a file of this machine.
        report: What `explain` made of it.
        content: What `content_of` gave before `explain` read it.

    Raises:
        CaptureError: It could not be stored; the capture is as it was.
    """
    maker = {
        "format": FORMAT,
        "version": 1,
        "nanreplay": __version__,
        "tensorflow": _tensorflow_version(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "content": content,
    }
    store_report(path, {**maker, "report": to_json(report)}, content=content)


def _tensorflow_version() -> str:
    for name in _BUILDS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""
