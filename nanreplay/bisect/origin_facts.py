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
from nanreplay.errors import first_line, without_node_names
from nanreplay.findings import ChainLink, OperandFacts, Origin, OutputFacts
from nanreplay.records import Trigger
from nanreplay.replay.provenance import OpEvent, ValueId

_SHOWN_INDICES = 10
_REPLICA = re.compile(r"replica_(\d+)(?:/|$)")


def describe(scene: Scene, suspect: Suspect) -> Origin:
    """Return the facts of a suspect; its rows are proved elsewhere."""
    if suspect.fact is None:
        return _describe_array(scene, suspect)
    return _describe_op(scene, suspect, suspect.fact)


def _describe_array(scene: Scene, suspect: Suspect) -> Origin:
    assert suspect.leaf is not None
    trace = scene.trace
    value = trace.value(suspect.leaf)
    path = trace.runner.batch(scene.step).paths[trace.feed(suspect.leaf)[1]]
    low, high = _extremes(as_array(value))
    shape = tuple(int(size) for size in np.shape(value))
    array = OperandFacts(
        name_of(trace, suspect.leaf), dtype_name(value), shape, value=None, min=low, max=high
    )
    return Origin(
        step=scene.step,
        phase="input",
        where="input",
        layer=None,
        layer_path=None,
        op_type=None,
        op_name=None,
        outputs=(output_facts(value, suspect.masks[0]),),
        operands=(array,),
        replica=replica_of_path(path),
    )


def replica_of_path(path: str) -> int | None:
    """Return the replica whose part of the batch a path names; None where there is one."""
    match = _REPLICA.match(path)
    return None if match is None else int(match[1])


def _describe_op(scene: Scene, suspect: Suspect, fact: Fact) -> Origin:
    place = scene.attribution.place(fact)
    masks = _masks_with_outputs(fact, suspect)
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
    )


def _message(fact: Fact) -> str | None:
    error = None if fact.event is None else fact.event.error
    return None if error is None else without_node_names(first_line(error))


def _masks_with_outputs(fact: Fact, suspect: Suspect) -> dict[int, Mask]:
    """Return the masks of outputs that there are: a kernel that raised may have none."""
    count = len(fact.event.outputs) if fact.event is not None else 0
    return {k: mask for k, mask in suspect.masks.items() if k < count}


def output_facts(value: Any, mask: Mask) -> OutputFacts:
    """Return the facts of an output, given which elements the op made bad."""
    stat = measure(value)
    shown = np.argwhere(mask)[:_SHOWN_INDICES]
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
            used = None if k is None else _used_elements(influence, i, k, masks[k], value)
            yield _operand(name, value, used)


def _operands(
    trace: StepTrace, event: OpEvent, masks: Mapping[int, Mask]
) -> Iterator[OperandFacts]:
    held = [
        _held_by(trace, tensor, value)
        for tensor, value in zip(event.inputs, event.input_ids, strict=True)
    ]
    names = [name_of(trace, value) for value in event.input_ids]
    return operands_of(event, masks, names, held, trace.runner.execute)


def _held_by(trace: StepTrace, tensor: Any, value: ValueId) -> Any:
    """Return what an input holds: of a variable's handle its value before the step."""
    if not is_opaque(tensor):
        return tensor
    return trace.value(value) if dtype_name(tensor) == "resource" and value.serial < 0 else None


def _used_elements(influence: Influence, i: int, k: int, made: Mask, tensor: Any) -> Mask | None:
    """Return which elements of input i the first bad element of output k was computed from.

    None when all may be.
    """
    shape = tuple(int(size) for size in tensor.shape)
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
            return f"batch[{trace.runner.batch(trace.step).paths[index]}]"
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


# The ways. Down from the origin, `walk.parents` leads from op to op; up from it, each op's worst
# or largest float input is taken.

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
        # Reversed, so that of the iterations of a loop the first one stays.
        shown = {fact.key: fact for fact in reversed(facts) if not _is_plumbing(fact)}
        links += [_link(scene, fact, _worst(fact.outputs)) for fact in reversed(shown.values())]
    if len(links) > _LONGEST_CHAIN:
        half = _LONGEST_CHAIN // 2
        links = links[:half] + links[-half:]
    return tuple(links)


def _ways(scenes: Sequence[Scene], suspect: Suspect) -> Iterator[list[Fact]]:
    """Yield the ops that a bad value went through, scene by scene, the origin's first."""
    for scene in reversed(scenes):
        is_of_origin = scene is scenes[-1]
        serial = _first_user(scene, suspect) if is_of_origin else _first_user_of_state(scene)
        way: list[Fact] = []
        while serial is not None:
            way.append(scene.trace.facts[serial])
            serial = scene.walk.parents.get(serial)
        yield way


def _first_user(scene: Scene, suspect: Suspect) -> int | None:
    """Return the serial of the first op on the way from the origin."""
    if suspect.fact is not None:
        return scene.walk.parents.get(suspect.fact.serial)
    return scene.walk.leaves[suspect.leaf].consumer if suspect.leaf is not None else None


def _first_user_of_state(scene: Scene) -> int | None:
    """Return the serial of the first op that used state which an earlier step left non-finite."""
    users = [arrival.consumer for arrival in scene.judgement.inherited.values()]
    return min((user for user in users if user is not None), default=None)


def _is_plumbing(fact: Fact) -> bool:
    return fact.type in _PLUMBING or fact.type.startswith(_STORAGE)


