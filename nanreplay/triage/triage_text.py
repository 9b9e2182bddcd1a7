"""The result of a triage as lines for people, with the words that pages use too, and as JSON.

The JSON is the stable contract of `docs/report-format.md`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from nanreplay.limits import readable_size
from nanreplay.report.numbers import jsonable, readable_list
from nanreplay.report.sentence import kind_in_words
from nanreplay.triage.failure_groups import FailureGroup, TriagedCapture, TriageResult
from nanreplay.triage.failure_key import failure_key

FORMAT = "nanreplay-triage"
VERSION = 1
_STATUSES = ("nonfinite", "finite", "undecided", "unreadable")
_RUNS_SHOWN = 3
_ALIKE_SHOWN = 3
"""As many captures that could not be read for the same reason have a line each."""
OTHER_HEADINGS = ("capture", "what", "why")
"""Of `other_rows`."""
_STATUS_WORDS = {"undecided": "undecided", "unreadable": "not read"}


def triage_lines(result: TriageResult) -> Iterator[str]:
    """The groups, then the captures that could not be read or decided."""
    yield summary(result)
    for group in result.groups:
        yield ""
        yield f"{group.key.fingerprint} · {how_often(group)} · {when_seen(group)}"
        yield f"  {what_failed(group)}"
        yield f"  {group.cheapest.answer.sentence}"
        yield f"  runs: {readable_list(group.runs, _RUNS_SHOWN)}"
        yield f"  cheapest: nanreplay open {group.cheapest.answer.path} ({cheapest_size(group)})"
    yield from _other_lines(result)


def _other_lines(result: TriageResult) -> Iterator[str]:
    """A line for each capture that was not read or decided; one for many with the same reason."""
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, what, why in other_rows(result):
        line = f"{what}: {why}" if why.startswith(name) else f"{what}: {name}: {why}"
        alike[what, why.removeprefix(f"{name}: ")].append(line)
    if alike:
        yield ""
    for (what, why), lines in alike.items():
        if len(lines) > _ALIKE_SHOWN:
            yield f"{what}: {len(lines)} captures (--json names them): {why}"
        else:
            yield from lines


def summary(result: TriageResult) -> str:
    """How many captures became what: `3 captures: 2 non-finite in 1 group, 1 not read.`."""
    failed = sum(len(group.captures) for group in result.groups)
    parts = []
    if failed:
        groups = len(result.groups)
        parts.append(f"{failed} non-finite in {groups} group{'s' if groups > 1 else ''}")
    for status, words in {"finite": "finite", **_STATUS_WORDS}.items():
        count = len(result.of_status(status))
        if count:
            parts.append(f"{count} {words}")
    cached = sum(each.answer.is_cached for each in result.captures)
    known = f" {cached} known from an earlier run." if cached else ""
    total = len(result.captures)
    return f"{total} capture{'s' if total > 1 else ''}: {', '.join(parts)}.{known}"


def how_often(group: FailureGroup) -> str:
    """`12 captures of 3 runs`."""
    captures, runs = len(group.captures), len(group.runs)
    return f"{captures} capture{'s' if captures > 1 else ''} of {runs} run{'s' if runs > 1 else ''}"


def when_seen(group: FailureGroup) -> str:
    """`2026-11-02 10:31 to 2026-11-20 08:12`, as the captures say it."""
    first, last = (None if time is None else _minute(time) for time in group.seen)
    if first is None or last is None:
        return "no time known"
    return first if first == last else f"{first} to {last}"


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")


def what_failed(group: FailureGroup) -> str:
    """What all captures of a group have in common, in words."""
    key = group.key
    parts = [kind_in_words(key.cause) if key.cause else "no cause known"]
    if key.op_type:
        parts.append(f"`{key.op_type}`")
    if key.layer:
        parts.append(f"layer `{key.layer}`")
    if key.file:
        lines = ":" + "|".join(map(str, group.lines)) if group.lines else ""
        code = f" `{key.code}`" if key.code else ""
        parts.append(f"{key.file}{lines}{code}")
    if key.trigger:
        parts.append(f"{key.trigger}, origin not known")
    return " · ".join(parts)


def cheapest_size(group: FailureGroup) -> str:
    """The size of the smallest file of a group."""
    return readable_size(group.cheapest.size_bytes)


def other_rows(result: TriageResult) -> Iterator[tuple[str, str, str]]:
    """A row for each capture that could not be read or decided."""
    for status, words in _STATUS_WORDS.items():
        for each in result.of_status(status):
            yield each.answer.path, words, each.answer.sentence


# As JSON.


def triage_to_json(result: TriageResult) -> dict[str, Any]:
    """A result as plain dicts, lists, texts and numbers."""
    plain: dict[str, Any] = jsonable(
        {
            "format": FORMAT,
            "version": VERSION,
            "counts": {status: len(result.of_status(status)) for status in _STATUSES},
            "groups": list(map(_group, result.groups)),
            "captures": list(map(_capture, result.captures)),
        }
    )
    return plain


def _group(group: FailureGroup) -> dict[str, Any]:
    first, last = group.seen
    key = group.key
    return {
        "fingerprint": key.fingerprint,
        "cause": key.cause or None,
        "op_type": key.op_type or None,
        "layer": key.layer or None,
        "file": key.file or None,
        "lines": group.lines,
        "code": key.code or None,
        "trigger": key.trigger or None,
        "count": len(group.captures),
        "runs": group.runs,
        "first_seen": first,
        "last_seen": last,
        "sentence": group.cheapest.answer.sentence,
        "cheapest": {
            "path": group.cheapest.answer.path,
            "size_bytes": group.cheapest.size_bytes,
        },
        "captures": [each.answer.path for each in group.captures],
    }


def _capture(each: TriagedCapture) -> dict[str, Any]:
    answer = each.answer
    key = failure_key(answer)
    origin = (answer.report or {}).get("origin") or {}
    return {
        "path": answer.path,
        "status": answer.status,
        "fingerprint": None if key is None else key.fingerprint,
        "sentence": answer.sentence,
        "step": origin.get("step"),
        "recorded": answer.recorded,
        "size_bytes": each.size_bytes,
        "elapsed_s": answer.elapsed_s,
        "cached": answer.is_cached,
    }
