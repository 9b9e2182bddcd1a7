"""Fixes as changes of code: the lines that go and come, and a patch that `git apply` takes.

For the terminal interface. A fix of a recorded line becomes a unified diff of the user's file where
that file is still there and holds the line; of any other fix the code is shown.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple

from nanreplay.findings import FixResult
from nanreplay.whatif.fix_names import FIX_KINDS, FixGroup

_PLACES: Mapping[FixGroup, str] = {
    "code": "in the code",
    "data": "before the batch is used",
    "optimizer": "where the optimizer is made",
}
"""Where the code of a fix belongs that changes no recorded line."""
_CONTEXT = 3
"""Lines around a change in a patch."""


class DiffLine(NamedTuple):
    """One line of a change."""

    sign: Literal["-", "+", "@"]
    """`-` goes, `+` comes, `@` says where."""
    text: str


def group_of(fix: str) -> FixGroup:
    """Return what a fix changes.

    Args:
        fix: Its name, with or without a value; of fixes tried together the first one counts.
    """
    return FIX_KINDS.get(_first_name(fix), ("code", ""))[0]


def what_it_does(fix: str) -> str:
    """Return what a fix does, in a few words; "" for one that is not known."""
    return FIX_KINDS.get(_first_name(fix), ("code", ""))[1]


def _first_name(fix: str) -> str:
    return fix.partition("+")[0].partition("=")[0].strip()


def line_edits(fix: FixResult) -> list[Mapping[str, Any]]:
    """Return the lines that a fix replaces: `file`, `line`, `old`, `new`."""
    return [edit for edit in fix.edits if {"file", "line", "old", "new"} <= set(edit)]


def diff_of(fix: FixResult) -> Iterator[DiffLine]:
    """Yield what a fix changes: the line before and after, else the code that comes."""
    edits = line_edits(fix)
    for edit in edits:
        yield DiffLine("@", f"{PurePath(edit['file']).name}:{edit['line']}")
        for line in str(edit["old"]).splitlines():
            yield DiffLine("-", line)
        for line in str(edit["new"]).splitlines():
            yield DiffLine("+", line)
    if not edits and fix.code:
        source = fix.source
        place = _PLACES[group_of(fix.name)]
        if source is not None:
            place = f"{PurePath(source.file).name}:{source.line}"
        yield DiffLine("@", place)
        for line in fix.code.splitlines():
            yield DiffLine("+", line)


def find_source(file: str, capture: str) -> Path | None:
    """Return a file of the user's as it is on this machine; None where it is not.

    Args:
        file: As it was recorded.
        capture: The capture file; a script is often beside it.
    """
    recorded = Path(file)
    for path in (recorded, Path(capture).parent / recorded.name):
        if path.is_file():
            return path
    return None


def patch_of(fix: FixResult, capture: str) -> str | None:
    """Return a unified diff of the user's files, which `git apply` and `patch` take.

    Args:
        fix: The fix.
        capture: The capture file.

    Returns:
        The diff; None where the fix changes no recorded line, or a file of it is not there or no
        longer holds the line.
    """
    edits = line_edits(fix)
    files = {str(edit["file"]) for edit in edits}
    patches = []
    for file in sorted(files):
        patches.append(_file_patch(file, edits, capture))
    if not patches or any(patch is None for patch in patches):
        return None
    return "".join(patch or "" for patch in patches)


def _file_patch(file: str, edits: Sequence[Mapping[str, Any]], capture: str) -> str | None:
    path = find_source(file, capture)
    try:
        lines = _lines_of(path.read_bytes().decode()) if path is not None else []
    except (OSError, UnicodeDecodeError):
        return None
    changed = list(lines)
    for edit in edits:
        number = int(edit["line"]) - 1
        is_here = edit["file"] == file
        if not is_here:
            continue
        if not 0 <= number < len(lines) or str(edit["old"]) not in lines[number]:
            return None
        changed[number] = changed[number].replace(str(edit["old"]), str(edit["new"]), 1)
    name = PurePath(file).name if PurePath(file).is_absolute() else PurePath(file).as_posix()
    diff = difflib.unified_diff(lines, changed, f"a/{name}", f"b/{name}", n=_CONTEXT)
    return "".join(map(_marked_at_end, diff))


def _marked_at_end(line: str) -> str:
    # `patch` takes the last line of a file without a newline only with this mark below it.
    return line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _lines_of(text: str) -> list[str]:
    """Lines with their ends, as they are: only a newline ends a line for `patch`."""
    return [line for line in re.split(r"(?<=\n)", text) if line]
