"""Which step: from the incident back to the first step at which a non-finite value arises on the causal path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from nanreplay.bisect.judge import BACKWARD, Attribution, Judgement, judge
from nanreplay.bisect.op_trace import StepTrace, trace_step
from nanreplay.bisect.step_runner import PASSIVE, StepRunner
from nanreplay.bisect.tensor_stats import Mask, nonfinite
from nanreplay.bisect.walk import Walk, walk_back
from nanreplay.records import Role, Signature, Trigger, TriggerWhat
from nanreplay.replay.provenance import ValueId

# What failed in a step: losses, gradients and variables that are not finite. The walk back starts
# from these.

UNWATCHED: tuple[Role, ...] = ("metric", "seed")
"""Roles of variables that are no part of the training."""


@dataclass(frozen=True, slots=True)
class Target:
    """One value that failed."""

    value: ValueId
    mask: Mask
    """Its elements that are not finite."""
    what: TriggerWhat
    name: str
    """Path of the variable, else `loss` or the name of an op."""

    def __str__(self) -> str:
        """The target as a sentence names it."""
        if self.what == "loss":
            return "the loss"
        return f"the gradient of `{self.name}`" if self.what == "gradient" else f"`{self.name}`"


def trace_targets(runner: StepRunner, step: int) -> StepTrace:
    """Run a step op by op so that `targets_of` can ask for everything that may have failed."""
    return trace_step(runner, step, watched(runner.signature(step)))


def watched(signature: Signature) -> list[str]:
    """Return the tensors of the main graph that may have failed; what is fetched decides the order in which ops run."""
    return list(dict.fromkeys([*signature.losses, *(spec.tensor for spec in signature.gradients)]))


def targets_of(trace: StepTrace, trigger: Trigger) -> list[Target]:
    """Return what failed in a step, what the recorder triggered on first.

    Gradients of a step with loss scaling count only when the recorder says so or nothing else failed: a skipped update
    is how loss scaling finds its scale.
    """
    losses, gradients, variables = (
        list(_losses(trace)),
        list(_gradients(trace)),
        list(_variables(trace, trigger)),
    )
    if (
        trace.runner.signature(trace.step).loss_scaled
        and trigger.what != "gradient"
        and (losses or variables)
    ):
        gradients = []
    found = [*losses, *gradients, *variables] or list(_checked(trace))
    return sorted(
        found, key=lambda target: (target.what != trigger.what, target.name != trigger.name)
    )


def _target(
    trace: StepTrace, value: ValueId | None, what: TriggerWhat, name: str
) -> Iterator[Target]:
    mask = None if value is None else trace.bad_mask(value)
    if value is not None and mask is not None:
        yield Target(value, mask, what, name)


def _losses(trace: StepTrace) -> Iterator[Target]:
    signature = trace.runner.signature(trace.step)
    for i, tensor in enumerate(signature.losses):
        yield from _target(trace, trace.find(tensor), "loss", signature.loss_name(i))


def _gradients(trace: StepTrace) -> Iterator[Target]:
    for spec in trace.runner.signature(trace.step).gradients:
        yield from _target(
            trace, trace.find(spec.tensor), "gradient", trace.runner.variables[spec.variable].path
        )


def _variables(trace: StepTrace, trigger: Trigger) -> Iterator[Target]:
    """Variables that the step made non-finite; one that was so before counts only when the recorder triggered on it."""
    for index, value in trace.writes.items():
        info = trace.runner.variables[index]
        if info.role in UNWATCHED or not _is_float(info.dtype):
            continue
        if (trigger.what == "variable" and trigger.name == info.path) or not _watched_was_bad(
            trace, index
        ):
            yield from _target(trace, value, "variable", info.path)


def _watched_was_bad(trace: StepTrace, index: int) -> bool:
    before = trace.state.get(index)
    return before is not None and bool(nonfinite(before).any())


def _is_float(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat", "half", "complex"))


def _checked(trace: StepTrace) -> Iterator[Target]:
    """What a CheckNumerics of the user's own stumbled over."""
    for fact in trace.raised:
        if fact.type in PASSIVE and fact.outputs:
            yield from _target(trace, ValueId(fact.serial, 0), "exception", fact.name)


def masks_of(targets: list[Target]) -> Mapping[ValueId, Mask]:
    """Return the failing elements of each target's value."""
    found: dict[ValueId, Mask] = {}
    for target in targets:
        found[target.value] = (
            found[target.value] | target.mask if target.value in found else target.mask
        )
    return found


# --- bisect.search

Progress = Callable[[str], None]


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


@dataclass(slots=True)
class Search:
    """Scenes from the incident back to the first failing step."""

    scenes: list[Scene]
    """The incident first."""
    reason: str | None = None
    """Why the search ended without an origin."""

    @property
    def first(self) -> Scene:
        """The earliest failing step."""
        return self.scenes[-1]


def search_back(runner: StepRunner, step: int, say: Progress) -> Search:
    """Walk back through a step, and through earlier ones as long as the state that they left is to blame."""
    say(f"running step {step} op by op")
    trace = trace_targets(runner, step)
    search = Search([_scene(trace, targets_of(trace, runner.incident.trigger))])
    while search.first.judgement.inherited:
        following = _earlier(runner, search.first, say)
        if isinstance(following, str):
            search.reason = following
            break
        search.scenes.append(following)
    return search


def _scene(trace: StepTrace, targets: list[Target]) -> Scene:
    attribution = Attribution(trace.runner.ops(trace.step))
    walk = walk_back(
        trace,
        masks_of(targets),
        lambda fact: attribution.place(fact).rank >= BACKWARD,
        trace.runner.execute,
    )
    return Scene(trace.step, trace, attribution, targets, walk, judge(walk, attribution))


def _earlier(runner: StepRunner, scene: Scene, say: Progress) -> Scene | str:
    """Return the scene of the step that left non-finite state behind, or why there is none."""
    wanted = {index: arrival.mask for index, arrival in scene.judgement.inherited.items()}
    step = scene.step
    while True:
        names = ", ".join(f"`{runner.variables[index].path}`" for index in list(wanted)[:3])
        changed = [index for index in wanted if index in runner.batch(step).overrides]
        if changed:
            return f"Something outside of the training step made `{runner.variables[changed[0]].path}` non-finite just before step {step}."
        if step - 1 not in runner.steps:
            return f"The recorded window begins too late: {names} was non-finite already before step {step}, the first that can be replayed."
        step -= 1
        say(
            f"the state before step {step + 1} was non-finite already; running step {step} op by op"
        )
        trace = trace_targets(runner, step)
        targets = _written(trace, wanted)
        if targets:
            return _scene(trace, targets)
        if not any(_was_bad(trace, index) for index in wanted):
            return f"{names} became non-finite in step {step}, but the step is finite op by op."


def _written(trace: StepTrace, wanted: dict[int, Mask]) -> list[Target]:
    found = []
    for index, mask in wanted.items():
        value = trace.writes.get(index)
        bad = None if value is None else trace.bad_mask(value)
        if value is not None and bad is not None:
            both = bad & mask
            found.append(
                Target(
                    value,
                    both if both.any() else bad,
                    "variable",
                    trace.runner.variables[index].path,
                )
            )
    return found


def _was_bad(trace: StepTrace, index: int) -> bool:
    return index in trace.state and bool(nonfinite(trace.state[index]).any())