def _worst(stats: Sequence[TensorStat]) -> TensorStat | None:
    return max(stats, key=lambda stat: (stat.nan > 0, stat.nonfinite), default=None)


def _link(scene: Scene, fact: Fact, stat: TensorStat | None) -> ChainLink:
    place = scene.attribution.place(fact)
    return ChainLink(
        op_type=fact.type,
        op_name=fact.name,
        phase=place.phase,
        layer_path=place.path_in_layer,
        shape=() if stat is None else stat.shape,
        nonfinite=0 if stat is None else stat.nonfinite,
        value="finite" if stat is None else _worst_value(fact, stat),
        absmax=None if stat is None else stat.absmax,
    )


def _worst_value(fact: Fact, stat: TensorStat) -> str:
    """Return `nan`, `inf`, `-inf` or `finite`; `-inf` only where all infinities are."""
    if stat.nan:
        return "nan"
    if not stat.inf:
        return "finite"
    if fact.event is None:
        return "inf"
    array = as_array(fact.event.outputs[fact.outputs.index(stat)])
    is_positive = array.dtype.kind == "c" or not array.size or (array == np.inf).any()
    return "inf" if is_positive else "-inf"


def consequence_of(scenes: Sequence[Scene], suspect: Suspect, trigger: Trigger) -> str | None:
    """Return how a bad value reached what failed, for the sentence.

    Such as `became NaN in Mul and reached the loss`; None when there is nothing to say.
    """
    parts: list[str] = []
    is_nan = _makes_nan(scenes[-1], suspect)
    for scene, way in zip(reversed(scenes), _ways(scenes, suspect), strict=True):
        turner = None if is_nan else next((fact for fact in way if _has_nan(fact)), None)
        if turner is not None:
            is_nan = True
            later = f" in step {scene.step}" if scene is not scenes[-1] else ""
            parts.append(f"became NaN in {turner.type}{later}")
    failed = _name_of_failed(scenes[0], trigger)
    if failed is not None:
        later = f" in step {scenes[0].step}" if len(scenes) > 1 else ""
        parts.append(f"reached {failed}{later}")
    return " and ".join(parts) or None


def _has_nan(fact: Fact) -> bool:
    return any(stat.nan for stat in fact.outputs)


def _makes_nan(scene: Scene, suspect: Suspect) -> bool:
    if suspect.fact is None:
        assert suspect.leaf is not None
        return bool(np.isnan(as_array(scene.trace.value(suspect.leaf))[suspect.masks[0]]).any())
    event = suspect.fact.event
    if event is None:
        return False
    masks = _masks_with_outputs(suspect.fact, suspect)
    return any(bool(np.isnan(as_array(event.outputs[k])[mask]).any()) for k, mask in masks.items())


def _name_of_failed(scene: Scene, trigger: Trigger) -> str | None:
    """What failed, named as the recorder did when it can be, else the first that failed."""
    for target in scene.targets:
        if (target.what, target.name) == (trigger.what, trigger.name):
            return str(target)
    return str(scene.targets[0]) if scene.targets else None


def upstream_of(scene: Scene, suspect: Suspect, origin: Origin) -> tuple[ChainLink, ...]:
    """Return where the fatal operand came from, nearest first; copies and casts left out."""
    if suspect.fact is None:
        return ()
    links: list[ChainLink] = []
    value = _fatal_input(scene.trace, suspect.fact, origin)
    seen: set[ValueId] = set()
    while value is not None and value not in seen and len(links) < _LONGEST_UPSTREAM:
        seen.add(value)
        fact = scene.trace.facts.get(value.serial)
        if fact is None:  # it was fed
            break
        if not (fact.type in MOVEMENTS or _is_plumbing(fact)):
            links.append(_link(scene, fact, scene.trace.stat(value)))
        value = _largest_input(scene.trace, fact)
    return tuple(links)


def _fatal_input(trace: StepTrace, fact: Fact, origin: Origin) -> ValueId | None:
    """Return the operand that made it.

    A denominator, an infinity, a zero where it is a pole, else the largest.
    """
    if fact.type in _DENOMINATOR and len(fact.input_ids) > 1:
        return fact.input_ids[1]
    elements = {operand.name: operand.value for operand in origin.operands}
    infinities: list[ValueId] = []
    zeros: list[ValueId] = []
    for value in fact.input_ids:
        element = elements.get(name_of(trace, value))
        if not isinstance(element, float):
            continue
        if not np.isfinite(element):
            infinities.append(value)
        elif element == 0 and fact.type in _POLE_AT_ZERO:
            zeros.append(value)
    fatal = [*infinities, *zeros]
    return fatal[0] if fatal else _largest_input(trace, fact)


def _largest_input(trace: StepTrace, fact: Fact) -> ValueId | None:
    """Return the float input that holds most: the worst, then the largest value.

    Variables and constants come last.
    """
    if fact.type == "ReadVariableOp" or is_update(fact.type):
        return fact.via[-1] if fact.via else None
    stats: dict[ValueId, TensorStat] = {}
    for value in fact.sources:
        stat = trace.stat(value) if value.serial >= 0 else None
        if stat is not None and stat.dtype in FLOATS:
            stats[value] = stat
    computed = [value for value in stats if not _is_still(trace.facts[value.serial])]
    return max(
        computed or stats,
        key=lambda value: (stats[value].nonfinite > 0, stats[value].absmax or 0.0),
        default=None,
    )


def _is_still(fact: Fact) -> bool:
    """Whether an op's output is the same in the whole step: a constant, a variable's old value."""
    return fact.type in ("Const", "HostConst") or _reads_state(fact)
