"""What a report tells of an origin, and of the way that its bad value took.

First the facts of the origin: what it made of what, element by element, with names that the user
knows. Then the ways: from the origin to what failed, and, upstream of the origin, where the fatal
operand came from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nanreplay.bisect.failing_step import Scene
from nanreplay.bisect.influence import COPIES, Execute, Influence, influence_of
from nanreplay.bisect.judge import OpPlace, Suspect
from nanreplay.bisect.op_trace import Fact, StepTrace
from nanreplay.bisect.tensor_stats import (
    Mask,
    dtype_name,
    first_index,
    first_indices,
    is_float,
    is_opaque,
    measure,
    number,
)
from nanreplay.capture.arrays import as_array
from nanreplay.errors import first_line, without_node_names
from nanreplay.findings import OperandFacts, Origin, OutputFacts
from nanreplay.records import KerasPart, Signature, batch_name
from nanreplay.replay.provenance import OpEvent, ValueId

_SHOWN_INDICES = 10
_REPLICA = re.compile(r"replica_(\d+)(?:/|$)")


def describe(scene: Scene, suspect: Suspect) -> Origin:
    """Return the facts of a suspect; its rows are proved elsewhere."""
    if suspect.kind in ("set", "constant"):
        return _describe_given(scene, suspect)
    if suspect.fact is None:
        return _describe_array(scene, suspect)
    return _describe_op(scene, suspect, suspect.fact)


def _describe_given(scene: Scene, suspect: Suspect) -> Origin:
    """What was non-finite before the step and is no batch, with the place of the op that used it.

    A variable, or a tensor that the step closes over.
    """
    array, output, user = _fed_array(scene, suspect)
    place = OpPlace("update", "optimizer", "", -1)
    if user is not None:
        place = scene.attribution.place(user)
    return Origin(
        step=scene.step,
        phase=place.phase,
        where=place.where,
        layer=place.layer,
        layer_path=place.path_in_layer,
        op_type=None,
        op_name=None,
        source=scene.trace.runner.source(place.stack) if place.stack >= 0 else None,
        outputs=(output,),
        operands=(array,),
        kind=suspect.kind,
        part=part_of(scene.trace.runner.signature(scene.step), place, user.name if user else ""),
    )


def _fed_array(scene: Scene, suspect: Suspect) -> tuple[OperandFacts, OutputFacts, Fact | None]:
    """Return what a step was fed with, twice: as it was given and in its bad elements.

    The third is the nearest op on the path that computed with it.
    """
    assert suspect.leaf is not None
    trace = scene.trace
    value = trace.value(suspect.leaf)
    first_bad = np.zeros(np.shape(value), bool)
    first_bad[first_index(suspect.masks[0])] = True
    array = _operand(name_of(trace, suspect.leaf), value, first_bad)
    serial = scene.walk.leaves[suspect.leaf].consumer
    user = None if serial is None else trace.facts.get(serial)
    return array, output_facts(value, suspect.masks[0]), user


def _describe_array(scene: Scene, suspect: Suspect) -> Origin:
    assert suspect.leaf is not None
    trace = scene.trace
    path = trace.runner.batch(scene.step).paths[trace.feed(suspect.leaf)[1]]
    array, output, _ = _fed_array(scene, suspect)
    return Origin(
        step=scene.step,
        phase="input",
        where="input",
        layer=None,
        layer_path=None,
        op_type=None,
        op_name=None,
        outputs=(output,),
        operands=(array,),
        replica=replica_of_path(path),
    )


def replica_of_path(path: str) -> int | None:
    """Return the replica whose part of the batch a path names; None where there is one."""
    match = _REPLICA.match(path)
    return None if match is None else int(match[1])


def _describe_op(scene: Scene, suspect: Suspect, fact: Fact) -> Origin:
    place = scene.attribution.place(fact)
    masks = masks_with_outputs(fact, suspect)
    outputs: list[OutputFacts] = []
    operands: Iterator[OperandFacts] = iter(())
    if fact.event is not None:
        for k, mask in sorted(masks.items()):
            outputs.append(output_facts(fact.event.outputs[k], mask))
        operands = _operands(scene.trace, fact.event, suspect.masks)
    return Origin(
        step=scene.step,
        phase=place.phase,
        where=place.where,
        layer=place.layer,
        layer_path=place.path_in_layer,
        op_type=fact.type,
        op_name=fact.name,
        loop=scene.attribution.loops(fact, scene.trace),
        source=scene.trace.runner.source(place.stack) if place.stack >= 0 else None,
        outputs=tuple(outputs),
        operands=tuple(operands),
        kind="raised" if suspect.kind == "raised" else None,
        message=_message(fact) if suspect.kind == "raised" else None,
        replica=place.replica,
        part=part_of(scene.trace.runner.signature(scene.step), place, fact.name),
    )


def part_of(signature: Signature, place: OpPlace, op_name: str) -> KerasPart | None:
    """Return what is known of the layer, the loss or the optimizer that an op ran in.

    Of several losses, all of them where the scopes of the op do not tell its own.
    """
    if place.where == "loss":
        scopes = op_name.split("/")[:-1]
        scopes += [re.sub(r"_\d+$", "", scope) for scope in scopes]  # of the second of a name
        losses = (part for part in signature.keras_parts if part.place == "loss")
        own = {part.code: part for part in losses if part.path in scopes}
        if len(own) == 1:
            return next(iter(own.values()))
    for part in signature.keras_parts:
        if part.place == place.where and part.path == (place.path_in_layer or ""):
            return part
    return None


def _message(fact: Fact) -> str | None:
    error = None if fact.event is None else fact.event.error
    return None if error is None else without_node_names(first_line(error))


def masks_with_outputs(fact: Fact, suspect: Suspect) -> dict[int, Mask]:
    """Return the masks of outputs that there are: a kernel that raised may have none."""
    count = len(fact.event.outputs) if fact.event is not None else 0
    return {k: mask for k, mask in suspect.masks.items() if k < count}


def output_facts(value: Any, mask: Mask) -> OutputFacts:
    """Return the facts of an output, given which elements the op made bad."""
    stat = measure(value)
    indices = tuple(first_indices(mask, _SHOWN_INDICES))
    first = number(as_array(value)[first_index(mask)]) if indices else None
    return OutputFacts(stat.dtype, stat.shape, stat.nonfinite, stat.size, indices, first)


def operands_of(
    event: OpEvent,
    masks: Mapping[int, Mask],
    names: Sequence[str],
    held: Sequence[Any],
    execute: Execute,
) -> Iterator[OperandFacts]:
    """Return the inputs of an execution at the element that made the first bad output element.

    Args:
        event: The execution.
        masks: By output: the elements that it made bad.
        names: A name for each input.
        held: What each input holds; None for one that is left out.
        execute: Runs the event's kernel on other inputs.
    """
    k = min((k for k in masks if k < len(event.outputs)), default=None)
    influence = influence_of(event, execute)
    for i, (name, value) in enumerate(zip(names, held, strict=True)):
        if value is not None:
            used = None if k is None else _used_elements(influence, i, k, masks[k], value)
            yield _operand(name, value, used)


def _operands(
    trace: StepTrace, event: OpEvent, masks: Mapping[int, Mask]
) -> Iterator[OperandFacts]:
    operand_values = []
    for tensor, value in zip(event.inputs, event.input_ids, strict=True):
        operand_values.append(_held_by(trace, tensor, value))
    names = [name_of(trace, value) for value in event.input_ids]
    return operands_of(event, masks, names, operand_values, trace.runner.execute)


def _held_by(trace: StepTrace, tensor: Any, value: ValueId) -> Any:
    """Return what an input holds: of a variable's handle its value before the step."""
    if not is_opaque(tensor):
        return tensor
    return trace.value(value) if dtype_name(tensor) == "resource" and value.serial < 0 else None


