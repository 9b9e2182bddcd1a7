"""The user's lines of a capture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nanreplay.capture import Capture
from nanreplay.findings import Origin
from nanreplay.records import Frame
from nanreplay.report.user_sources import sources_of

ROOT = Path(__file__).parents[3]
LINE = Frame("log_of_zero.py", 14, "cross_entropy", None)
ORIGIN = Origin(
    12, "forward", "loss", None, None, "Log", "compile_loss/cross_entropy/Log", source=LINE
)


@pytest.fixture
def capture() -> Capture:
    return Capture(ROOT / "sample_runs" / "log_of_zero.h5")


def test_the_failing_line_and_the_calls_that_led_to_it_are_marked(capture: Capture) -> None:
    with capture:
        sources = sources_of(capture, ORIGIN)
    assert [(frame.file, frame.line) for frame in sources.calls][-1] == ("log_of_zero.py", 14)
    (file,) = sources.files
    assert [line.line for line in file.lines if line.is_failing] == [14]
    assert all(line.is_on_the_way for line in file.lines)
    assert next(line.ops for line in file.lines if line.line == 14) > 0


def test_without_an_origin_the_lines_are_there_unmarked(capture: Capture) -> None:
    with capture:
        sources = sources_of(capture, None)
    assert sources.calls == ()
    assert sources.files
    assert not any(line.is_failing for file in sources.files for line in file.lines)


def test_sources_that_were_left_out_are_said_so(
    capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with capture:
        frames = tuple(replace(frame, code=None) for frame in capture.frames)
        monkeypatch.setattr(Capture, "frames", frames)
        assert sources_of(capture, ORIGIN).is_left_out
