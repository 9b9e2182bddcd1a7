"""The facts of an origin: what it made of what, element by element, with names that the user knows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nanreplay.bisect.arrays import Mask, dtype_name, first_index, is_float, is_opaque, measure, number
from nanreplay.bisect.influence import Influence
from nanreplay.bisect.judge import Suspect
from nanreplay.bisect.rules import COPIES, Execute, influence_of
from nanreplay.bisect.search import Scene
from nanreplay.bisect.trace import StepTrace
from nanreplay.findings import OperandFacts, Origin, OutputFacts
from nanreplay.replay.events import OpEvent, ValueId
from nanreplay.tensors import as_array

_SHOWN = 10
_REPLICA = re.compile(r"replica_(\d+)(?:/|$)")


def replica_of_path(path: str) -> int | None:
    """Return the replica whose part of the batch a path names; None where there is one."""
    found = _REPLICA.match(path)
    return None if found is None else int(found[1])


def describe(scene: Scene, suspect: Suspect) -> Origin:
    """Return the facts of a suspect; its rows are proved elsewhere."""
    return _of_batch(scene, suspect) if suspect.fact is None else _of_op(scene, suspect)


def _of_batch(scene: Scene, suspect: Suspect) -> Origin:
    assert suspect.leaf is not None
    value = scene.trace.value(suspect.leaf)
    replica = replica_of_path(scene.trace.runner.batch(scene.step).paths[scene.trace.feed(suspect.leaf)[1]])
    return Origin(
        scene.step,
        "input",
        "input",
        None,
        None,
        None,
        None,
        outputs=(output_facts(value, suspect.masks[0]),),
        operands=(_whole(name_of(scene.trace, suspect.leaf), value),),
        replica=replica,
    )


def _whole(name: str, value: Any) -> OperandFacts:
    low, high = _extremes(as_array(value))
    return OperandFacts(name, dtype_name(value), tuple(int(size) for size in np.shape(value)), None, low, high)


def _of_op(scene: Scene, suspect: Suspect) -> Origin:
    fact = suspect.fact
    assert fact is not None
    place = scene.attribution.place(fact)
    event = fact.event
    outputs = event.outputs if event is not None else ()
    in_layer = place.where == "layer" and bool(place.layer_path)
    return Origin(
        step=scene.step,
        phase=place.phase,
        where=place.where,
        layer=place.layer,
        layer_path=place.layer_path if in_layer else None,
        op_type=fact.type,
        op_name=fact.name,
        loop=scene.attribution.loops(fact, scene.trace),
        source=scene.trace.runner.source(place.stack) if place.stack >= 0 else None,
        outputs=tuple(output_facts(outputs[k], mask) for k, mask in sorted(suspect.masks.items()) if k < len(outputs)),
        operands=() if event is None else tuple(_operands(scene.trace, event, suspect.masks)),
        kind="raised" if suspect.kind == "raised" else None,
        replica=place.replica,
    )


def output_facts(value: Any, mask: Mask) -> OutputFacts:
    """Return the facts of an output, given which elements the op made bad."""
    stat = measure(value)
    shown = np.argwhere(mask)[:_SHOWN]
    indices = tuple(tuple(int(i) for i in index) for index in shown)
    first = number(as_array(value)[first_index(mask)]) if indices else None
    return OutputFacts(stat.dtype, stat.shape, stat.nonfinite, stat.size, indices, first)


def operands_of(
    event: OpEvent, masks: Mapping[int, Mask], names: Sequence[str], held: Sequence[Any], execute: Execute
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
            yield _operand(name, value, None if k is None else _used(influence, i, k, masks[k], value))


def _operands(trace: StepTrace, event: OpEvent, masks: Mapping[int, Mask]) -> Iterator[OperandFacts]:
    pairs = list(zip(event.inputs, event.input_ids, strict=True))
    held = [_held(trace, tensor, value) for tensor, value in pairs]
    return operands_of(event, masks, [name_of(trace, value) for _, value in pairs], held, trace.runner.execute)


def _held(trace: StepTrace, tensor: Any, value: ValueId) -> Any:
    """Return what an input holds: of a variable's handle its value before the step."""
    if not is_opaque(tensor):
        return tensor
    return trace.value(value) if dtype_name(tensor) == "resource" and value.serial < 0 else None


def _used(influence: Influence, i: int, k: int, made: Mask, held: Any) -> Mask | None:
    """Return which elements of input i the first bad element of output k was computed from; None when all may be."""
    shape = tuple(int(size) for size in held.shape)
    first = np.zeros(made.shape, bool)
    first[first_index(made)] = True
    if not influence.exact:
        return first if shape == made.shape and not is_float(held) else None
    if shape == influence.in_shapes[i]:
        used = influence.back(i, k, first)
        return used if used.any() else None
    return first if shape == first.shape else None


def _operand(name: str, held: Any, used: Mask | None) -> OperandFacts:
    array = as_array(held)
    single = array.size == 1 or (used is not None and int(used.sum()) == 1)
    value = number(array.reshape(-1)[0] if array.size == 1 or used is None else array[used][0]) if single else None
    part = array if used is None or single else array[used]
    low, high = _extremes(part)
    return OperandFacts(name, dtype_name(held), array.shape, value, low, high)


def _extremes(array: Any) -> tuple[float | None, float | None]:
    if array.dtype.kind in "biu":
        return (float(array.min()), float(array.max())) if array.size else (None, None)
    stat = measure(array)
    return stat.minimum, stat.maximum


def name_of(trace: StepTrace, value: ValueId) -> str:
    """Return the name of a value: a variable's path, a part of the batch, else the tensor's name."""
    source = _before_copies(trace, value)
    if source.serial < 0:
        kind, index = trace.feed(source)
        if kind == "batch":
            return f"batch[{trace.runner.batch(trace.step).paths[index]}]"
        return trace.runner.variables[index].path if kind == "variable" else f"constant {index}"
    fact = trace.facts.get(value.serial)
    return f"{fact.name}:{value.output}" if fact is not None else "?"


def _before_copies(trace: StepTrace, value: ValueId) -> ValueId:
    """Return what a value is a plain copy of."""
    while value.serial >= 0 and (fact := trace.facts.get(value.serial)) is not None:
        plain = fact.type in COPIES - {"Reshape"} or (fact.type == "ReadVariableOp" and not fact.via)
        if not plain or value.output >= len(fact.input_ids):
            break
        value = fact.input_ids[value.output]
    return value
