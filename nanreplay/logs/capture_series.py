"""The timeline of a capture as series, so that logs and captures are looked at alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nanreplay.capture import Capture
from nanreplay.logs.logged_run import Role, ScalarSeries

_ROLES: dict[str, Role] = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "loss_scale": "loss_scale",
}
_TRIGGERS = {"gradient_norm": "gradient", "weight_norm": "variable"}
"""What an incident begins with when a norm is not finite."""


def series_of_capture(path: Path) -> list[ScalarSeries]:
    """Loss, learning rate, loss scale, and the norms over all variables, of every recorded step.

    A column that was not recorded is left out, and so are steps at which a norm was not measured.

    Raises:
        CaptureError: The capture cannot be read.
    """
    with Capture(path) as capture:
        timeline, incident = capture.timeline_record(), capture.incident
    steps = np.asarray(timeline.columns.get("step", ()), np.float64)
    unknown = np.full(len(steps), np.nan)
    series = []
    for name, role in _ROLES.items():
        values = np.asarray(timeline.columns.get(name, ()), np.float64)
        # a loss that is NaN was recorded so; a learning rate of NaN was not recorded
        keep = np.ones(len(values), bool) if name == "loss" else np.isfinite(values)
        is_told = np.isfinite(values).any() or (name == incident.trigger.what)
        if len(values) and keep.any() and is_told:
            series.append(
                ScalarSeries(
                    name, role, "step", steps[keep], values[keep], unknown[keep], str(path)
                )
            )
    measured: tuple[tuple[str, Role], ...] = (
        ("gradient_norm", "gradient_norm"),
        ("weight_norm", "weights"),
    )
    for name, role in measured:
        matrix = timeline.matrix(name)
        if matrix.size and len(matrix) == len(steps):
            with np.errstate(all="ignore"):
                norms = np.sqrt(np.square(matrix).sum(axis=1))
            # NaN may also mean that the step was not measured; that of the incident is told
            is_hit = incident.trigger.what == _TRIGGERS[name]
            keep = np.isfinite(norms) | ((steps == incident.step) & is_hit)
            norms[(steps == incident.step) & is_hit] = np.nan
            if keep.any():
                series.append(
                    ScalarSeries(
                        name, role, "step", steps[keep], norms[keep], unknown[keep], str(path)
                    )
                )
    return series
