"""Telling two captures apart, or a capture and the user's current code.

What the files say of themselves is compared first: environment, settings, variables, ops. Then come
the values of the common steps, and at the step where they part both sides run op by op.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nanreplay.capture import Capture
from nanreplay.diff.array_diff import (
    batches_that_differ,
    states_that_differ,
    type_and_shape,
    values_that_differ,
)
from nanreplay.diff.diff_findings import (
    ArrayDifference,
    Changed,
    Diff,
    OpCount,
    PartingOp,
    Value,
    sentence_of,
)
from nanreplay.diff.op_alignment import parting_op
from nanreplay.errors import MissingPartError, ReplayError, UnsafeProgramError, UnsupportedOpError
from nanreplay.records import OpInfo, VariableInfo
from nanreplay.replay import Replay
from nanreplay.report.numbers import readable_number, readable_trigger
from nanreplay.rerun.model_factory import Factory, load_factory
from nanreplay.rerun.recorded_window import LearningRate, recorded_rates
from nanreplay.rerun.rerun import Rerun
from nanreplay.rerun.variable_match import pairs_with_learning_rates, uncounted

_CANNOT_RUN = (ReplayError, UnsafeProgramError, UnsupportedOpError, MissingPartError)
"""What a side raises whose steps cannot be run; the comparison goes on without it."""
_FACTS_OF_ITSELF = ("created", "script", "cpu_count")
"""Facts of a run that say nothing of its numbers."""


def diff_captures(
    left: str | os.PathLike[str],
    right: str | os.PathLike[str],
    *,
    trust: bool = False,
    renamed: Mapping[str, str] | None = None,
) -> Diff:
    """Say where two captures part.

    It names the first step, what differs after it, and the first op that gives other values. Use it
    for two trainings that should have been the same.

    ```python
    print(diff_captures("monday.h5", "tuesday.h5").sentence)
    ```

    Args:
        left: A capture.
        right: Another.
        trust: Let their programs reach files, the network or processes. Only for captures of your
            own.
        renamed: What parts of the left side's variable paths are called on the right.

    Raises:
        CaptureError: A file cannot be read.
    """
    with Capture(left) as left_capture, Capture(right) as right_capture:
        names = str(left), str(right)
        return _Comparison(left_capture, right_capture, names, (trust, trust), renamed or {}).diff()


def diff_with_code(
    path: str | os.PathLike[str],
    factory: str | Factory,
    *,
    allow_missing: bool = False,
    renamed: Mapping[str, str] | None = None,
    learning_rate: LearningRate = "auto",
    trust: bool = False,
) -> Diff:
    """Say where a capture and the user's current code part.

    The code runs from the recorded state on the recorded batches, so that any difference comes from
    the code. Use it to see what a change of the code changes first.

    ```python
    print(diff_with_code("run.h5", "train.py:make_model").sentence)
    ```

    Args:
        path: The capture.
        factory: As for `nanreplay.replay_with`, and so are the others.
        allow_missing: Let variables without recorded state keep the code's initial values.
        renamed: What parts of recorded variable paths are called in the code.
        learning_rate: Whose learning rate holds.
        trust: Let the recorded program reach files, the network or processes.

    Raises:
        CaptureError: The file cannot be read.
        ModelError: The current model cannot be made, or the recorded state does not fit it.
        ReplayError: The capture holds no batches that can be replayed.
    """
    name, make = load_factory(factory)
    with Capture(path) as capture, tempfile.TemporaryDirectory(prefix="nanreplay-") as folder:
        rerun = Rerun(capture, name, make, allow_missing, renamed, learning_rate, trust)
        run = rerun.run(str(Path(folder) / "today.h5"))
        written = run.write()
        run.close()
        if written is None:
            raise ReplayError(f"Today's steps with {name} could not be recorded.")
        with Capture(written) as rerun_capture:
            names = str(path), f"today's {name}"
            diff = _Comparison(capture, rerun_capture, names, (trust, True), renamed or {}).diff()
    return replace(diff, notes=(*rerun.notes, *diff.notes))


# What captures say of themselves. Reads tables; runs nothing.


def _environment_changes(left: Capture, right: Capture) -> Iterator[Changed]:
    """Versions and machines that differ."""
    return _changes(_environment(left), _environment(right))


def _environment(capture: Capture) -> dict[str, str]:
    facts = capture.metadata.items()
    return {name: value for name, value in facts if name not in _FACTS_OF_ITSELF}


def _changes(left: Mapping[str, str], right: Mapping[str, str]) -> Iterator[Changed]:
    for name in dict.fromkeys((*left, *right)):
        if left.get(name) != right.get(name):
            yield Changed(name, left.get(name), right.get(name))


def _settings(capture: Capture) -> dict[str, str]:
    """The incident, the learning rate and how the step was compiled."""
    incident = capture.incident
    settings = {"incident": "none"}
    if incident.trigger.what != "manual":
        settings["incident"] = f"step {incident.step}: {readable_trigger(incident.trigger)}"
    rates = sorted(set(recorded_rates(capture.timeline_record()).values()))
    if rates:
        range_of_rates = map(readable_number, (rates[0], rates[-1]))
        settings["learning rate"] = " to ".join(dict.fromkeys(range_of_rates))
    program = _last_program(capture)
    if program is not None:
        signature = capture.signature(program)
        inputs = []
        for spec in signature.inputs:
            inputs.append(f"{spec.path or 'batch'} {spec.dtype}")
        settings["compilation"] = signature.compilation
        settings["policy"] = signature.policy
        settings["loss scaling"] = "yes" if signature.loss_scaled else "no"
        settings["inputs"] = ", ".join(inputs)
    return settings


def _last_program(capture: Capture) -> str | None:
    """Id of the program of the incident's step, or of the last step before it that has one."""
    for step in reversed(capture.steps):
        program = capture.batch(step).program
        if program and step <= capture.incident.step:
            return program
    return None


