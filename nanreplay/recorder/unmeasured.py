"""Variables that the last steps did not measure: an incident may have begun there, some steps before it was seen."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from nanreplay.program.fingerprint import Layout
from nanreplay.records import BatchRecord, ProgramRecord


def unmeasured_before(
    step: int, batches: Mapping[int, BatchRecord], programs: Mapping[str, ProgramRecord], leave_out: Collection[int]
) -> dict[int, list[int]]:
    """Variables by step, back from the step before `step` to the last one that measured all.

    Args:
        step: The step that was seen to fail.
        batches: The window.
        programs: Its programs.
        leave_out: Variables that do not count.
    """
    found: dict[int, list[int]] = {}
    layouts = {name: Layout.parse(program.signature.watch_layout) for name, program in programs.items()}
    for earlier in range(step - 1, min(batches, default=step) - 1, -1):
        batch = batches.get(earlier)
        if batch is None or batch.fingerprint is None or batch.program not in layouts:
            break
        variables = [index for index in layouts[batch.program].unmeasured(np.asarray(batch.fingerprint)) if index not in leave_out]
        if not variables:
            break
        found[earlier] = variables
    return found
