"""The way of a bad value: from its origin to what failed, and, upstream of the origin, where the fatal operand came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from nanreplay.bisect.arrays import FLOATS, TensorStat, words
from nanreplay.bisect.facts import name_of
from nanreplay.bisect.judge import Suspect
from nanreplay.bisect.rules import COPIES, MOVEMENTS
from nanreplay.bisect.search import Scene
from nanreplay.bisect.trace import Fact, StepTrace, is_update
from nanreplay.findings import ChainLink, Origin
from nanreplay.records import Trigger
from nanreplay.replay.events import ValueId
from nanreplay.tensors import as_array

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
        shown = {fact.key: fact for fact in reversed(facts) if not _is_plumbing(fact)}  # of a loop the first iteration
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
            starts = [arrival.consumer for arrival in scene.judgement.inherited.values() if arrival.consumer is not None]
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
    return ChainLink(fact.type, fact.name, place.phase, path, stat.shape, stat.nonfinite, _value(fact, stat), stat.absmax)


def _value(fact: Fact, stat: TensorStat) -> str:
    if stat.nan:
        return "nan"
    if not stat.inf:
        return "finite"
    array = as_array(fact.event.outputs[fact.outputs.index(stat)]) if fact.event is not None else np.zeros(0)
    return "-inf" if array.dtype.kind != "c" and array.size and not (array == np.inf).any() else "inf"


def consequence_of(scenes: Sequence[Scene], suspect: Suspect, trigger: Trigger) -> str | None:
    """Return how a bad value reached what failed, for the sentence: `became NaN in Mul and reached the loss`."""
    parts: list[str] = []
    is_nan = _makes_nan(scenes[-1], suspect)
    for scene, way in zip(reversed(scenes), _ways(scenes, suspect), strict=True):
        turned = None if is_nan else next((fact for fact in way if any(stat.nan for stat in fact.outputs)), None)
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
        bool(np.isnan(as_array(event.outputs[k])[mask]).any()) for k, mask in suspect.masks.items() if k < len(event.outputs)
    )


def _end(scene: Scene, trigger: Trigger) -> str | None:
    """What failed, named as the recorder did when it can be, else the first that failed."""
    same = [target for target in scene.targets if (target.what, target.name) == (trigger.what, trigger.name)]
    return str((same or scene.targets)[0]) if scene.targets else None


def upstream_of(scene: Scene, suspect: Suspect, origin: Origin) -> tuple[ChainLink, ...]:
    """Return where the fatal operand came from, nearest first; copies, reshapes and casts left out."""
    if suspect.fact is None:
        return ()
    links: list[ChainLink] = []
    following = _fatal_input(scene.trace, suspect.fact, origin)
    seen: set[ValueId] = set()
    while following is not None and following.serial >= 0 and following not in seen and len(links) < _LONGEST_UPSTREAM:
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
    known = [(stat, value) for value in sources if (stat := trace.stat(value)) is not None and stat.dtype in FLOATS]
    moving = [(stat, value) for stat, value in known if not _is_still(trace, value)] or known
    return max(moving, key=lambda pair: (pair[0].nonfinite > 0, pair[0].absmax or 0.0), default=(None, None))[1]


def _is_still(trace: StepTrace, value: ValueId) -> bool:
    fact = trace.facts[value.serial]
    return fact.type in ("Const", "HostConst") or (fact.type == "ReadVariableOp" and not fact.via)
