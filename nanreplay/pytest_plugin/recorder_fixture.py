"""The recorder of a test: where it writes, and what it found."""

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

_LONGEST_NAME = 120


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
    """A name for the capture of one test, the same in each run; no two tests, and no two workers, share one."""
    readable = re.sub(r"[^\w.=+]+", "-", test).strip("-")[:_LONGEST_NAME]
    return f"{readable}-{hashlib.sha256(test.encode()).hexdigest()[:6]}{f'-{worker}' if worker else ''}.h5"


def check_recorded(
    recorder: Recorder, item: pytest.Item, error: BaseException | None = None
) -> None:
    """Fail the test when its training met a non-finite value.

    Args:
        recorder: The recorder of the test.
        item: The test.
        error: What the test raised, if it did.
    """
    met = error if isinstance(error, NonFiniteError) else None
    found = next((path for path in map(str, recorder.paths) if _is_of_nonfinite(path)), None)
    if found is not None:
        recorder.close()
        further = (
            ()
            if error is None or met is not None
            else (f"Then the test raised {type(error).__name__}: {error}",)
        )
        fail_with(_explained(found, further), item, kept=True)
    if met is not None or (recorder.stopped and not recorder.paths):
        pytest.fail(
            met.sentence
            if met
            else "The training met an incident, and no capture of it could be written.",
            pytrace=False,
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
            said = f"step {capture.incident.step}: {readable_trigger(capture.incident.trigger)}."
        return CaptureOutcome(path, "nonfinite", said, None, (one_line(error), *further))
    return CaptureOutcome(
        path, "nonfinite", report.sentence, report, (*report.findings.notes, *further)
    )