def _variable_changes(
    left: Sequence[VariableInfo], right: Sequence[VariableInfo], pairs: Mapping[int, int]
) -> Iterator[Changed]:
    """Variables that one side alone has, and those of another shape or type; metrics aside.

    Args:
        left: Table of the left side.
        right: Table of the right side.
        pairs: Index of the right variable by that of the left one.
    """
    for index, info in enumerate(left):
        if info.role == "metric":
            continue
        form = type_and_shape(info.dtype, info.shape)
        other = right[pairs[index]] if index in pairs else None
        other_form = None if other is None else type_and_shape(other.dtype, other.shape)
        if other_form != form:
            yield Changed(info.path, form, other_form)
    paired = set(pairs.values())
    for index, info in enumerate(right):
        if info.role != "metric" and index not in paired:
            yield Changed(info.path, None, type_and_shape(info.dtype, info.shape))


def _op_count_changes(left: Sequence[OpInfo], right: Sequence[OpInfo]) -> Iterator[OpCount]:
    """Kinds of ops of which the sides have a different number, in the order of the left table."""
    left_counts, right_counts = _op_counts(left), _op_counts(right)
    for kind in dict.fromkeys((*left_counts, *right_counts)):
        if left_counts[kind] != right_counts[kind]:
            yield OpCount(*kind, left_counts[kind], right_counts[kind])


def _op_counts(ops: Sequence[OpInfo]) -> Counter[tuple[str, str, str]]:
    """How many ops of the user's program there are, by type, layer and phase."""
    # Ops of the phase "watch" are the recorder's: they compute the fingerprint.
    own_ops = (op for op in ops if op.phase != "watch")
    return Counter((op.type, uncounted(op.layer_path), op.phase) for op in own_ops)


# The steps.


@dataclass(slots=True)
class _PartedStep:
    """The first step at which two captures differ, and in what."""

    step: int
    values: Sequence[Value]
    batch: Sequence[ArrayDifference]


