"""Captures that are replayed as tests: those of `--nanreplay`, and those that a marker names.

Loaded only in runs that have such captures. A failure is one sentence, without a traceback through
nanreplay.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import h5py
import pytest

from nanreplay.capture import Capture, format
from nanreplay.capture.format import FORMAT
from nanreplay.errors import NanreplayError
from nanreplay.pytest_plugin.stash_keys import NAMED, SHOWN, model_of
from nanreplay.report.machine_formats import CaptureOutcome, annotation, checkout_root, place_of
from nanreplay.terminal import CODES, STATUS, UNDECIDED, code_of, quiet_work


@dataclass(frozen=True, slots=True)
class ReplayCase:
    """One capture to replay."""

    path: Path
    model: str | Callable[[], Any] | None = None
    """Makes the user's current model; None replays the recorded program."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of `nanreplay.replay_with`."""


class CaptureFile(pytest.File):
    """A capture on disk."""

    def collect(self) -> Iterator[CaptureItem]:
        """One test; none for an HDF5 file of somebody else's that lies in a given folder."""
        if self.path in self.config.stash[NAMED] or not _is_foreign(self.path):
            yield CaptureItem.from_parent(self, name="replay")


class CaptureItem(pytest.Item):
    """Fails while the recorded failure is there."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.add_marker("nanreplay")  # `-m nanreplay` selects these tests too

    def setup(self) -> None:
        """Read the capture and find the model: what is wrong with them is an error, no failure."""
        self.case = ReplayCase(self.path, model_of(self.config))
        prepare(self.case)

    def runtest(self) -> None:
        """Replay it."""
        check(self.case, self)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """The capture's name as the heading."""
        return self.path, None, os.path.relpath(self.path, self.config.rootpath)


def _is_foreign(path: Path) -> bool:
    """Whether a file is in good order and no capture.

    A damaged one may have been a capture, so it is not foreign.
    """
    try:
        with h5py.File(path) as file:
            return format.text(file, "format") != FORMAT
    except ValueError:  # an attribute of that name, but none of ours
        return True
    except OSError:
        return False


def case_of(marker: pytest.Mark, item: pytest.Function) -> ReplayCase:
    """What `@pytest.mark.nanreplay("case.h5", model=...)` asks for.

    The path is relative to the file of the test. A marker that asks for something impossible fails
    the test's setup.
    """
    options = dict(marker.kwargs)
    model = options.pop("model", None) or model_of(item.config)
    if len(marker.args) != 1 or not isinstance(marker.args[0], (str, os.PathLike)):
        pytest.fail(
            'nanreplay: expected @pytest.mark.nanreplay("capture.h5", model=...).', pytrace=False
        )
    if options and model is None:
        pytest.fail(
            f"nanreplay: {', '.join(options)} needs a model: "
            "model=... in the marker, or --nanreplay-model.",
            pytrace=False,
        )
    case = ReplayCase(item.path.parent / marker.args[0], model, options)
    prepare(case)
    return case


def prepare(case: ReplayCase) -> None:
    """Fail now, in one line, when the capture cannot be read or there is no such model."""
    message = _wrong_with(case)
    if message is not None:
        pytest.fail(message, pytrace=False)


def _wrong_with(case: ReplayCase) -> str | None:
    try:
        Capture(case.path).close()
        if case.model is not None:
            from nanreplay.rerun.model_factory import load_factory

            load_factory(case.model)
    except NanreplayError as error:
        return one_line(error)
    return None


def check(case: ReplayCase, item: pytest.Item) -> None:
    """Replay the case; the test fails unless every step is finite.

    A recorded program says the same each time, so without a model this shows what was recorded;
    with one, whether the user's current code is fixed.
    """
    with quiet_work():
        outcome = _replayed(case, trust=item.config.getoption("nanreplay_trust"))
    if outcome.status != "finite":
        fail_with(outcome, item)


def _replayed(case: ReplayCase, *, trust: bool) -> CaptureOutcome:
    path = str(case.path)
    try:
        if case.model is None:
            from nanreplay.report.explain import explain

            report = explain(path, trust=trust, fixes="none")
            status = STATUS[CODES.get(report.verdict.kind, UNDECIDED)]
            return CaptureOutcome(path, status, report.sentence, report, report.findings.notes)
        from nanreplay import replay_with

        result = replay_with(path, case.model, **{"trust": trust, **case.options})
        status = STATUS[result.exit_code]
        return CaptureOutcome(path, status, result.sentence, result.report, tuple(result.notes))
    except NanreplayError as error:
        return CaptureOutcome(path, STATUS[code_of(error)], one_line(error))


# How a failure reads: the sentence, the capture, notes, the line of code.


def fail_with(outcome: CaptureOutcome, item: pytest.Item, *, kept: bool = False) -> NoReturn:
    """Fail the test with the sentence of the outcome.

    Args:
        outcome: What the capture came to.
        item: The test.
        kept: Whether the capture was written by this test.
    """
    root, start = checkout_root(), item.config.invocation_params.dir
    path = outcome.path
    if Path(os.path.abspath(path)).is_relative_to(start):
        path = os.path.relpath(path, start)
    item.stash[SHOWN] = {"annotation": annotation(outcome, root) or ""}
    if kept:
        item.stash[SHOWN]["kept"] = path
    lines = [
        outcome.sentence,
        f"capture: {path} (`nanreplay open` shows it, `nanreplay whatif` tries fixes)",
        *(f"note: {line}" for line in outcome.details),
    ]
    place = place_of(outcome, root)
    if place.line is not None:
        file = os.path.relpath(root / place.file, start)
        lines.append(f"{file}:{place.line}: {outcome.rule.replace('_', ' ')}")
    pytest.fail("\n".join(lines), pytrace=False)


def one_line(error: NanreplayError) -> str:
    """An error, and what to do about it."""
    return f"nanreplay: {' '.join(str(error).split())}" + (f" ({error.hint})" if error.hint else "")
