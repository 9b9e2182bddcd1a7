"""What was set from outside of the training step: a learning rate, weights."""

from __future__ import annotations

import numpy as np

from nanreplay.bisect.growth import learning_rate_at
from nanreplay.diagnose.case import Case, shown
from nanreplay.findings import Cause


def set_from_outside(case: Case) -> Cause | None:
    """A variable was non-finite before the step, and no recorded step made it so."""
    search = case.bisection.search
    if case.kind != "set" or search is None or search.given is None or not case.operands:
        return None
    given, name = search.given, case.operands[0].name
    paths = [info.path for info in case.replay.variables]
    is_rate = paths.index(name) == case.replay.signature(case.step).learning_rate
    holder = f"`{name}`, the learning rate of the optimizer," if is_rate else f"`{name}`"
    held = "NaN" if np.isnan(case.value) else shown(case.value)
    at = f" at {list(case.output.indices[0])}" if case.output and any(case.output.indices) else ""
    if not given.step:
        sentence = (
            f"{holder} was {held}{at} before step 0, the first that was recorded: no step of the "
            "recording made it so."
        )
        return Cause("other", 0.95, sentence)
    rate = learning_rate_at(case.timeline, given.step - 1) if is_rate else None
    evidence = () if rate is None else (f"In step {given.step - 1} it was {rate:.6g}.",)
    sentence = (
        f"{holder} was set to {held}{at} between steps {given.step - 1} and {given.step}, outside "
        "of the training step: a callback did that, or code between the steps."
    )
    return Cause("other", 0.95, sentence, evidence)
