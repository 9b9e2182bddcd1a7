"""The origin of a non-finite value that only the compiled step makes.

Ops run one by one give other bits than a compiled step does. There are no events to walk then, only
(holds NaN, holds infinity) of each tensor of the main graph, so the walk back is by whole tensors:
an op whose inputs are all finite made what is not finite in its outputs.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from nanreplay.bisect.failing_step import UNWATCHED
from nanreplay.bisect.judge import Attribution
from nanreplay.bisect.op_trace import Fact
from nanreplay.bisect.origin_facts import operands_of, output_facts, part_of
from nanreplay.bisect.step_runner import StepRunner
from nanreplay.bisect.tensor_stats import nonfinite_outputs
from nanreplay.findings import Findings, OperandFacts, Origin, OutputFacts, Root
from nanreplay.records import PHASES, OpInfo, loss_in_words
from nanreplay.replay.provenance import OpEvent

MOST_OTHERS = 10
"""How many origins are told besides the first."""
_SUMS = frozenset({"Add", "AddV2", "Sub"})
_MOST_LOOKS = 24
"""Ops on the way back that are looked at one by one; each costs a compilation for each tensor."""


def find_compiled_origin(runner: StepRunner, step: int, notes: tuple[str, ...] = ()) -> Findings:
    """Find the op of the compiled step that made the first non-finite value.

    Args:
        runner: Replays the step; its program was compiled with XLA.
        step: A step that is non-finite as it was trained, and finite op by op.
        notes: Notes to pass on.
    """
    holds, inputs = runner.probe(step), runner.inputs_of(step)
    bad_tensors = set()
    for name, (nan, inf) in holds.items():
        if nan or inf:
            bad_tensors.add(name)
    failed = {}
    for tensor, text in _may_fail(runner, step):
        if tensor in bad_tensors:
            failed[tensor] = text
    if not failed:
        return _by_writer(runner, step, notes)
    makers = _compiled_makers(failed, inputs, bad_tensors, runner.ops(step))
    origins = [_compiled_origin(runner, step, op) for op in makers]
    origins.sort(key=lambda origin: PHASES.index(origin.phase))
    if not origins:
        reason = f"No op of the compiled step {step} made a value worse than what it got."
        return Findings(reason=reason, notes=notes)
    return Findings(
        origin=origins[0],
        other_origins=tuple(origins[1 : MOST_OTHERS + 1]),
        root=Root(step, "Only the compiled step is non-finite."),
        notes=notes,
        consequence=f"reached {next(iter(failed.values()))}",
    )


def _by_writer(runner: StepRunner, step: int, notes: tuple[str, ...]) -> Findings:
    """Name the op that made a loss or variable bad, or wrote it, where looking shows no bad tensor.

    To look at a tensor of a compiled step keeps ops apart that are computed as one otherwise, and
    that may change what they give. So its tensors are looked at one by one, each by a run of its
    own, on the way back from what was written.
    """
    finite = f"Step {step} is finite op by op, and so is the compiled step when its tensors are"
    trigger = runner.incident.trigger
    seen = (*notes, f"{finite} looked at together. One by one they show what made the value.")
    for tensor, text in _triggers(runner, step):
        maker = _maker_one_by_one(runner, step, tensor)
        if maker is not None:
            return _made_by(runner, step, maker, text, seen)
    writers = []
    for op, tensor, path in _written(runner, step):
        if path == trigger.name:
            writers.append((op, tensor))
    if trigger.what != "variable" or not writers:
        return Findings(reason=f"{finite} looked at; no op can be named.", notes=notes)
    writer, written = writers[-1]
    maker = _maker_one_by_one(runner, step, written)
    if maker is not None:
        return _made_by(runner, step, maker, f"`{trigger.name}`", seen)
    origin = dataclasses.replace(
        _compiled_origin(runner, step, writer), outputs=(), operands=(), kind="written"
    )
    return Findings(
        origin=origin,
        notes=(*notes, f"{finite} looked at: the op that is named wrote the value."),
        consequence=f"reached `{trigger.name}`; the op of the update that made it cannot be told, "
        "as the step is finite when its ops are looked at",
    )


def _made_by(
    runner: StepRunner, step: int, maker: OpEvent, reached: str, notes: tuple[str, ...]
) -> Findings:
    why = _why(runner, step, maker.name)
    return Findings(
        origin=_compiled_origin(runner, step, maker.name, maker),
        root=Root(step, "Only the compiled step is non-finite."),
        notes=notes,
        consequence=f"reached {reached}; op by op the step is finite{why}",
    )


def _triggers(runner: StepRunner, step: int) -> Iterator[tuple[str, str]]:
    """The losses, or the gradients of the variable, that the training failed with."""
    trigger = runner.incident.trigger
    if trigger.what == "loss":
        yield from _losses(runner, step)
    for spec in runner.signature(step).gradients if trigger.what == "gradient" else ():
        if runner.variables[spec.variable].path == trigger.name:
            yield spec.tensor, f"the gradient of `{trigger.name}`"


def _why(runner: StepRunner, step: int, op: str) -> str:
    """Why the compiled step alone fails, where an op takes a sum that constant folding changes."""
    inputs, ops = runner.inputs_of(step), runner.ops(step)

    def makers(name: str) -> list[OpInfo]:
        found = [ops.get(("", tensor.partition(":")[0])) for tensor in inputs.get(name, ())]
        return [info for info in found if info is not None]

    near = makers(op)
    for root in [info for info in near if info.type == "Sqrt"]:  # its gradient takes the root
        near += makers(root.name)
    for total in [info for info in near if info.type in _SUMS]:
        types = {part.type for part in makers(total.name)}
        if "Const" in types and types & _SUMS and runner.signature(step).compilation == "graph":
            return (
                ", but compiled, TensorFlow computes a - b + c as a + c - b: the constant that is "
                f"added before `{ops['', op].type}` is rounded away"
            )
    return ""


def _maker_one_by_one(runner: StepRunner, step: int, written: str) -> OpEvent | None:
    """Return the op on the way back from a tensor that made it bad of finite inputs, if one did."""
    inputs, ops, bad = runner.inputs_of(step), runner.ops(step), written
    for _ in range(_MOST_LOOKS):
        op = bad.partition(":")[0]
        event = runner.compiled_event(step, op, one_by_one=True)
        if event is None or not nonfinite_outputs(event.outputs):
            return None
        names = [inputs[op][k] for k in nonfinite_outputs(event.inputs)]
        sources = [ops.get(("", name.partition(":")[0])) for name in names]
        if all(source is not None and source.type == "Const" for source in sources):
            return event  # an infinite constant is meant
        bad = names[0]
    return None


def _may_fail(runner: StepRunner, step: int) -> Iterator[tuple[str, str]]:
    """Losses, gradients, what is written to variables: (tensor, how a sentence names it)."""
    yield from _losses(runner, step)
    for spec in runner.signature(step).gradients:
        yield spec.tensor, f"the gradient of `{runner.variables[spec.variable].path}`"
    for _, tensor, path in _written(runner, step):
        yield tensor, f"`{path}`"


def _losses(runner: StepRunner, step: int) -> Iterator[tuple[str, str]]:
    signature = runner.signature(step)
    for i, tensor in enumerate(signature.losses):
        yield tensor, loss_in_words(signature.loss_name(i))


def _written(runner: StepRunner, step: int) -> Iterator[tuple[str, str, str]]:
    """Ops that write watched variables: (op, tensor that it takes, path of the variable)."""
    inputs = runner.inputs_of(step)
    handles = {}
    for spec in runner.signature(step).captures:
        if spec.variable is not None:
            handles[spec.tensor] = spec.variable
    for (function, op), info in runner.ops(step).items():
        operands = inputs.get(op, ())
        is_assignment = not function and info.type.startswith("Assign") and len(operands) >= 2
        if is_assignment and operands[0] in handles:
            variable = runner.variables[handles[operands[0]]]
            if variable.role not in UNWATCHED:
                yield op, operands[1], variable.path


def _compiled_makers(
    failed: Mapping[str, str],
    inputs: Mapping[str, Sequence[str]],
    bad_tensors: set[str],
    ops: Mapping[tuple[str, str], OpInfo],
) -> list[str]:
    """Return the ops on the way back from what failed that got finite inputs.

    A constant that is infinite is meant, so the op that uses it is named instead.
    """
    pending, seen, makers = deque(failed), set(failed), []
    while pending:
        op = pending.popleft().partition(":")[0]
        bad_inputs = [tensor for tensor in inputs.get(op, ()) if tensor in bad_tensors]
        sources = [ops.get(("", tensor.partition(":")[0])) for tensor in bad_inputs]
        # All inputs are finite, or mean their infinities: here the walk ends.
        if all(source.type == "Const" for source in sources if source is not None):
            makers.append(op)
            continue
        for tensor in bad_inputs:
            if tensor not in seen:
                seen.add(tensor)
                pending.append(tensor)
    return list(dict.fromkeys(makers))


def _compiled_origin(
    runner: StepRunner, step: int, op: str, event: OpEvent | None = None
) -> Origin:
    """Describe an op as an origin; `event` is what it did, where that was looked at already."""
    info = runner.ops(step)["", op]
    fact = Fact(
        serial=0, function="", name=op, type=info.type, calls=(), input_ids=(), via=(), outputs=()
    )
    place = Attribution(runner.ops(step)).place(fact)
    outputs, operands = _compiled_tensors(runner, step, op, event)
    return Origin(
        step=step,
        phase=place.phase,
        where=place.where,
        layer=place.layer,
        layer_path=place.path_in_layer,
        op_type=info.type,
        op_name=op,
        source=runner.source(place.stack) if place.stack >= 0 else None,
        outputs=outputs,
        operands=operands,
        part=part_of(runner.signature(step), place, op),
        rows_reason="Rows are proved op by op, and op by op the step is finite.",
    )


def _compiled_tensors(
    runner: StepRunner, step: int, op: str, event: OpEvent | None
) -> tuple[tuple[OutputFacts, ...], tuple[OperandFacts, ...]]:
    """Return the facts of an op's outputs and inputs; none where the op has handles among them."""
    event = event or runner.compiled_event(step, op)
    masks = {} if event is None else nonfinite_outputs(event.outputs)
    if event is None or not masks:
        return (), ()
    outputs = tuple(output_facts(event.outputs[k], mask) for k, mask in masks.items())
    input_names = runner.inputs_of(step)[op]
    operands = operands_of(event, masks, input_names, event.inputs, runner.execute)
    return outputs, tuple(operands)
