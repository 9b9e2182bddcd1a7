"""`minimize`: the smallest capture that still gives the same origin, for a bug report.

`drafts` makes smaller and smaller candidates. Here they are written and explained as a user would
see them, and the smallest that still tells the recording's cause replaces the output file.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from nanreplay.capture import Capture, write_capture
from nanreplay.capture.temporary import move_into_place
from nanreplay.errors import ReplayError
from nanreplay.export.cuts import with_notes
from nanreplay.export.drafts import Draft, Rows, drafts_of, finished
from nanreplay.export.output_paths import check_output
from nanreplay.export.trials import Budget, place_of
from nanreplay.report.contents import Report
from nanreplay.report.explain import explain
from nanreplay.report.fix_words import fix_option
from nanreplay.report.sentence import cause_in_words

MOST_REPLAYS = 400
BUDGET_S = 60.0
"""Seconds that the search may take; what is checked before and after comes on top."""
_LOCAL_FIXES = frozenset(
    {"epsilon", "double_where", "stable_op", "clean_data", "clip_data", "float32", "finite_mask"}
)
"""Fixes of one op or of the batch, which must help the smaller failure too.

Others may need the steps before it.
"""


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
    """How many numbers of a row are not zero, and how many were not.

    None when that could not be kept.
    """
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
    """Write the smallest capture that still gives the same origin.

    It holds the fewest rows, features and variables of the failing steps. Use it before a capture
    goes into a bug report: a smaller failure is read, sent and replayed faster.

    ```python
    minimize("run.h5", "small.h5").report.sentence
    ```

    Args:
        path: The capture.
        output: The file to write, in one move.
        trust: Let ops that touch files, the network or processes run. Only for captures of your
            own.
        force: Replace an existing file.
        budget_s: Seconds that the search may take.
        progress: Called with (replays done, replays allowed).
        say: Called with a line before each part of the work.

    Raises:
        OutputExistsError: The file exists.
        ReplayError: The capture has no origin that a replay gives, so nothing can be kept.
    """
    check_output(path, output, force=force)
    say = say or (lambda line: None)
    before = explain(path, trust=trust, fixes="fast", progress=progress, say=say)
    origin = before.findings.origin
    if origin is None:
        reason = before.findings.reason or before.verdict.reason or before.sentence
        raise ReplayError(f"{path}: has no origin to keep. {reason}")
    target = Path(output).absolute()
    # The search writes beside the output, so that the last move is a rename within one file system.
    with tempfile.TemporaryDirectory(prefix=".nanreplay-", dir=target.parent) as name:
        folder = Path(name)
        budget = Budget(MOST_REPLAYS, time.monotonic() + budget_s, progress)
        drafts = list(drafts_of(path, origin, folder, budget, say, trust=trust))
        say("checking what was found")
        written = _WrittenDrafts(before, folder, trust)
        draft = written.smallest(drafts)
        if draft is None:
            raise ReplayError(f"{path}: no smaller capture gives the same origin.")
        file, after, notes = written.files[id(draft)]
        move_into_place(file, target)
    after = dataclasses.replace(after, path=os.fspath(output))
    return _minimized(draft, before, after, notes, budget)


@dataclasses.dataclass(slots=True)
class _WrittenDrafts:
    """Drafts as they would be written, each replayed and explained once."""

    before: Report
    folder: Path
    trust: bool
    files: dict[int, tuple[Path, Report, tuple[str, ...]]] = dataclasses.field(default_factory=dict)
    """File, report and notes by identity of the draft; drafts hold arrays, so they have no hash."""

    def smallest(self, drafts: Sequence[Draft]) -> Draft | None:
        """Return the last draft that tells the recording's cause.

        Where only the whole step (the first draft) tells it, return the last with its origin.
        """
        for draft in reversed(drafts[1:]):
            if self.tells_the_same(draft):
                return draft
        for draft in reversed(drafts):
            if self.keeps_origin(draft):
                return draft
        return None

    def tells_the_same(self, draft: Draft) -> bool:
        """Whether a draft has the cause of the recording as well as its origin."""
        return self.keeps_origin(draft) and _cause(self.report(draft)) == _cause(self.before)

    def keeps_origin(self, draft: Draft) -> bool:
        """Whether a draft has the verdict and the origin of the recording.

        The fix that prevents the recording's failure must not be known to fail for the draft.
        """
        after = self.report(draft)
        recorded, origin = self.before.findings.origin, after.findings.origin
        if recorded is None or origin is None or place_of(recorded) != place_of(origin):
            return False
        if self.before.verdict.kind != after.verdict.kind:
            return False
        return all(fix.prevents is not False for fix in after.fixes)

    def report(self, draft: Draft) -> Report:
        """Return what a draft says when it is written and explained."""
        if id(draft) not in self.files:
            file = self.folder / f"final-{len(self.files)}.h5"
            self.files[id(draft)] = self._write(draft, file)
        return self.files[id(draft)][1]

    def _write(self, draft: Draft, file: Path) -> tuple[Path, Report, tuple[str, ...]]:
        contents, notes = finished(draft, self.before, self.folder, trust=self.trust)
        write_capture(file, contents, small=True)
        after = explain(file, trust=self.trust, fixes=_comparable_fixes(self.before) or "none")
        if _cause(after) == _cause(self.before):
            return file, after, notes
        cause = cause_in_words(self.before.causes)
        note = f"What tells the cause was left out. {cause}".rstrip()
        notes = (*notes, note)
        write_capture(file, with_notes(contents, notes), small=True)
        findings = dataclasses.replace(after.findings, notes=(*after.findings.notes, note))
        return file, dataclasses.replace(after, findings=findings), notes


def _cause(report: Report) -> str | None:
    return report.causes[0].kind if report.causes else None


def _comparable_fixes(report: Report) -> list[str]:
    """The mildest fix of the op or of the batch that prevents the failure; empty without one."""
    local_fixes = []
    for fix in report.fixes:
        if fix.prevents and fix.name in _LOCAL_FIXES:
            local_fixes.append(fix)
    return list(map(fix_option, local_fixes[:1]))


def _minimized(
    draft: Draft, before: Report, after: Report, notes: tuple[str, ...], budget: Budget
) -> Minimized:
    with Capture(before.path) as capture:
        size_bytes = capture.size_bytes
    return Minimized(
        path=before.path,
        output=after.path,
        size_bytes=size_bytes,
        output_bytes=Path(after.path).stat().st_size,
        steps=tuple(draft.contents.batches),
        rows=draft.rows,
        features=draft.features,
        zeroed=draft.zeroed,
        notes=notes,
        report=after,
        replays=budget.done,
    )
