"""`minimize`: the smallest capture that still gives the same origin. Every cut is replayed before it counts."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from nanreplay.capture import Capture, write_capture
from nanreplay.errors import ReplayError
from nanreplay.export.cuts import with_notes
from nanreplay.export.drafts import Draft, Rows, drafts_of, finished
from nanreplay.export.output_paths import check_output
from nanreplay.export.trials import Budget, place_of
from nanreplay.report.contents import Report
from nanreplay.report.explain import explain
from nanreplay.report.sentence import cause_in_words, fix_label

MOST_REPLAYS = 400
BUDGET_S = 60.0
"""Seconds that the search may take; what is checked before and after comes on top."""
_LOCAL_FIXES = frozenset(
    {"epsilon", "double_where", "stable_op", "clean_data", "clip_data", "float32", "finite_mask"}
)
"""Fixes of one op or of the batch: they must help the smaller failure too. Others may need the steps before it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Minimized:
    """What was written."""

    path: str
    output: str
    size_bytes: int
    """Of the file before."""
    output_bytes: int
    """Of the file that was written."""
    steps: tuple[int, ...]
    """Steps that are left, as they were numbered."""
    rows: Rows
    features: tuple[int, int] | None
    """How many numbers of a row are not zero, and how many were not; None when that could not be kept."""
    zeroed: tuple[str, ...]
    """Paths of variables that are zero now."""
    notes: tuple[str, ...]
    """The same in readable lines, which are in the file too."""
    report: Report
    """What the written file says."""
    replays: int
    """How many candidates were replayed."""


def minimize(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    trust: bool = False,
    force: bool = False,
    budget_s: float = BUDGET_S,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Minimized:
    """Write the smallest capture that still gives the same origin: fewest rows, features and variables of its failing steps.

    ```python
    minimize("run.h5", "small.h5").report.sentence
    ```

    Args:
        path: The capture.
        output: The file to write, in one move.
        trust: Let ops that touch files, the network or processes run; only for captures of your own.
        force: Replace an existing file.
        budget_s: Seconds that the search may take.
        progress: Called with (replays done, replays allowed).
        say: Called with a line before each part of the work.

    Raises:
        OutputExistsError: The file exists.
        ReplayError: The capture has no origin that a replay gives, so nothing can be kept.
    """
    check_output(path, output, force=force)
    tell = say or (lambda line: None)
    before = explain(path, trust=trust, fixes="fast", progress=progress, say=say)
    if before.findings.origin is None:
        raise ReplayError(
            f"{path}: has no origin to keep. {before.findings.reason or before.verdict.reason or before.sentence}"
        )
    target = Path(output).absolute()
    with tempfile.TemporaryDirectory(prefix=".nanreplay-", dir=target.parent) as folder:
        budget = Budget(MOST_REPLAYS, time.monotonic() + budget_s, progress)
        drafts = list(
            drafts_of(path, before.findings.origin, Path(folder), budget, tell, trust=trust)
        )
        tell("checking what was found")
        trials = _Trials(before, Path(folder), trust)
        draft = trials.smallest(drafts)
        if draft is None:
            raise ReplayError(f"{path}: no smaller capture gives the same origin.")
        file, after, notes = trials.written[id(draft)]
        os.replace(file, target)
    return _told(draft, before, dataclasses.replace(after, path=os.fspath(output)), notes, budget)


@dataclasses.dataclass(slots=True)
class _Trials:
    """Drafts as they would be written, each replayed and explained once."""

    before: Report
    folder: Path
    trust: bool
    written: dict[int, tuple[Path, Report, tuple[str, ...]]] = dataclasses.field(
        default_factory=dict
    )
    """File, report and notes by identity of the draft."""

    def smallest(self, drafts: Sequence[Draft]) -> Draft | None:
        """Return the last draft that tells the recording's cause; where only the whole step tells it, the last with its origin."""
        told = next((draft for draft in reversed(drafts[1:]) if self.tells_the_same(draft)), None)
        return told or next((draft for draft in reversed(drafts) if self.has_origin(draft)), None)

    def tells_the_same(self, draft: Draft) -> bool:
        """Whether a draft has the cause of the recording as well as its origin."""
        return self.has_origin(draft) and _cause(self.report(draft)) == _cause(self.before)

    def has_origin(self, draft: Draft) -> bool:
        """Whether a draft has the verdict and the origin of the recording, and what prevents the one is not known to fail for the other."""
        after = self.report(draft)
        one, other = self.before.findings.origin, after.findings.origin
        is_same = one is not None and other is not None and place_of(one) == place_of(other)
        return (
            is_same
            and self.before.verdict.kind == after.verdict.kind
            and all(fix.prevents is not False for fix in after.fixes)
        )

    def report(self, draft: Draft) -> Report:
        """Return what a draft says when it is written and explained."""
        if id(draft) not in self.written:
            file = self.folder / f"final-{len(self.written)}.h5"
            contents, notes = finished(draft, self.before, self.folder, trust=self.trust)
            write_capture(file, contents, small=True)
            after = explain(file, trust=self.trust, fixes=_comparable(self.before) or "none")
            if _cause(after) != _cause(self.before):
                notes = (
                    *notes,
                    f"What tells the cause was left out. {cause_in_words(self.before.causes)}".rstrip(),
                )
                write_capture(file, with_notes(contents, notes), small=True)
                after = dataclasses.replace(
                    after,
                    findings=dataclasses.replace(
                        after.findings, notes=(*after.findings.notes, notes[-1])
                    ),
                )
            self.written[id(draft)] = file, after, notes
        return self.written[id(draft)][1]


def _cause(report: Report) -> str | None:
    return report.causes[0].kind if report.causes else None


def _comparable(report: Report) -> list[str]:
    """The mildest fix of the op or of the batch that prevents the failure."""
    return [fix_label(fix) for fix in report.fixes if fix.prevents and fix.name in _LOCAL_FIXES][:1]


def _told(
    draft: Draft, before: Report, after: Report, notes: tuple[str, ...], budget: Budget
) -> Minimized:
    with Capture(before.path) as capture:
        size = capture.size_bytes
    return Minimized(
        before.path,
        after.path,
        size,
        Path(after.path).stat().st_size,
        tuple(draft.contents.batches),
        draft.rows,
        draft.features,
        draft.zeroed,
        notes,
        after,
        budget.done,
    )
