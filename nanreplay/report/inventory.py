"""What a capture holds, without replaying it: facts for JSON, and the same in lines.

For `nanreplay info`, pages and the terminal interface. Reads tables only, and imports no
TensorFlow.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from nanreplay.capture.format import TIMELINE_COLUMNS
from nanreplay.errors import FormatError
from nanreplay.limits import readable_size
from nanreplay.records import Trigger, batch_name
from nanreplay.report.numbers import (
    jsonable,
    readable_number,
    readable_steps,
    readable_trigger,
)
from nanreplay.report.stored_answers import answer_in

if TYPE_CHECKING:
    from nanreplay.capture import Capture
    from nanreplay.records import InputSpec, VariableInfo

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
        "stored_answer": _stored_answer(capture),
    }


def _stored_answer(capture: Capture) -> dict[str, Any] | None:
    facts: dict[str, Any] = dict.fromkeys(
        ("nanreplay", "tensorflow", "created", "is_of_this_content", "sentence", "reason")
    )
    try:
        answer = answer_in(capture)
    except FormatError as error:  # maybe a later nanreplay made it; the rest can be read
        return {**facts, "reason": str(error)}
    if answer is None:
        return None
    return {
        **facts,
        "nanreplay": answer.maker.nanreplay,
        "tensorflow": answer.maker.tensorflow,
        "created": answer.maker.created,
        "is_of_this_content": answer.is_of_this_content,
        "sentence": answer.report.sentence,
    }


def _program(capture: Capture, name: str) -> dict[str, Any]:
    signature = capture.signature(name)
    return {
        "id": name,
        "compilation": signature.compilation,
        "policy": signature.policy,
        "inputs": list(map(_input, signature.inputs)),
        "outputs": list(signature.output_names),
        "gradients": len(signature.gradients),
    }


def _input(spec: InputSpec) -> dict[str, Any]:
    # the empty shape of a scalar and the unknown one stay what they are, () and None
    return {"path": spec.path, "dtype": spec.dtype, "shape": spec.shape and list(spec.shape)}


def _variables(infos: Sequence[VariableInfo]) -> dict[str, Any]:
    return {
        "count": len(infos),
        "size_bytes": size_of_variables(infos),
        "roles": dict(Counter(info.role for info in infos)),
    }


def size_of_variables(infos: Sequence[VariableInfo]) -> int:
    """Bytes of all variables of a table."""
    return sum(math.prod(info.shape) * _itemsize(info.dtype) for info in infos)


def _itemsize(dtype: str) -> int:
    """Bytes of an element; of the types that numpy does not know only bfloat16 has two."""
    try:
        return np.dtype(dtype).itemsize
    except TypeError:
        return 2 if dtype == "bfloat16" else 1


def _timeline(columns: Mapping[str, Any]) -> dict[str, Any]:
    steps = columns["step"]
    tail_start = max(0, len(steps) - TAIL)
    tail = {}
    for name, column in columns.items():
        tail[name] = jsonable(column[tail_start:].tolist())
    return {
        "first": int(steps[0]) if len(steps) else None,
        "last": int(steps[-1]) if len(steps) else None,
        "tail": tail,
    }


def inventory_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """The facts of `inventory` for people."""
    size = readable_size(facts["size_bytes"])
    yield f"{facts['path']}  ({size}, capture format {facts['format_version']})"
    yield ""
    for name, value in fact_lines(facts):
        yield f"{name:<12}{value}"
    if facts["stored_answer"] is not None:
        yield f"{'answer':<12}{_answer_in_words(facts['stored_answer'])}"
    yield from _timeline_lines(facts["timeline"])
    for note in facts["incident"]["notes"]:
        yield f"note: {note}"


def fact_lines(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and values of what `inventory` found, in words."""
    incident, variables = facts["incident"], facts["variables"]
    yield "incident", f"step {incident['step']}: {readable_trigger(Trigger(**incident['trigger']))}"
    yield from _recording_facts(facts["metadata"])
    yield "window", readable_steps(facts["steps"])
    keyframes = facts["keyframes"]
    yield "keyframes", f"before {readable_steps(keyframes)}" if keyframes else "none"
    for program in facts["programs"]:
        yield "program", _program_in_words(program)
    roles = ", ".join(f"{count} {role}" for role, count in variables["roles"].items())
    size = readable_size(variables["size_bytes"])
    yield "variables", f"{variables['count']} ({size}): {roles or 'none'}"
    yield "at the dump", _reproduction(incident)


def _recording_facts(metadata: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    script = metadata.get("script") or "an interactive session"
    yield "recorded", f"{metadata.get('created', '?')} by {script}"
    if "worker" in metadata:
        yield "worker", f"{metadata['worker']} of {metadata.get('workers', '?')}, counted from 0"
    versions = []
    for name in _VERSIONS:
        if name in metadata:
            versions.append(f"{name} {metadata[name]}")
    yield "versions", ", ".join(versions)
    devices = metadata.get("devices") or "no devices named"
    yield "machine", f"{metadata.get('platform', '?')}; {devices}"


def _program_in_words(program: Mapping[str, Any]) -> str:
    inputs = ", ".join(map(_input_in_words, program["inputs"]))
    how = f"{program['compilation']}, {program['policy']}"
    return f"{program['id']}: {how}; takes {inputs or 'nothing'}"


def _input_in_words(spec: Mapping[str, Any]) -> str:
    return f"{batch_name(spec['path'])} {spec['dtype']}{_shape(spec['shape'])}"


def _shape(shape: Sequence[int | None] | None) -> str:
    if shape is None:
        return ""
    sizes = ["?" if size is None else str(size) for size in shape]
    return f"[{', '.join(sizes)}]"


def _reproduction(incident: Mapping[str, Any]) -> str:
    """What running the window again gave, when the recorder wrote the file."""
    if incident["reproduced"] is None:
        return "the window was not re-executed"
    again = "non-finite again" if incident["reproduced"] else "finite when re-executed"
    if incident["bit_exact"]:
        return f"{again}, every step bit for bit"
    return f"{again}, within {incident['max_ulp']} ulp of the recording"


def _answer_in_words(stored: Mapping[str, Any]) -> str:
    if stored["reason"] is not None:
        return f"stored, but not readable: {stored['reason']}"
    maker = f"stored by nanreplay {stored['nanreplay']} on {stored['created'][:10]}"
    if not stored["is_of_this_content"]:
        return f"{maker} for what the file held before it was changed"
    return f"{maker}: {stored['sentence']}"


def _timeline_lines(timeline: Mapping[str, Any]) -> Iterator[str]:
    tail = timeline["tail"]
    if timeline["last"] is None:
        return
    yield f"timeline    steps {timeline['first']} to {timeline['last']}; the last:"
    columns = []
    for name in TIMELINE_COLUMNS:
        # `measured` only says which of the norms were.
        if name in tail and name != "measured" and _has_facts(tail[name]):
            columns.append(_right_aligned([name, *map(readable_number, tail[name])]))
    for row in zip(*columns, strict=True):
        yield "  " + "  ".join(row)


def _right_aligned(column: Sequence[str]) -> list[str]:
    width = max(map(len, column))
    return [cell.rjust(width) for cell in column]


def _has_facts(values: Sequence[Any]) -> bool:
    """Whether a column says anything: NaN is what was not measured, False no skipped update."""
    return any(value != "nan" and value is not False for value in values) or len(values) == 0
