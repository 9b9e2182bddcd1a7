"""What a report says of a step, statement by statement, each held against plain TensorFlow.

A statement is true where running the training without nanreplay shows it. What no run can show (how
likely a cause is, say) is no statement here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from plain_training import badness, floats_of
from told_causes import Evidence, told_numbers
from told_step import ANOTHER_FAILS, Seen, Train, look_at, same

from nanreplay import Capture
from nanreplay.findings import ChainLink, OperandFacts, OutputFacts
from nanreplay.report.contents import Report

Checked = Iterator[tuple[str, bool]]
_EAGERLY = {"BiasAdd": "AddV2", "Tile": "BroadcastTo"}
"""What Keras and TensorFlow run eagerly in the place of an op of a graph."""


@dataclass(frozen=True)
class Statement:
    """One thing that a report says."""

    kind: str
    text: str
    is_true: bool


def statements(report: Report, train: Train) -> list[Statement]:
    """Check all that a report says of its step; each statement once."""
    seen = look_at(report, train)
    return [
        Statement(kind, text, bool(is_true))
        for kind, check in CHECKS.items()
        for text, is_true in check(report, seen)
    ]


def _the_step(report: Report, seen: Seen) -> Checked:
    origin = report.findings.origin
    assert origin is not None
    before = seen.recorder.losses
    is_clean = seen.recorder.bad_after is None and bool(np.isfinite(before).all())
    yield f"steps 0 to {origin.step - 1} are finite", is_clean
    yield f"step {origin.step} is not", seen.fails(seen.whole)


def _the_trigger(report: Report, seen: Seen) -> Checked:
    trigger, step = report.trigger, seen.compiled or seen.whole
    assert report.findings.origin is not None
    if report.incident_step != report.findings.origin.step:
        return
    if trigger.what == "loss":
        yield f"the loss is {trigger.value}", same(str(trigger.value), step.loss)
    elif trigger.what == "gradient":
        gradients = [each for each in step.gradients if each is not None]
        yield f"a gradient is {trigger.value}", badness(gradients) > 0
    elif trigger.what == "variable":
        yield f"{trigger.name} is {trigger.value}", step.bad_variables > 0
    elif trigger.what == "exception":
        yield f"it raises {trigger.name}", type(step.error).__name__ == trigger.name


def _the_op(report: Report, seen: Seen) -> Checked:
    origin = report.findings.origin
    assert origin is not None
    if origin.kind == "raised":
        error = str(seen.whole.error)
        yield f"{origin.op_type} raises", f"[Op:{origin.op_type}]" in error
    elif origin.op_type is not None:
        yield f"{origin.op_type} makes it at {origin.outputs[0].indices[:1]}", bool(seen.maker)
        yield "nothing before it is needed", not seen.earlier


def _its_repair(report: Report, seen: Seen) -> Checked:
    origin = report.findings.origin
    if origin is None or seen.repaired is None or origin.phase not in ("forward", "loss"):
        return
    has_other = ANOTHER_FAILS in str(origin.rows_reason)
    if origin.rows and not has_other and seen.repaired.error is None:
        loss = seen.repaired.loss
        yield "with numbers there, the loss is one", loss is not None and bool(np.isfinite(loss))


def _the_batch(report: Report, seen: Seen) -> Checked:
    origin = report.findings.origin
    if origin is None or origin.op_type is not None:
        return
    fed = [floats_of(tensor) for op in seen.whole.ops for tensor in op.inputs]
    for told in (output for output in origin.outputs if output.indices):
        holds = [
            array is not None
            and array.shape == told.shape
            and same(told.value, array[told.indices[0]])
            and int((~np.isfinite(array)).sum()) == told.nonfinite
            for array in fed
        ]
        yield f"the batch holds {told.value} at {told.indices[0]}", any(holds)


def _the_phase(report: Report, seen: Seen) -> Checked:
    origin, step = report.findings.origin, seen.whole
    if origin is None or seen.maker is None or step.began_backward is None:
        return
    number = seen.maker.number
    if step.began_update is not None and number >= step.began_update:
        found = ("update",)
    elif number >= step.began_backward:
        found = ("backward",)
    else:  # what an inner tape does is part of the loss of the outer one
        found = ("forward", "loss", "backward")
    yield f"the phase is {origin.phase}", origin.phase in found


def _the_layer(report: Report, seen: Seen) -> Checked:
    origin = report.findings.origin
    if origin is None or seen.maker is None or origin.phase != "forward":
        return
    innermost = seen.maker.layers[-1] if seen.maker.layers else None
    yield f"the layer is {origin.layer}", origin.layer == innermost


def _the_outputs(report: Report, seen: Seen) -> Checked:
    origin = report.findings.origin
    if origin is None or seen.maker is None:
        return
    for place, told in enumerate(origin.outputs):
        array = floats_of(seen.maker.outputs[place]) if place < len(seen.maker.outputs) else None
        if array is None or not told.indices:
            continue
        count = int((~np.isfinite(array)).sum())
        yield (
            f"{told.nonfinite} of {told.size} are bad",
            (count, array.size)
            == (
                told.nonfinite,
                told.size,
            ),
        )
        for index in told.indices:
            yield f"{list(index)} is bad", not np.isfinite(array[index])


def _the_operands(report: Report, seen: Seen) -> Checked:
    origin = report.findings.origin
    if origin is None or seen.maker is None:
        return
    output = next(output for output in origin.outputs if output.indices)
    for told in origin.operands:
        fitting = [
            one for one in seen.maker.inputs if tuple(getattr(one, "shape", ())) == told.shape
        ]
        arrays = [array for array in map(floats_of, fitting) if array is not None]
        if arrays:
            text = f"operand {told.value} ({told.min} to {told.max})"
            yield text, any(_is_operand(told, array, output) for array in arrays)


def _is_operand(told: OperandFacts, array: Any, output: OutputFacts) -> bool:
    """Whether an input has the told bounds, and the told value: at the element that it is broadcast
    to, or anywhere, where no broadcasting tells which."""
    finite = array[np.isfinite(array)].ravel()
    for bound in (told.min, told.max):
        if bound is not None and not any(same(bound, value) for value in finite):
            return False
    if told.value is None:
        return True
    try:
        broadcast = np.broadcast_to(array, output.shape)
    except ValueError:
        return any(same(told.value, value) for value in array.ravel())
    return same(told.value, broadcast[output.indices[0]])


def _the_line(report: Report, seen: Seen) -> Checked:
    origin = report.findings.origin
    if origin is None or origin.source is None or seen.maker is None:
        return
    name, told = PurePath(origin.source.file).name, origin.source.line
    ops = [seen.maker]
    if origin.phase == "backward":  # the line made the forward op that takes or gives its tensors
        given = {id(tensor) for tensor in seen.maker.inputs}
        ops += [
            op
            for op in seen.whole.ops[: seen.maker.number]
            if given & {id(tensor) for tensor in (*op.inputs, *op.outputs)}
        ]
    frames = {frame for op in ops for frame in op.lines if PurePath(frame[0]).name == name}
    lines = {first for file, line in frames for first in (line, *_statements_at(file, line))}
    yield f"{name}:{told} runs the op", told in lines


def _statements_at(file: str, line: int) -> Iterator[int]:
    """First lines of the statements that a line is part of: AutoGraph tells no more."""
    for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or node.lineno):
            yield node.lineno


def _upstream(report: Report, seen: Seen) -> Checked:
    yield from _links(report.findings.upstream, seen, before=True)


def _chain(report: Report, seen: Seen) -> Checked:
    yield from _links(report.findings.chain, seen, before=False)


def _links(links: Sequence[ChainLink], seen: Seen, *, before: bool) -> Checked:
    """Each link ran before (or after) the op, on its way, with the told shape and values."""
    if seen.maker is None:
        return
    related = seen.before if before else seen.after
    for link in links:
        if link.phase == "update" or "Variable" in link.op_type:
            continue  # an optimizer's ops are checked where one is the origin
        found = [op for op in related if op.type in (link.op_type, _EAGERLY.get(link.op_type))]
        outputs = [output for op in found for output in op.outputs]
        if link.op_type == "Const":  # no op makes it eagerly
            outputs = [tensor for op in (*related, seen.maker) for tensor in op.inputs]
        text = f"{link.op_type} {link.shape}: {link.nonfinite} bad, up to {link.absmax}"
        yield text, any(_is_link(link, output) for output in outputs)


def _is_link(link: ChainLink, output: Any) -> bool:
    array = floats_of(output)
    if array is None:
        return link.absmax is None and link.nonfinite == 0
    finite = np.abs(array[np.isfinite(array)])
    largest = float(finite.max()) if finite.size else None
    if array.shape != link.shape or int((~np.isfinite(array)).sum()) != link.nonfinite:
        return False
    return largest is link.absmax or (link.absmax is not None and same(link.absmax, largest))


def _the_loop(report: Report, seen: Seen) -> Checked:
    """Eagerly a loop runs in Python: each iteration comes by the same lines."""
    origin = report.findings.origin
    if origin is None or seen.maker is None or not origin.loop or origin.phase == "backward":
        return
    maker = seen.maker
    before = seen.whole.ops[: maker.number]
    passed = sum((op.type, op.lines) == (maker.type, maker.lines) for op in before)
    iteration = origin.loop[-1].iteration
    yield f"it is iteration {iteration}", passed == iteration


def _the_losses(report: Report, seen: Seen) -> Checked:
    with Capture(report.path) as capture:
        columns = capture.timeline_record().columns
    known = dict(zip(columns["step"].tolist(), columns.get("loss", []), strict=False))
    for step, loss in enumerate(seen.recorder.losses):
        if step in known:
            yield f"the loss of step {step} is {known[step]:.6g}", same(float(known[step]), loss)


def _the_consequence(report: Report, seen: Seen) -> Checked:
    text, step = report.findings.consequence or "", seen.whole
    for op_type in re.findall(r"became NaN in (\w+)", text) if seen.maker else ():
        turns = [op for op in seen.after if op.type == op_type and op.makes_bad]
        yield f"it becomes NaN in {op_type}", bool(turns)
    if "reached the loss" in text and step.loss is not None:
        yield "it reaches the loss", not np.isfinite(step.loss)
    for path in re.findall(r"reached the gradient of `([^`]+)`", text):
        gradients = dict(zip(step.gradients_of, step.gradients, strict=False))
        if path in gradients:
            yield f"it reaches the gradient of {path}", badness([gradients[path]]) > 0


def _the_cause(report: Report, seen: Seen) -> Checked:
    origin = report.findings.origin
    if origin is None or not report.causes:
        return
    related = [] if seen.maker is None else [seen.maker, *seen.before, *seen.after]
    # a gradient's cause may speak of forward ops that it shares tensors with
    ops = seen.whole.ops if origin.phase == "backward" else related
    tensors = [tensor for op in ops for tensor in (*op.inputs, *op.outputs)]
    evidence = Evidence(
        taken=[] if seen.maker is None else seen.maker.inputs,
        around=[array for array in map(floats_of, tensors) if array is not None],
        batches=seen.batches,
        last=[output for op in seen.whole.ops[-8:] for output in op.outputs],
        step=origin.step,
        initial=list(seen.recorder.initial.values()),
        same=same,
    )
    yield from told_numbers(report.causes[0].sentence, evidence)


def _the_rows(kind: str) -> Callable[[Report, Seen], Checked]:
    return lambda report, seen: ((text, is_so) for one, text, is_so in seen.rows if one == kind)


CHECKS: Mapping[str, Callable[[Report, Seen], Checked]] = {
    "step": _the_step,
    "trigger": _the_trigger,
    "op": _the_op,
    "batch": _the_batch,
    "repair": _its_repair,
    "phase": _the_phase,
    "layer": _the_layer,
    "outputs": _the_outputs,
    "operands": _the_operands,
    "line": _the_line,
    "upstream": _upstream,
    "chain": _chain,
    "loop": _the_loop,
    "losses": _the_losses,
    "consequence": _the_consequence,
    "cause": _the_cause,
    "rows alone": _the_rows("rows alone"),
    "rows left out": _the_rows("rows left out"),
    "no single row": _the_rows("no single row"),
}
"""What is checked, by what it is about."""
