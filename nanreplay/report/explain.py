"""From a capture to a report: replay, judge, bisect, diagnose, try fixes.

The command line, the terminal interface, the pytest plugin and users' scripts call `explain`. The
captures of several workers of one training are explained together by `explain_run`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from nanreplay import notebook
from nanreplay.capture import Capture
from nanreplay.errors import (
    CaptureNotFoundError,
    FormatError,
    MissingPartError,
    ReplayError,
    UnsupportedOpError,
    own_error,
)
from nanreplay.findings import Cause, Findings, FixResult, Verdict
from nanreplay.limits import fewer_collections, peak_bytes
from nanreplay.report.contents import Report
from nanreplay.report.inventory import size_of_variables
from nanreplay.report.sentence import sentence

if TYPE_CHECKING:
    from nanreplay.bisect import Bisection
    from nanreplay.bisect.failing_step import StepTraces
    from nanreplay.capture.storage import Location
    from nanreplay.replay import Replay

Fixes: TypeAlias = Literal["fast", "all", "none"] | Sequence[str]
"""Which fixes are tried.

`fast`: all that fit where each takes no longer than 20 eager steps; on others, as far as the work
of FAST_S goes. `all`: all that fit. `none`: none. Otherwise those that are named.
"""
FAST_S = 5.0
"""Seconds of work that fixes may take when nobody asked for them, counted by ops and steps."""
Progress: TypeAlias = Callable[[int, int], None]
Say: TypeAlias = Callable[[str], None]


class Recorded(Protocol):
    """What has written a capture, such as a `Recorder`."""

    @property
    def path(self) -> Location | None:
        """The capture; None where none was written."""


def explain(
    path: str | os.PathLike[str] | Recorded,
    *,
    trust: bool = False,
    fixes: Fixes = "fast",
    progress: Progress | None = None,
    say: Say | None = None,
    before_fixes: Callable[[Report], None] | None = None,
    each_fix: Callable[[FixResult], None] | None = None,
) -> Report:
    """Replay the capture at `path`, explain its first non-finite value, and try what prevents it.

    Examples:
        >>> report = explain("run.h5", fixes="none")
        >>> report.findings.origin.op_type
        'Log'

        A fix of one's own choice, tried on the recorded steps:

        >>> report = explain("run.h5", fixes=["epsilon=1e-7"])
        >>> [(fix.name, fix.prevents) for fix in report.fixes]
        [('epsilon', True)]

    Args:
        path: The capture file, a URL that fsspec opens, or the `Recorder` that wrote it.
        trust: Let ops that touch files, the network or processes run. False unless given; only for
            captures of your own.
        fixes: Which fixes to try: "fast" (those that fit: all of them where each takes no longer
            than 20 eager steps, else about 5 seconds of work; the default), "all", "none", or a
            list of them as `nanreplay whatif --fix` takes them.
        progress: Called with (steps done, steps in all). A notebook shows it unless it is given.
        say: Called with a line before each part of the work.
        before_fixes: Called with the report as it is before fixes are tried, for readers who do
            not want to wait for them.
        each_fix: Called with what each fix gave, as soon as it was tried.

    Returns:
        The report; its `sentence` says the rest in short.

    Raises:
        CaptureError: The file cannot be read, or the recorder has written none.
        FixError: There is no such fix.
        UnsafeProgramError: The program reaches beyond tensors.
        UnsupportedOpError: The program holds an op that cannot be replayed.
    """
    from nanreplay.replay import Replay

    with contextlib.ExitStack() as opened:
        opened.enter_context(fewer_collections())
        if progress is None and say is None and notebook.is_kernel():
            from nanreplay.report.cell_page import cell_progress

            cell = opened.enter_context(cell_progress())
            progress, say = cell.progress, cell.say
        capture = opened.enter_context(Capture(_path_of(path)))
        replay = opened.enter_context(Replay(capture, trust=trust))
        explained = explain_replay(replay, progress=progress, say=say)
        if before_fixes is not None:
            before_fixes(explained.report())
        return explained.report(fixes, progress=progress, say=say, each_fix=each_fix)


@dataclass(frozen=True)
class ExplainedReplay:
    """What a replay showed and why; fixes can be tried on it as long as the replay is open."""

    replay: Replay
    verdict: Verdict
    bisection: Bisection
    causes: tuple[Cause, ...]
    """The likeliest first."""
    cause_notes: Sequence[str]

    def report(
        self,
        fixes: Fixes = "none",
        *,
        progress: Progress | None = None,
        say: Say | None = None,
        each_fix: Callable[[FixResult], None] | None = None,
        pause: Callable[[], None] | None = None,
    ) -> Report:
        """Try fixes, and return all that is known; the arguments are those of `explain`.

        Args:
            fixes: Which fixes to try; none unless given.
            progress: Called with (fixes tried, fixes in all).
            say: Called with a line before each part of the work.
            each_fix: Called with what each fix gave.
            pause: Called before each step that a fix is tried on, and may use the replay.

        Raises:
            FixError: There is no such fix.
        """
        tried, fix_notes = _tried(
            self.replay, self.bisection, self.causes, fixes, progress, say, each_fix, pause
        )
        capture, findings = self.replay.capture, self.bisection.findings
        recorded = capture.incident.notes
        notes = _notes(recorded, self.replay.notes, findings.notes, self.cause_notes, fix_notes)
        return report_of(capture, self.verdict, replace(findings, notes=notes), self.causes, tried)


@fewer_collections()
def explain_replay(
    replay: Replay, *, progress: Progress | None = None, say: Say | None = None
) -> ExplainedReplay:
    """Explain the first non-finite value of an open capture, and leave its replay open.

    For who goes on to look into the step: what ran is in the `bisection`, and runs once.

    Args:
        replay: The capture's replay.
        progress: Called with (steps done, steps in all).
        say: Called with a line before each part of the work.
    """
    from nanreplay.bisect import Bisection
    from nanreplay.bisect.failing_step import StepTraces
    from nanreplay.diagnose import judge

    traces = StepTraces(replay)
    verdict = judge(replay, progress=_told_to_the_end(progress, say), traces=traces)
    replay.make_room_if_large()
    if verdict.kind in ("inconclusive", "transient"):  # no origin in the program
        bisection = Bisection(Findings(reason=verdict.reason))
    else:
        bisection = as_worker(replay.capture, _bisected(replay, say, traces))
    if say is not None:
        say("telling the cause")
    causes, cause_notes = _causes(replay, bisection, verdict)
    return ExplainedReplay(replay, verdict, bisection, causes, cause_notes)


def _path_of(given: str | os.PathLike[str] | Recorded) -> str | os.PathLike[str]:
    if isinstance(given, (str, os.PathLike)):
        return given
    if given.path is None:
        raise CaptureNotFoundError(
            "The recorder has written no capture: no step that it saw was non-finite."
        )
    return given.path


def _told_to_the_end(progress: Progress | None, say: Say | None) -> Progress:
    """Return a progress that says what comes once the window has run, which takes longer."""

    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress(done, total)
        if say is not None and done == total:
            say("comparing the ways of replaying the failing step")

    return tell


def _bisected(replay: Replay, say: Say | None, traces: StepTraces) -> Bisection:
    from nanreplay.bisect import Bisection, bisect

    try:
        return bisect(replay, replay.capture.timeline_record(), progress=say, traces=traces)
    except (UnsupportedOpError, ReplayError, MissingPartError) as error:
        return Bisection(Findings(reason=f"The step cannot be run op by op. {error}"))


def _causes(
    replay: Replay, bisection: Bisection, verdict: Verdict
) -> tuple[tuple[Cause, ...], list[str]]:
    """The causes, and a note for each rule that failed."""
    from nanreplay.diagnose import causes_of

    notes: list[str] = []
    try:
        timeline = replay.capture.timeline_record()
        return causes_of(replay, bisection, verdict, timeline, notes), notes
    except Exception as error:
        # the origin is worth more than the cause, so it is told although a rule has a bug
        return (), [*notes, own_error("The cause could not be told", error)]


def _tried(
    replay: Replay,
    bisection: Bisection,
    causes: Sequence[Cause],
    fixes: Fixes,
    progress: Progress | None,
    say: Say | None,
    each_fix: Callable[[FixResult], None] | None = None,
    pause: Callable[[], None] | None = None,
) -> tuple[tuple[FixResult, ...], list[str]]:
    """What the fixes gave, and a line when some were left out."""
    from nanreplay.whatif import FixError
    from nanreplay.whatif.trial import what_if

    named = None if isinstance(fixes, str) else list(fixes)
    if fixes == "none" or not (causes or named):
        return (), []
    if say is not None:
        say("trying fixes")
    try:
        budget = FAST_S if fixes == "fast" else None
        trials = what_if(
            replay,
            bisection,
            causes,
            named,
            budget=budget,
            progress=progress,
            each=each_fix,
            pause=pause,
        )
    except FixError:
        raise  # who asked for it corrects it
    except (ReplayError, UnsupportedOpError, MissingPartError) as error:
        return (), [f"No fix could be tried. {error}"]
    except Exception as error:
        return (), [own_error("No fix could be tried", error)]
    if not trials.left_out:
        return trials.results, []
    left_out = ", ".join(trials.left_out)
    return trials.results, [f"Not tried, to be quick: {left_out}. `nanreplay whatif` tries them."]


def report_of(
    capture: Capture,
    verdict: Verdict,
    findings: Findings,
    causes: tuple[Cause, ...] = (),
    fixes: tuple[FixResult, ...] = (),
) -> Report:
    """Everything that is said of an open capture."""
    incident = capture.incident
    window = capture.steps or (incident.step,)
    steps = (window[0], window[-1])
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
        state_bytes=size_of_variables(capture.variables_info),
        peak_bytes=peak_bytes(),
    )


def _notes(*sources: Iterable[str]) -> tuple[str, ...]:
    """Each note once, in order."""
    return tuple(dict.fromkeys(note for notes in sources for note in notes))


# The captures of several workers of one training. Workers exchange gradients, so a NaN of one
# reaches all of them in the same step, and each writes a capture. These functions find the worker
# whose own step made it.

_COLLECTIVE = "Collective"
"""How the types of ops by which workers exchange tensors begin."""


def worker_of(capture: Capture) -> tuple[int, int] | None:
    """Return the worker that recorded a capture and how many there were; None for a lone one."""
    metadata = capture.metadata
    if not metadata.get("workers", "").isdigit() or not metadata.get("worker", "").isdigit():
        return None
    return int(metadata["worker"]), int(metadata["workers"])


def as_worker(capture: Capture, bisection: Bisection) -> Bisection:
    """Return what was found with the worker named.

    An op that hands on what other workers sent is no origin; a reason stands in its place.
    """
    worker, findings = worker_of(capture), bisection.findings
    origin = findings.origin
    if worker is None or origin is None:
        return bisection
    number, count = worker
    if (origin.op_type or "").startswith(_COLLECTIVE):
        reason = (
            f"It came from another worker: what worker {number} of {count} computed in step "
            f"{origin.step} is finite, and what the workers exchanged is not. "
            "Give the files of all workers together: nanreplay bisect run.*.h5"
        )
        return type(bisection)(Findings(reason=reason, notes=findings.notes))
    if origin.phase == "update":  # all workers update alike
        return bisection
    others = []
    for other in findings.other_origins:
        if other.phase != "update":
            others.append(other)
    named = replace(
        findings,
        origin=replace(origin, worker=number),
        other_origins=tuple(replace(other, worker=number) for other in others),
    )
    return replace(bisection, findings=named)


def check_one_run(paths: Sequence[str]) -> None:
    """Check that files are of different workers of one training.

    Raises:
        FormatError: They are not.
    """
    path_of: dict[int, str] = {}
    for path in paths:
        with Capture(path) as capture:
            worker = worker_of(capture)
        if worker is None:
            raise FormatError(
                f"{path}: is not the capture of one of several workers, "
                "so it cannot be explained together with others."
            )
        number = worker[0]
        if number in path_of:
            raise FormatError(f"{path}: is of worker {number}, and so is {path_of[number]}.")
        path_of[number] = path


def explain_run(
    paths: Sequence[str | os.PathLike[str]], explained: Callable[[str], Report]
) -> Report:
    """Explain the captures of several workers; returns the report of the one that failed first.

    Its notes hold the sentences of the others.

    Args:
        paths: One file a worker.
        explained: Explains one capture.
    """
    names = [os.fspath(path) for path in paths]
    check_one_run(names)
    reports = [explained(name) for name in names]
    first = min(reports, key=_rank)
    others = []
    for report in reports:
        if report is not first:
            others.append(f"{report.path}: {report.sentence}")
    return replace(first, findings=replace(first.findings, notes=(*first.findings.notes, *others)))


def _rank(report: Report) -> tuple[Any, ...]:
    """Origins of a worker's own first, by step; then what all workers do alike."""
    origin = report.findings.origin
    return (
        origin is None,
        origin is not None and origin.worker is None,
        report.incident_step if origin is None else origin.step,
    )
