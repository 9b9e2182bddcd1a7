"""The recorder's arguments, checked once."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from nanreplay import limits
from nanreplay.capture.storage import Location, RemotePath, check_uploads, location
from nanreplay.capture.temporary import remove_stale
from nanreplay.errors import AttachError, StorageError

# Names of capture files: placeholders, numbers for the second file and those after it, and what
# dead processes left.

_PLACEHOLDER = re.compile(r"\{(step|time|pid|worker)\}")
_FILLED = {"step": r"\d+", "time": r"\d{8}T\d{6}", "pid": r"\d+", "worker": r"\d+"}


def expand_path(path: str, *, step: int) -> str:
    """`path` with {step}, {time}, {pid} and {worker} filled in."""
    worker = this_worker().index
    values = {
        "step": step,
        "time": time.strftime("%Y%m%dT%H%M%S"),
        "pid": os.getpid(),
        "worker": worker,
    }
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
    parts = [
        _FILLED[part[1:-1]] if _PLACEHOLDER.fullmatch(part) else re.escape(part)
        for part in (*before, last)
    ]
    remove_stale(folder, re.compile("".join(parts) + r"(\.\d+)?" + re.escape(Path(name).suffix)))


# Which worker of a cluster this process is, by TF_CONFIG, as TensorFlow reads it.


@dataclass(frozen=True, slots=True)
class Worker:
    """One of the processes that train together."""

    index: int
    """From 0; the chief, where there is one, is the first."""
    count: int
    """How many there are; 1 without a cluster."""


def this_worker() -> Worker:
    """Return which worker this process is; the only one when TF_CONFIG says nothing (or nothing that can be read)."""
    try:
        config = json.loads(os.environ.get("TF_CONFIG") or "{}")
        task, cluster = config.get("task", {}), config.get("cluster", {})
        index, chiefs = int(task.get("index", 0)), len(cluster.get("chief", ()))
        count = chiefs + len(cluster.get("worker", ()))
        return Worker(index if task.get("type") == "chief" else chiefs + index, max(count, 1))
    except (ValueError, TypeError, AttributeError):
        return Worker(0, 1)


# --- recorder.settings

OnNan = Literal["raise", "stop", "continue"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a `Recorder` was asked to do."""

    path: str
    on_nan: OnNan = "raise"
    window: int = 32
    """Steps whose batches are kept."""
    keyframe_every: int | None = None
    """Steps between copies of the state; None chooses."""
    memory_limit: int = 2**30
    """Bytes that batches and keyframes may hold."""
    disk_limit: int = 2**30
    """Bytes that a capture may take."""
    history: int = 10_000
    """Steps of the timeline."""
    sources: Literal["lines", "none"] = "lines"
    max_skipped: int = 20
    """Updates that loss scaling may skip in a row before that is an incident."""
    max_incidents: int = 3
    """Incidents that are written when training continues after one."""
    dump_signal: int | None = None
    """Number of the signal that asks for a file."""


def check_settings(path: str | os.PathLike[str], **given: Any) -> Settings:
    """Build `Settings`.

    Raises:
        AttachError: An argument is not valid, or the file cannot be written.
    """
    settings = Settings(
        path=str(location(path)),
        on_nan=_one_of("on_nan", given["on_nan"], get_args(OnNan)),
        window=_at_least(1, "window", given["window"]),
        keyframe_every=None
        if given["keyframe_every"] == "auto"
        else _at_least(1, "keyframe_every", given["keyframe_every"]),
        memory_limit=parse_size("memory_limit", given["memory_limit"]),
        disk_limit=parse_size("disk_limit", given["disk_limit"]),
        history=_at_least(1, "history", given["history"]),
        sources=_one_of("sources", given["sources"], ("lines", "none")),
        max_skipped=_at_least(1, "max_skipped", given["max_skipped"]),
        max_incidents=_at_least(1, "max_incidents", given["max_incidents"]),
        dump_signal=_signal_number(given["dump_signal"]),
    )
    check_writable(settings.path)
    return settings


def _one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    if value not in allowed:
        raise AttachError(
            f"Invalid value for argument `{name}`. Expected one of {', '.join(map(repr, allowed))}. Received: {name}={value!r}"
        )
    return value


def _at_least(least: int, name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise AttachError(
            f"Invalid value for argument `{name}`. Expected an integer of at least {least}. Received: {name}={value!r}"
        )
    return value


def _signal_number(value: Any) -> int | None:
    """Number of a signal given as `signal.SIGUSR1`, its name or its number."""
    if value is None:
        return None
    known = {
        name: getattr(signal, name)
        for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGQUIT")
        if hasattr(signal, name)
    }
    number = known.get(value, value) if isinstance(value, str) else value
    if isinstance(number, bool) or number not in known.values():
        names = ", ".join(known)
        raise AttachError(
            f"Invalid value for argument `dump_signal`. Expected None or one of {names}. Received: dump_signal={value!r}"
        )
    return int(number)


def parse_size(name: str, value: Any) -> int:
    """Bytes of an integer or of a text such as `512MiB` or `2 GB`."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    size = limits.parse_size(value) if isinstance(value, str) else None
    if size is None:
        raise AttachError(
            f"Invalid value for argument `{name}`. Expected bytes or a text such as '1GiB'. Received: {name}={value!r}"
        )
    return size


def check_writable(path: str) -> None:
    """Fail now, not at the incident, when the capture could not be written."""
    where = location(path)
    if isinstance(where, RemotePath):
        try:
            check_uploads(where)
        except StorageError as error:
            raise AttachError(f"Cannot write the capture to {error}") from error
        return
    folder = Path(expand_path(path, step=0)).absolute().parent
    if Path(path).is_dir():
        raise AttachError(
            f"Cannot write the capture to {path}: it is a folder. Give a file name such as {Path(path) / 'run.h5'}."
        )
    if not folder.is_dir():
        raise AttachError(
            f"Cannot write the capture to {path}: the folder {folder} does not exist. Create it first."
        )
    if not os.access(folder, os.W_OK):
        raise AttachError(
            f"Cannot write the capture to {path}: no permission to write in {folder}."
        )
