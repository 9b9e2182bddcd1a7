"""The recorder's arguments, checked once."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from nanreplay import limits
from nanreplay.capture.storage import RemotePath, check_uploads, location
from nanreplay.errors import AttachError, StorageError
from nanreplay.recorder.names import expand_path

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
        keyframe_every=None if given["keyframe_every"] == "auto" else _at_least(1, "keyframe_every", given["keyframe_every"]),
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
        raise AttachError(f"Invalid value for argument `{name}`. Expected an integer of at least {least}. Received: {name}={value!r}")
    return value


def _signal_number(value: Any) -> int | None:
    """Number of a signal given as `signal.SIGUSR1`, its name or its number."""
    if value is None:
        return None
    known = {name: getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGQUIT") if hasattr(signal, name)}
    number = known.get(value, value) if isinstance(value, str) else value
    if isinstance(number, bool) or number not in known.values():
        names = ", ".join(known)
        raise AttachError(f"Invalid value for argument `dump_signal`. Expected None or one of {names}. Received: dump_signal={value!r}")
    return int(number)


def parse_size(name: str, value: Any) -> int:
    """Bytes of an integer or of a text such as `512MiB` or `2 GB`."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    size = limits.parse_size(value) if isinstance(value, str) else None
    if size is None:
        raise AttachError(f"Invalid value for argument `{name}`. Expected bytes or a text such as '1GiB'. Received: {name}={value!r}")
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
        raise AttachError(f"Cannot write the capture to {path}: it is a folder. Give a file name such as {Path(path) / 'run.h5'}.")
    if not folder.is_dir():
        raise AttachError(f"Cannot write the capture to {path}: the folder {folder} does not exist. Create it first.")
    if not os.access(folder, os.W_OK):
        raise AttachError(f"Cannot write the capture to {path}: no permission to write in {folder}.")
