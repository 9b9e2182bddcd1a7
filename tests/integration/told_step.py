"""The failing step of a training, run in plain TensorFlow as often as statements about it need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf
from plain_training import (
    Batch,
    EagerStep,
    OpRun,
    PlainRecorder,
    Step,
    floats_of,
    make_finite,
    run_plain,
)

from nanreplay.findings import Origin
from nanreplay.report.contents import Report

Train = Callable[[PlainRecorder], Any]
"""Trains with a recorder in the place of nanreplay's."""
ANOTHER_FAILS = "another one fails then"
"""How the reason for rows ends where the step fails without them, too."""
_ROUNDING = 2e-3
"""Relative difference of numbers that a compiled and an eager step may have."""
_TRIED_ROWS = 8
"""How many rows are tried one by one."""


@dataclass
class Seen:
    """What the failing step did in plain TensorFlow, as it was and changed."""

    recorder: PlainRecorder
    whole: EagerStep
    by_gradients: bool
    """Whether a gradient that is not finite counts as a failure."""
    batches: dict[int, list[Any]]
    """Arrays of the batch of each step."""
    maker: OpRun | None = None
    """The op that the report names."""
    rows: tuple[tuple[str, str, bool], ...] = ()
    """What is said of rows: kind, text, whether it is so."""
    earlier: tuple[str, ...] = ()
    """Ops before it that make bad of good, where without these the step does not fail."""
    repaired: EagerStep | None = None
    """The step with numbers in the place of what the op made bad."""
    compiled: EagerStep | None = None
    """The step as the training compiles it, where it raises eagerly."""
    before: list[OpRun] = field(default_factory=list)
    """Ops on the way to the named one, the nearest first."""
    after: list[OpRun] = field(default_factory=list)
    """Ops that what it made comes to."""

    def fails(self, step: EagerStep) -> bool:
        return step.fails(self.by_gradients)


def look_at(report: Report, train: Train) -> Seen:
    """Run the training to the named step, and that step as often as the statements need it."""
    batches: dict[int, list[Any]] = {}
    found: list[Seen] = []
    origin = report.findings.origin
    assert origin is not None

    def kept(number: int, batch: Batch) -> Batch:
        batches[number] = [np.array(part) for part in tf.nest.flatten(batch)]
        return batch

    def look(step: Step, batch: Batch) -> None:
        whole = step(batch)
        seen = Seen(recorder, whole, report.trigger.what == "gradient", batches)
        seen.maker = maker_of(origin, whole)
        if whole.error is not None and report.trigger.what != "exception":
            seen.compiled = step(batch, eagerly=False)
        seen.rows = tuple(_of_rows(origin, seen, step, batch))
        if seen.maker is not None:
            seen.before, seen.after = _before(seen.maker, whole), _after(seen.maker, whole)
            seen.earlier = tuple(_needed_before(seen.maker, seen, step, batch))
            told = [one for one in report.findings.other_origins if one.step == origin.step]
            makers = [seen.maker, *filter(None, (maker_of(one, whole) for one in told))]
            seen.repaired = step(batch, _repairing({maker.number for maker in makers}))
        found.append(seen)

    recorder = PlainRecorder(at=origin.step, look=look, prepared=kept)
    run_plain(lambda: train(recorder), recorder)
    assert found, f"the training ended before step {origin.step}: {recorder.losses}"
    return found[0]


def same(told: Any, found: Any) -> bool:
    """Whether two numbers are the same but for what a compiler may round."""
    if isinstance(told, str):
        told = complex(told) if "j" in told else float(told)
    with np.errstate(all="ignore"):
        return bool(np.isclose(told, found, rtol=_ROUNDING, atol=1e-6, equal_nan=True))


def maker_of(origin: Origin, step: EagerStep) -> OpRun | None:
    """The first op of an eager step that made what an origin says: type, shape, element, value."""
    told = next((output for output in origin.outputs if output.indices), None)
    if told is None:
        return None
    for op in (op for op in step.ops if op.type == origin.op_type):
        shapes = [tuple(output.shape) for output in op.outputs if hasattr(output, "shape")]
        if told.shape in shapes and op.makes_bad:
            array = floats_of(op.outputs[shapes.index(told.shape)])
            if array is not None and same(told.value, array[told.indices[0]]):
                return op
    return None


