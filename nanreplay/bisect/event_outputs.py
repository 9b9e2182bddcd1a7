"""What an op gave: the variables that an update has changed, and the facts of outputs.

A step reads each weight several times, and hands large tensors on. `measured_outputs` looks at each
of them once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from nanreplay.bisect.influence import COPIES
from nanreplay.bisect.step_runner import StepRunner
from nanreplay.bisect.tensor_stats import TensorStat, dtype_name, measure
from nanreplay.replay.provenance import OpEvent, ValueId


def measured_outputs(
    event: OpEvent, known: Callable[[ValueId], TensorStat | None]
) -> tuple[TensorStat, ...]:
    """Return the facts of an op's outputs; what it handed on has those of what it got.

    Args:
        event: The execution; an update with the variables that it left as its outputs.
        known: Returns the facts of a value, None where nobody has looked at it.
    """
    stats = []
    for k, value in enumerate(event.outputs):
        stat = None
        if event.type in COPIES:
            stat = known(event.input_ids[k])
        elif reads_fed(event):
            stat = known(event.input_ids[0])
        if stat is not None and stat.size and stat.dtype == dtype_name(value):
            stats.append(dataclasses.replace(stat, shape=tuple(map(int, value.shape))))
        else:
            stats.append(measure(value))
    return tuple(stats)


def reads_fed(event: OpEvent) -> bool:
    """Whether an op reads a variable that the step has not written before it."""
    is_read = event.type == "ReadVariableOp" and not event.via
    return is_read and event.input_ids[0].serial < 0


def with_updated(runner: StepRunner, event: OpEvent) -> OpEvent:
    """Return an update whose outputs are the variables that it has just changed.

    Update ops have no outputs, or only handles. So each variable is read, at once, before a later
    op changes it again.
    """
    dtype = event.attrs["dtype"] if "dtype" in event.attrs else event.attrs["T"]
    read = dataclasses.replace(event, type="ReadVariableOp", attrs={"dtype": dtype}, error=None)
    updated = []
    for i in handles_of(event):
        updated.append(runner.execute(read, [event.inputs[i]])[0])
    return dataclasses.replace(event, outputs=tuple(updated))


def handles_of(event: OpEvent) -> list[int]:
    """Return which inputs are variables' handles."""
    return [i for i, value in enumerate(event.inputs) if dtype_name(value) == "resource"]
