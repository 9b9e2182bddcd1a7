"""The recorder's arguments, checked once, and the names of the files that it writes.

`Recorder` and `nanreplay run` check arguments here; a dump asks for the name of its file, and which
worker of a cluster this process is.
"""

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
"""Patterns of what stands for the placeholders."""
_written_here: set[Location] = set()
"""Files that any recorder of this process has written, links followed."""
_BEGAN_S = time.time()
"""When this process began to record."""


def expand_path(path: str, *, step: int) -> str:
    """`path` with {step}, {time}, {pid} and {worker} filled in."""
    values = {
        "step": step,
        "time": time.strftime("%Y%m%dT%H%M%S"),
        "pid": os.getpid(),
        "worker": this_worker().index,
    }
    return _PLACEHOLDER.sub(lambda match: str(values[match[1]]), path)


def free_name(path: str, *, step: int, written: Collection[Location]) -> Location:
    """Where the next file goes: `run.h5`, then `run.1.h5`, `run.2.h5`.

    A file that was written while this process has run is never replaced: it is one of this
    recorder's, of another one under the same path, or of another process that searches beside this
    one. An older one is replaced.

    Args:
        path: The path that the recorder was given.
        step: The step of the incident.
        written: The files of this recording.
    """
    first = location(expand_path(path, step=step))
    file, number = first, 0
    known = _written_here.union(map(_followed, written))
    while _followed(file) in known or _is_new(file):
        number += 1
        file = first.with_name(f"{first.stem}.{number}{first.suffix}")
    _written_here.add(_followed(file))
    return file


def _followed(file: Location) -> Location:
    """The file that a path leads to, whatever the path is called."""
    return file if isinstance(file, RemotePath) else Path(os.path.realpath(file))


def _is_new(file: Location) -> bool:
    """Whether a local file was written since this process began to record."""
    if isinstance(file, RemotePath):
        return False
    try:
        return file.stat().st_mtime > _BEGAN_S
    except OSError:
        return False


def remove_leftovers(path: str) -> None:
    """Remove temporary files that dead processes left while they wrote captures to `path`."""
    if isinstance(location(path), RemotePath):
        return
    folder = Path(expand_path(path, step=0)).absolute().parent
    name = Path(os.path.basename(path))
    # "run-{step}.h5" may have been written as "run-17.h5", "run-17.1.h5", ...
    parts = []
    for part in re.split(r"(\{\w+\})", name.stem):
        if _PLACEHOLDER.fullmatch(part):
            parts.append(_FILLED[part[1:-1]])
        else:
            parts.append(re.escape(part))
    remove_stale(folder, re.compile("".join(parts) + r"(\.\d+)?" + re.escape(name.suffix)))


# Which worker of a cluster this process is


@dataclass(frozen=True, slots=True)
class Worker:
    """One of the processes that train together."""

    index: int
    """From 0; the chief, where there is one, is the first."""
    count: int
    """How many there are; 1 without a cluster."""


def this_worker() -> Worker:
    """Return which worker this process is, by TF_CONFIG, as TensorFlow reads it.

    It is the only one when TF_CONFIG says nothing, or nothing that can be read.
    """
    try:
        config = json.loads(os.environ.get("TF_CONFIG") or "{}")
        task, cluster = config.get("task", {}), config.get("cluster", {})
        index, n_chiefs = int(task.get("index", 0)), len(cluster.get("chief", ()))
        count = n_chiefs + len(cluster.get("worker", ()))
        if task.get("type") != "chief":  # chiefs come first
            index += n_chiefs
        return Worker(index, max(count, 1))
    except (ValueError, TypeError, AttributeError):
        return Worker(0, 1)


# Arguments

