"""From a fingerprint to a verdict: is this step an incident? Called only when an element is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from nanreplay.program.fingerprint import Layout
from nanreplay.program.watch import nonfinite_kind, read_variable, squares_fit
from nanreplay.recorder.variables import VariableTable
from nanreplay.records import Trigger, loss_name


def find_trigger(layout: Layout, values: Any, variables: VariableTable, loss_of: Sequence[str] = ()) -> tuple[Trigger | None, bool]:
    """What is non-finite, and whether loss scaling skipped this update."""

    def bad_variable(index: int) -> str:
        value = read_variable(variables.handles[index])
        return "" if index in variables.born_nonfinite or squares_fit(value) else nonfinite_kind(value)

    found, skipped = layout.find_nonfinite(values, loss_scaled="loss_scale" in layout.names, bad_variable=bad_variable)
    if found is None:
        return None, skipped
    if found.what == "loss":
        return Trigger("loss", loss_name(found.subject, loss_of), found.kind), False
    return Trigger(found.what, variables.path(found.subject), found.kind), False


def variable_trigger(variables: VariableTable, index: int) -> Trigger:
    """The trigger of a variable that is not finite."""
    return Trigger("variable", variables.path(index), nonfinite_kind(read_variable(variables.handles[index])))


def exception_trigger(error: BaseException) -> Trigger | None:
    """The trigger of a step that raised; None when there are no more batches, or the program is to end."""
    if is_end_of_data(error) or not isinstance(error, Exception):
        return None
    return Trigger("exception", type(error).__name__, _what_was_said(str(error))[:500])


def _what_was_said(message: str) -> str:
    """The line that says why: a graph's error begins with where the op was made, and ends with which node it was."""
    lines = [line for line in message.splitlines() if line.strip()] or [""]
    if not lines[0].startswith("Graph execution error"):
        return lines[0]
    reasons = [line for line in lines[1:] if not line.startswith((" ", "\t", "Detected at", "Stack trace", "Original stack"))]
    return reasons[0] if reasons else lines[0]


def is_end_of_data(error: BaseException) -> bool:
    """Whether an exception only says that there are no more batches."""
    return isinstance(error, (StopIteration, tf.errors.OutOfRangeError))
