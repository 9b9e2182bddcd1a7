"""Holding a replayed step against what was recorded of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nanreplay.capture.reader import Capture
from nanreplay.capture.tables import check_batch
from nanreplay.errors import FormatError
from nanreplay.program.fingerprint import Layout, NonFinite, ulp_distance
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

# What a capture holds of each step, read once and kept while it is replayed.


class RecordedSteps:
    """The steps of a capture with their programs and batches; runs nothing.

    Args:
        capture: An open capture.
        trust: Let programs pass that touch files, the network or processes.
    """

    def __init__(self, capture: Capture, *, trust: bool = False) -> None:
        """Read nothing yet."""
        self.capture = capture
        self._trust = trust
        self._programs: dict[str, Program] = {}
        self._batches: dict[int, BatchRecord] = {}
        self._steps: tuple[int, ...] | None = None
        self._losses: dict[int, float] | None = None
        self._sources: tuple[Sequence[Sequence[int]], Sequence[Frame]] | None = None

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps that can be replayed, ascending: reached from a keyframe through steps that have a program."""
        if self._steps is None:
            keyframes, reached = set(self.capture.keyframe_steps), []
            previous: int | None = None
            for step in self.capture.steps:
                follows = previous is not None and step == previous + 1
                previous = (
                    step if self.batch(step).program and (step in keyframes or follows) else None
                )
                reached += [] if previous is None else [step]
            self._steps = tuple(reached)
        return self._steps

    @property
    def incident(self) -> Incident:
        """Why and when the capture was written."""
        return self.capture.incident

    @property
    def variables(self) -> Sequence[VariableInfo]:
        """The capture's table of variables."""
        return self.capture.variables_info

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
        if not batch.fed and record.signature.fed:  # the step raised before it gave them
            name, record = (
                f"{name}, drawing anew",
                replace(record, signature=replace(record.signature, fed=())),
            )
        if name not in self._programs:
            self._programs[name] = Program(record, trust=self._trust)
        if len(batch.fed) != len(record.signature.fed):
            raise FormatError(
                f"{self.capture.path}: the batch of step {step} lacks outputs of ops that its program is fed with."
            )
        check_batch(self.batch(step), self._programs[name].signature)
        return self._programs[name]

    def batch(self, step: int) -> BatchRecord:
        """Return the input of a step."""
        if step not in self._batches:
            self._batches[step] = self.capture.batch(step)
        return self._batches[step]

    def timeline_loss(self, step: int) -> float | None:
        """Return the loss of a step as the timeline has it."""
        if self._losses is None:
            table = self.capture.timeline()
            self._losses = (
                dict(zip(table["step"].tolist(), table["loss"].tolist(), strict=True))
                if "loss" in table
                else {}
            )
        return self._losses.get(step)

    def signature(self, step: int) -> Signature:
        """Return how the step's program is called and what its tensors mean."""
        return self.program(step).signature

    def ops(self, step: int) -> Mapping[tuple[str, str], OpInfo]:
        """Return what is known of each op of the step's program, by function and name."""
        return self.program(step).infos

    def feed_names(self, step: int) -> Sequence[tuple[FeedKind, int]]:
        """Return what `ValueId(-1 - i, 0)` stands for: a batch leaf, a variable or a constant, and its index."""
        return self.program(step).feed_names

    def source(self, stack: int) -> Frame | None:
        """Return the innermost frame of user code of a stack."""
        if self._sources is None:
            self._sources = self.capture.stacks, self.capture.frames
        stacks, frames = self._sources
        return frames[stacks[stack][-1]] if 0 <= stack < len(stacks) and stacks[stack] else None

    def inputs_of(self, step: int) -> Mapping[str, Sequence[str]]:
        """Return the names of the tensors that each op of the step's main graph takes."""
        return self.program(step).inputs_of


# --- replay.compare


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
    """Whether the fingerprint (losses, gradients, variables) equals the recorded one bit for bit; None when none was recorded."""
    max_ulp: int | None
    """Largest difference in units in the last place; None when there was nothing to compare."""
    loss: float | None
    recorded_loss: float | None
    differences: tuple[Difference, ...] = ()


def compare_step(
    step: int,
    signature: Signature,
    found: Any,
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
        found: The fingerprint that the replay gave, or None.
        recorded: The recorded fingerprint, or None.
        paths: Paths of the variables by index.
        count_skips: Whether an update that loss scaling skips counts as non-finite.
        bad_variable: Says how a variable turned non-finite in this step, `nan`, `inf` or `-inf`; "" when it did not.
        slots: Variables of the optimizer, which no fingerprint holds.
        step_loss: The loss of the step where the fingerprint holds a mean of losses only.
        recorded_loss: That of the recorded step.
    """
    layout = Layout.parse(signature.watch_layout)
    if found is None:
        return StepResult(step, True, None, None, None, None, None)
    scaled = signature.loss_scaled and not count_skips
    logged = [
        index
        for index, name in enumerate(signature.output_names)
        if "loss" in name.rpartition("/")[2]
    ]
    bad, _ = layout.find_nonfinite(
        found, loss_scaled=scaled, bad_variable=bad_variable, logged_losses=logged
    )
    if bad is None:
        bad = next(
            (
                NonFinite("variable", index, kind)
                for index in slots
                if (kind := bad_variable(index))
            ),
            None,
        )
    trigger = (
        None
        if bad is None
        else Trigger(bad.what, _subject(bad.what, bad.subject, paths, signature.loss_of), bad.kind)
    )
    stand_ins = [element for element, output in layout.logged if output in logged]
    loss = next(iter([element for element, _ in layout.losses] or stand_ins), None)
    value = None if loss is None else float(found[loss])
    held_loss = (
        None
        if loss is None or recorded is None or np.shape(recorded) != found.shape
        else float(np.asarray(recorded)[loss])
    )
    if step_loss is not None and not layout.losses:
        value, held_loss = step_loss, recorded_loss
    differences: list[Difference] = []
    if recorded is not None and np.shape(recorded) == found.shape:
        held = np.asarray(recorded)
        with np.errstate(over="ignore"):
            found = found.astype(
                held.dtype
            )  # a replay in float64 is compared in the recorded type, and judged in its own
        measured = layout.measured(found) & layout.measured(held)
        for element in np.flatnonzero(
            measured & ~(np.isnan(found) & np.isnan(held)) & (found != held)
        ):
            ulp = ulp_distance(found[element : element + 1], held[element : element + 1])
            name = _readable(signature, int(element), paths)
            differences.append(Difference(name, float(held[element]), float(found[element]), ulp))
    else:
        recorded = None
    return StepResult(
        step,
        finite=trigger is None,
        nonfinite=trigger,
        bit_exact=None if recorded is None else not differences,
        max_ulp=None if recorded is None else max((each.ulp for each in differences), default=0),
        loss=value,
        recorded_loss=held_loss,
        differences=tuple(differences),
    )


def _subject(what: str, subject: int, paths: Sequence[str], loss_of: Sequence[str] = ()) -> str:
    if what == "loss":
        return loss_name(subject, loss_of)
    return paths[subject] if 0 <= subject < len(paths) else "unknown variable"


def _readable(signature: Signature, element: int, paths: Sequence[str]) -> str:
    kind, _, subject = signature.watch_layout[element].partition(":")
    if not subject:
        return kind.replace("_", " ")
    if kind == "loss":
        return loss_name(int(subject), signature.loss_of)
    if kind == "logged":
        return f"returned {signature.output_names[int(subject)]}"
    path = _subject("variable", int(subject), paths)
    return path if kind == "variable_sum" else f"gradient of {path}"
