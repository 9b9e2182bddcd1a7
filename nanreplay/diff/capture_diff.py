"""Telling two captures apart, or a capture and today's code."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nanreplay.capture import Capture
from nanreplay.diff.array_diff import batches_that_differ, states_that_differ, values_that_differ
from nanreplay.diff.diff_findings import (
    ArrayDifference,
    Changed,
    Diff,
    OpCount,
    PartingOp,
    Value,
    sentence_of,
)
from nanreplay.diff.mode_diff import parting_op
from nanreplay.errors import MissingPartError, ReplayError, UnsafeProgramError, UnsupportedOpError
from nanreplay.records import OpInfo, VariableInfo
from nanreplay.replay import Replay
from nanreplay.report.numbers import readable_number, readable_trigger
from nanreplay.rerun.model_factory import Factory, load_factory
from nanreplay.rerun.recorded_window import LearningRate, recorded_rates
from nanreplay.rerun.rerun import Rerun
from nanreplay.rerun.variable_match import is_setting, match_variables, uncounted

# What two captures say of themselves: environment, settings, variables, ops. Reads tables; runs
# nothing.

_OF_ITSELF = ("created", "script", "cpu_count")
"""Facts of a run that say nothing of its numbers."""


def environment(left: Capture, right: Capture) -> Iterator[Changed]:
    """Versions and machines that differ."""
    yield from _changed(
        {name: value for name, value in left.metadata.items() if name not in _OF_ITSELF},
        {name: value for name, value in right.metadata.items() if name not in _OF_ITSELF},
    )


def _changed(left: Mapping[str, str], right: Mapping[str, str]) -> Iterator[Changed]:
    for name in dict.fromkeys((*left, *right)):
        if left.get(name) != right.get(name):
            yield Changed(name, left.get(name), right.get(name))


def settings(left: Capture, right: Capture) -> Iterator[Changed]:
    """The incident, the learning rate and how the step was compiled, where they differ."""
    yield from _changed(_settings(left), _settings(right))


def _settings(capture: Capture) -> dict[str, str]:
    incident = capture.incident
    found = {
        "incident": "none"
        if incident.trigger.what == "manual"
        else f"step {incident.step}: {readable_trigger(incident.trigger)}"
    }
    rates = sorted(set(recorded_rates(capture.timeline_record()).values()))
    if rates:
        found["learning rate"] = " to ".join(
            dict.fromkeys(readable_number(rate) for rate in (rates[0], rates[-1]))
        )
    program = program_of(capture)
    if program is not None:
        signature = capture.signature(program)
        found |= {
            "compilation": signature.compilation,
            "policy": signature.policy,
            "loss scaling": "yes" if signature.loss_scaled else "no",
        }
        found["inputs"] = ", ".join(
            f"{spec.path or 'batch'} {spec.dtype}" for spec in signature.inputs
        )
    return found


def program_of(capture: Capture) -> str | None:
    """Id of the program of the incident's step, or of the last step that has one."""
    for step in reversed(capture.steps):
        program = capture.batch(step).program
        if program and (step <= capture.incident.step):
            return program
    return None


def variables(
    left: Sequence[VariableInfo], right: Sequence[VariableInfo], pairs: Mapping[int, int]
) -> Iterator[Changed]:
    """Variables that one side alone has, and those of another shape or type; metrics aside.

    Args:
        left: Table of the left side.
        right: Table of the right side.
        pairs: Index of the right variable by that of the left one.
    """
    for index, info in enumerate(left):
        other = right[pairs[index]] if index in pairs else None
        if info.role != "metric" and (other is None or _form(other) != _form(info)):
            yield Changed(info.path, _form(info), None if other is None else _form(other))
    taken = set(pairs.values())
    for index, info in enumerate(right):
        if info.role != "metric" and index not in taken:
            yield Changed(info.path, None, _form(info))


def _form(info: VariableInfo) -> str:
    return f"{info.dtype}[{', '.join(map(str, info.shape))}]"


def ops(left: Sequence[OpInfo], right: Sequence[OpInfo]) -> Iterator[OpCount]:
    """Kinds of ops of which the sides have a different number, in the order of the left side's table."""
    counts = _count(left), _count(right)
    for kind in dict.fromkeys((*counts[0], *counts[1])):
        if counts[0][kind] != counts[1][kind]:
            yield OpCount(*kind, counts[0][kind], counts[1][kind])


def _count(ops: Sequence[OpInfo]) -> Counter[tuple[str, str, str]]:
    return Counter(
        (op.type, uncounted(op.layer_path), op.phase) for op in ops if op.phase != "watch"
    )


# --- diff.captures


def diff_captures(
    left: str | os.PathLike[str],
    right: str | os.PathLike[str],
    *,
    trust: bool = False,
    renamed: Mapping[str, str] | None = None,
) -> Diff:
    """Say where two captures part: the first step, what differs after it, and the first op that gives other values.

    ```python
    print(diff_captures("monday.h5", "tuesday.h5").sentence)
    ```

    Args:
        left: A capture.
        right: Another.
        trust: Let their programs reach files, the network or processes; only for captures of your own.
        renamed: What parts of the left side's variable paths are called on the right.

    Raises:
        CaptureError: A file cannot be read.
    """
    with Capture(left) as one, Capture(right) as other:
        return _Comparison(one, other, str(left), str(right), trust, renamed or {}).diff()


