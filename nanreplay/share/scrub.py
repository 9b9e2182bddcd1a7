"""Taking what names a person, a machine or a folder out of texts. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath, PureWindowsPath

from nanreplay.records import Frame, Incident, Trigger

KEPT_METADATA = ("nanreplay", "tensorflow", "keras", "numpy", "h5py", "python", "machine", "onednn", "deterministic_ops")
"""Facts that a replay depends on and that name nobody."""
_PATH = re.compile(r"(?:(?<![\w.])(?:~|[A-Za-z]:|[\w.@+-]+:/?))?(?<!\w)[\\/](?:[^\s\\/'\"`<>|:;,()\[\]{}]+[\\/])+")
"""Folders before a name: `/home/me/run/`, `C:\\Users\\me\\`, `host:/data/`."""


def without_paths(text: str) -> str:
    """Return a text whose paths are base names."""
    return _PATH.sub("", text)


def base_name(path: str) -> str:
    """Return the last part of a path of any system."""
    return PureWindowsPath(path).name if "\\" in path else PurePosixPath(path).name


def without_sources(frames: Sequence[Frame]) -> list[Frame]:
    """Return frames that name files without folders and hold no line of code."""
    return [replace(frame, file=base_name(frame.file), code=None) for frame in frames]


def without_messages(incident: Incident) -> Incident:
    """Return an incident without the text of an exception and without notes: both may hold anything."""
    trigger = incident.trigger
    if trigger.what in ("exception", "manual"):
        trigger = Trigger(trigger.what, trigger.name if trigger.what == "exception" else "", "(left out)")
    return replace(incident, trigger=trigger, notes=())
