"""`bisect`: from a failing step to the op, element and rows that made the first non-finite value."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nanreplay.bisect.failing_step import UNWATCHED, Progress, Scene, Search, search_back
from nanreplay.bisect.growth import find_root
from nanreplay.bisect.judge import Attribution, Suspect
from nanreplay.bisect.op_trace import Fact
from nanreplay.bisect.origin_facts import (
    chain_of,
    consequence_of,
    describe,
    operands_of,
    output_facts,
    upstream_of,
)
from nanreplay.bisect.row_proof import RowProof, batch_size, own_leaves, prove_rows
from nanreplay.bisect.step_runner import PASSIVE, StepRunner
from nanreplay.bisect.tensor_stats import kind_of, nonfinite
from nanreplay.capture.arrays import as_array
from nanreplay.findings import Findings, OperandFacts, Origin, OutputFacts, Root
from nanreplay.records import EACH_ITERATION, PHASES, Timeline

# The origin of a non-finite value that only the compiled step makes: ops one by one give other
# bits than XLA does.

Flags = Mapping[str, tuple[bool, bool]]


def find_compiled_origin(runner: StepRunner, step: int, notes: tuple[str, ...] = ()) -> Findings:
    """Find the op of the compiled step that made the first non-finite value.

    Args:
        runner: Replays the step; its program was compiled with XLA.
        step: A step that is non-finite as it was trained, and finite op by op.
        notes: Notes to pass on.
    """
    flags, inputs = runner.probe(step), runner.inputs_of(step)
    bad = {name for name, found in flags.items() if any(found)}
    failed = {tensor: what for tensor, what in _watched(runner, step, inputs) if tensor in bad}
    if not failed:
        reason = f"Step {step} is finite op by op, and so is the compiled step when its tensors are looked at; no op can be named."
        return Findings(reason=reason, notes=notes)
    makers = _makers(failed, inputs, bad, runner, step)
    attribution = Attribution(runner.ops(step))
    origins = [_origin(runner, step, name, attribution) for name in makers]
    origins.sort(key=lambda origin: PHASES.index(origin.phase))
    if not origins:
        return Findings(
            reason=f"No op of the compiled step {step} made a value worse than what it got.",
            notes=notes,
        )
    return Findings(
        origin=origins[0],
        other_origins=tuple(origins[1:11]),
        root=Root(step, "Only the compiled step is non-finite."),
        notes=notes,
        consequence=f"reached {next(iter(failed.values()))}",
    )


def _watched(
    runner: StepRunner, step: int, inputs: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, str]]:
    """Losses, gradients, and what is written to variables: (tensor, how a sentence names it)."""
    signature = runner.signature(step)
    yield from ((tensor, "the loss") for tensor in signature.losses)
    yield from (
        (spec.tensor, f"the gradient of `{runner.variables[spec.variable].path}`")
        for spec in signature.gradients
    )
    handles = {
        spec.tensor: spec.variable for spec in signature.captures if spec.variable is not None
    }
    for (function, name), info in runner.ops(step).items():
        taken = inputs.get(name, ())
        if (
            function
            or not info.type.startswith("Assign")
            or len(taken) < 2
            or taken[0] not in handles
        ):
            continue
        variable = runner.variables[handles[taken[0]]]
        if variable.role not in UNWATCHED:
            yield taken[1], f"`{variable.path}`"


def _makers(
    failed: Mapping[str, str],
    inputs: Mapping[str, Sequence[str]],
    bad: set[str],
    runner: StepRunner,
    step: int,
) -> list[str]:
    """Ops on the way back from what failed that got finite inputs; constants are meant, so who uses them is named instead."""
    infos = runner.ops(step)
    pending, seen, makers = list(failed), set(failed), []
    while pending:
        name = pending.pop(0).partition(":")[0]
        blamed = [tensor for tensor in inputs.get(name, ()) if tensor in bad]
        info = [infos[key] for tensor in blamed if (key := ("", tensor.partition(":")[0])) in infos]
        if not blamed or all(each.type == "Const" for each in info):
            makers.append(name)
            continue
        for tensor in blamed:
            if tensor not in seen:
                seen.add(tensor)
                pending.append(tensor)
    return list(dict.fromkeys(makers))


def _origin(runner: StepRunner, step: int, name: str, attribution: Attribution) -> Origin:
    info = runner.ops(step)["", name]
    place = attribution.place(Fact(0, "", name, info.type, (), (), (), ()))
    outputs, operands = _facts(runner, step, name)
    in_layer = place.where == "layer" and bool(place.layer_path)
    return Origin(
        step=step,
        phase=place.phase,
        where=place.where,
        layer=place.layer,
        layer_path=place.layer_path if in_layer else None,
        op_type=info.type,
        op_name=name,
        source=runner.source(place.stack) if place.stack >= 0 else None,
        outputs=outputs,
        operands=operands,
        rows_reason="Rows are proved op by op, and op by op the step is finite.",
    )


def _facts(
    runner: StepRunner, step: int, name: str
) -> tuple[tuple[OutputFacts, ...], tuple[OperandFacts, ...]]:
    event = runner.compiled_event(step, name)
    if event is None:
        return (), ()
    masks = {k: mask for k, value in enumerate(event.outputs) if (mask := nonfinite(value)).any()}
    names = runner.inputs_of(step)[name]
    outputs = tuple(output_facts(event.outputs[k], mask) for k, mask in masks.items())
    return outputs, tuple(
        operands_of(event, masks, names, event.inputs, runner.execute)
    ) if masks else ()


# --- bisect.origin

_OTHERS = 10


@dataclass(frozen=True, slots=True)
class Bisection:
    """What was found, and the run that it was found in."""

    findings: Findings
    search: Search | None = None
    """The failing steps as they ran op by op; None when no step could be run."""
    suspect: Suspect | None = None
    """The origin as the walk found it; None without an origin, or when only the compiled step makes it."""

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
) -> Bisection:
    """Find what made the first non-finite value of a recorded window, and keep the step as it ran for who asks why.

    Args:
        runner: Replays the window's steps op by op.
        timeline: What was recorded of all steps; tells where values began to grow.
        progress: Called with a line before each part of the work.
    """
    say: Progress = progress or (lambda line: None)
    before = [step for step in runner.steps if step <= runner.incident.step]
    if not before:
        return Bisection(Findings(reason="No step of the recorded window can be run op by op."))
    search = search_back(runner, before[-1], say)
    suspects = search.first.judgement.suspects or _raised(search.first)
    notes = tuple(_notes(search.scenes[0]))
    if not search.first.targets and _is_compiled_only(runner, search.first.step):
        say("looking at the compiled step")
        return Bisection(find_compiled_origin(runner, search.first.step, notes), search)
    if not suspects or search.reason is not None:
        return Bisection(
            Findings(reason=search.reason or _nothing_found(search), notes=notes), search
        )
    return Bisection(_findings(runner, search, suspects, timeline, notes, say), search, suspects[0])


def locate(runner: StepRunner) -> tuple[Origin, ...]:
    """Return the origins of a recorded window, the first one first, without rows, chain and root: for who asks again and again.

    They are those of `bisect`; none when it would find none.
    """
    before = [step for step in runner.steps if step <= runner.incident.step]
    if not before:
        return ()
    search = search_back(runner, before[-1], lambda line: None)
    if not search.first.targets and _is_compiled_only(runner, search.first.step):
        found = find_compiled_origin(runner, search.first.step)
        return () if found.origin is None else (found.origin, *found.other_origins)
    suspects = (
        []
        if search.reason is not None
        else search.first.judgement.suspects or _raised(search.first)
    )
    return tuple(describe(search.first, suspect) for suspect in suspects)


def _is_compiled_only(runner: StepRunner, step: int) -> bool:
    """Whether a step that is finite op by op was recorded as non-finite, and ran compiled."""
    claimed = (
        runner.incident.trigger.what in ("loss", "gradient", "variable")
        and step == runner.incident.step
    )
    return claimed and runner.signature(step).compilation != "eager"


def _findings(
    runner: StepRunner,
    search: Search,
    suspects: list[Suspect],
    timeline: Timeline | None,
    notes: tuple[str, ...],
    say: Progress,
) -> Findings:
    scene, first = search.first, suspects[0]
    origin = describe(scene, first)
    say("proving which rows of the batch it needs")
    proof = rows_of(scene, first, origin.batch_prefix)
    return Findings(
        origin=dataclasses.replace(origin, rows=proof.rows, rows_reason=proof.reason),
        other_origins=tuple(_other(scene, suspect) for suspect in suspects[1 : _OTHERS + 1]),
        chain=chain_of(search.scenes, first),
        upstream=upstream_of(scene, first, origin),
        root=find_root(timeline, scene.step, [info.path for info in runner.variables]),
        notes=notes,
        consequence=consequence_of(search.scenes, first, runner.incident.trigger),
    )


def rows_of(scene: Scene, suspect: Suspect, prefix: str) -> RowProof:
    """Return the rows of the batch that an origin needs; of the part whose paths begin with `prefix`."""
    if any(path.startswith(EACH_ITERATION) for path in scene.trace.runner.batch(scene.step).paths):
        return RowProof(
            None,
            "The step fetches in each iteration of a loop; rows of single ones were not tried.",
        )
    if suspect.fact is not None:
        return prove_rows(scene.trace.runner, scene.step, suspect, prefix)
    batch = scene.trace.runner.batch(scene.step)
    leaves = [as_array(batch.leaves[place]) for place in own_leaves(batch.paths, prefix)]
    mask, size = suspect.masks[0], batch_size(leaves)
    if not mask.ndim or mask.shape[0] != size:
        return RowProof(None, "The array has no batch axis.")
    rows = np.flatnonzero(mask.reshape(len(mask), -1).any(axis=1))
    return RowProof(
        tuple(int(row) for row in rows), "These rows of the batch hold non-finite values."
    )


def _other(scene: Scene, suspect: Suspect) -> Origin:
    origin = describe(scene, suspect)
    if suspect.fact is None:
        return dataclasses.replace(origin, rows=rows_of(scene, suspect, origin.batch_prefix).rows)
    return origin


def _raised(scene: Scene) -> list[Suspect]:
    """Return ops that raise op by op, when nothing that failed leads to one of them."""
    if scene.trace.runner.incident.trigger.what != "exception" and not scene.trace.stopped:
        return []
    facts = [fact for fact in scene.trace.raised if fact.type not in PASSIVE]
    return [Suspect({}, "raised", fact) for fact in facts]


def _nothing_found(search: Search) -> str:
    scene = search.first
    asserted = next((fact.name for fact in scene.trace.raised if fact.type in PASSIVE), None)
    if not scene.targets and asserted is not None:
        return f"Step {scene.step} is finite op by op; a check of the program's own failed: `{asserted}`."
    if not scene.targets:
        return f"Step {scene.step} is finite op by op: no loss, gradient or variable that is watched turns non-finite."
    return f"Step {scene.step} is non-finite op by op, but no op of it made a value worse than what it got."


def _notes(scene: Scene) -> Iterator[str]:
    """Say where the compiled step and the ops differ."""
    runner = scene.trace.runner
    signature, recorded = runner.signature(scene.step), runner.batch(scene.step).fingerprint
    if recorded is None:
        return
    values = dict(zip(signature.watch_layout, as_array(recorded).tolist(), strict=False))
    failed = {target.name: target for target in scene.targets if target.what == "loss"}
    for i in range(len(signature.losses)):
        name, value = signature.loss_name(i), values.get(f"loss:{i}")
        if value is None:
            continue
        if name in failed and np.isfinite(value):
            kind = kind_of(as_array(scene.trace.value(failed[name].value))[failed[name].mask][0])
            yield f"The {name} was recorded as {value:.6g}, but op by op it is {kind}: the compiled step swallowed a non-finite value."
        elif name not in failed and not np.isfinite(value) and not scene.trace.stopped:
            yield f"The {name} was recorded as {value}, but op by op it is finite: the compiled step computes it in another way."
