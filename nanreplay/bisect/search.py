"""Which step: from the incident back to the first step at which a non-finite value arises on the causal path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nanreplay.bisect.arrays import Mask, nonfinite
from nanreplay.bisect.attribution import Attribution
from nanreplay.bisect.judge import BACKWARD, Judgement, judge
from nanreplay.bisect.run import StepRunner
from nanreplay.bisect.targets import Target, masks_of, targets_of, trace_targets
from nanreplay.bisect.trace import StepTrace
from nanreplay.bisect.walk import Walk, walk_back

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
    walk = walk_back(trace, masks_of(targets), lambda fact: attribution.place(fact).rank >= BACKWARD, trace.runner.execute)
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
            return (
                f"The recorded window begins too late: {names} was non-finite already before step {step}, the first that can be replayed."
            )
        step -= 1
        say(f"the state before step {step + 1} was non-finite already; running step {step} op by op")
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
            found.append(Target(value, both if both.any() else bad, "variable", trace.runner.variables[index].path))
    return found


def _was_bad(trace: StepTrace, index: int) -> bool:
    return index in trace.state and bool(nonfinite(trace.state[index]).any())
