"""From a capture to a report: replay, judge, bisect, diagnose, try fixes. What the command line, the terminal interface and pytest call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from nanreplay.capture import Capture
from nanreplay.errors import FormatError, MissingPartError, ReplayError, UnsupportedOpError
from nanreplay.findings import Cause, Findings, FixResult, Verdict
from nanreplay.report.contents import Report
from nanreplay.report.sentence import sentence

if TYPE_CHECKING:
    from nanreplay.bisect import Bisection
    from nanreplay.replay import Replay

# The captures of several workers of one training: which worker's step made the value that reached
# all of them.

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
    others = tuple(
        replace(each, worker=worker[0]) for each in findings.other_origins if each.phase != "update"
    )
    return replace(
        bisection,
        findings=replace(
            findings, origin=replace(findings.origin, worker=worker[0]), other_origins=others
        ),
    )


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
            raise FormatError(
                f"{path}: is not the capture of one of several workers, so it cannot be explained together with others."
            )
        if worker[0] in found:
            raise FormatError(f"{path}: is of worker {worker[0]}, and so is {found[worker[0]]}.")
        found[worker[0]] = path


def explain_run(
    paths: Sequence[str | os.PathLike[str]], explained: Callable[[str], Report]
) -> Report:
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
    return (
        origin is None,
        origin is not None and origin.worker is None,
        report.incident_step if origin is None else origin.step,
    )


# --- report.explain

Fixes: TypeAlias = Literal["fast", "all", "none"] | Sequence[str]
"""Which fixes are tried: those that fit and take less than FAST_S in all, all that fit, none, or those that are named."""
FAST_S = 5.0
"""Seconds that fixes may take when nobody asked for them."""
Progress: TypeAlias = Callable[[int, int], None]
Say: TypeAlias = Callable[[str], None]


def explain(
    path: str | os.PathLike[str],
    *,
    trust: bool = False,
    fixes: Fixes = "fast",
    progress: Progress | None = None,
    say: Say | None = None,
    before_fixes: Callable[[Report], None] | None = None,
) -> Report:
    """Replay the capture at `path`, explain its first non-finite value, and try what prevents it.

    ```python
    print(explain("run.h5").sentence)
    ```

    Args:
        path: The capture file.
        trust: Let ops that touch files, the network or processes run; only for captures of your own.
        fixes: Which fixes to try, such as `["clipnorm=1.0", "lr=0.1"]`; see `Fixes`.
        progress: Called with (steps done, steps in all).
        say: Called with a line before each part of the work.
        before_fixes: Called with the report as it is before fixes are tried, for readers who do not want to wait for them.

    Raises:
        CaptureError: The file cannot be read.
        FixError: There is no such fix.
        UnsafeProgramError: The program reaches beyond tensors.
        UnsupportedOpError: The program holds an op that cannot be replayed.
    """
    from nanreplay.bisect import Bisection
    from nanreplay.diagnose import judge
    from nanreplay.replay import Replay

    with Capture(path) as capture, Replay(capture, trust=trust) as replay:
        verdict = judge(replay, progress=progress)
        without = verdict.kind in (
            "inconclusive",
            "transient",
        )  # a fault has no origin in the program
        bisection = (
            Bisection(Findings(reason=verdict.reason))
            if without
            else as_worker(capture, _bisected(replay, say))
        )
        causes, unsaid = _causes(replay, bisection, verdict)
        if before_fixes is not None:
            notes = _notes(capture.incident.notes, replay.notes, bisection.findings.notes, unsaid)
            before_fixes(
                report_of(capture, verdict, replace(bisection.findings, notes=notes), causes)
            )
        tried, said = _tried(replay, bisection, causes, fixes, progress, say)
        findings = bisection.findings
        findings = replace(
            findings,
            notes=_notes(capture.incident.notes, replay.notes, findings.notes, unsaid, said),
        )
        return report_of(capture, verdict, findings, causes, tried)


def _bisected(replay: Replay, say: Say | None) -> Bisection:
    from nanreplay.bisect import Bisection, bisect

    try:
        return bisect(replay, replay.capture.timeline_record(), progress=say)
    except (UnsupportedOpError, ReplayError, MissingPartError) as error:
        return Bisection(Findings(reason=f"The step cannot be run op by op. {error}"))


def _causes(
    replay: Replay, bisection: Bisection, verdict: Verdict
) -> tuple[tuple[Cause, ...], list[str]]:
    """The causes, and a line when a rule failed: what was found is worth more than why, and is told all the same."""
    from nanreplay.diagnose import causes_of

    try:
        return causes_of(replay, bisection, verdict, replay.capture.timeline_record()), []
    except Exception as error:
        if os.environ.get("NANREPLAY_DEBUG"):
            raise
        return (), [
            f"The cause could not be told; please report this: {type(error).__name__}: {error}"
        ]


def _tried(
    replay: Replay,
    bisection: Bisection,
    causes: Sequence[Cause],
    fixes: Fixes,
    progress: Progress | None,
    say: Say | None,
) -> tuple[tuple[FixResult, ...], list[str]]:
    """What the fixes gave, and a line when some were left out."""
    from nanreplay.whatif.trial import what_if

    named = None if isinstance(fixes, str) else list(fixes)
    if fixes == "none" or not (causes or named):
        return (), []
    if say is not None:
        say("trying fixes")
    try:
        found = what_if(
            replay,
            bisection,
            causes,
            named,
            budget_s=FAST_S if fixes == "fast" else None,
            progress=progress,
        )
    except (ReplayError, UnsupportedOpError, MissingPartError) as error:
        return (), [f"No fix could be tried. {error}"]
    if not found.left_out:
        return found.results, []
    return found.results, [
        f"Not tried within {FAST_S:.0f} s: {', '.join(found.left_out)}. `nanreplay whatif` tries them."
    ]


def report_of(
    capture: Capture,
    verdict: Verdict,
    findings: Findings,
    causes: tuple[Cause, ...] = (),
    fixes: tuple[FixResult, ...] = (),
) -> Report:
    """Everything that is said of an open capture."""
    incident, held = capture.incident, capture.steps or (capture.incident.step,)
    steps = (held[0], held[-1])
    return Report(
        path=str(capture.path),
        steps=steps,
        incident_step=incident.step,
        trigger=incident.trigger,
        verdict=verdict,
        findings=findings,
        sentence=sentence(verdict, findings, incident, steps, causes, fixes),
        causes=causes,
        fixes=fixes,
    )


def _notes(*sources: Iterable[str]) -> tuple[str, ...]:
    """Each note once, in order."""
    return tuple(dict.fromkeys(note for notes in sources for note in notes))
