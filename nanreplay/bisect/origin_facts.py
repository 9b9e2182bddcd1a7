"""The way of a bad value: from its origin to what failed, and, upstream of the origin, where the fatal operand came from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nanreplay.bisect.failing_step import Scene
from nanreplay.bisect.influence import COPIES, MOVEMENTS, Execute, Influence, influence_of
from nanreplay.bisect.judge import Suspect
from nanreplay.bisect.op_trace import Fact, StepTrace, is_update
from nanreplay.bisect.tensor_stats import (
    FLOATS,
    Mask,
    TensorStat,
    dtype_name,
    first_index,
    is_float,
    is_opaque,
    measure,
    number,
    words,
)
from nanreplay.capture.arrays import as_array
from nanreplay.findings import ChainLink, OperandFacts, Origin, OutputFacts
from nanreplay.records import Trigger
from nanreplay.replay.provenance import OpEvent, ValueId

# The facts of an origin: what it made of what, element by element, with names that the user
# knows.

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
    replica = replica_of_path(
        scene.trace.runner.batch(scene.step).paths[scene.trace.feed(suspect.leaf)[1]]
    )
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
    return OperandFacts(
        name, dtype_name(value), tuple(int(size) for size in np.shape(value)), None, low, high
    )


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
        outputs=tuple(
            output_facts(outputs[k], mask)
            for k, mask in sorted(suspect.masks.items())
            if k < len(outputs)
        ),
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
            yield _operand(
                name, value, None if k is None else _used(influence, i, k, masks[k], value)
            )


def _operands(
    trace: StepTrace, event: OpEvent, masks: Mapping[int, Mask]
) -> Iterator[OperandFacts]:
    pairs = list(zip(event.inputs, event.input_ids, strict=True))
    held = [_held(trace, tensor, value) for tensor, value in pairs]
    return operands_of(
        event, masks, [name_of(trace, value) for _, value in pairs], held, trace.runner.execute
    )


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
    value = (
        number(array.reshape(-1)[0] if array.size == 1 or used is None else array[used][0])
        if single
        else None
    )
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
        plain = fact.type in COPIES - {"Reshape"} or (
            fact.type == "ReadVariableOp" and not fact.via
        )
        if not plain or value.output >= len(fact.input_ids):
            break
        value = fact.input_ids[value.output]
    return value


# --- bisect.path

_LONGEST_CHAIN = 12
_LONGEST_UPSTREAM = 8
_PLUMBING = COPIES | words("ReadVariableOp AssignVariableOp Cast OptionalGetValue StackPopV2")
_STORAGE = ("TensorList", "TensorArray", "Optional", "Stack")
_DENOMINATOR = words("RealDiv Div FloorDiv TruncateDiv FloorMod Mod")
_POLE_AT_ZERO = words("Reciprocal Inv Rsqrt RsqrtGrad SqrtGrad Log Pow Xlogy Xdivy ReciprocalGrad")


def chain_of(scenes: Sequence[Scene], suspect: Suspect) -> tuple[ChainLink, ...]:
    """Return the ops from just after the origin to what failed, shortened in the middle.

    Args:
        scenes: The incident first, the origin's scene last.
        suspect: The origin.
    """
    links: list[ChainLink] = []
    for facts, scene in zip(_ways(scenes, suspect), reversed(scenes), strict=True):
        shown = {
            fact.key: fact for fact in reversed(facts) if not _is_plumbing(fact)
        }  # of a loop the first iteration
        links += [_link(scene, fact, _worst(fact.outputs)) for fact in reversed(shown.values())]
    if len(links) > _LONGEST_CHAIN:
        half = _LONGEST_CHAIN // 2
        links = links[:half] + links[-half:]
    return tuple(links)


def _ways(scenes: Sequence[Scene], suspect: Suspect) -> Iterator[list[Fact]]:
    """Yield the ops that a bad value went through, scene by scene, the origin's first."""
    for scene in reversed(scenes):
        parents = scene.walk.parents
        if scene is not scenes[-1]:
            starts = [
                arrival.consumer
                for arrival in scene.judgement.inherited.values()
                if arrival.consumer is not None
            ]
            serial = min(starts, default=None)
        elif suspect.fact is not None:
            serial = parents.get(suspect.fact.serial)
        else:
            serial = scene.walk.leaves[suspect.leaf].consumer if suspect.leaf is not None else None
        way: list[Fact] = []
        while serial is not None:
            way.append(scene.trace.facts[serial])
            serial = parents.get(serial)
        yield way


def _is_plumbing(fact: Fact) -> bool:
    return fact.type in _PLUMBING or fact.type.startswith(_STORAGE)


def _worst(stats: Sequence[TensorStat]) -> TensorStat | None:
    return max(stats, key=lambda stat: (stat.nan > 0, stat.nonfinite), default=None)


