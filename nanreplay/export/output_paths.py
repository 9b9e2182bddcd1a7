"""Where a command may write.

`minimize`, `redact` and `export` ask before their long work. Imports no TensorFlow, so that the
command line refuses a wrong name at once.
"""

from __future__ import annotations

import os
from pathlib import Path

from nanreplay.errors import OutputExistsError


def check_output(
    path: str | os.PathLike[str], output: str | os.PathLike[str], *, force: bool
) -> None:
    """Refuse to write over a file that nobody gave up, or over the capture itself.

    Raises:
        OutputExistsError: The file exists, or its folder does not.
    """
    target = Path(output)
    if target.exists() and Path(path).exists() and target.samefile(path):
        raise OutputExistsError(f"{target}: is the capture itself. Name another file.")
    if target.exists() and not force:
        raise OutputExistsError(f"{target}: exists. Name another file, or replace it with --force.")
    if target.is_dir():
        raise OutputExistsError(f"Cannot write {target}: it is a folder.")
    folder = target.absolute().parent
    if not folder.is_dir():
        raise OutputExistsError(f"Cannot write {target}: the folder {folder} does not exist.")
