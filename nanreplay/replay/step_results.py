"""What was recorded of steps, and how a replayed step compares with it.

`RecordedSteps` is the half of `Replay` that runs nothing; `compare_step` makes the `StepResult` of
each step that `Replay` runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nanreplay.capture.arrays import as_array
from nanreplay.capture.reader import Capture
from nanreplay.capture.tables import check_batch
from nanreplay.errors import (
    FormatError,
    MissingPartError,
    ReplayError,
    StepRaisedError,
    reason_line,
)
from nanreplay.program.fingerprint import Layout, NonFinite, ulp_distance
from nanreplay.program.lowered_graph import LoweredOps
from nanreplay.records import (
    BatchRecord,
    Frame,
    Incident,
    OpInfo,
    Signature,
    Trigger,
    VariableInfo,
    loss_name,
)
from nanreplay.replay.provenance import FeedKind
from nanreplay.replay.replay_programs import Program

BATCHES_BYTES = 2**29
"""What batches that were read may take together, unless the one in use alone is larger."""


class RecordedSteps:
    """The steps of a capture with their programs and batches; runs nothing.

    Each is read once, but for batches that are too large to be kept.

    Args:
        capture: An open capture.
        trust: Let programs pass that touch files, the network or processes.
    """

    def __init__(self, capture: Capture, *, trust: bool = False) -> None:
        """Read nothing yet."""
        self.capture = capture
        self.notes: list[str] = []
        """Readable lines about the replay itself."""
        self._trust = trust
        self._programs: dict[str, Program] = {}
        self._batches: dict[int, BatchRecord] = {}
        self._batches_bytes = 0
        """What those take that were read, and can be read again."""
        self._edited: set[int] = set()
        """Steps whose batches are not those of the file."""
        self._steps: tuple[int, ...] | None = None
        self._losses: dict[int, float] | None = None
        self._sources: tuple[Sequence[Sequence[int]], Sequence[Frame]] | None = None

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps that can be replayed, ascending.

        They are reached from a keyframe through steps that have a program, without a gap.
        """
        if self._steps is None:
            self._steps = tuple(self._reached())
        return self._steps

    def window(self, first: int | None, last: int | None) -> list[int]:
        """Return the steps from `first` to `last` that can be replayed.

        Raises:
            MissingPartError: There are none.
        """
        steps = []
        for step in self.steps:
            if (first is None or step >= first) and (last is None or step <= last):
                steps.append(step)
        if not steps:
            which = "" if first is None else f" from {first} on"
            raise MissingPartError(
                f"{self.capture.path}: holds no step that can be replayed{which}."
            )
        return steps

    def _reached(self) -> Iterator[int]:
        keyframes = set(self.capture.keyframe_steps)
        previous: int | None = None
        for step in self.capture.steps:
            follows = previous is not None and step == previous + 1
            known = self._batches.get(step)
            has_program = bool(self.capture.batch_program(step) if known is None else known.program)
            if has_program and (step in keyframes or follows):
                previous = step
                yield step
            else:
                previous = None

    @property
    def incident(self) -> Incident:
        """Why and when the capture was written."""
        return self.capture.incident

    @property
    def variables(self) -> Sequence[VariableInfo]:
        """The capture's table of variables."""
        return self.capture.variables_info

    @property
    def optimizer_slots(self) -> list[int]:
        """Indices of the optimizer's arrays."""
        variables = enumerate(self.variables)
        return [index for index, info in variables if info.role == "optimizer" and info.shape]

    def program(self, step: int) -> Program:
        """Return the program of a step.

        Raises:
            UnsafeProgramError: It holds ops that reach beyond tensors.
            UnsupportedOpError: It holds ops that cannot be replayed.
            FormatError: The file does not hold all that the program is fed with.
        """
        batch = self.batch(step)
        record = self.capture.program(batch.program)
        name = record.id
        if not batch.fed and record.signature.fed:
            # the step raised before it gave the outputs of these ops, so a replay runs them anew
            name = f"{name}, drawing anew"
            record = replace(record, signature=replace(record.signature, fed=()))
        if name not in self._programs:
            self._programs[name] = Program(record, trust=self._trust)
            self._note_lowered(self._programs[name].lowered)
        if len(batch.fed) != len(record.signature.fed):
            raise FormatError(
                f"{self.capture.path}: the batch of step {step} lacks outputs of ops "
                "that its program is fed with."
            )
        check_batch(self.batch(step), self._programs[name].signature)
        return self._programs[name]

    def _note_lowered(self, lowered: LoweredOps) -> None:
        """Say which ops of a program run here in a form of their own."""
        notes = []
        if lowered.forms:
            notes.append(
                "This machine has no GPU, so these ops ran in a form that the CPU has, which may "
                f"differ in the last bits: {', '.join(lowered.forms)}."
            )
        if lowered.in_float32:
            notes.append(
                "These ops of half precision ran in float32 between two casts, since the CPU has "
                f"no kernel for them: {', '.join(lowered.in_float32)}."
            )
        self.notes += [note for note in notes if note not in self.notes]

    def batch(self, step: int) -> BatchRecord:
        """Return the input of a step."""
        batch = self._batches.pop(step, None)
        if batch is None:
            batch = self.capture.batch(step)
            self._batches_bytes += _size_bytes(batch)
            if self._batches_bytes > BATCHES_BYTES:
                self._forget_batches()
        self._batches[step] = batch  # the one asked for last is at the end
        return batch

    def _forget_batches(self) -> None:
        """Let go of batches that were read, the one asked for last at the end."""
        for step in [known for known in self._batches if known not in self._edited]:
            if self._batches_bytes <= BATCHES_BYTES:
                break
            self._batches_bytes -= _size_bytes(self._batches.pop(step))

    def _edit_batch(self, step: int, batch: BatchRecord) -> None:
        """Take another input than the file has for a step."""
        known = self._batches.get(step)
        if known is not None and step not in self._edited:
            self._batches_bytes -= _size_bytes(known)
        self._edited.add(step)
        self._batches[step] = batch

    def timeline_loss(self, step: int) -> float | None:
        """Return the loss of a step as the timeline has it."""
        if self._losses is None:
            self._losses = {}
            table = self.capture.timeline()
            if "loss" in table:
                steps, losses = table["step"].tolist(), table["loss"].tolist()
                self._losses = dict(zip(steps, losses, strict=True))
        return self._losses.get(step)

    def signature(self, step: int) -> Signature:
        """Return how the step's program is called and what its tensors mean."""
        return self.program(step).signature

    def ops(self, step: int) -> Mapping[tuple[str, str], OpInfo]:
        """Return what is known of each op of the step's program, by function and name."""
        return self.program(step).infos

    def feed_names(self, step: int) -> Sequence[tuple[FeedKind, int]]:
        """Return what `ValueId(-1 - i, 0)` stands for: a leaf, variable or constant by index."""
        return self.program(step).feed_names

    def source(self, stack: int) -> Frame | None:
        """Return the innermost frame of user code of a stack."""
        if self._sources is None:
            self._sources = self.capture.stacks, self.capture.frames
        stacks, frames = self._sources
        is_known = 0 <= stack < len(stacks) and stacks[stack]
        return frames[stacks[stack][-1]] if is_known else None

    def inputs_of(self, step: int) -> Mapping[str, Sequence[str]]:
        """Return the names of the tensors that each op of the step's main graph takes."""
        return self.program(step).inputs_of


