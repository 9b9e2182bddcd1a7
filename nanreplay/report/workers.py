"""The captures of several workers of one training: which worker's step made the value that reached all of them.

Each worker records its own step, and what the collective ops gave it, so that each file replays alone. A value that came through a
collective op was born on another worker.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nanreplay.capture import Capture
from nanreplay.errors import FormatError
from nanreplay.findings import Findings, Report

if TYPE_CHECKING:
    from nanreplay.bisect import Bisection

_COLLECTIVE = "Collective"
"""How the types of ops by which workers exchange tensors begin."""


def worker_of(capture: Capture) -> tuple[int, int] | None:
    """Return the worker that recorded a capture and how many there were; None where there was one."""
    metadata = capture.metadata
    if not metadata.get("workers", "").isdigit() or not metadata.get("worker", "").isdigit():
        return None
    return int(metadata["worker"]), int(metadata["workers"])


def as_worker(capture: Capture, bisection: Bisection) -> Bisection:
    """Return what was found with the worker named; an op that hands on what other workers sent is no origin."""
    worker, findings = worker_of(capture), bisection.findings
    if worker is None or findings.origin is None:
        return bisection
    if (findings.origin.op_type or "").startswith(_COLLECTIVE):
        said = (
            f"It came from another worker: what worker {worker[0]} of {worker[1]} computed in step {findings.origin.step} is finite, "
            "and what the workers exchanged is not. Give the files of all workers together: nanreplay bisect run.*.h5"
        )
        return type(bisection)(Findings(reason=said, notes=findings.notes))
    if findings.origin.phase == "update":
        return bisection
    others = tuple(replace(each, worker=worker[0]) for each in findings.other_origins if each.phase != "update")
    return replace(bisection, findings=replace(findings, origin=replace(findings.origin, worker=worker[0]), other_origins=others))


def check_one_run(paths: Sequence[str]) -> None:
    """Check that files are of different workers of one training.

    Raises:
        FormatError: They are not.
    """
    found: dict[int, str] = {}
    for path in paths:
        with Capture(path) as capture:
            worker = worker_of(capture)
        if worker is None:
            raise FormatError(f"{path}: is not the capture of one of several workers, so it cannot be explained together with others.")
        if worker[0] in found:
            raise FormatError(f"{path}: is of worker {worker[0]}, and so is {found[worker[0]]}.")
        found[worker[0]] = path


def explain_run(paths: Sequence[str | os.PathLike[str]], explained: Callable[[str], Report]) -> Report:
    """Explain the captures of several workers and return the report of the one whose own step failed first.

    Args:
        paths: One file a worker.
        explained: Explains one capture.
    """
    names = [os.fspath(path) for path in paths]
    check_one_run(names)
    reports = [explained(name) for name in names]
    first = min(reports, key=_rank)
    others = [f"{report.path}: {report.sentence}" for report in reports if report is not first]
    return replace(first, findings=replace(first.findings, notes=(*first.findings.notes, *others)))


def _rank(report: Report) -> tuple[Any, ...]:
    """Origins of a worker's own first, by step; then what all workers do alike."""
    origin = report.findings.origin
    return (origin is None, origin is not None and origin.worker is None, report.incident_step if origin is None else origin.step)
