"""From a capture to a report: replay, judge, bisect. What the command line, the terminal interface and pytest call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace

from nanreplay.capture import Capture
from nanreplay.errors import MissingPartError, ReplayError, UnsupportedOpError
from nanreplay.findings import Findings, Report, Verdict
from nanreplay.report.sentence import sentence


def explain(
    path: str | os.PathLike[str],
    *,
    trust: bool = False,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Report:
    """Replay the capture at `path` and explain its first non-finite value.

    ```python
    print(explain("run.h5").sentence)
    ```

    Args:
        path: The capture file.
        trust: Let ops that touch files, the network or processes run; only for captures of your own.
        progress: Called with (steps done, steps in all).
        say: Called with a line before each part of the work.

    Raises:
        CaptureError: The file cannot be read.
        UnsafeProgramError: The program reaches beyond tensors.
        UnsupportedOpError: The program holds an op that cannot be replayed.
    """
    from nanreplay.bisect import bisect
    from nanreplay.diagnose.verdict import judge
    from nanreplay.replay import Replay

    with Capture(path) as capture, Replay(capture, trust=trust) as replay:
        verdict = judge(replay, progress=progress)
        if verdict.kind == "inconclusive":
            findings = Findings(reason=verdict.reason)
        else:
            try:
                findings = bisect(replay, capture.timeline_record(), progress=say).findings
            except (UnsupportedOpError, ReplayError, MissingPartError) as error:
                findings = Findings(reason=f"The step cannot be run op by op. {error}")
        findings = replace(findings, notes=_notes(capture.incident.notes, replay.notes, findings.notes))
        return report_of(capture, verdict, findings)


def report_of(capture: Capture, verdict: Verdict, findings: Findings) -> Report:
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
        sentence=sentence(verdict, findings, incident, steps),
    )


def _notes(*sources: Iterable[str]) -> tuple[str, ...]:
    """Each note once, in order."""
    return tuple(dict.fromkeys(note for notes in sources for note in notes))
