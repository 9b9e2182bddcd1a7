"""The one sentence that a report says, and the words that reports and the interface share.

`sentence` puts it together: where, what, how it reached the trigger, how sure that is, why, what
helps. For example: "step 24 · forward · layer `encoder/norm` · `Rsqrt` of 0.0 gave inf at [17, 0]
(sample 17 of the batch), which became NaN in `Mul` and reached the loss. Replays bit for bit."
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from nanreplay.diagnose.keras_lines import is_inside_keras
from nanreplay.errors import without_node_names
from nanreplay.findings import (
    Cause,
    DifferingOp,
    Evidence,
    Findings,
    FixResult,
    ModeDifference,
    OperandFacts,
    Origin,
    OutputFacts,
    Verdict,
    VerdictKind,
)
from nanreplay.records import SEVERAL_LOSSES, Incident, KerasPart, Trigger, Where
from nanreplay.report.fix_words import fixes_in_words
from nanreplay.report.numbers import (
    readable_list,
    readable_number,
    readable_steps,
    readable_trigger,
    readable_ulp,
)

_LONGEST_CODE = 120
"""Characters of a source line in the sentence."""
_OP_IN_TEXT = re.compile(r"\b(NaN in|hidden by|made) ([A-Z]\w*)")
_JOINED = {
    "Sub": "{} minus {}",
    "Add": "{} plus {}",
    "AddV2": "{} plus {}",
    "Mul": "{} times {}",
    "MulNoNan": "{} times {}",
    "RealDiv": "{} by {}",
    "Div": "{} by {}",
    "DivNoNan": "{} by {}",
    "FloorDiv": "{} by {}",
    "Xdivy": "{} by {}",
    "Pow": "{} to the power {}",
}
"""How two operands read, by op type."""
CAUSE_WORDS: Mapping[str, str] = {
    "data_nan": "NaN in the data",
    "data_inf": "an infinity in the data",
    "data_outlier": "an outlier in the data",
    "zero_over_zero": "a division by zero",
    "division_by_zero": "a division by zero",
    "exp_overflow": "an exponential that overflows",
    "sqrt_grad_at_zero": "the gradient of a square root at zero",
    "norm_grad_at_zero": "the gradient of a norm at zero",
    "pow_domain": "a power outside of its domain",
    "acos_domain": "an arc function outside of its domain",
    "fp16_overflow": "float16 overflow",
    "fp16_underflow": "float16 underflow",
    "bad_init": "initial weights too large",
    "where_gradient": "the gradient of a branch that `where` drops",
    "variance_zero": "a variance of zero",
    "empty_reduction": "a reduction over nothing",
    "mask_all": "a mask that leaves nothing",
    "linalg_singular": "a matrix that cannot be inverted or factored",
    "hardware_like": "a fault of the machine",
}
"""Kinds of causes whose name is no English."""
_GRAPHS = ("keras.Functional", "tf_keras.Functional")
"""Models whose own ops the user's code put together, before any step was traced."""
_TOLD = 0.5
"""A cause of no kind is told from this confidence on: something speaks for it."""
_NOT_LAYERS: Mapping[Where, str] = {
    "loss": "the loss",
    "input": "the input",
    "metric": "a metric",
}
"""What a gradient is of, outside of layers."""


def sentence(
    verdict: Verdict,
    findings: Findings,
    incident: Incident,
    steps: tuple[int, int],
    causes: Sequence[Cause] = (),
    fixes: Sequence[FixResult] = (),
) -> str:
    """Say where the first non-finite value was born, how it reached the trigger, and how surely.

    Args:
        verdict: What replaying said.
        findings: What bisecting found.
        incident: Why the capture was written.
        steps: First and last step of the recorded window.
        causes: Why, the likeliest first.
        fixes: What was tried.
    """
    what = _what(verdict, findings, incident, steps)
    return " ".join(filter(None, (what, cause_in_words(causes), fixes_in_words(fixes))))


def _what(verdict: Verdict, findings: Findings, incident: Incident, steps: tuple[int, int]) -> str:
    """What happened, without why and what helps."""
    if verdict.kind in ("healthy", "transient", "inconclusive") or findings.origin is None:
        return _without_origin(verdict, findings, incident, steps)
    origin = findings.origin
    parts = [f"step {origin.step}", *owner(origin), *_place(origin)]
    if origin.loop:
        loops = []
        for loop in origin.loop:
            loops.append(f"iteration {loop.iteration} of `{_last_name(loop.op)}`")
        parts.append(", ".join(loops))
    stopped = origin.kind == "raised" and incident.trigger.what == "exception"
    parts.append(_event(origin, incident.trigger if stopped else None))
    event = " · ".join(parts)
    reached = _OP_IN_TEXT.sub(r"\1 `\2`", findings.consequence or "")
    if reached and not stopped:
        event += f", which {reached}"
    sentences = [f"{event}."]
    if origin.source is not None:
        source = source_text(origin.source.file, origin.source.line, origin.source.code)
        if is_inside_keras(origin):
            source = _from_keras(source, origin.part)
        sentences.append(f"{source}.")
    return " ".join([*sentences, certainty(verdict)]).rstrip()


