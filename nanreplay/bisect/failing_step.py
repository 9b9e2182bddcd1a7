"""Which step: from the incident back to the first step at which a non-finite value arises.

`targets_of` names what failed in one step, where the walk back starts. `search_back` walks back
through a step, and through the one before it as long as what it left, in variables or as what it
returned, is to blame.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nanreplay.bisect.carried_values import returned_before
from nanreplay.bisect.judge import BACKWARD, Attribution, Judgement, judge
from nanreplay.bisect.op_trace import StepTrace, trace_step
from nanreplay.bisect.step_runner import PASSIVE, OpKey, StepRunner
from nanreplay.bisect.tensor_stats import Mask, words
from nanreplay.bisect.walk import Walk, walk_back
from nanreplay.capture.arrays import as_array
from nanreplay.limits import give_back_freed
from nanreplay.records import OpInfo, Role, Signature, Trigger, TriggerWhat, loss_in_words
from nanreplay.replay.provenance import ValueId

_CALLS = words(
    "Case For If PartitionedCall RemoteCall StatefulPartitionedCall StatelessCase StatelessIf "
    "StatelessWhile SymbolicGradient While"
)
"""Types of ops that call functions: what they give was made inside of them."""
Progress = Callable[[str], None]
"""Takes a line before each part of the work."""


@dataclass(slots=True)
class Scene:
    """One failing step, walked back and judged."""

    step: int
    trace: StepTrace
    attribution: Attribution
    targets: list[Target]
    """What failed, what is to be explained first."""
    walk: Walk
    judgement: Judgement


@dataclass(frozen=True, slots=True)
class GivenState:
    """Variables on the causal path that no step of the recording made non-finite."""

    variables: tuple[int, ...]
    step: int
    """The step before which they were set; 0 where they began so."""


@dataclass(slots=True)
class Search:
    """Scenes from the incident back to the first failing step."""

    scenes: list[Scene]
    """The incident first."""
    reason: str | None = None
    """Why the search ended without an origin."""
    given: GivenState | None = None
    """What the first failing step was given by something else than the training."""

    @property
    def first(self) -> Scene:
        """The earliest failing step."""
        return self.scenes[-1]


class StepTraces:
    """Runs of steps op by op, each of which is made once, whoever asks for it first.

    Args:
        runner: Replays the window's steps.
    """

    def __init__(self, runner: StepRunner) -> None:
        """Nothing runs yet."""
        self._runner = runner
        self._traces: dict[int, StepTrace] = {}

    def __contains__(self, step: int) -> bool:
        """Whether a step has run already."""
        return step in self._traces

    def of(self, step: int) -> StepTrace:
        """Return what the run of a step showed; `targets_of` can ask it for all that may fail."""
        if step not in self._traces:
            self._run(step, judged_tensors(self._runner, step))
        return self._traces[step]

    def with_output(self, step: int, tensor: str) -> StepTrace:
        """Return what a run of a step showed that computed something it returns as well."""
        if step not in self._traces or self._traces[step].find(tensor) is None:
            self._run(step, [*judged_tensors(self._runner, step), tensor])
        return self._traces[step]

    def _run(self, step: int, fetches: Sequence[str]) -> None:
        give_back_freed()  # what the steps before left
        self._traces[step] = trace_step(self._runner, step, list(dict.fromkeys(fetches)))
        give_back_freed()  # making the plan of a large graph took some


def search_back(
    runner: StepRunner, step: int, say: Progress, traces: StepTraces | None = None
) -> Search:
    """Walk back through a step, and through earlier ones while the state they left is to blame.

    Args:
        runner: Replays the window's steps.
        step: Where to begin.
        say: Called with a line before each part of the work.
        traces: Runs that were made already, for this runner.
    """
    traces = traces or StepTraces(runner)
    if step not in traces:
        say(f"running step {step} op by op")
    trace = traces.of(step)
    search = Search([_scene(trace, targets_of(trace, runner.incident.trigger))])
    while True:
        first = search.first
        inherits = bool(first.judgement.inherited)
        before = _earlier if inherits else _returned_before
        found = before(runner, first, say, traces)
        if isinstance(found, Scene):
            search.scenes.append(found)
            continue
        if isinstance(found, GivenState):
            search.given = found
        else:
            search.reason = found
        return search


def _returned_before(
    runner: StepRunner, scene: Scene, say: Progress, traces: StepTraces
) -> Scene | None:
    """Return the scene of the step that returned what the batch holds, where one did.

    The state of a recurrence goes from step to step like that, and so do parameters that code
    outside of the step takes from its gradients. A step may return its data, too, whose next batch
    is as bad in the same places.
    """
    leaf, place = _bad_array(scene)
    if leaf is None:
        return None
    given = as_array(scene.trace.value(leaf))
    found = returned_before(scene.trace, given)
    if found is None:
        return None
    step, tensor = found
    say(f"step {step} returned what step {scene.step} was given; running step {step} op by op")
    trace = traces.with_output(step, tensor)
    value = trace.find(tensor)
    targets = list(_target(trace, value, "variable", tensor))
    if value is None or not targets:
        return None
    earlier = _scene(trace, targets)
    is_same = np.array_equal(as_array(trace.value(value)), given, equal_nan=True)
    if not is_same and _bad_array(earlier)[1] == place:
        return None
    scene.judgement.carried[place] = scene.walk.leaves[leaf]
    return earlier


def _bad_array(scene: Scene) -> tuple[ValueId | None, int]:
    """The array of the batch that is the first suspect, and its place; None and -1 without one."""
    suspects = scene.judgement.suspects
    leaf = suspects[0].leaf if suspects else None
    kind, place = ("", -1) if leaf is None else scene.trace.feed(leaf)
    return (leaf, place) if kind == "batch" else (None, -1)


def _scene(trace: StepTrace, targets: list[Target]) -> Scene:
    trace.settle()
    attribution = Attribution(trace.runner.ops(trace.step))
    walk = walk_back(
        trace,
        masks_of(targets),
        lambda fact: attribution.place(fact).rank >= BACKWARD,
        trace.runner.execute,
    )
    return Scene(trace.step, trace, attribution, targets, walk, judge(walk, attribution))


def _earlier(
    runner: StepRunner, scene: Scene, say: Progress, traces: StepTraces
) -> Scene | GivenState | str:
    """Return the scene of the step that left non-finite state behind, or why there is none."""
    # Only variables that lie on the causal path: a metric that is NaN as well explains nothing.
    wanted = {}
    for index, arrival in scene.judgement.inherited.items():
        wanted[index] = arrival.mask
    paths = [runner.variables[index].path for index in wanted]
    shown_paths = ", ".join(f"`{path}`" for path in paths[:3])
    step = scene.step
    while True:
        changed = []
        for index in wanted:
            if index in runner.batch(step).overrides:
                changed.append(index)
        if changed or not step:
            return GivenState(tuple(changed or wanted), step)
        if step - 1 not in runner.steps:
            return (
                f"The recorded window begins too late: {shown_paths} was non-finite already before "
                f"step {step}, the first that can be replayed."
            )
        step -= 1
        say(
            f"the state before step {step + 1} was non-finite already; running step {step} op by op"
        )
        trace = traces.of(step)
        targets = _written(trace, wanted)
        if targets:
            return _scene(trace, targets)
        if not any(trace.was_nonfinite(index) for index in wanted):
            if not trace.stopped and not wanted.keys() & trace.writes.keys():
                return GivenState(tuple(wanted), step + 1)  # a keyframe has what was set
            return (
                f"{shown_paths} became non-finite in step {step}, but the step is finite op by op."
            )


def _written(trace: StepTrace, wanted: dict[int, Mask]) -> list[Target]:
    """Return the variables that a step made non-finite, at the wanted elements where it did so."""
    targets: list[Target] = []
    for index, mask in wanted.items():
        value = trace.writes.get(index)
        bad = None if value is None else trace.bad_mask(value)
        if value is not None and bad is not None:
            both = bad & mask
            path = trace.runner.variables[index].path
            targets.append(Target(value, both if both.any() else bad, "variable", path))
    return targets


# Targets: losses, gradients and variables that are not finite after a step.

UNWATCHED: tuple[Role, ...] = ("metric", "seed")
"""Roles of variables that are no part of the training: a metric may be NaN by design."""


@dataclass(frozen=True, slots=True)
class Target:
    """One value that failed."""

    value: ValueId
    mask: Mask
    """Its elements that are not finite."""
    what: TriggerWhat
    name: str
    """Path of the variable, else what the loss is called or the name of an op."""

    def __str__(self) -> str:
        """The target as a sentence names it."""
        if self.what == "loss":
            return loss_in_words(self.name)
        return f"the gradient of `{self.name}`" if self.what == "gradient" else f"`{self.name}`"


def trace_targets(runner: StepRunner, step: int) -> StepTrace:
    """Run a step op by op so that `targets_of` can ask for everything that may have failed."""
    return trace_step(runner, step, judged_tensors(runner, step))


def judged_tensors(runner: StepRunner, step: int) -> list[str]:
    """Return what is fetched of a step that runs op by op, besides what it returns.

    That is what it is judged by, and what may have failed and is of no op of the main graph.
    """
    signature, ops = runner.signature(step), runner.ops(step)
    gradients = list(signature.gradient_tensors)
    # All gradients together are as large as the model. They run in any case; only those that no op
    # of the main graph makes, and those that the step is judged by, must be handed out at its end.
    if not (_is_judged_by_gradients(signature) or runner.incident.trigger.what == "gradient"):
        called = _CALLS | {function for function, _ in ops}
        gradients = [name for name in gradients if not _is_of_own_op(name, ops, called)]
    judged = [] if signature.watch is None else [signature.watch]
    return list(dict.fromkeys([*signature.losses, *gradients, *judged]))


def _is_judged_by_gradients(signature: Signature) -> bool:
    return signature.watch is not None or any(
        name.startswith("gradient") for name in signature.watch_layout
    )


def _is_of_own_op(tensor: str, ops: Mapping[OpKey, OpInfo], called: Collection[str]) -> bool:
    """Whether an op that calls no function makes a tensor of the main graph."""
    info = ops.get(("", tensor.partition(":")[0]))
    return info is not None and info.type not in called


def watched(signature: Signature) -> list[str]:
    """Return the tensors of the main graph that may have failed: losses, then gradients.

    Their order is part of the result: what is fetched decides the order in which ops run.
    """
    return list(dict.fromkeys([*signature.losses, *signature.gradient_tensors]))


def targets_of(trace: StepTrace, trigger: Trigger) -> list[Target]:
    """Return what failed in a step, what the recorder triggered on first.

    Gradients of a step with loss scaling count only when the recorder says so or nothing else
    failed: a skipped update is how loss scaling finds its scale.
    """
    losses = list(_losses(trace))
    gradients = list(_gradients(trace))
    variables = list(_variables(trace, trigger))
    is_scaled = trace.runner.signature(trace.step).loss_scaled
    if is_scaled and trigger.what != "gradient" and (losses or variables):
        gradients = []
    targets = [*losses, *gradients, *variables] or list(_checked(trace))
    return sorted(
        targets, key=lambda target: (target.what != trigger.what, target.name != trigger.name)
    )


def _target(
    trace: StepTrace, value: ValueId | None, what: TriggerWhat, name: str
) -> Iterator[Target]:
    """Yield a value as a target, if it is not finite."""
    mask = None if value is None else trace.bad_mask(value)
    if value is not None and mask is not None:
        yield Target(value, mask, what, name)


def _losses(trace: StepTrace) -> Iterator[Target]:
    signature = trace.runner.signature(trace.step)
    for i, tensor in enumerate(signature.losses):
        yield from _target(trace, trace.find(tensor), "loss", signature.loss_name(i))


def _gradients(trace: StepTrace) -> Iterator[Target]:
    for spec in trace.runner.signature(trace.step).gradients:
        path = trace.runner.variables[spec.variable].path
        yield from _target(trace, trace.find(spec.tensor), "gradient", path)


def _variables(trace: StepTrace, trigger: Trigger) -> Iterator[Target]:
    """Variables that the step made non-finite.

    One that was so before counts only when the recorder triggered on it.
    """
    for index, value in trace.writes.items():
        info = trace.runner.variables[index]
        if info.role in UNWATCHED or not _is_float(info.dtype):
            continue
        is_trigger = trigger.what == "variable" and trigger.name == info.path
        if is_trigger or not trace.was_nonfinite(index):
            yield from _target(trace, value, "variable", info.path)


def _is_float(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat", "half", "complex"))


def _checked(trace: StepTrace) -> Iterator[Target]:
    """What a CheckNumerics of the user's own stumbled over."""
    for fact in trace.raised:
        if fact.type in PASSIVE and fact.outputs:
            yield from _target(trace, ValueId(fact.serial, 0), "exception", fact.name)


def masks_of(targets: list[Target]) -> Mapping[ValueId, Mask]:
    """Return the failing elements of each target's value; two targets may be one value."""
    masks: dict[ValueId, Mask] = {}
    for target in targets:
        known = masks.get(target.value)
        masks[target.value] = target.mask if known is None else known | target.mask
    return masks
