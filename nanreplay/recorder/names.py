"""Names of capture files: placeholders, numbers for the second file and those after it, and what dead processes left."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection
from pathlib import Path

from nanreplay.capture.storage import Location, RemotePath, location
from nanreplay.capture.temporary import remove_stale
from nanreplay.recorder.cluster import this_worker

_PLACEHOLDER = re.compile(r"\{(step|time|pid|worker)\}")
_FILLED = {"step": r"\d+", "time": r"\d{8}T\d{6}", "pid": r"\d+", "worker": r"\d+"}


def expand_path(path: str, *, step: int) -> str:
    """`path` with {step}, {time}, {pid} and {worker} filled in."""
    worker = this_worker().index
    values = {"step": step, "time": time.strftime("%Y%m%dT%H%M%S"), "pid": os.getpid(), "worker": worker}
    return _PLACEHOLDER.sub(lambda match: str(values[match[1]]), path)


def free_name(path: str, *, step: int, written: Collection[Location]) -> Location:
    """Where the next file goes: `run.h5`, then `run.1.h5`, `run.2.h5`.

    A file that was written while this process has run is never replaced: it is one of this recorder's, of another one under the same
    path, or of another process that searches beside this one. An older one is replaced.
    """
    first = location(expand_path(path, step=step))
    name, number = first, 0
    while name in written or name in _written_here or _is_new(name):
        number += 1
        name = first.with_name(f"{first.stem}.{number}{first.suffix}")
    _written_here.add(name)
    return name


_written_here: set[Location] = set()
_BEGAN_S = time.time()


def _is_new(name: Location) -> bool:
    """Whether a local file was written since this process began to record."""
    if isinstance(name, RemotePath):
        return False
    try:
        return name.stat().st_mtime > _BEGAN_S
    except OSError:
        return False


def remove_leftovers(path: str) -> None:
    """Remove temporary files that dead processes left while they wrote captures to `path`."""
    if isinstance(location(path), RemotePath):
        return
    folder = Path(expand_path(path, step=0)).absolute().parent
    name = os.path.basename(path)
    *before, last = re.split(r"(\{\w+\})", Path(name).stem)
    parts = [_FILLED[part[1:-1]] if _PLACEHOLDER.fullmatch(part) else re.escape(part) for part in (*before, last)]
    remove_stale(folder, re.compile("".join(parts) + r"(\.\d+)?" + re.escape(Path(name).suffix)))