def _size_bytes(batch: BatchRecord) -> int:
    return sum(as_array(array).nbytes for array in (*batch.arrays, *batch.overrides.values()))


def in_words(steps: Sequence[int]) -> str:
    """Steps as a message names them: "steps 3 to 12"."""
    return f"steps {steps[0]} to {steps[-1]}" if steps else "none"


def step_error(step: int, error: Exception) -> ReplayError:
    """Return the error of nanreplay for what TensorFlow, or the interpreter, raised in a step."""
    if not isinstance(error, ReplayError):
        kind, reason = type(error).__name__, reason_line(error)
        message = f"Step {step} raised when it was replayed: {kind}: {reason}"
        return StepRaisedError(message, kind, reason)
    kernel_error = error.__cause__
    if kernel_error is None or isinstance(error, StepRaisedError):
        return error
    return StepRaisedError(str(error), type(kernel_error).__name__, reason_line(kernel_error))


# Comparing a replayed step with its recording.


@dataclass(frozen=True, slots=True)
class Difference:
    """One element of a fingerprint that came out otherwise."""

    name: str
    """`loss`, `gradient of dense/kernel`, `dense/kernel`, ..."""
    recorded: float
    replayed: float
    ulp: int
    """Units in the last place between the two."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What replaying one step gave."""

    step: int
    finite: bool
    """Whether loss, gradients and variables are finite, by the recorder's own rule."""
    nonfinite: Trigger | None
    """The first thing that is not, or None."""
    bit_exact: bool | None
    """Whether the fingerprint (losses, gradients, variables) equals the recorded one bit for bit.

    None when none was recorded.
    """
    max_ulp: int | None
    """Largest difference in units in the last place; None when there was nothing to compare."""
    loss: float | None
    recorded_loss: float | None
    differences: tuple[Difference, ...] = ()

    @classmethod
    def raised(cls, step: int, kind: str, message: str) -> StepResult:
        """Return the result of a step that raised.

        Args:
            step: The step.
            kind: Name of the class of what it raised.
            message: What that says.
        """
        trigger = Trigger("exception", kind, message)
        return cls(step, False, trigger, None, None, None, None)

    @property
    def exception(self) -> Trigger | None:
        """What the step raised; None where it ended."""
        raised = self.nonfinite is not None and self.nonfinite.what == "exception"
        return self.nonfinite if raised else None


