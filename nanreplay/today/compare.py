"""Today's steps beside the recorded ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nanreplay.capture import Capture
from nanreplay.records import ArrayLike, BatchRecord, Signature, VariableInfo
from nanreplay.replay import StepResult
from nanreplay.replay.compare import compare_step
from nanreplay.today.match import is_setting, match_variables
from nanreplay.today.training import TodayRun


def step_results(capture: Capture, renamed: Mapping[str, str], run: TodayRun) -> tuple[StepResult, ...]:
    """Today's steps, each held against its recording where both watched the same things.

    Args:
        capture: The recording.
        renamed: What parts of recorded paths are called today.
        run: Today's steps.
    """
    named = _recorded_indices(capture.variables_info, run.session.variables.infos, renamed)
    paths = [info.path for info in capture.variables_info]
    results = []
    for row in run.session.timeline.rows:
        names = tuple(_renumbered(name, named) for name in row.layout)
        batch = capture.batch(row.step)
        signature = Signature("graph", (), (), watch_layout=names, loss_scaled="loss_scale" in names)
        found = compare_step(
            row.step,
            signature,
            row.values,
            _in_order(capture, batch, names),
            paths=paths,
            count_skips=False,
            bad_variable=lambda i: "",
        )
        is_bad = row.step == run.failed
        results.append(replace(found, finite=not is_bad, nonfinite=run.trigger if is_bad else None))
    if run.failed is not None and all(result.step != run.failed for result in results):  # it raised before it was watched
        results.append(StepResult(run.failed, False, run.trigger, None, None, None, None))
    return tuple(results)


def _recorded_indices(recorded: Sequence[VariableInfo], today: Sequence[VariableInfo], renamed: Mapping[str, str]) -> list[int]:
    """Which recorded variable each of today's is; -1 for none."""
    pairs = match_variables(recorded, today, renamed).pairs
    settings = [[index for index, info in enumerate(infos) if is_setting(info)] for infos in (recorded, today)]
    if len(settings[0]) == len(settings[1]) == 1:
        pairs[settings[0][0]] = settings[1][0]
    found = {theirs: ours for ours, theirs in pairs.items()}
    return [found.get(index, -1) for index in range(len(today))]


def _renumbered(name: str, named: Sequence[int]) -> str:
    """An element's name with the recorded variable's index; -1 is one that the recording does not have."""
    kind, _, subject = name.partition(":")
    if not subject or kind == "loss":
        return name
    index = int(subject)
    return f"{kind}:{named[index] if 0 <= index < len(named) else -1}"


def _in_order(capture: Capture, batch: BatchRecord, names: Sequence[str]) -> ArrayLike | None:
    """The recorded fingerprint in the order of today's; None when today's step does not watch all that the recorded one did.

    An optimizer's slots need not be watched: they follow from the gradients and the weights.
    """
    program = batch.program or capture.batch(capture.incident.step).program
    held = list(capture.signature(program).watch_layout) if program else []
    values: Any = batch.fingerprint
    if values is None or len(held) != len(values) or len(set(names)) != len(names) or not set(names) <= set(held):
        return None
    unseen = [int(name.partition(":")[2] or -1) for name in set(held) - set(names)]
    if any(index < 0 or capture.variables_info[index].role != "optimizer" for index in unseen):
        return None
    return values[[held.index(name) for name in names]]
