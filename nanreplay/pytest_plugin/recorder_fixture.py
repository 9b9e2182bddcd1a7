"""The recorder behind the fixture `nan_recorder`: where it writes, and how it fails the test.

Loaded only by tests that ask for the fixture.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanreplay.capture import Capture
from nanreplay.errors import NanreplayError, NonFiniteError
from nanreplay.pytest_plugin.collected import fail_with, one_line
from nanreplay.recorder import Recorder
from nanreplay.report.explain import explain
from nanreplay.report.machine_formats import CaptureOutcome
from nanreplay.report.numbers import readable_trigger

_LONGEST_NAME = 120  # characters of the test's name; file systems take 255 bytes in all


@contextlib.contextmanager
def recorder_of(request: pytest.FixtureRequest) -> Iterator[Recorder]:
    """A recorder for one test, whose capture goes to `--nanreplay-keep` or the test's tmp_path."""
    keep = request.config.getoption("nanreplay_keep")
    if keep is None:
        folder: Path = request.getfixturevalue("tmp_path")
    else:
        folder = Path(request.config.invocation_params.dir / keep)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            pytest.fail(f"--nanreplay-keep {keep}: {error.strerror}.", pytrace=False)
    worker = getattr(request.config, "workerinput", {}).get("workerid")  # of pytest-xdist
    with Recorder(folder / file_name(request.node.nodeid, worker)) as recorder:
        yield recorder


def file_name(test: str, worker: str | None) -> str:
    """A name for the capture of one test, the same in each run.

    No two tests, and no two workers of pytest-xdist, share one.
    """
    readable = re.sub(r"[^\w.=+]+", "-", test).strip("-")[:_LONGEST_NAME]
    digest = hashlib.sha256(test.encode()).hexdigest()[:6]
    return f"{readable}-{digest}-{worker}.h5" if worker else f"{readable}-{digest}.h5"


def check_recorded(
    recorder: Recorder, item: pytest.Item, error: BaseException | None = None
) -> None:
    """Fail the test when its training met a non-finite value.

    Args:
        recorder: The recorder of the test.
        item: The test.
        error: What the test raised, if it did.
    """
    nonfinite = error if isinstance(error, NonFiniteError) else None
    capture = next((path for path in map(str, recorder.paths) if _is_of_nonfinite(path)), None)
    if capture is not None:
        recorder.close()  # the explanation replays, and must not be recorded itself
        further: tuple[str, ...] = ()
        if error is not None and nonfinite is None:
            further = (f"Then the test raised {type(error).__name__}: {error}",)
        fail_with(_explained(capture, further), item, kept=True)
    if nonfinite is not None:
        pytest.fail(nonfinite.sentence, pytrace=False)
    if recorder.stopped and not recorder.paths:
        pytest.fail(
            "The training met an incident, and no capture of it could be written.", pytrace=False
        )


def _is_of_nonfinite(path: str) -> bool:
    with Capture(path) as capture:
        return capture.incident.trigger.what not in ("exception", "manual")


def _explained(path: str, further: tuple[str, ...]) -> CaptureOutcome:
    """The report's sentence, or what the capture alone says where it cannot be explained."""
    try:
        report = explain(path, fixes="none")
    except NanreplayError as error:
        with Capture(path) as capture:
            trigger = readable_trigger(capture.incident.trigger)
            sentence = f"step {capture.incident.step}: {trigger}."
        return CaptureOutcome(path, "nonfinite", sentence, None, (one_line(error), *further))
    notes = (*report.findings.notes, *further)
    return CaptureOutcome(path, "nonfinite", report.sentence, report, notes)