def _link(scene: Scene, fact: Fact, stat: TensorStat | None) -> ChainLink:
    place = scene.attribution.place(fact)
    path = place.layer_path if place.where == "layer" and place.layer_path else None
    if stat is None:
        return ChainLink(fact.type, fact.name, place.phase, path, (), 0, "finite", None)
    return ChainLink(
        fact.type,
        fact.name,
        place.phase,
        path,
        stat.shape,
        stat.nonfinite,
        _value(fact, stat),
        stat.absmax,
    )


def _value(fact: Fact, stat: TensorStat) -> str:
    if stat.nan:
        return "nan"
    if not stat.inf:
        return "finite"
    array = (
        as_array(fact.event.outputs[fact.outputs.index(stat)])
        if fact.event is not None
        else np.zeros(0)
    )
    return (
        "-inf" if array.dtype.kind != "c" and array.size and not (array == np.inf).any() else "inf"
    )


def consequence_of(scenes: Sequence[Scene], suspect: Suspect, trigger: Trigger) -> str | None:
    """Return how a bad value reached what failed, for the sentence: `became NaN in Mul and reached the loss`."""
    parts: list[str] = []
    is_nan = _makes_nan(scenes[-1], suspect)
    for scene, way in zip(reversed(scenes), _ways(scenes, suspect), strict=True):
        turned = (
            None
            if is_nan
            else next((fact for fact in way if any(stat.nan for stat in fact.outputs)), None)
        )
        if turned is not None:
            is_nan = True
            later = f" in step {scene.step}" if scene is not scenes[-1] else ""
            parts.append(f"became NaN in {turned.type}{later}")
    end = _end(scenes[0], trigger)
    if end is not None:
        parts.append(f"reached {end}" + (f" in step {scenes[0].step}" if len(scenes) > 1 else ""))
    return " and ".join(parts) or None


def _makes_nan(scene: Scene, suspect: Suspect) -> bool:
    if suspect.fact is None:
        assert suspect.leaf is not None
        return bool(np.isnan(as_array(scene.trace.value(suspect.leaf))[suspect.masks[0]]).any())
    event = suspect.fact.event
    return event is not None and any(
        bool(np.isnan(as_array(event.outputs[k])[mask]).any())
        for k, mask in suspect.masks.items()
        if k < len(event.outputs)
    )


def _end(scene: Scene, trigger: Trigger) -> str | None:
    """What failed, named as the recorder did when it can be, else the first that failed."""
    same = [
        target
        for target in scene.targets
        if (target.what, target.name) == (trigger.what, trigger.name)
    ]
    return str((same or scene.targets)[0]) if scene.targets else None


def upstream_of(scene: Scene, suspect: Suspect, origin: Origin) -> tuple[ChainLink, ...]:
    """Return where the fatal operand came from, nearest first; copies, reshapes and casts left out."""
    if suspect.fact is None:
        return ()
    links: list[ChainLink] = []
    following = _fatal_input(scene.trace, suspect.fact, origin)
    seen: set[ValueId] = set()
    while (
        following is not None
        and following.serial >= 0
        and following not in seen
        and len(links) < _LONGEST_UPSTREAM
    ):
        seen.add(following)
        fact = scene.trace.facts.get(following.serial)
        if fact is None:
            break
        if not (fact.type in MOVEMENTS or _is_plumbing(fact)):
            links.append(_link(scene, fact, scene.trace.stat(following)))
        following = _largest_input(scene.trace, fact)
    return tuple(links)


def _fatal_input(trace: StepTrace, fact: Fact, origin: Origin) -> ValueId | None:
    """Return the operand that made it: a denominator, an infinity, a zero where it is a pole, else the largest."""
    if fact.type in _DENOMINATOR and len(fact.input_ids) > 1:
        return fact.input_ids[1]
    values = {operand.name: operand.value for operand in origin.operands}
    found = [(value, values.get(name_of(trace, value))) for value in fact.input_ids]
    numbers = [(value, number) for value, number in found if isinstance(number, float)]
    bad = [value for value, number in numbers if not np.isfinite(number)]
    zeros = [value for value, number in numbers if number == 0 and fact.type in _POLE_AT_ZERO]
    return next(iter(bad + zeros), None) or _largest_input(trace, fact)


def _largest_input(trace: StepTrace, fact: Fact) -> ValueId | None:
    """Return the float input that holds most: the worst, then the largest value; variables and constants come last."""
    if fact.type == "ReadVariableOp" or is_update(fact.type):
        return fact.via[-1] if fact.via else None
    sources = [value for value in (*fact.input_ids, *fact.via) if value.serial >= 0]
    known = [
        (stat, value)
        for value in sources
        if (stat := trace.stat(value)) is not None and stat.dtype in FLOATS
    ]
    moving = [(stat, value) for stat, value in known if not _is_still(trace, value)] or known
    return max(
        moving,
        key=lambda pair: (pair[0].nonfinite > 0, pair[0].absmax or 0.0),
        default=(None, None),
    )[1]


def _is_still(trace: StepTrace, value: ValueId) -> bool:
    fact = trace.facts[value.serial]
    return fact.type in ("Const", "HostConst") or (fact.type == "ReadVariableOp" and not fact.via)
