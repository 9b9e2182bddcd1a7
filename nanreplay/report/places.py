"""Where in today's checkout a recorded line of code stands. Imports no TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath, PureWindowsPath
from urllib.parse import quote

from nanreplay.records import Frame
from nanreplay.report.outcome import Outcome

_ROOTS = ("GITHUB_WORKSPACE", "CI_PROJECT_DIR")
"""Variables in which GitHub and GitLab name the folder of the checkout."""


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a file in the checkout."""

    file: str
    """Relative to the root where it lies inside, with slashes."""
    line: int | None
    """None when the file no longer holds the recorded line."""

    @property
    def uri(self) -> str:
        """The file as a URI: relative, unless it lies outside of the checkout."""
        quoted = quote(os.fsencode(self.file))
        return f"file://{quoted}" if self.file.startswith("/") else quoted


def checkout_root(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder that paths of reports are relative to: the checkout of the CI job, else the git repository, else this folder."""
    for name in _ROOTS:
        if environment.get(name):
            return Path(environment[name]).resolve()
    here = Path.cwd().resolve()
    return next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here)


def place_of(outcome: Outcome, root: Path) -> Place:
    """The line that made the non-finite value; the capture itself when no line is known, or the file is not in the checkout."""
    source, capture = outcome.source, Path(outcome.path)
    found = () if source is None else tuple(_files_of(source, capture, root))
    if source is None or not found:
        return Place(relative(capture, root), None)
    lines = {file: _line_today(source, file) for file in found}
    file = next((file for file in found if lines[file] is not None), found[0])
    return Place(relative(file, root), lines[file])


def relative(path: Path, root: Path) -> str:
    """`path` relative to `root` where it lies inside, with slashes."""
    absolute = Path(os.path.abspath(path))  # links stay as they are named
    for one in (absolute, absolute.resolve()):
        if one.is_relative_to(root):
            return one.relative_to(root).as_posix()
    return PurePath(path).as_posix()


def _files_of(source: Frame, capture: Path, root: Path) -> Iterator[Path]:
    """Files of the checkout that may be the recorded one: that very path, then ends of it, the longest first.

    A capture comes from anywhere: ends are looked for below the root, and beside the capture and above it.
    """
    recorded = PureWindowsPath(source.file) if "\\" in source.file else PurePath(source.file)
    parts = [part for part in recorded.parts if part not in (recorded.anchor, "..", ".")]
    above = [folder for folder in capture.resolve().parents if folder.is_relative_to(root)]
    ends = [folder.joinpath(*parts[start:]) for start in range(len(parts)) for folder in dict.fromkeys((root, *above))]
    candidates = dict.fromkeys(path.resolve() for path in (Path(recorded), *ends))
    return (path for path in candidates if path.is_relative_to(root) and path.is_file())


def _line_today(source: Frame, file: Path) -> int | None:
    """The number of the recorded line: as recorded when its text is unknown or still there, else where its text stands once."""
    if source.code is None:
        return source.line
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return None
    wanted = source.code.strip()
    if source.line <= len(lines) and lines[source.line - 1] == wanted:
        return source.line
    return lines.index(wanted) + 1 if lines.count(wanted) == 1 else None