class _Comparison:
    """Two open captures.

    Args:
        left: The left capture.
        right: The right capture.
        names: What they are called.
        trust: Whether the left program, and the right one, may reach files, the network or
            processes.
        renamed: What parts of the left side's variable paths are called on the right.
    """

    def __init__(
        self,
        left: Capture,
        right: Capture,
        names: tuple[str, str],
        trust: tuple[bool, bool],
        renamed: Mapping[str, str],
    ) -> None:
        self._left, self._right, self._names = left, right, names
        self._trusts_left, self._trusts_right = trust
        self._pairs = pairs_with_learning_rates(left.variables_info, right.variables_info, renamed)
        self._notes: list[str] = []
        self._are_values_known = True

    def diff(self) -> Diff:
        """Compare what they hold, then run the step at which they part."""
        left, right = self._left, self._right
        infos = left.variables_info, right.variables_info
        diff = Diff(
            *self._names,
            same=None,
            sentence="",
            environment=tuple(_environment_changes(left, right)),
            settings=tuple(_changes(_settings(left), _settings(right))),
            variables=tuple(_variable_changes(*infos, self._pairs)),
            ops=tuple(self._op_changes()),
        )
        diff = self._with_steps(diff)
        lists = diff.settings, diff.variables, diff.ops, diff.state, diff.batch
        same = None
        if any(lists) or diff.step is not None:
            same = False
        elif diff.steps is not None and self._are_values_known:
            same = True
        diff = replace(diff, same=same, notes=tuple(dict.fromkeys(self._notes)))
        return replace(diff, sentence=sentence_of(diff))

    def _op_changes(self) -> Iterator[OpCount]:
        left, right = _last_program(self._left), _last_program(self._right)
        if left and right:
            yield from _op_count_changes(
                self._left.program(left).ops, self._right.program(right).ops
            )

    def _with_steps(self, diff: Diff) -> Diff:
        """Add what the common steps show."""
        right_steps = set(self._right.steps)
        common = []
        for step in self._left.steps:
            if step in right_steps:
                common.append(step)
        if not common:
            self._notes.append("The two hold no step in common, so no values are compared.")
            return diff
        with (
            Replay(self._left, trust=self._trusts_left) as left,
            Replay(self._right, trust=self._trusts_right) as right,
        ):
            state = self._state(left, right, common[0])
            parted, forms = self._parted_step(common, parts_at_once=bool(state))
            diff = replace(diff, steps=(common[0], common[-1]), settings=(*diff.settings, *forms))
            if parted is None:
                return diff
            return replace(
                diff,
                step=parted.step,
                values=tuple(parted.values),
                state=tuple(state),
                batch=tuple(parted.batch),
                op=self._op(left, right, parted.step),
            )

    def _parted_step(
        self, steps: Sequence[int], *, parts_at_once: bool
    ) -> tuple[_PartedStep | None, list[Changed]]:
        """The first step that differs, and arrays of its batch with another shape or type.

        Args:
            steps: Steps that both hold.
            parts_at_once: The first of them counts as different, since its state is.
        """
        for step in steps:
            batch, forms = batches_that_differ(self._left.batch(step), self._right.batch(step))
            values = values_that_differ(self._left, self._right, step, self._pairs)
            if values is None:
                self._are_values_known = False
            if batch or forms or values or parts_at_once:
                return _PartedStep(step, values or [], batch), forms
        return None, []

    def _state(self, left: Replay, right: Replay, step: int) -> list[ArrayDifference]:
        try:
            state = states_that_differ(left, right, step, self._pairs)
        except _CANNOT_RUN as error:
            self._notes.append(f"The states before step {step} are not compared. {error}")
            return []
        if state is None:
            self._notes.append(
                f"The states before step {step} are not compared: they are not recorded."
            )
        return state or []

    def _op(self, left: Replay, right: Replay, step: int) -> PartingOp | None:
        if step not in left.steps or step not in right.steps:
            self._notes.append(
                f"Which op parts is not told: step {step} cannot be replayed on both sides."
            )
            return None
        try:
            return parting_op(left, right, step)
        except _CANNOT_RUN as error:
            self._notes.append(f"Which op parts is not told. {error}")
            return None