def _last_name(op: str) -> str:
    return PurePath(op).name


def owner(origin: Origin) -> list[str]:
    """Whose it is where there are several: "worker 1", "replica 0"."""
    owners = []
    if origin.worker is not None:
        owners.append(f"worker {origin.worker}")
    if origin.replica is not None:
        owners.append(f"replica {origin.replica}")
    return owners


def _from_keras(source: str, part: KerasPart | None) -> str:
    """What a line is to an op that Keras's code made."""
    if part is not None and part.kind in _GRAPHS:
        return (
            f"One of the functional model's own ops, such as `keras.ops` make, run from {source}; "
            "the line that built it is not recorded"
        )
    return f"Inside of Keras, called from {source}{_part_in_words(part)}"


def _part_in_words(part: KerasPart | None) -> str:
    if part is None:
        return ""
    if part.place == "loss" and part.kind == SEVERAL_LOSSES:
        return f"; it has the losses `{', '.join(part.settings)}`"
    return f"; the {part.place} is `{part.code}`"


def source_text(file: str, line: int, code: str | None) -> str:
    """A line of code: "train.py:88 `x / tf.sqrt(var)`"."""
    place = f"{PurePath(file).name}:{line}"
    return f"{place} `{_shortened(code.strip())}`" if code else place


def _shortened(code: str) -> str:
    return code if len(code) <= _LONGEST_CODE else f"{code[: _LONGEST_CODE - 4]} ..."


def certainty(verdict: Verdict) -> str:
    """How the replay compares with the recording, and in which modes it is finite."""
    finite_in = {
        "xla_only": "Only the step compiled with XLA is non-finite; op by op it is finite.",
        "precision_only": "In float64 it is finite.",
    }.get(verdict.kind, "")
    return " ".join(filter(None, (_replay_exactness(verdict), finite_in)))


def _replay_exactness(verdict: Verdict) -> str:
    if verdict.bit_exact:
        return "Replays bit for bit."
    if verdict.bit_exact is None:
        return ""
    recorded = []
    for evidence in verdict.evidence:
        if evidence.mode == "recorded":
            recorded.append(evidence)
    worst = max((evidence.max_ulp or 0 for evidence in recorded), default=0)
    if 0 < worst < 2**62:  # 2^62 stands for finite against non-finite, which has no distance
        return f"Replays within {worst} ulp of the recording."
    return "Replays, though not bit for bit."


def _place(origin: Origin) -> list[str]:
    """Phase and layer, such as "backward", "gradient of layer `encoder/norm`"."""
    path = origin.layer_path or origin.layer
    layer = f"layer `{path}`" if path else None
    if origin.phase == "backward":
        differentiated = layer or _NOT_LAYERS.get(origin.where)
        return ["backward", f"gradient of {differentiated}"] if differentiated else ["backward"]
    if origin.phase == "update":
        return ["update", "optimizer"] if origin.where == "optimizer" else ["update"]
    if layer and origin.where in ("layer", "metric"):
        return [origin.phase, layer]
    return [origin.phase]


def _event(origin: Origin, stopped: Trigger | None = None) -> str:
    """What the op did; `stopped` is the exception that it ended the step with."""
    output = bad_output(origin)
    value, element = _value_in_words(output), _element_in_words(output, origin)
    if origin.op_type is None:
        name = origin.op_name or (origin.operands[0].name if origin.operands else None)
        holder = f"`{name}`" if name else "the batch"
        return f"{holder} holds {value}{element}"
    op = f"`{origin.op_type}`{_operands_in_words(origin)}{element}"
    if stopped is not None:
        message = origin.message or without_node_names(stopped.value)
        op = f"`{origin.op_type}`{element}"  # the message tells which operand it refuses
        return f"{op} raised {stopped.name}: {message.rstrip('.')}"
    if origin.kind == "raised":
        return f"{op} is refused op by op and gives {value} when compiled"
    if origin.kind == "written":
        return f"{op} wrote {value}"
    return f"{op} gave {value}"


def bad_output(origin: Origin) -> OutputFacts | None:
    """The output that holds what the op made bad, else one that holds what passed through."""
    for output in origin.outputs:
        if output.indices:
            return output
    for output in origin.outputs:
        if output.nonfinite:
            return output
    return None


def _value_in_words(output: OutputFacts | None) -> str:
    if output is None or output.value is None:
        return "a non-finite value"
    return readable_number(output.value)


def _operands_in_words(origin: Origin) -> str:
    """The values that the element was computed from, or their range: " of 1.0 by 0.0"."""
    numbers = [operand for operand in origin.operands if _is_number(operand)]
    values = [operand.value for operand in numbers if operand.value is not None]
    if 0 < len(values) == len(numbers) <= 3:
        words = list(map(readable_number, values))
        pattern = _JOINED.get(origin.op_type or "") if len(words) == 2 else None
        return " of " + (pattern.format(*words) if pattern else readable_list(words))
    lows, highs = [], []
    for operand in numbers:
        if operand.min is not None and operand.max is not None:
            lows.append(operand.min)
            highs.append(operand.max)
    if not lows:
        return ""
    low, high = min(lows), max(highs)
    if low == high:
        return f" of values that are all {readable_number(low)}"
    return f" of values from {readable_number(low)} to {readable_number(high)}"


