"""What two captures say of themselves: environment, settings, variables, ops. Reads tables; runs nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from nanreplay.capture import Capture
from nanreplay.diff.findings import Changed, OpCount
from nanreplay.records import OpInfo, VariableInfo
from nanreplay.report.numbers import readable_number, readable_trigger
from nanreplay.today.match import uncounted
from nanreplay.today.rates import recorded_rates

_OF_ITSELF = ("created", "script", "cpu_count")
"""Facts of a run that say nothing of its numbers."""


def environment(left: Capture, right: Capture) -> Iterator[Changed]:
    """Versions and machines that differ."""
    yield from _changed(
        {name: value for name, value in left.metadata.items() if name not in _OF_ITSELF},
        {name: value for name, value in right.metadata.items() if name not in _OF_ITSELF},
    )


def _changed(left: Mapping[str, str], right: Mapping[str, str]) -> Iterator[Changed]:
    for name in dict.fromkeys((*left, *right)):
        if left.get(name) != right.get(name):
            yield Changed(name, left.get(name), right.get(name))


def settings(left: Capture, right: Capture) -> Iterator[Changed]:
    """The incident, the learning rate and how the step was compiled, where they differ."""
    yield from _changed(_settings(left), _settings(right))


def _settings(capture: Capture) -> dict[str, str]:
    incident = capture.incident
    found = {"incident": "none" if incident.trigger.what == "manual" else f"step {incident.step}: {readable_trigger(incident.trigger)}"}
    rates = sorted(set(recorded_rates(capture.timeline_record()).values()))
    if rates:
        found["learning rate"] = " to ".join(dict.fromkeys(readable_number(rate) for rate in (rates[0], rates[-1])))
    program = program_of(capture)
    if program is not None:
        signature = capture.signature(program)
        found |= {
            "compilation": signature.compilation,
            "policy": signature.policy,
            "loss scaling": "yes" if signature.loss_scaled else "no",
        }
        found["inputs"] = ", ".join(f"{spec.path or 'batch'} {spec.dtype}" for spec in signature.inputs)
    return found


def program_of(capture: Capture) -> str | None:
    """Id of the program of the incident's step, or of the last step that has one."""
    for step in reversed(capture.steps):
        program = capture.batch(step).program
        if program and (step <= capture.incident.step):
            return program
    return None


def variables(left: Sequence[VariableInfo], right: Sequence[VariableInfo], pairs: Mapping[int, int]) -> Iterator[Changed]:
    """Variables that one side alone has, and those of another shape or type; metrics aside.

    Args:
        left: Table of the left side.
        right: Table of the right side.
        pairs: Index of the right variable by that of the left one.
    """
    for index, info in enumerate(left):
        other = right[pairs[index]] if index in pairs else None
        if info.role != "metric" and (other is None or _form(other) != _form(info)):
            yield Changed(info.path, _form(info), None if other is None else _form(other))
    taken = set(pairs.values())
    for index, info in enumerate(right):
        if info.role != "metric" and index not in taken:
            yield Changed(info.path, None, _form(info))


def _form(info: VariableInfo) -> str:
    return f"{info.dtype}[{', '.join(map(str, info.shape))}]"


def ops(left: Sequence[OpInfo], right: Sequence[OpInfo]) -> Iterator[OpCount]:
    """Kinds of ops of which the sides have a different number, in the order of the left side's table."""
    counts = _count(left), _count(right)
    for kind in dict.fromkeys((*counts[0], *counts[1])):
        if counts[0][kind] != counts[1][kind]:
            yield OpCount(*kind, counts[0][kind], counts[1][kind])


def _count(ops: Sequence[OpInfo]) -> Counter[tuple[str, str, str]]:
    return Counter((op.type, uncounted(op.layer_path), op.phase) for op in ops if op.phase != "watch")
