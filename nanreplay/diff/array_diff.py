"""Comparing what two captures recorded of one step: fingerprints, states and batches.

`capture_diff` asks these functions for each common step, until one finds a difference. Two NaNs are
alike, and so are zeros of both signs: a difference is one that a user would call so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nanreplay.bisect.tensor_stats import first_index
from nanreplay.capture import Capture
from nanreplay.capture.arrays import as_array
from nanreplay.diff.diff_findings import ArrayDifference, Changed, Value
from nanreplay.findings import Number
from nanreplay.program.fingerprint import ulp_distance, was_measured
from nanreplay.records import BatchRecord, Signature, VariableInfo, batch_name
from nanreplay.replay import Replay
from nanreplay.rerun.variable_match import is_setting

# Two arrays, element by element.


def differing(left: Any, right: Any) -> Any:
    """A boolean array of what differs; two NaNs, and zeros of both signs, are alike.

    Raises:
        ValueError: The shapes differ.
    """
    left, right = as_array(left), as_array(right)
    if left.shape != right.shape:
        raise ValueError(f"Expected arrays of one shape. Received: {left.shape}, {right.shape}")
    unequal = left != right
    if is_float(left) and is_float(right):
        unequal &= ~(np.isnan(left) & np.isnan(right))
    return np.asarray(unequal)


def is_float(array: Any) -> bool:
    """Whether an array holds real floats; bfloat16 and float8 are no floats to numpy's `kind`."""
    return array.dtype.kind == "f" or "float" in array.dtype.name


def compare(name: str, left: Any, right: Any) -> ArrayDifference | None:
    """What differs between two arrays of one shape, None when nothing does."""
    left, right = as_array(left), as_array(right)
    unequal = differing(left, right)
    if not unequal.any():
        return None
    index = first_index(unequal)
    return ArrayDifference(
        name=name,
        elements=int(unequal.sum()),
        size=int(unequal.size),
        index=index,
        left=_number(left[index]),
        right=_number(right[index]),
    )


def _number(element: Any) -> Number:
    plain = element.item() if hasattr(element, "item") else element
    if isinstance(plain, bytes):
        return plain.decode("utf-8", "replace")
    return plain if isinstance(plain, (bool, int, float)) else str(plain)


def largest_ulp(left: Any, right: Any) -> int | None:
    """Largest distance in units in the last place.

    None for what is not two float arrays of one type.
    """
    left, right = as_array(left), as_array(right)
    if left.dtype != right.dtype or left.dtype.kind != "f":
        return None
    return ulp_distance(np.atleast_1d(left), np.atleast_1d(right))


# The fingerprints of one step. An element is named `kind:subject`: `loss:0`, `gradient_sum:7` for
# the variable with the index 7. The indices of the right side are turned into those of the left, so
# that elements of one name are of one variable.

_UNPAIRED = "-"
_KINDS = {
    "gradient_sum": "half the sum of squares of the gradient of",
    "gradient_max": "largest gradient of",
    "variable_sum": "half the sum of squares of",
}
"""What an element of a fingerprint says of a variable."""


def values_that_differ(
    left: Capture, right: Capture, step: int, pairs: Mapping[int, int]
) -> list[Value] | None:
    """What both fingerprints of a step hold and is not the same; None without a common element.

    Args:
        left: The left capture.
        right: The right capture.
        step: A step that both hold.
        pairs: Index of the right variable by that of the left one.
    """
    left_index = {index: index for index in range(len(left.variables_info))}
    right_index = {theirs: ours for ours, theirs in pairs.items()}
    left_elements = _fingerprint_elements(left, step, left_index)
    right_elements = _fingerprint_elements(right, step, right_index)
    common_names = []
    for name in left_elements:
        if name in right_elements:
            common_names.append(name)
    if not common_names:
        return None
    paths = [info.path for info in left.variables_info]
    signature = _signature_of(left, step)
    values = []
    for name in common_names:
        a, b = left_elements[name], right_elements[name]
        if a.dtype != b.dtype:
            a, b = a.astype(np.float64), b.astype(np.float64)
        if not (was_measured(name, a[0]) and was_measured(name, b[0])):
            continue
        ulp = ulp_distance(a, b)
        if ulp:
            called = _readable_name(name, paths, signature)
            values.append(Value(called, float(a[0]), float(b[0]), ulp))
    return values