def _is_number(operand: OperandFacts) -> bool:
    return operand.dtype.lstrip("b").startswith(("float", "complex"))  # bfloat16 too


def _element_in_words(output: OutputFacts | None, origin: Origin) -> str:
    """Where the element is, and in which samples: " at [17, 0] (sample 17 of the batch)"."""
    element = ""
    if output is not None and output.indices and output.indices[0]:
        element = f" at [{', '.join(map(str, output.indices[0]))}]"
    if not origin.rows:
        return element
    samples = "sample" if len(origin.rows) == 1 else "samples"
    batch = "the batch"
    if origin.is_of_part:
        batch = "its part of the batch"
    elif origin.worker is not None:
        batch = "its batch"
    if origin.replica_rows is not None:
        rows = "row" if len(origin.replica_rows) == 1 else "rows"
        batch += f", {rows} {readable_list(origin.replica_rows)} of the replica's part"
    return f"{element} ({samples} {readable_list(origin.rows)} of {batch})"


def _without_origin(
    verdict: Verdict, findings: Findings, incident: Incident, steps: tuple[int, int]
) -> str:
    where = f"step {incident.step} · {_recorded_event(incident.trigger)}"
    if verdict.kind == "healthy":
        window = readable_steps(range(steps[0], steps[1] + 1))
        return f"{window} · nothing non-finite. {certainty(verdict)}".rstrip()
    if verdict.kind == "transient":
        finite = "replaying the program gives finite values"
        fault = f"{where}, but {finite}: a race or a hardware fault."
        return f"{fault} {verdict.reason or ''}".rstrip()
    if verdict.kind == "inconclusive":
        return f"{where}; what made it could not be decided. {verdict.reason or ''}".rstrip()
    reason = findings.reason or verdict.reason or "No op could be named."
    return f"{where}, and is so again when replayed. {reason} {certainty(verdict)}".rstrip()


def _recorded_event(trigger: Trigger) -> str:
    if trigger.what in ("exception", "manual"):
        return readable_trigger(trigger).rstrip(".")
    name = trigger.name if trigger.what == "loss" else f"{trigger.what} `{trigger.name}`"
    return f"{name} was {readable_number(trigger.value)} in training"


# Causes in words.


def cause_in_words(causes: Sequence[Cause]) -> str:
    """The likeliest cause: `Cause: a variance of zero. It is 0.0.`; "" when none is known."""
    if not causes or (causes[0].kind == "other" and causes[0].confidence < _TOLD):
        return ""
    if causes[0].kind == "other":
        return f"Cause: {causes[0].sentence}"
    return f"Cause: {kind_in_words(causes[0].kind)}. {causes[0].sentence}"


def kind_in_words(kind: str) -> str:
    """The kind of a cause as people say it: "a division by zero"."""
    return CAUSE_WORDS.get(kind, kind.replace("_", " "))


# What verdicts and modes of replaying mean, in words for people.

VERDICT_MEANINGS: Mapping[VerdictKind, str] = {
    "reproduced": "The step is non-finite again when it is replayed.",
    "xla_only": "Non-finite as XLA compiles it, finite op by op.",
    "precision_only": "Non-finite as it was trained, finite in float64: "
    "more precision would have kept it finite.",
    "transient": "Finite where the program is replayed: a race or a hardware fault.",
    "healthy": "Nothing non-finite was recorded, and nothing is when it is replayed.",
    "inconclusive": "Replaying could not decide it.",
}
"""Meaning of each kind of verdict."""
MODE_MEANINGS: Mapping[str, str] = {
    "recorded": "compiled as it was trained",
    "graph": "compiled without XLA",
    "ops": "op by op",
    "float64": "op by op, every float as float64",
}
"""How a step runs in each mode."""


def exactness(evidence: Evidence) -> str:
    """How a mode compares with the recording: "bit for bit", "3 ulp off", "not compared"."""
    if evidence.bit_exact is None:
        return "not compared"
    return "bit for bit" if evidence.bit_exact else readable_ulp(evidence.max_ulp)


def difference_lines(difference: ModeDifference) -> list[str]:
    """Where two modes part, a line a fact."""
    one, other = difference.modes
    lines = []
    if difference.first is not None:
        ulp = difference.first.max_ulp
        distance = f", by {ulp} ulp" if ulp is not None and ulp < 2**62 else ""
        op = _op_in_words(difference.first)
        lines.append(f"{one} and {other} first differ at {op}{distance}.")
    if difference.first_nonfinite is not None:
        op = _op_in_words(difference.first_nonfinite)
        lines.append(f"{op} is the first op that is finite in {other} only.")
    return lines


def _op_in_words(op: DifferingOp) -> str:
    layer = f" of {op.layer_path}" if op.layer_path else ""
    return f"{op.op_type} {op.op_name} ({op.phase}{layer})"
