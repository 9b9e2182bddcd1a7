"""The first step at which two captures part: fingerprints, states and batches as they were recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nanreplay.capture import Capture
from nanreplay.diff.diff_findings import ArrayDifference, Changed, Value
from nanreplay.findings import Number
from nanreplay.program.fingerprint import ulp_distance, was_measured
from nanreplay.records import BatchRecord, VariableInfo
from nanreplay.replay import Replay
from nanreplay.rerun.variable_match import is_setting

# Two arrays, element by element.


def differing(left: Any, right: Any) -> Any:
    """A boolean array of what differs; two NaNs, and zeros of both signs, are alike.

    Raises:
        ValueError: The shapes differ.
    """
    one, other = np.asarray(left), np.asarray(right)
    if one.shape != other.shape:
        raise ValueError(f"Expected arrays of one shape. Received: {one.shape}, {other.shape}")
    unequal = one != other
    if is_float(one) and is_float(other):
        unequal &= ~(np.isnan(one) & np.isnan(other))
    return np.asarray(unequal)


def is_float(array: Any) -> bool:
    """Whether an array holds real floats, those of TensorFlow included."""
    return array.dtype.kind == "f" or "float" in array.dtype.name


def compare(name: str, left: Any, right: Any) -> ArrayDifference | None:
    """What differs between two arrays of one shape, None when nothing does."""
    one, other = np.asarray(left), np.asarray(right)
    unequal = differing(one, other)
    if not unequal.any():
        return None
    index = tuple(int(each) for each in np.argwhere(unequal)[0]) if unequal.ndim else ()
    return ArrayDifference(
        name,
        int(unequal.sum()),
        int(unequal.size),
        index,
        _number(one[index]),
        _number(other[index]),
    )


def _number(element: Any) -> Number:
    plain = element.item() if hasattr(element, "item") else element
    if isinstance(plain, bytes):
        return plain.decode("utf-8", "replace")
    return plain if isinstance(plain, (bool, int, float)) else str(plain)


def largest_ulp(left: Any, right: Any) -> int | None:
    """Largest distance in units in the last place; None for what is not two float arrays of one type."""
    one, other = np.asarray(left), np.asarray(right)
    if one.dtype != other.dtype or one.dtype.kind != "f":
        return None
    return ulp_distance(np.atleast_1d(one), np.atleast_1d(other))


# --- diff.steps

_UNNAMED = "-"
_WATCHED = {
    "gradient_sum": "half the sum of squares of the gradient of",
    "gradient_max": "largest gradient of",
    "variable_sum": "half the sum of squares of",
}
"""What an element of a fingerprint says of a variable."""


def values_that_differ(
    left: Capture, right: Capture, step: int, pairs: Mapping[int, int]
) -> list[Value] | None:
    """What both sides watched in a step and was not the same; None when nothing can be compared.

    Args:
        left: The left capture.
        right: The right capture.
        step: A step that both hold.
        pairs: Index of the right variable by that of the left one.
    """
    backward = {theirs: ours for ours, theirs in pairs.items()}
    one = _named(left, step, {index: index for index in range(len(left.variables_info))})
    other = _named(right, step, backward)
    names = [name for name in one if name in other]
    if not names:
        return None
    paths = [info.path for info in left.variables_info]
    found = []
    for name in names:
        a, b = one[name], other[name]
        if a.dtype != b.dtype:
            a, b = a.astype(np.float64), b.astype(np.float64)
        if not (was_measured(name, a[0]) and was_measured(name, b[0])):
            continue
        ulp = ulp_distance(a, b)
        if ulp:
            found.append(Value(_readable(name, paths), float(a[0]), float(b[0]), ulp))
    return found


def _named(capture: Capture, step: int, as_left: Mapping[int, int]) -> dict[str, Any]:
    """Elements of a step's fingerprint by name, with the left side's indices of variables."""
    batch = capture.batch(step)
    program = batch.program or capture.batch(capture.incident.step).program
    layout = capture.signature(program).watch_layout if program else ()
    values = None if batch.fingerprint is None else np.asarray(batch.fingerprint)
    if values is None or len(values) != len(layout):
        return {}
    found = {}
    for element, name in enumerate(layout):
        kind, _, subject = name.partition(":")
        if subject and kind != "loss":
            name = f"{kind}:{as_left.get(int(subject), _UNNAMED)}"
        if not name.endswith(_UNNAMED):
            found[name] = values[element : element + 1]
    return found


def _readable(name: str, paths: list[str]) -> str:
    kind, _, subject = name.partition(":")
    if kind == "loss":
        return "loss" if subject == "0" else f"loss {subject}"
    if not subject:
        return kind.replace("_", " ")
    return f"{_WATCHED[kind]} {paths[int(subject)]}"


def batches_that_differ(
    left: BatchRecord, right: BatchRecord
) -> tuple[list[ArrayDifference], list[Changed]]:
    """Arrays of a batch with other elements, and those of other shapes or that one side alone has."""
    one, other = (
        dict(zip(left.paths, left.leaves, strict=True)),
        dict(zip(right.paths, right.leaves, strict=True)),
    )
    arrays: list[ArrayDifference] = []
    forms: list[Changed] = []
    for path in dict.fromkeys((*one, *other)):
        a, b = one.get(path), other.get(path)
        name = f"batch {path}".rstrip()
        if (
            a is None
            or b is None
            or np.shape(a) != np.shape(b)
            or np.asarray(a).dtype != np.asarray(b).dtype
        ):
            forms.append(Changed(name, _form(a), _form(b)))
        elif (found := compare(name, a, b)) is not None:
            arrays.append(found)
    return arrays, forms


def _form(value: Any) -> str | None:
    return (
        None
        if value is None
        else f"{np.asarray(value).dtype}[{', '.join(map(str, np.shape(value)))}]"
    )


def states_that_differ(
    left: Replay, right: Replay, step: int, pairs: Mapping[int, int]
) -> list[ArrayDifference] | None:
    """Variables that differ just before a step; metrics and settings aside. None when one side's state is not known.

    Args:
        left: The left capture's replay.
        right: The right capture's replay.
        step: The step.
        pairs: Index of the right variable by that of the left one.
    """
    one, other = _state(left, step), _state(right, step)
    if one is None or other is None:
        return None
    found = []
    for ours, theirs in pairs.items():
        info: VariableInfo = left.variables[ours]
        if (
            info.role != "metric"
            and not is_setting(info)
            and ours in one
            and theirs in other
            and np.shape(one[ours]) == np.shape(other[theirs])
        ):
            difference = compare(info.path, one[ours], other[theirs])
            found += [difference] if difference else []
    return found


def _state(replay: Replay, step: int) -> Mapping[int, Any] | None:
    if step in replay.capture.keyframe_steps:
        return replay.capture.keyframe(step)
    return replay.state(step) if step in replay.steps else None
