"""Which checkpoint is the last healthy one, which the first broken one, and what of it is hit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nanreplay.bisect.anomalies import departure
from nanreplay.logs.log_kinds import LogAnomaly
from nanreplay.logs.log_places import LoggedValue, is_before
from nanreplay.logs.logged_run import Checkpoint, LoggedRun, ScalarSeries, VariableHealth


@dataclass(frozen=True)
class CheckpointFindings:
    """What the checkpoints of a run tell."""

    last_healthy: Checkpoint | None = None
    """The last finite one before the first non-finite value."""
    before_anomaly: Checkpoint | None = None
    """The last finite one before the first anomaly; None where there is no anomaly."""
    first_broken: Checkpoint | None = None
    hit: tuple[VariableHealth, ...] = ()
    """Variables of `first_broken` that are not finite."""
    hit_layers: tuple[str, ...] = ()
    """Layers of which a weight is not finite; the optimizer's slots are no layer."""
    spared_layers: tuple[str, ...] = ()
    """Layers of which all weights are finite."""
    growth: tuple[str, ...] = ()
    """Variables that grew from checkpoint to checkpoint."""
    meant: tuple[str, ...] = ()
    """Variables that are infinite in every checkpoint, as masks are."""
    later_finite: int = 0
    """How many checkpoints that were written after the first non-finite value are finite."""
    order: str | None = None
    """Why checkpoints and log cannot be put in order; None where they can."""


def look_at_checkpoints(
    run: LoggedRun,
    series: ScalarSeries | None,
    first: LoggedValue | None,
    anomaly: LogAnomaly | None,
    triggers: Sequence[LogAnomaly],
) -> CheckpointFindings:
    """Find the last healthy and the first broken checkpoint.

    Args:
        run: The run; its checkpoints are in order.
        series: The series of `first`.
        first: The first non-finite value; None where none was logged, or it is none of the
            training's own.
        anomaly: The first anomaly before it.
        triggers: What happened at that point.
    """
    is_log_finite = first is None and bool(run.of_role("loss"))
    meant = _meant(run.checkpoints, is_log_finite=is_log_finite)
    healthy, broken = _until_broken(run.checkpoints, meant)
    order = None
    later_finite = 0
    if first is not None and series is not None and healthy:
        known = [is_before(each, first, series, run) for each in healthy]
        if all(each is None for each in known):
            order = "neither names nor times tell which of them came before that value"
            if broken is None:
                healthy = []
        else:
            pairs = zip(healthy, known, strict=True)
            later_finite = known.count(False)
            healthy = [each for each, before in pairs if before is not False]
    starts = []
    for each in (anomaly, *triggers):
        if each is not None:
            starts.append(each.value)
    start = min(starts, key=lambda value: value.step, default=None)
    before = None
    if start is not None and series is not None and order is None:
        before = _resumable([each for each in healthy if is_before(each, start, series, run)])
    hit = tuple(_hit(broken, meant)) if broken is not None else ()
    hit_layers, spared = _layers(broken, hit)
    return CheckpointFindings(
        last_healthy=_resumable(healthy),
        before_anomaly=before,
        first_broken=broken,
        hit=hit,
        hit_layers=hit_layers,
        spared_layers=spared,
        growth=tuple(_growth(healthy)),
        meant=tuple(sorted(meant)),
        later_finite=later_finite,
        order=order,
    )


def _resumable(healthy: Sequence[Checkpoint]) -> Checkpoint | None:
    """The last one; of several after as many updates, one that a training can be resumed from."""
    if not healthy:
        return None
    last = healthy[-1]
    for each in reversed(healthy):
        is_same_step = each.step is not None and each.step == last.step
        if is_same_step and each.kind != "SavedModel":
            return each
    return last


def _until_broken(
    checkpoints: Sequence[Checkpoint], meant: frozenset[str]
) -> tuple[list[Checkpoint], Checkpoint | None]:
    """The healthy checkpoints before the first broken one, and that one."""
    healthy: list[Checkpoint] = []
    for checkpoint in checkpoints:
        if not checkpoint.variables:
            continue
        if _hit(checkpoint, meant):
            return healthy, checkpoint
        # One that was read in part shows nothing bad, and still proves nothing.
        if checkpoint.error is None:
            healthy.append(checkpoint)
    return healthy, None


def _hit(checkpoint: Checkpoint, meant: frozenset[str]) -> list[VariableHealth]:
    return [each for each in checkpoint.broken if each.nan or each.name not in meant]


def _meant(checkpoints: Sequence[Checkpoint], *, is_log_finite: bool) -> frozenset[str]:
    """Variables with the same infinities in every checkpoint: constants of the program.

    Of a single checkpoint that is told only where the log is finite.
    """
    counts: dict[str, set[tuple[int, int]]] = {}
    n_seen: dict[str, int] = {}
    for checkpoint in checkpoints:
        for each in checkpoint.variables:
            counts.setdefault(each.name, set()).add((each.nan, each.inf))
            n_seen[each.name] = n_seen.get(each.name, 0) + 1
    names = set()
    for name, seen in counts.items():
        nan, inf = next(iter(seen))
        is_same = len(seen) == 1 and not nan and inf
        if is_same and (n_seen[name] > 1 or is_log_finite) and len(counts) > 1:
            names.add(name)
    # a model of which everything is infinite means nothing of it
    broken = sum(any(nan or inf for nan, inf in seen) for seen in counts.values())
    return frozenset(names) if 2 * broken < len(counts) else frozenset()


def _layers(
    checkpoint: Checkpoint | None, hit: Sequence[VariableHealth]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if checkpoint is None:
        return (), ()
    bad = set()
    for each in hit:
        if each.part == "weight":
            bad.add(each.layer)
    hit_layers: dict[str, None] = {}
    spared: dict[str, None] = {}
    for variable in checkpoint.variables:
        if variable.part == "weight":  # the optimizer's slots are no layer
            layers = hit_layers if variable.layer in bad else spared
            layers[variable.layer] = None
    return tuple(hit_layers), tuple(spared)


def _growth(healthy: Sequence[Checkpoint]) -> Iterator[str]:
    """Weights whose largest magnitude grew from checkpoint to checkpoint, the first ones."""
    by_name: dict[str, list[tuple[str, float]]] = {}
    for checkpoint in healthy:
        for each in checkpoint.variables:
            if each.part == "weight":
                by_name.setdefault(each.name, []).append((checkpoint.path, each.largest))
    grown = []
    for name, values in by_name.items():
        largest = np.array([value for _, value in values])
        left = departure(largest) if len(largest) >= 4 else None
        if left is not None and left.rises and left.count >= 2 and left.usual > 0:
            grown.append((left.last / left.usual, name, left.usual, left.last, left.count))
    for factor, name, usual, last, count in sorted(grown, reverse=True)[:3]:
        yield (
            f"the largest magnitude in `{name}` grew {factor:.2g} times over the last {count} "
            f"checkpoints, from {usual:.3g} to {last:.3g}"
        )