def _used_elements(influence: Influence, i: int, k: int, made: Mask, tensor: Any) -> Mask | None:
    """Return which elements of input i the first bad element of output k was computed from.

    None when all may be.
    """
    shape = tuple(map(int, tensor.shape))
    first = np.zeros(made.shape, bool)
    first[first_index(made)] = True
    if not influence.exact:
        return first if shape == made.shape and not is_float(tensor) else None
    if shape == influence.in_shapes[i]:
        used = influence.back(i, k, first)
        return used if used.any() else None
    # The input is a variable's handle, and `tensor` the variable: updates work element by element.
    return first if shape == first.shape else None


def _operand(name: str, tensor: Any, used: Mask | None) -> OperandFacts:
    array = as_array(tensor)
    used_part = array if used is None else array[used]
    value = None
    if array.size == 1:
        value = number(array.reshape(-1)[0])
    elif used is not None and used_part.size == 1:
        value = number(used_part[0])
    low, high = _extremes(array if value is not None else used_part)
    return OperandFacts(name, dtype_name(tensor), array.shape, value, low, high)


def _extremes(array: Any) -> tuple[float | None, float | None]:
    if array.dtype.kind in "biu":
        return (float(array.min()), float(array.max())) if array.size else (None, None)
    stat = measure(array)
    return stat.minimum, stat.maximum


def name_of(trace: StepTrace, value: ValueId) -> str:
    """Return the name of a value: a variable's path, a part of the batch, else the tensor's."""
    source = _before_copies(trace, value)
    if source.serial < 0:
        kind, index = trace.feed(source)
        if kind == "batch":
            path = trace.runner.batch(trace.step).paths[index]
            return batch_name(path)
        return trace.runner.variables[index].path if kind == "variable" else f"constant {index}"
    fact = trace.facts.get(value.serial)
    return f"{fact.name}:{value.output}" if fact is not None else "?"


def _before_copies(trace: StepTrace, value: ValueId) -> ValueId:
    """Return what a value is a plain copy of."""
    while value.serial in trace.facts:
        fact = trace.facts[value.serial]
        is_copy = fact.type in COPIES - {"Reshape"} or _reads_state(fact)
        if not is_copy or value.output >= len(fact.input_ids):
            break
        value = fact.input_ids[value.output]  # of IdentityN, output k is input k
    return value


def _reads_state(fact: Fact) -> bool:
    """Whether an op reads a variable that the step has not written yet."""
    return fact.type == "ReadVariableOp" and not fact.via
