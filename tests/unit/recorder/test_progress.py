"""The bar of a dump: in a terminal only, and never the reason that a training ends."""

from __future__ import annotations

import io
import sys

import pytest

from nanreplay.recorder import environment
from nanreplay.recorder.environment import DumpProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def dump() -> None:
    with DumpProgress("run.h5") as shown:
        shown.stage("writing", 10)
        for _ in range(10):
            shown.advance(1)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "SHOWN_AFTER_S", 0.0)


def test_a_long_dump_shows_its_stages(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    dump()
    assert "nanreplay: writing run.h5" in stream.getvalue()


def test_a_quick_dump_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    dump()
    assert stream.getvalue() == ""


@pytest.mark.parametrize("closed", [False, True])
def test_a_log_and_a_closed_stderr_get_nothing(
    at_once: None, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    if closed:
        stream.close()
    dump()
    assert closed or stream.getvalue() == ""


def test_no_stderr_at_all(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    dump()
