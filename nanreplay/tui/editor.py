"""Opening the user's editor at a line of code, with the terminal handed over meanwhile."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from textual.app import App, SuspendNotSupported

from nanreplay.records import Frame
from nanreplay.report.code_files import path_to_edit

_AFTER_COLON = ("code", "codium", "cursor", "subl", "zed", "hx", "helix")
"""Editors that take `FILE:LINE`; those made from Visual Studio Code want `-g` before it."""
_WITH_G = ("code", "codium", "cursor")


def editor_command(
    file: str, line: int, environment: Mapping[str, str] = os.environ
) -> list[str] | None:
    """Return the command that opens a file at a line; None where no editor is named.

    Args:
        file: The file.
        line: Its line, from 1.
        environment: `VISUAL` is taken, else `EDITOR`.
    """
    words = shlex.split(environment.get("VISUAL") or environment.get("EDITOR") or "")
    if not words:
        return None
    name = PurePath(words[0]).stem
    if name in _AFTER_COLON:
        return [*words, *(["-g"] if name in _WITH_G else []), f"{file}:{line}"]
    return [*words, f"+{line}", file]  # vi, emacs, nano, micro, kak, ...


def edit_line(app: App[Any], capture: str, frame: Frame | None) -> str:
    """Open the user's editor at a line, and wait until it is left.

    Args:
        app: Hands the terminal over.
        capture: The capture file; a script is often beside it.
        frame: The line.

    Returns:
        Why no editor was opened; "" where one was.
    """
    if frame is None:
        return "No line of your code is known here."
    file = path_to_edit(capture, frame)
    if file is None:
        return f"{frame.file} is not on this machine."
    command = editor_command(file, frame.line)
    if command is None:
        return "No editor is named: set VISUAL or EDITOR, for instance to vim."
    try:
        with app.suspend():
            subprocess.run(command, check=False)
    except SuspendNotSupported:
        return "This terminal cannot be handed over to an editor."
    except OSError as error:
        return f"{command[0]}: {error.strerror or error}."
    app.refresh()
    return ""