def _fingerprint_elements(
    capture: Capture, step: int, left_index: Mapping[int, int]
) -> dict[str, Any]:
    """Elements of a step's fingerprint by name, with the left side's indices of variables."""
    recorded, signature = capture.batch(step).fingerprint, _signature_of(capture, step)
    layout = () if signature is None else signature.watch_layout
    fingerprint = None if recorded is None else np.asarray(recorded)
    if fingerprint is None or len(fingerprint) != len(layout):
        return {}
    elements = {}
    for position, left_name in enumerate(layout):
        kind, _, subject = left_name.partition(":")
        is_of_variable = subject and kind != "loss"
        paired = left_index.get(int(subject), _UNPAIRED) if is_of_variable else ""
        name = f"{kind}:{paired}" if is_of_variable else left_name
        if not name.endswith(_UNPAIRED):
            elements[name] = fingerprint[position : position + 1]
    return elements


def _signature_of(capture: Capture, step: int) -> Signature | None:
    """A step without a program of its own has the fingerprint of the incident's step."""
    program = capture.batch(step).program or capture.batch(capture.incident.step).program
    return capture.signature(program) if program else None


def _readable_name(name: str, paths: Sequence[str], signature: Signature | None) -> str:
    kind, _, subject = name.partition(":")
    if kind == "loss":
        return signature.loss_name(int(subject)) if signature is not None else name
    if not subject:
        return kind.replace("_", " ")
    return f"{_KINDS[kind]} {paths[int(subject)]}"


# Batches and states.


def batches_that_differ(
    left: BatchRecord, right: BatchRecord
) -> tuple[list[ArrayDifference], list[Changed]]:
    """Arrays of a batch with other elements, and those of another shape or type.

    An array that one side alone has is among the latter.
    """
    left_leaves = dict(zip(left.paths, left.leaves, strict=True))
    right_leaves = dict(zip(right.paths, right.leaves, strict=True))
    arrays: list[ArrayDifference] = []
    forms: list[Changed] = []
    for path in dict.fromkeys((*left_leaves, *right_leaves)):
        a, b = left_leaves.get(path), right_leaves.get(path)
        name = batch_name(path)
        left_form, right_form = _leaf_form(a), _leaf_form(b)
        if left_form is None or right_form is None or left_form != right_form:
            forms.append(Changed(name, left_form, right_form))
            continue
        difference = compare(name, a, b)
        if difference is not None:
            arrays.append(difference)
    return arrays, forms


def _leaf_form(leaf: Any) -> str | None:
    if leaf is None:
        return None
    array = as_array(leaf)
    return type_and_shape(array.dtype, array.shape)


def type_and_shape(dtype: object, shape: Sequence[int]) -> str:
    """Return the form of an array or a variable: `float32[32, 4]`."""
    return f"{dtype}[{', '.join(map(str, shape))}]"


def states_that_differ(
    left: Replay, right: Replay, step: int, pairs: Mapping[int, int]
) -> list[ArrayDifference] | None:
    """Variables that differ just before a step; metrics and settings aside.

    Args:
        left: The left capture's replay.
        right: The right capture's replay.
        step: The step.
        pairs: Index of the right variable by that of the left one.

    Returns:
        The differences; None when one side's state is not known.
    """
    left_state, right_state = _state(left, step), _state(right, step)
    if left_state is None or right_state is None:
        return None
    differences = []
    for ours, theirs in pairs.items():
        info: VariableInfo = left.variables[ours]
        if info.role == "metric" or is_setting(info):
            continue
        if ours not in left_state or theirs not in right_state:
            continue
        a, b = left_state[ours], right_state[theirs]
        if np.shape(a) != np.shape(b):
            continue  # told as a difference of the variables
        difference = compare(info.path, a, b)
        if difference is not None:
            differences.append(difference)
    return differences


def _state(replay: Replay, step: int) -> Mapping[int, Any] | None:
    if step in replay.capture.keyframe_steps:
        return replay.capture.keyframe(step)
    return replay.state(step) if step in replay.steps else None
