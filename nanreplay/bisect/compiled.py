"""The origin of a non-finite value that only the compiled step makes: ops one by one give other bits than XLA does.

The compiled step tells of each tensor of its main graph whether it holds NaN or infinities; walking back from what
failed through these leads to ops that made them from finite inputs. Ops inside loops and branches are not seen: the
loop itself is then the origin.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from nanreplay.bisect.arrays import nonfinite
from nanreplay.bisect.attribution import Attribution
from nanreplay.bisect.facts import operands_of, output_facts
from nanreplay.bisect.run import StepRunner
from nanreplay.bisect.targets import UNWATCHED
from nanreplay.bisect.trace import Fact
from nanreplay.findings import Findings, OperandFacts, Origin, OutputFacts, Root
from nanreplay.records import PHASES

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
        return Findings(reason=f"No op of the compiled step {step} made a value worse than what it got.", notes=notes)
    return Findings(
        origin=origins[0],
        other_origins=tuple(origins[1:11]),
        root=Root(step, "Only the compiled step is non-finite."),
        notes=notes,
        consequence=f"reached {next(iter(failed.values()))}",
    )


def _watched(runner: StepRunner, step: int, inputs: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    """Losses, gradients, and what is written to variables: (tensor, how a sentence names it)."""
    signature = runner.signature(step)
    yield from ((tensor, "the loss") for tensor in signature.losses)
    yield from ((spec.tensor, f"the gradient of `{runner.variables[spec.variable].path}`") for spec in signature.gradients)
    handles = {spec.tensor: spec.variable for spec in signature.captures if spec.variable is not None}
    for (function, name), info in runner.ops(step).items():
        taken = inputs.get(name, ())
        if function or not info.type.startswith("Assign") or len(taken) < 2 or taken[0] not in handles:
            continue
        variable = runner.variables[handles[taken[0]]]
        if variable.role not in UNWATCHED:
            yield taken[1], f"`{variable.path}`"


def _makers(failed: Mapping[str, str], inputs: Mapping[str, Sequence[str]], bad: set[str], runner: StepRunner, step: int) -> list[str]:
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


def _facts(runner: StepRunner, step: int, name: str) -> tuple[tuple[OutputFacts, ...], tuple[OperandFacts, ...]]:
    event = runner.compiled_event(step, name)
    if event is None:
        return (), ()
    masks = {k: mask for k, value in enumerate(event.outputs) if (mask := nonfinite(value)).any()}
    names = runner.inputs_of(step)[name]
    outputs = tuple(output_facts(event.outputs[k], mask) for k, mask in masks.items())
    return outputs, tuple(operands_of(event, masks, names, event.inputs, runner.execute)) if masks else ()