def compare_step(
    step: int,
    signature: Signature,
    replayed: Any,
    recorded: Any,
    *,
    paths: Sequence[str],
    count_skips: bool,
    bad_variable: Callable[[int], str],
    slots: Sequence[int] = (),
    step_loss: float | None = None,
    recorded_loss: float | None = None,
) -> StepResult:
    """Judge a replayed step and compare it with its recording.

    Args:
        step: The step.
        signature: Of its program.
        replayed: The fingerprint that the replay gave, or None.
        recorded: The recorded fingerprint, or None.
        paths: Paths of the variables by index.
        count_skips: Whether an update that loss scaling skips counts as non-finite.
        bad_variable: Says how a variable turned non-finite in this step, `nan`, `inf` or `-inf`;
            "" when it did not.
        slots: Variables of the optimizer, which no fingerprint holds.
        step_loss: The loss of the step where the fingerprint holds a mean of losses only.
        recorded_loss: That of the recorded step.
    """
    if replayed is None:
        return StepResult(step, True, None, None, None, None, None)
    layout = Layout.parse(signature.watch_layout)
    logged = _logged_losses(signature)
    bad, _ = layout.find_nonfinite(
        replayed,
        loss_scaled=signature.loss_scaled and not count_skips,
        bad_variable=bad_variable,
        logged_losses=logged,
    )
    if bad is None:
        bad = _bad_slot(slots, bad_variable)
    trigger = None
    if bad is not None:
        subject = _subject(bad.what, bad.subject, paths, signature.loss_of)
        trigger = Trigger(bad.what, subject, bad.kind)
    reference = None
    if recorded is not None and np.shape(recorded) == replayed.shape:
        reference = as_array(recorded)
    loss = step_loss
    if step_loss is None or layout.losses:
        element = _loss_element(layout, logged)
        loss = _number_at(replayed, element)
        recorded_loss = _number_at(reference, element)
    differences: list[Difference] = []
    if reference is not None:
        differences = _differences(signature, layout, replayed, reference, paths)
    max_ulp = max((difference.ulp for difference in differences), default=0)
    return StepResult(
        step,
        finite=trigger is None,
        nonfinite=trigger,
        bit_exact=None if reference is None else not differences,
        max_ulp=None if reference is None else max_ulp,
        loss=loss,
        recorded_loss=recorded_loss,
        differences=tuple(differences),
    )


def tells_losses(signature: Signature) -> bool:
    """Whether a fingerprint holds a loss, so that one that is not finite decides."""
    layout = Layout.parse(signature.watch_layout)
    logged = _logged_losses(signature)
    return bool(layout.losses) or any(output in logged for _, output in layout.logged)


def _logged_losses(signature: Signature) -> list[int]:
    """Outputs that the step returns as losses, such as `loss` and `head/output_loss`."""
    losses = []
    for index, name in enumerate(signature.output_names):
        if "loss" in name.rpartition("/")[2]:
            losses.append(index)
    return losses


def _bad_slot(slots: Sequence[int], bad_variable: Callable[[int], str]) -> NonFinite | None:
    for index in slots:
        kind = bad_variable(index)
        if kind:
            return NonFinite("variable", index, kind)
    return None


def _loss_element(layout: Layout, logged: Sequence[int]) -> int | None:
    """The fingerprint's element that is the step's loss: a differentiated, else a logged one."""
    for element, _ in layout.losses:
        return element
    for element, output in layout.logged:
        if output in logged:
            return element
    return None


def _number_at(fingerprint: Any, element: int | None) -> float | None:
    return None if fingerprint is None or element is None else float(fingerprint[element])


def _differences(
    signature: Signature, layout: Layout, replayed: Any, recorded: Any, paths: Sequence[str]
) -> list[Difference]:
    """The elements that were measured both times and are not the same; all NaNs are the same."""
    # a replay in float64 is judged in its own type, but compared in the recorded one
    with np.errstate(over="ignore"):
        replayed = replayed.astype(recorded.dtype)
    measured = layout.measured(replayed) & layout.measured(recorded)
    both_nan = np.isnan(replayed) & np.isnan(recorded)
    differences = []
    for element in np.flatnonzero(measured & ~both_nan & (replayed != recorded)):
        one = slice(element, element + 1)
        differences.append(
            Difference(
                _element_name(signature, int(element), paths),
                recorded=float(recorded[element]),
                replayed=float(replayed[element]),
                ulp=ulp_distance(replayed[one], recorded[one]),
            )
        )
    return differences


def _subject(what: str, subject: int, paths: Sequence[str], loss_of: Sequence[str] = ()) -> str:
    if what == "loss":
        return loss_name(subject, loss_of)
    return paths[subject] if 0 <= subject < len(paths) else "unknown variable"


def _element_name(signature: Signature, element: int, paths: Sequence[str]) -> str:
    kind, _, subject = signature.watch_layout[element].partition(":")
    if not subject:
        return kind.replace("_", " ")
    if kind == "loss":
        return loss_name(int(subject), signature.loss_of)
    if kind == "logged":
        return f"returned {signature.output_names[int(subject)]}"
    path = _subject("variable", int(subject), paths)
    return path if kind == "variable_sum" else f"gradient of {path}"