def diff_today(
    path: str | os.PathLike[str],
    factory: str | Factory,
    *,
    allow_missing: bool = False,
    renamed: Mapping[str, str] | None = None,
    learning_rate: LearningRate = "auto",
    trust: bool = False,
) -> Diff:
    """Say where a capture and today's code part, from the recorded state on the recorded batches.

    Args:
        path: The capture.
        factory: As for `nanreplay.replay_with`, and so are the others.
        allow_missing: Let variables without recorded state keep today's values.
        renamed: What parts of recorded variable paths are called today.
        learning_rate: Whose learning rate holds.
        trust: Let the recorded program reach files, the network or processes.

    Raises:
        CaptureError: The file cannot be read.
        ModelError: Today's model cannot be made, or the recorded state does not fit it.
        ReplayError: The capture holds no batches that can be replayed.
    """
    name, make = load_factory(factory)
    with Capture(path) as capture, tempfile.TemporaryDirectory(prefix="nanreplay-") as folder:
        today = Rerun(capture, name, make, allow_missing, renamed, learning_rate, trust)
        run = today.run(str(Path(folder) / "today.h5"))
        written = run.write()
        run.close()
        if written is None:
            raise ReplayError(f"Today's steps with {name} could not be recorded.")
        with Capture(written) as other:
            comparison = _Comparison(
                capture, other, str(path), f"today's {name}", trust, renamed or {}
            )
            found = comparison.diff()
    return replace(found, notes=(*today.notes, *found.notes))


class _Comparison:
    """Two open captures."""

    def __init__(
        self,
        left: Capture,
        right: Capture,
        left_name: str,
        right_name: str,
        trust: bool,
        renamed: Mapping[str, str],
    ) -> None:
        self._left, self._right, self._names, self._trust = (
            left,
            right,
            (left_name, right_name),
            trust,
        )
        one, other = left.variables_info, right.variables_info
        self._pairs = dict(match_variables(one, other, renamed).pairs)
        rates = [
            [index for index, info in enumerate(infos) if is_setting(info)]
            for infos in (one, other)
        ]
        if len(rates[0]) == len(rates[1]) == 1:
            self._pairs[rates[0][0]] = rates[1][0]
        self._notes: list[str] = []

    def diff(self) -> Diff:
        """Compare what they hold, then run the step at which they part."""
        left, right = self._left, self._right
        found = Diff(
            *self._names, same=None, sentence="",
            environment=tuple(environment(left, right)),
            settings=tuple(settings(left, right)),
            variables=tuple(variables(left.variables_info, right.variables_info, self._pairs)),
        )  # fmt: skip
        programs = program_of(left), program_of(right)
        if programs[0] and programs[1]:
            counted = ops(left.program(programs[0]).ops, right.program(programs[1]).ops)
            found = replace(found, ops=tuple(counted))
        found = self._with_step(found)
        differs = bool(
            found.settings
            or found.variables
            or found.ops
            or found.step is not None
            or found.state
            or found.batch
        )
        compared = found.steps is not None and not self._unknown
        same = False if differs else True if compared else None
        found = replace(found, same=same, notes=tuple(dict.fromkeys(self._notes)))
        return replace(found, sentence=sentence_of(found))

    def _with_step(self, found: Diff) -> Diff:
        self._unknown = False
        common = [step for step in self._left.steps if step in set(self._right.steps)]
        if not common:
            self._notes.append("The two hold no step in common, so no values are compared.")
            return found
        found = replace(found, steps=(common[0], common[-1]))
        with (
            Replay(self._left, trust=self._trust) as left,
            Replay(self._right, trust=True) as right,
        ):
            state = self._state(left, right, common[0])
            parted: int | None = common[0] if state else None
            values: list[Value] = []
            batch: list[ArrayDifference] = []
            for step in common:
                batch, forms = batches_that_differ(self._left.batch(step), self._right.batch(step))
                known = values_that_differ(self._left, self._right, step, self._pairs)
                self._unknown = self._unknown or known is None
                values = known or []
                found = replace(found, settings=(*found.settings, *forms))
                if batch or forms or values or parted is not None:
                    parted = step
                    break
            if parted is None:
                return found
            op = self._op(left, right, parted)
        return replace(
            found, step=parted, values=tuple(values), state=tuple(state), batch=tuple(batch), op=op
        )

    def _state(self, left: Replay, right: Replay, step: int) -> list[ArrayDifference]:
        try:
            state = states_that_differ(left, right, step, self._pairs)
        except (ReplayError, UnsafeProgramError, UnsupportedOpError, MissingPartError) as error:
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
        except (ReplayError, UnsafeProgramError, UnsupportedOpError, MissingPartError) as error:
            self._notes.append(f"Which op parts is not told. {error}")
            return None
