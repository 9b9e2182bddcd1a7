"""How a replayed step compares with its recording.

`compare_step` makes the `StepResult` of each step that `Replay` runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanreplay.capture.arrays import as_array
from nanreplay.errors import (
    ReplayError,
    StepRaisedError,
    reason_line,
)
from nanreplay.program.fingerprint import Layout, NonFinite, ulp_distance
from nanreplay.records import (
    Signature,
    Trigger,
)


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
    is_changed: bool = False,
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
        is_changed: Whether the step is meant to be another one, so that only losses are compared.
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
        subject = _subject(bad.what, bad.subject, paths, signature)
        if bad.what == "loss" and not layout.losses:  # a logged one: that of all replicas
            subject = signature.output_names[bad.subject]
        trigger = Trigger(bad.what, subject, bad.kind)
    reference = None
    if recorded is not None and np.shape(recorded) == replayed.shape:
        reference = as_array(recorded)
    loss = step_loss
    if step_loss is None or layout.losses:
        element = _loss_element(layout, logged)
        loss = _number_at(replayed, element)
        recorded_loss = _number_at(reference, element)
    is_compared = reference is not None and not is_changed
    differences: list[Difference] = []
    if is_compared:
        differences = _differences(signature, layout, replayed, reference, paths)
    max_ulp = max((difference.ulp for difference in differences), default=0)
    return StepResult(
        step,
        finite=trigger is None,
        nonfinite=trigger,
        bit_exact=not differences if is_compared else None,
        max_ulp=max_ulp if is_compared else None,
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


def _subject(what: str, subject: int, paths: Sequence[str], signature: Signature) -> str:
    if what == "loss":
        return signature.loss_name(subject)
    return paths[subject] if 0 <= subject < len(paths) else "unknown variable"


def _element_name(signature: Signature, element: int, paths: Sequence[str]) -> str:
    kind, _, subject = signature.watch_layout[element].partition(":")
    if not subject:
        return kind.replace("_", " ")
    if kind == "loss":
        return signature.loss_name(int(subject))
    if kind == "logged":
        return f"returned {signature.output_names[int(subject)]}"
    path = _subject("variable", int(subject), paths, signature)
    return path if kind == "variable_sum" else f"gradient of {path}"
