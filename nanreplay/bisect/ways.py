"""The way of a bad value, from the origin to what failed.

`walk.parents` leads from op to op. An op that hides a NaN is on the way like any other: what it
gave is finite, and what was made of it failed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from nanreplay.bisect.failing_step import Scene
from nanreplay.bisect.influence import COPIES
from nanreplay.bisect.judge import Suspect
from nanreplay.bisect.nan_behaviour import MODES, outcomes
from nanreplay.bisect.op_trace import Fact, StepTrace
from nanreplay.bisect.origin_facts import masks_with_outputs
from nanreplay.bisect.step_runner import PASSIVE
from nanreplay.bisect.tensor_stats import TensorStat, words
from nanreplay.capture.arrays import as_array
from nanreplay.findings import ChainLink
from nanreplay.records import Trigger

_LONGEST_CHAIN = 12
_PLUMBING = COPIES | words("ReadVariableOp AssignVariableOp Cast OptionalGetValue StackPopV2")
_STORAGE = ("TensorList", "TensorArray", "Optional", "Stack")


def chain_of(scenes: Sequence[Scene], suspect: Suspect) -> tuple[ChainLink, ...]:
    """Return the ops from just after the origin to what failed, shortened in the middle.

    Args:
        scenes: The incident first, the origin's scene last.
        suspect: The origin.
    """
    links: list[ChainLink] = []
    for facts, scene in zip(_ways(scenes, suspect), reversed(scenes), strict=True):
        # Reversed, so that of the iterations of a loop the first one stays.
        hiders = scene.walk.hiders
        told = []
        for fact in facts:
            # A Cast is plumbing, but one that hid a NaN is where the trail would end for a reader.
            if not is_plumbing(fact) or fact.serial in hiders:
                told.append(fact)
        shown = {fact.key: fact for fact in reversed(told)}
        for fact in reversed(shown.values()):
            links.append(link_of(scene, fact, _worst(fact.outputs)))
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
    """Return the serial of the first op that used what an earlier step left non-finite."""
    users = []
    for arrivals in (scene.judgement.inherited, scene.judgement.carried):
        users += [arrival.consumer for arrival in arrivals.values()]
    return min((user for user in users if user is not None), default=None)


def is_plumbing(fact: Fact) -> bool:
    """Whether an op only hands a value on."""
    return fact.type in _PLUMBING or fact.type.startswith(_STORAGE)


def _worst(stats: Sequence[TensorStat]) -> TensorStat | None:
    return max(stats, key=lambda stat: (stat.nan > 0, stat.nonfinite), default=None)


def link_of(scene: Scene, fact: Fact, stat: TensorStat | None) -> ChainLink:
    """Return an op on a way.

    Args:
        scene: Its step.
        fact: The op.
        stat: Facts of its output that is on the way, None where it has none.
    """
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
        hides=_hidden_value(scene, fact),
    )


def _hidden_value(scene: Scene, fact: Fact) -> str | None:
    """Return what an op on the way hides: `nan`, or `inf` where no NaN is among it."""
    if fact.serial not in scene.walk.hiders or fact.event is None:
        return None
    masks = scene.trace.hidden.hiders[fact.serial]
    hidden = []
    for i, mask in masks.items():
        hidden.append(as_array(fact.event.inputs[i])[mask])
    return "nan" if any(np.isnan(elements).any() for elements in hidden) else "inf"


def _worst_value(fact: Fact, stat: TensorStat) -> str:
    """Return `nan`, `inf`, `-inf` or `finite`; `-inf` only where all infinities are."""
    if stat.nan:
        return "nan"
    if not stat.inf:
        return "finite"
    if fact.seen is None:
        return "inf"
    array = as_array(fact.seen.outputs[fact.outputs.index(stat)])
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
        hider = next((fact for fact in way if fact.serial in scene.walk.hiders), None)
        if hider is not None:
            parts.append(f"was hidden by {hider.type}")
        raised = next((fact for fact in way if _raised(fact)), None)
        if raised is not None:
            parts.append(f"made {raised.type} raise")
    failed = _name_of_failed(scenes[0], trigger)
    if failed is not None:
        later = f" in step {scenes[0].step}" if len(scenes) > 1 else ""
        parts.append(f"reached {failed}{later}{_what_stays_finite(scenes[0])}")
    if len(parts) > 2:
        parts = [", ".join(parts[:-1]), parts[-1]]
    return " and ".join(parts) or None


def _raised(fact: Fact) -> bool:
    return fact.event is not None and fact.event.error is not None and fact.type not in PASSIVE


def _what_stays_finite(scene: Scene) -> str:
    """Say so where only state that is not trained failed, such as moving statistics."""
    roles = {}
    for info in scene.trace.runner.variables:
        roles[info.path] = info.role
    if not all(t.what == "variable" and roles.get(t.name) == "state" for t in scene.targets):
        return ""
    return ", which is not trained (the loss and all trained weights stay finite in this step)"


def _has_nan(fact: Fact) -> bool:
    return any(stat.nan for stat in fact.outputs)


def _makes_nan(scene: Scene, suspect: Suspect) -> bool:
    if suspect.fact is None:
        assert suspect.leaf is not None
        return bool(np.isnan(as_array(scene.trace.value(suspect.leaf))[suspect.masks[0]]).any())
    event = suspect.fact.seen
    if event is None:
        return False
    masks = masks_with_outputs(suspect.fact, suspect)
    return any(bool(np.isnan(as_array(event.outputs[k])[mask]).any()) for k, mask in masks.items())


def _name_of_failed(scene: Scene, trigger: Trigger) -> str | None:
    """What failed, named as the recorder did when it can be, else the first that failed."""
    for target in scene.targets:
        if (target.what, target.name) == (trigger.what, trigger.name):
            return str(target)
    return str(scene.targets[0]) if scene.targets else None


def compiled_hiders(scene: Scene) -> Iterator[Fact]:
    """Yield ops that a NaN went through op by op, and that may hide it where they are compiled.

    XLA's maximum does, and the activation that a graph fuses with a product and a bias.
    """
    compilation = scene.trace.runner.signature(scene.step).compilation
    for serial in sorted(scene.walk.failing):
        fact = scene.trace.facts[serial]
        kernels = (fact.type, _fused(scene.trace, fact))
        if any(_hides_in(kernel, compilation) for kernel in kernels if kernel):
            yield fact


def _fused(trace: StepTrace, fact: Fact) -> str:
    """Return the product, the bias and the activation that an op is fused into; "" for none."""
    chain = [fact]
    while len(chain) < 3 and chain[0].input_ids:
        before = trace.facts.get(chain[0].input_ids[0].serial)
        if before is None:
            break
        chain.insert(0, before)
    return "+".join(one.type for one in chain)


def _hides_in(kernel: str, compilation: str) -> bool:
    compiled = outcomes(kernel, 0, "nan", compilation) if compilation in MODES else None
    op_by_op = outcomes(kernel, 0, "nan", "eager")
    return "f" in (compiled or "") and "f" not in (op_by_op or "")
