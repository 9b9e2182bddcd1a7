"""Holding a replayed step against what was recorded of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanreplay.program.fingerprint import Layout, NonFinite, ulp_distance
from nanreplay.records import Signature, Trigger, loss_name


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
    logged = [index for index, name in enumerate(signature.output_names) if "loss" in name.rpartition("/")[2]]
    bad, _ = layout.find_nonfinite(found, loss_scaled=scaled, bad_variable=bad_variable, logged_losses=logged)
    if bad is None:
        bad = next((NonFinite("variable", index, kind) for index in slots if (kind := bad_variable(index))), None)
    trigger = None if bad is None else Trigger(bad.what, _subject(bad.what, bad.subject, paths, signature.loss_of), bad.kind)
    stand_ins = [element for element, output in layout.logged if output in logged]
    loss = next(iter([element for element, _ in layout.losses] or stand_ins), None)
    value = None if loss is None else float(found[loss])
    held_loss = None if loss is None or recorded is None or np.shape(recorded) != found.shape else float(np.asarray(recorded)[loss])
    if step_loss is not None and not layout.losses:
        value, held_loss = step_loss, recorded_loss
    differences: list[Difference] = []
    if recorded is not None and np.shape(recorded) == found.shape:
        held = np.asarray(recorded)
        with np.errstate(over="ignore"):
            found = found.astype(held.dtype)  # a replay in float64 is compared in the recorded type, and judged in its own
        measured = layout.measured(found) & layout.measured(held)
        for element in np.flatnonzero(measured & ~(np.isnan(found) & np.isnan(held)) & (found != held)):
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
