"""One tensor over the steps of the window: when did it begin to grow?

A variable or a part of the batch is read; for what an op computed, each step runs as far as it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nanreplay.bisect.op_trace import Fact, StepTrace, is_update
from nanreplay.bisect.step_runner import StepRunner, repaired
from nanreplay.bisect.tensor_stats import TensorStat, is_opaque
from nanreplay.errors import MissingPartError, ReplayError
from nanreplay.explore.tensor_view import Histogram, Index, view_tensor
from nanreplay.replay.provenance import FeedKind, OpEvent, ValueId

MOST_STEPS = 64
"""Steps, the last ones of the window, over which a tensor is followed."""


@dataclass(frozen=True, slots=True)
class TensorAtStep:
    """A tensor in one step of the window."""

    step: int
    stat: TensorStat
    mean: float | None
    """Mean of the finite elements."""
    histogram: Histogram | None
    element: float | None
    """The element that was asked for; None where the tensor has none there, or no real number."""


def tensor_over_steps(
    runner: StepRunner,
    trace: StepTrace,
    value: ValueId,
    at: Index = (),
    steps: Sequence[int] | None = None,
) -> Iterator[TensorAtStep]:
    """Yield a tensor of a step as it is in other steps, step by step.

    Steps that ran another program, without an op of the same name and type, are left out.

    Args:
        runner: What replays.
        trace: The run of the step that the value is of.
        value: The tensor.
        at: The element that is followed.
        steps: Which steps; the last ones of the window unless given.

    Raises:
        MissingPartError: The tensor is of a loop, or of a function that is called: it is computed
            several times, or not to be had by name.
    """
    # Steps after the one that is looked at have nothing to do with how it came about.
    known = []
    for step in runner.steps:
        if step <= trace.step:
            known.append(step)
    wanted = known[-MOST_STEPS:] if steps is None else [step for step in steps if step in known]
    fact = trace.facts.get(value.serial)
    if fact is not None and is_update(fact.type):
        value, fact = fact.input_ids[0], None  # what an update makes is the variable
    if fact is not None and fact.calls:
        raise MissingPartError(
            f"`{fact.name}` runs inside of `{fact.calls[0].op}`: it cannot be followed over steps."
        )
    for step in wanted:
        tensor = (
            _of_op(runner, step, fact, value.output) if fact else _fed(runner, trace, step, value)
        )
        if tensor is not None and not is_opaque(tensor):
            yield _at_step(step, tensor, at)


def _fed(runner: StepRunner, trace: StepTrace, step: int, value: ValueId) -> Any:
    kind: FeedKind
    kind, index = trace.feed(value)
    if kind == "batch":
        leaves = runner.batch(step).leaves
        return leaves[index] if index < len(leaves) else None
    return runner.state(step).get(index) if kind == "variable" else None


def _of_op(runner: StepRunner, step: int, fact: Fact, output: int) -> Any:
    info = runner.ops(step).get(fact.key)
    # The last batch of an epoch may run a program of its own, where the name belongs to another op.
    if info is None or info.type != fact.type:
        return None
    name = f"{fact.name}:{output}"

    def repair(event: OpEvent) -> Sequence[Any]:
        # A check such as CheckNumerics raises in the failing step, before the op that is asked for
        # runs.
        outputs = repaired(event, runner.execute)
        if outputs is None:
            raise ReplayError(f"`{event.name}` raised in step {step}.") from event.error
        return outputs

    return runner.run(step, None, on_error=repair, fetches=[name], update=False)[name]


def _at_step(step: int, tensor: Any, at: Index) -> TensorAtStep:
    view = view_tensor(ValueId(0, 0), "", tensor, at=at)
    cell = view.plane.cell(at)
    cells, element = view.plane.cells, None
    if cell is not None and cells.size and cells.dtype.kind not in "cOSU":
        element = float(cells[cell])
    return TensorAtStep(step, view.stat, view.mean, view.histogram, element)
