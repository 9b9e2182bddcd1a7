"""From what was read of a step to a verdict: is it an incident?"""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf

from nanreplay.program.watch import nonfinite_kind, read_variable
from nanreplay.recorder.variables import VariableTable
from nanreplay.records import Trigger


@dataclass(frozen=True, slots=True)
class Suspicion:
    """Something is not as it should be."""

    trigger: Trigger
    step: int
    """The step after which it was seen; it may have begun before."""
    is_certain: bool
    """False for a number that may have turned non-finite by itself, such as a running mean of losses."""


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