# Rows.


def _of_rows(
    origin: Origin, seen: Seen, step: Step, batch: Batch
) -> Iterator[tuple[str, str, bool]]:
    """What becomes of the step with and without the rows that are named."""
    size, reason = len(tf.nest.flatten(batch)[0]), origin.rows_reason or ""

    def alone(rows: Sequence[int]) -> bool:
        return seen.fails(step(_alone(batch, rows, seen.batches.get(origin.step - 1))))

    def without(rows: Sequence[int]) -> bool:
        return seen.fails(step(_without(batch, rows)))

    if origin.rows:
        yield "rows alone", f"rows {origin.rows} alone fail", alone(origin.rows)
        for row in origin.rows if "each of these rows" in reason else ():
            yield "rows alone", f"row {row} alone fails", alone([row])
        if ANOTHER_FAILS in reason:
            yield "rows left out", f"without {origin.rows} another op fails", without(origin.rows)
        else:
            yield "rows left out", f"without {origin.rows} it is finite", not without(origin.rows)
    elif reason.startswith("Does not depend on single rows"):
        for row in range(min(size, _TRIED_ROWS)):
            yield "no single row", f"it fails without row {row}, too", without([row])
    elif "no row alone" in reason:
        for row in range(min(size, _TRIED_ROWS)):
            yield "no single row", f"row {row} alone is finite", not alone([row])


def _alone(batch: Batch, rows: Sequence[int], fillers: Sequence[Any] | None) -> Batch:
    """A batch of some rows among those of the batch before; among themselves without one."""

    def change(array: Any, place: int) -> Any:
        is_filled = fillers is not None and fillers[place].shape == array.shape
        filled = fillers[place].copy() if is_filled else array[np.resize(rows, len(array))]
        filled[list(rows)] = array[list(rows)]
        return filled

    return _with_rows(batch, change)


def _without(batch: Batch, rows: Sequence[int]) -> Batch:
    """A batch with others of its rows in the places of some."""

    def change(array: Any, place: int) -> Any:
        others = np.setdiff1d(np.arange(len(array)), rows)
        array[list(rows)] = array[np.resize(others, len(rows))]
        return array

    return _with_rows(batch, change)


def _with_rows(batch: Batch, change: Callable[[Any, int], Any]) -> Batch:
    """A batch with every array that holds a row a sample changed: `change(array, place)`."""
    parts = tf.nest.flatten(batch)
    new = [
        change(np.array(part), place) if np.ndim(part) and len(part) == len(parts[0]) else part
        for place, part in enumerate(parts)
    ]
    return tf.nest.pack_sequence_as(batch, new)


# Ops.


def _needed_before(maker: OpRun, seen: Seen, step: Step, batch: Batch) -> Iterator[str]:
    """Earlier ops that make bad of good: the step must fail the same without what they made."""
    earlier = [op for op in seen.whole.ops[: maker.number] if op.makes_bad]
    if earlier and not seen.fails(step(batch, _repairing({op.number for op in earlier}))):
        yield from (f"{op.type} (op {op.number})" for op in earlier)


def _repairing(numbers: set[int]) -> Callable[[OpRun], None]:
    """Put 1 in the place of what these ops make bad."""

    def repair(op: OpRun) -> None:
        if op.number in numbers:
            make_finite(op)

    return repair


def _before(maker: OpRun, step: EagerStep) -> list[OpRun]:
    wanted, found = {id(tensor) for tensor in maker.inputs}, []
    for op in reversed(step.ops[: maker.number]):
        if wanted & {id(tensor) for tensor in op.outputs}:
            wanted |= {id(tensor) for tensor in op.inputs}
            found.append(op)
    return found


def _after(maker: OpRun, step: EagerStep) -> list[OpRun]:
    made, found = {id(tensor) for tensor in maker.outputs}, []
    for op in step.ops[maker.number + 1 :]:
        if made & {id(tensor) for tensor in op.inputs}:
            made |= {id(tensor) for tensor in op.outputs}
            found.append(op)
    return found
