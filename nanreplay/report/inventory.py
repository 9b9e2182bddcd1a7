"""What a capture holds, without replaying it: facts for JSON, and the same in lines. Imports no TensorFlow and no arrays."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from nanreplay.capture.format import TIMELINE_COLUMNS
from nanreplay.records import Trigger
from nanreplay.report.numbers import (
    jsonable,
    readable_bytes,
    readable_number,
    readable_steps,
    readable_trigger,
)

if TYPE_CHECKING:
    from nanreplay.capture import Capture
    from nanreplay.records import VariableInfo

TAIL = 5
"""Steps of the timeline that are shown."""
_VERSIONS = ("nanreplay", "tensorflow", "keras", "numpy", "python")


def inventory(capture: Capture) -> dict[str, Any]:
    """Facts about an open capture; reads its tables and none of its tensors."""
    incident = capture.incident
    return {
        "format": "nanreplay-info",
        "version": 1,
        "path": str(capture.path),
        "size_bytes": capture.size_bytes,
        "format_version": capture.version,
        "metadata": capture.metadata,
        "incident": jsonable(asdict(incident)),
        "steps": list(capture.steps),
        "keyframes": list(capture.keyframe_steps),
        "programs": [_program(capture, name) for name in capture.programs],
        "variables": _variables(capture.variables_info),
        "timeline": _timeline(capture.timeline_columns()),
    }


def _program(capture: Capture, name: str) -> dict[str, Any]:
    signature = capture.signature(name)
    return {
        "id": name,
        "compilation": signature.compilation,
        "policy": signature.policy,
        "inputs": [
            {"path": spec.path, "dtype": spec.dtype, "shape": spec.shape and list(spec.shape)}
            for spec in signature.inputs
        ],
        "outputs": list(signature.output_names),
        "gradients": len(signature.gradients),
    }


def _variables(infos: Sequence[VariableInfo]) -> dict[str, Any]:
    return {
        "count": len(infos),
        "size_bytes": sum(math.prod(info.shape) * _itemsize(info.dtype) for info in infos),
        "roles": dict(Counter(info.role for info in infos)),
    }


def _itemsize(dtype: str) -> int:
    """Bytes of an element; types that numpy does not know are named after their bits."""
    try:
        return np.dtype(dtype).itemsize
    except TypeError:
        return 2 if dtype == "bfloat16" else 1


def _timeline(columns: Mapping[str, Any]) -> dict[str, Any]:
    steps = columns["step"]
    shown = {
        name: jsonable(column[max(0, len(column) - TAIL) :].tolist())
        for name, column in columns.items()
    }
    return {
        "first": int(steps[0]) if len(steps) else None,
        "last": int(steps[-1]) if len(steps) else None,
        "tail": shown,
    }


def inventory_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """The facts of `inventory` for people."""
    yield f"{facts['path']}  ({readable_bytes(facts['size_bytes'])}, capture format {facts['format_version']})"
    yield ""
    for name, value in fact_lines(facts):
        yield f"{name:<12}{value}"
    yield from _timeline_lines(facts["timeline"])
    for note in facts["incident"]["notes"]:
        yield f"note: {note}"


def fact_lines(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and values of what `inventory` found, in words."""
    incident, metadata, variables = facts["incident"], facts["metadata"], facts["variables"]
    yield "incident", f"step {incident['step']}: {readable_trigger(Trigger(**incident['trigger']))}"
    yield (
        "recorded",
        f"{metadata.get('created', '?')} by {metadata.get('script') or 'an interactive session'}",
    )
    if "worker" in metadata:
        yield "worker", f"{metadata['worker']} of {metadata.get('workers', '?')}, counted from 0"
    yield (
        "versions",
        ", ".join(f"{name} {metadata[name]}" for name in _VERSIONS if name in metadata),
    )
    yield (
        "machine",
        f"{metadata.get('platform', '?')}; {metadata.get('devices') or 'no devices named'}",
    )
    yield "window", readable_steps(facts["steps"])
    yield "keyframes", ", ".join(map(str, facts["keyframes"])) or "none"
    for program in facts["programs"]:
        inputs = ", ".join(
            f"{spec['path'] or 'batch'} {spec['dtype']}{_shape(spec['shape'])}"
            for spec in program["inputs"]
        )
        yield (
            "program",
            f"{program['id']}: {program['compilation']}, {program['policy']}; takes {inputs or 'nothing'}",
        )
    roles = ", ".join(f"{count} {role}" for role, count in variables["roles"].items())
    yield (
        "variables",
        f"{variables['count']} ({readable_bytes(variables['size_bytes'])}): {roles or 'none'}",
    )
    yield "at the dump", _proof(incident)


def _shape(shape: Sequence[int | None] | None) -> str:
    return (
        ""
        if shape is None
        else "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"
    )


def _proof(incident: Mapping[str, Any]) -> str:
    if incident["reproduced"] is None:
        return "the window was not re-executed"
    again = "non-finite again" if incident["reproduced"] else "finite when re-executed"
    if incident["bit_exact"]:
        return f"{again}, every step bit for bit"
    return f"{again}, within {incident['max_ulp']} ulp of the recording"


def _timeline_lines(timeline: Mapping[str, Any]) -> Iterator[str]:
    tail = timeline["tail"]
    if timeline["last"] is None:
        return
    yield f"timeline    steps {timeline['first']} to {timeline['last']}; the last:"
    names = [
        name
        for name in TIMELINE_COLUMNS
        if name in tail and name != "measured" and _says(tail[name])
    ]
    rows = [
        names,
        *([readable_number(tail[name][row]) for name in names] for row in range(len(tail["step"]))),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(names))]
    for row in rows:
        yield "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))


def _says(values: Sequence[Any]) -> bool:
    """Whether a column of the tail holds anything: NaN stands for what was not watched, False for no skipped update."""
    return any(value not in ("nan", False) for value in values) or len(values) == 0
