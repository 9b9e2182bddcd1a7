"""Answers put together: groups of captures that failed alike, and what is left."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from nanreplay.terminal import FINITE, NONFINITE, UNDECIDED, UNREADABLE
from nanreplay.triage.capture_answer import CaptureAnswer
from nanreplay.triage.failure_key import FailureKey, failure_key

_LATER_FILE = re.compile(r"(\.\d+)+(?=\.[^.]+$|$)")
"""The number of a later incident, or of a worker: `.1` of `run.1.h5`."""


@dataclass(frozen=True)
class TriagedCapture:
    """A capture and its answer."""

    answer: CaptureAnswer
    size_bytes: int


@dataclass(frozen=True)
class FailureGroup:
    """Captures that failed alike."""

    key: FailureKey
    captures: Sequence[TriagedCapture]
    """The earliest first."""

    @property
    def cheapest(self) -> TriagedCapture:
        """The smallest file that shows the origin: the quickest to copy and to open."""
        return min(
            self.captures,
            key=lambda each: (not _origin(each.answer), each.size_bytes, each.answer.path),
        )

    @property
    def runs(self) -> tuple[str, ...]:
        """The recordings that it was seen in: a later file of one (`run.1.h5`) is no other run."""
        return tuple(dict.fromkeys(run_of(each.answer.path) for each in self.captures))

    @property
    def seen(self) -> tuple[str | None, str | None]:
        """When the first and the last of its captures were written; None where no file tells."""
        times = []
        for each in self.captures:
            if each.answer.recorded:
                times.append(each.answer.recorded)
        return (min(times, key=_moment), max(times, key=_moment)) if times else (None, None)

    @property
    def lines(self) -> tuple[int, ...]:
        """Where the line of code stood: its numbers in the captures."""
        numbers = set()
        for each in self.captures:
            origin = _origin(each.answer) or {}
            numbers.add((origin.get("source") or {}).get("line"))
        return tuple(sorted(number for number in numbers if number is not None))


@dataclass(frozen=True)
class TriageResult:
    """What all captures tell together."""

    groups: Sequence[FailureGroup]
    """The most frequent first."""
    captures: Sequence[TriagedCapture]
    """All of them, by path."""
    notes: Sequence[str] = ()

    def of_status(self, status: str) -> list[TriagedCapture]:
        """The captures that became this."""
        return [each for each in self.captures if each.answer.status == status]

    @property
    def code(self) -> int:
        """The exit code: 0 only where every capture is finite."""
        if self.groups:
            return NONFINITE
        if len(self.of_status("unreadable")) == len(self.captures):
            return UNREADABLE
        return FINITE if len(self.of_status("finite")) == len(self.captures) else UNDECIDED


def grouped(captures: Iterable[TriagedCapture], notes: Sequence[str] = ()) -> TriageResult:
    """Put captures into groups."""
    ordered = sorted(captures, key=lambda each: each.answer.path)
    by_key: dict[FailureKey, list[TriagedCapture]] = defaultdict(list)
    # Of each training with several workers: the failure of the worker that has the origin.
    origins = {}
    for each in ordered:
        if _origin(each.answer):
            origins[_training(each.answer)] = failure_key(each.answer)
    for each in ordered:
        key = failure_key(each.answer)
        if key is None:
            continue
        if each.answer.workers and not _origin(each.answer):
            # what reached it from another worker is the failure of that one
            key = origins.get(_training(each.answer)) or key
        by_key[key].append(each)
    groups = []
    for key, alike in by_key.items():
        alike.sort(key=lambda each: _moment(each.answer.recorded))
        groups.append(FailureGroup(key, tuple(alike)))
    groups.sort(key=lambda group: (-len(group.captures), group.key))
    return TriageResult(tuple(groups), tuple(ordered), tuple(notes))


def _origin(answer: CaptureAnswer) -> dict[str, Any] | None:
    return (answer.report or {}).get("origin")


def _training(answer: CaptureAnswer) -> tuple[Any, ...]:
    """What the captures of all workers of one training have in common."""
    incident = (answer.report or {}).get("capture", {}).get("incident_step")
    return answer.path.rpartition("/")[0], answer.script, answer.workers, incident


def run_of(path: str) -> str:
    """The recording that a file is of: its path without the number of a later incident."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + _LATER_FILE.sub("", name)


def _moment(recorded: str | None) -> datetime:
    try:
        moment = datetime.fromisoformat(recorded or "")
    except ValueError:
        return datetime.max.replace(tzinfo=timezone.utc)
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