OnNan = Literal["raise", "stop", "continue"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a `Recorder` was asked to do."""

    path: str
    """An absolute path, or a URL: the training may change its working folder."""
    on_nan: OnNan = "raise"
    window: int = 32
    """Steps whose batches are kept."""
    keyframe_every: int | None = None
    """Steps between copies of the state; None chooses."""
    memory_limit: int | None = None
    """Bytes that batches and keyframes may hold; None takes what is needed and free."""
    disk_limit: int | None = None
    """Bytes that a capture may take; None takes what is needed and free."""
    full_steps: int | None = None
    """Steps whose weights and gradients are written; None goes by the size of the state."""
    history: int = 10_000
    """Steps of the timeline."""
    sources: Literal["lines", "none"] = "lines"
    max_skipped: int = 20
    """Updates that loss scaling may skip in a row before that is an incident."""
    max_incidents: int = 3
    """Incidents that are written when training continues after one."""
    dump_signal: int | None = None
    """Number of the signal that asks for a file."""
    explain: bool = False
    """Whether the answer is stored in the file of an incident."""
    folder: str | None = None
    """The working folder in which a relative path was given; None for another path."""

    def told(self, file: Location) -> Location:
        """How people are told of a file: as they named it, while the working folder is the same."""
        if self.folder is None or isinstance(file, RemotePath):
            return file
        try:
            is_there = os.getcwd() == self.folder
        except OSError:  # it was removed
            return file
        return Path(os.path.relpath(file, self.folder)) if is_there else file


def check_settings(path: str | os.PathLike[str], **arguments: Any) -> Settings:
    """Build `Settings` from the arguments of a `Recorder`, each of which is given.

    Raises:
        AttachError: An argument is not valid, or the file cannot be written.
    """
    where = location(path)
    is_relative = not isinstance(where, RemotePath) and not where.is_absolute()
    settings = Settings(
        path=os.path.abspath(where) if is_relative else str(where),
        folder=os.getcwd() if is_relative else None,
        on_nan=_one_of("on_nan", arguments["on_nan"], get_args(OnNan)),
        window=_at_least(1, "window", arguments["window"]),
        keyframe_every=_interval("keyframe_every", arguments["keyframe_every"]),
        memory_limit=_size_or_auto("memory_limit", arguments["memory_limit"]),
        disk_limit=_size_or_auto("disk_limit", arguments["disk_limit"]),
        full_steps=_interval("full_steps", arguments["full_steps"]),
        history=_at_least(1, "history", arguments["history"]),
        sources=_one_of("sources", arguments["sources"], ("lines", "none")),
        max_skipped=_at_least(1, "max_skipped", arguments["max_skipped"]),
        max_incidents=_at_least(1, "max_incidents", arguments["max_incidents"]),
        dump_signal=_signal_number(arguments["dump_signal"]),
        explain=_one_of("explain", arguments["explain"], (True, False)),
    )
    if settings.explain and isinstance(location(settings.path), RemotePath):
        raise AttachError(
            f"`explain` stores the answer in a file of this machine, and {settings.path} is none. "
            "Leave it out; `nanreplay bisect COPY --store` does the same for a copy of the file."
        )
    check_writable(str(where))
    return settings


def _one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    if value not in allowed:
        raise _invalid(name, value, f"one of {', '.join(map(repr, allowed))}")
    return value


def _at_least(least: int, name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise _invalid(name, value, f"an integer of at least {least}")
    return value


def _interval(name: str, value: Any) -> int | None:
    """A number of steps; None for "auto"."""
    return None if value == "auto" else _at_least(1, name, value)


def _signal_number(value: Any) -> int | None:
    """Number of a signal given as `signal.SIGUSR1`, its name or its number."""
    if value is None:
        return None
    names = ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGQUIT")  # Windows has none of them
    known = {}
    for name in names:
        if hasattr(signal, name):
            known[name] = getattr(signal, name)
    if not known:
        raise AttachError(
            "`dump_signal` needs a signal such as SIGUSR1, which this system lacks. Leave it out, "
            "and call `recorder.dump()` for a file while training goes on."
        )
    number = known.get(value, value) if isinstance(value, str) else value
    if isinstance(number, bool) or number not in known.values():
        raise _invalid("dump_signal", value, f"None or one of {', '.join(known)}")
    return int(number)


def _size_or_auto(name: str, value: Any) -> int | None:
    """Bytes of an integer or of a text such as `512MiB` or `2 GB`; None for "auto"."""
    if value == "auto":
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    size = limits.parse_size(value) if isinstance(value, str) else None
    if size is None:
        raise _invalid(name, value, "'auto', bytes or a text such as '1GiB'")
    return size


def _invalid(name: str, value: Any, expected: str) -> AttachError:
    return AttachError(
        f"Invalid value for argument `{name}`. Expected {expected}. Received: {name}={value!r}"
    )


def check_writable(path: str) -> None:
    """Fail now, not at the incident, when the capture could not be written.

    Raises:
        AttachError: `path` is a folder, or its folder does not exist or cannot be written to.
    """
    where = location(path)
    if isinstance(where, RemotePath):
        try:
            check_uploads(where)
        except StorageError as error:
            raise AttachError(f"Cannot write the capture to {error}") from error
        return
    folder = Path(expand_path(path, step=0)).absolute().parent
    if Path(path).is_dir():
        example = Path(path) / "run.h5"
        raise AttachError(
            f"Cannot write the capture to {path}: it is a folder. "
            f"Give a file name such as {example}."
        )
    if not folder.is_dir():
        raise AttachError(
            f"Cannot write the capture to {path}: the folder {folder} does not exist. "
            "Create it first."
        )
    if not os.access(folder, os.W_OK):
        raise AttachError(
            f"Cannot write the capture to {path}: no permission to write in {folder}."
        )
