"""From a failing step to the op, element and rows that made the first non-finite value.

`bisect` is what reports and the terminal interface call; `locate` is for minimizing, which asks
again and again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from nanreplay.bisect.batch_rows import own_leaves, read_rows, rows_in_whole
from nanreplay.bisect.compiled_origin import MOST_OTHERS, find_compiled_origin
from nanreplay.bisect.failing_step import (
    GivenState,
    Progress,
    Scene,
    Search,
    StepTraces,
    search_back,
)
from nanreplay.bisect.growth import find_root
from nanreplay.bisect.index_arrays import index_arrays
from nanreplay.bisect.judge import Suspect
from nanreplay.bisect.op_trace import Fact
from nanreplay.bisect.origin_facts import describe
from nanreplay.bisect.row_proof import RowProof, prove_rows
from nanreplay.bisect.step_runner import PASSIVE, StepRunner
from nanreplay.bisect.tensor_stats import kind_of
from nanreplay.bisect.upstream import Kept, kept_upstream, upstream_of
from nanreplay.bisect.ways import chain_of, compiled_hiders, consequence_of
from nanreplay.capture.arrays import as_array
from nanreplay.errors import NanreplayError, first_line, own_error, without_node_names
from nanreplay.findings import ChainLink, Findings, Origin
from nanreplay.records import EACH_ITERATION, Timeline


@dataclass(frozen=True, slots=True)
class Bisection:
    """What was found, and the run that it was found in."""

    findings: Findings
    search: Search | None = None
    """The failing steps as they ran op by op; None when no step could be run."""
    suspect: Suspect | None = None
    """The origin as the walk found it.

    None without an origin, and when only the compiled step makes it.
    """

    kept: Kept = field(default_factory=dict)
    """Executions before the origin with their tensors, by serial; none where nothing ran."""

    @property
    def scene(self) -> Scene | None:
        """The step of the origin, or None."""
        return self.search.first if self.search is not None and self.suspect is not None else None


def find_origin(
    runner: StepRunner,
    timeline: Timeline | None = None,
    *,
    progress: Callable[[str], None] | None = None,
) -> Findings:
    """Find what made the first non-finite value of a recorded window; see `bisect`."""
    return bisect(runner, timeline, progress=progress).findings


def bisect(
    runner: StepRunner,
    timeline: Timeline | None = None,
    *,
    progress: Callable[[str], None] | None = None,
    traces: StepTraces | None = None,
) -> Bisection:
    """Find what made the first non-finite value of a recorded window.

    The run that it was found in is kept, for who asks why (see `nanreplay.diagnose.causes_of`).

    ```python
    with Capture("run.h5") as capture, Replay(capture) as replay:
        print(bisect(replay, capture.timeline_record()).findings.origin)
    ```

    Args:
        runner: Replays the window's steps op by op.
        timeline: What was recorded of all steps; tells where values began to grow.
        progress: Called with a line before each part of the work.
        traces: Runs of steps that were made already, for this runner.
    """
    say: Progress = progress or (lambda line: None)
    search = _search(runner, say, traces)
    if search is None:
        return Bisection(Findings(reason="No step of the recorded window can be run op by op."))
    suspects = _suspects(search)
    notes = tuple(_notes(search.scenes[0], timeline))
    if _is_compiled_only(runner, search):
        say("looking at the compiled step")
        return Bisection(find_compiled_origin(runner, search.first.step, notes), search)
    if not suspects:
        reason = search.reason or _nothing_found(search)
        return Bisection(Findings(reason=reason, notes=notes), search)
    fact = suspects[0].fact
    kept = {} if fact is None else kept_upstream(search.first, fact)
    findings = _findings(runner, search, suspects, timeline, notes, say, kept)
    return Bisection(findings, search, suspects[0], kept)


def locate(runner: StepRunner) -> tuple[Origin, ...]:
    """Return the origins of a recorded window, the first one first: for who asks again and again.

    They are those of `bisect`, without rows, chain and root; none when it would find none.
    """
    search = _search(runner, lambda line: None)
    if search is None:
        return ()
    if _is_compiled_only(runner, search):
        findings = find_compiled_origin(runner, search.first.step)
        return () if findings.origin is None else (findings.origin, *findings.other_origins)
    return tuple(describe(search.first, suspect) for suspect in _suspects(search))


def _search(runner: StepRunner, say: Progress, traces: StepTraces | None = None) -> Search | None:
    """Search back from the last step up to the incident that can be run; None without one."""
    until_incident = [step for step in runner.steps if step <= runner.incident.step]
    return search_back(runner, until_incident[-1], say, traces) if until_incident else None


def _suspects(search: Search) -> list[Suspect]:
    if search.reason is not None:
        return []
    if search.given is not None:
        return list(_given(search.first, search.given))
    suspects = search.first.judgement.suspects
    recorded = search.first.trace.runner.incident.trigger
    if suspects and recorded.what == "exception":
        raised = _raised(search.first)
        if raised and suspects[0].kind == "raised":
            return raised
    return suspects or _raised(search.first)


def _given(scene: Scene, given: GivenState) -> Iterator[Suspect]:
    """Yield the variables that the first failing step was given non-finite."""
    for value, arrival in scene.walk.leaves.items():
        kind, index = scene.trace.feed(value)
        if kind == "variable" and index in given.variables:
            yield Suspect({0: arrival.mask}, "set", None, value)


def _raised(scene: Scene) -> list[Suspect]:
    """Return ops that raise op by op, when nothing that failed leads to one of them."""
    if scene.trace.runner.incident.trigger.what != "exception" and not scene.trace.stopped:
        return []
    facts = []
    for fact in scene.trace.raised:
        if fact.type not in PASSIVE:
            facts.append(fact)
    # Where several ops of a step raise, threads decide whose error ends the training. Of those in
    # the earliest phase, that one is told first; a later one only takes what they spoiled.
    recorded = scene.trace.runner.incident.trigger.value
    place = scene.attribution.place
    facts.sort(key=lambda fact: (place(fact).rank, not _says(fact, recorded)))
    return [Suspect({}, "raised", fact) for fact in facts]


def _says(fact: Fact, message: str) -> bool:
    """Whether an op raised with the message that training raised."""
    error = None if fact.event is None else fact.event.error
    own = "" if error is None else without_node_names(first_line(error))
    return bool(own) and own in message


def _is_compiled_only(runner: StepRunner, search: Search) -> bool:
    """Whether a step that is finite op by op was recorded as non-finite, and ran compiled."""
    step, trigger = search.first.step, runner.incident.trigger
    if search.first.targets or step != runner.incident.step:
        return False
    is_recorded_as_nonfinite = trigger.what in ("loss", "gradient", "variable")
    return is_recorded_as_nonfinite and runner.signature(step).compilation != "eager"


def _findings(
    runner: StepRunner,
    search: Search,
    suspects: list[Suspect],
    timeline: Timeline | None,
    notes: tuple[str, ...],
    say: Progress,
    kept: Kept,
) -> Findings:
    scene, first = search.first, suspects[0]
    origin = describe(scene, first)
    say("proving which rows of the batch it needs")
    lacks: list[str] = []
    nowhere: tuple[ChainLink, ...] = ()
    proof = _part(
        "The rows",
        lambda: rows_of(scene, first, origin.batch_prefix),
        RowProof(None, "They could not be tried."),
        lacks,
    )
    upstream = _part(
        "Where its operands came from", lambda: upstream_of(scene, first, kept), nowhere, lacks
    )
    others = []
    for other in suspects[1:]:
        # A forward op that is bad has a bad gradient: no second origin, but the same one again.
        if not _is_own_gradient(scene, first, other):
            others.append(other)
    paths = [info.path for info in runner.variables]
    root = _part("Where it began", lambda: find_root(timeline, scene.step, paths), None, lacks)
    return Findings(
        origin=_with_rows(scene, origin, proof),
        other_origins=tuple(_other(scene, suspect) for suspect in others[:MOST_OTHERS]),
        chain=chain_of(search.scenes, first),
        upstream=upstream,
        root=root,
        notes=(*notes, *lacks),
        consequence=consequence_of(search.scenes, first, runner.incident.trigger),
    )


_Answer = TypeVar("_Answer")


def _part(what: str, find: Callable[[], _Answer], without: _Answer, notes: list[str]) -> _Answer:
    """Find one part of the answer; an error of ours costs that part, and leaves a note."""
    try:
        return find()
    except NanreplayError:
        raise
    except Exception as error:
        notes.append(own_error(f"{what} could not be told", error))
        return without


def rows_of(scene: Scene, suspect: Suspect, prefix: str) -> RowProof:
    """Return the rows of the batch that an origin needs.

    Args:
        scene: The origin's step.
        suspect: The origin.
        prefix: How the paths of its replica's part of the batch begin.
    """
    runner = scene.trace.runner
    batch = runner.batch(scene.step)
    if any(path.startswith(EACH_ITERATION) for path in batch.paths):
        reason = "The step fetches in each iteration of a loop; rows of single ones were not tried."
        return RowProof(None, reason)
    indices = index_arrays(scene.trace)
    if suspect.fact is not None:
        return prove_rows(runner, scene.step, suspect, prefix, indices)
    if suspect.kind == "constant":
        return RowProof(None, "What is not finite is no part of the batch.")
    if suspect.kind == "set":
        return RowProof(None, "The variable was non-finite before the step, whatever the batch.")
    assert suspect.leaf is not None
    own = own_leaves(batch.paths, prefix)
    paths = [batch.paths[position] for position in own]
    leaves = [as_array(batch.leaves[position]) for position in own]
    used = {}
    for place, use in indices.items():
        if place in own:
            used[own.index(place)] = use
    position = own.index(scene.trace.feed(suspect.leaf)[1])
    mask = suspect.masks[0]
    rows = read_rows(paths, leaves, used).rows_of(position, mask) if mask.ndim else None
    if rows is None:
        return RowProof(None, "The array has no batch axis.")
    return RowProof(tuple(sorted(rows)), "These rows of the batch hold non-finite values.")


def _with_rows(scene: Scene, origin: Origin, proof: RowProof) -> Origin:
    """Return an origin that names the rows that it needs, in the batch that the user gave."""
    runner, rows = scene.trace.runner, proof.rows
    told = dataclasses.replace(origin, rows=rows, rows_reason=proof.reason)
    is_split = runner.signature(scene.step).splits_batches
    if rows is None or origin.replica is None or not is_split:
        return told
    batch = runner.batch(scene.step)
    leaves = list(map(as_array, batch.leaves))
    whole = rows_in_whole(rows, origin.replica, batch.paths, leaves)
    return told if whole is None else dataclasses.replace(told, rows=whole, replica_rows=rows)


def _other(scene: Scene, suspect: Suspect) -> Origin:
    """Describe an origin that is not the first; rows that need no replay are told with it."""
    origin = describe(scene, suspect)
    if suspect.fact is None:
        proof = rows_of(scene, suspect, origin.batch_prefix)
        return _with_rows(scene, origin, RowProof(proof.rows, ""))
    return origin


def _is_own_gradient(scene: Scene, first: Suspect, other: Suspect) -> bool:
    """Whether an origin is in the gradient of the first one, and fails for the same elements.

    The gradient of log(0) is 1 / 0: that is no second fault.
    """
    if first.fact is None or other.fact is None:
        return False
    info = scene.attribution.info(other.fact)
    is_backward = scene.attribution.place(other.fact).phase == "backward"
    if info is None or not is_backward or (info.forward_function, info.forward) != first.fact.key:
        return False
    made, of_gradient = first.masks.get(0), other.masks.get(0)
    if made is None or of_gradient is None or made.shape != of_gradient.shape:
        return True
    return not bool((of_gradient & ~made).any())


def _nothing_found(search: Search) -> str:
    scene = search.first
    if scene.targets:
        return (
            f"Step {scene.step} is non-finite op by op, "
            "but no op of it made a value worse than what it got."
        )
    assertion = next((fact.name for fact in scene.trace.raised if fact.type in PASSIVE), None)
    if assertion is not None:
        return (
            f"Step {scene.step} is finite op by op; "
            f"a check of the program's own failed: `{assertion}`."
        )
    return (
        f"Step {scene.step} is finite op by op: "
        "no loss, gradient or variable that is watched turns non-finite."
    )


def _recorded_losses(scene: Scene, timeline: Timeline | None) -> dict[str, float]:
    """Return what is known of the losses of the step as it was trained, by `loss:` and number."""
    runner = scene.trace.runner
    signature, recorded = runner.signature(scene.step), runner.batch(scene.step).fingerprint
    values: dict[str, float] = {}
    if recorded is not None:
        values = dict(zip(signature.watch_layout, as_array(recorded).tolist(), strict=False))
    if timeline is not None and len(signature.losses) == 1 and "loss" in timeline.columns:
        of_step = as_array(timeline.columns["loss"])[timeline.columns["step"] == scene.step]
        if len(of_step) and np.isfinite(of_step[0]):  # NaN stands for one that was not read, too
            values.setdefault("loss:0", float(of_step[0]))
    return values


def _notes(scene: Scene, timeline: Timeline | None) -> Iterator[str]:
    """Say where the losses of the compiled step and of the ops differ in being finite."""
    signature = scene.trace.runner.signature(scene.step)
    values = _recorded_losses(scene, timeline)
    failed_losses = {target.name: target for target in scene.targets if target.what == "loss"}
    for i in range(len(signature.losses)):
        name, value = signature.loss_name(i), values.get(f"loss:{i}")
        if value is None:
            continue
        target = failed_losses.get(name)
        if target is not None and np.isfinite(value):
            kind = kind_of(as_array(scene.trace.value(target.value))[target.mask][0])
            hider = next(compiled_hiders(scene), None)
            where = "" if hider is None else f"; `{hider.type}` (`{hider.name}`) hides NaN there"
            yield (
                f"The {name} was recorded as {value:.6g}, but op by op it is {kind}: "
                f"the compiled step swallowed a non-finite value{where}."
            )
        elif target is None and not np.isfinite(value) and not scene.trace.stopped:
            yield (
                f"The {name} was recorded as {value}, but op by op it is finite: "
                "the compiled step computes it in another way."
            )
