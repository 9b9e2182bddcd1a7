"""What is written by a thread while the programs are described, and what an error on either side
does."""

from __future__ import annotations

import threading

import pytest

from nanreplay.recorder.dump import beside


def test_both_are_done_at_the_end_of_the_statement() -> None:
    described, done = threading.Event(), []

    def work() -> None:
        assert described.wait(60), "it runs while the statement does"
        done.append("written")

    with beside(work, lambda: None):
        described.set()
        done.append("described")
    assert sorted(done) == ["described", "written"]


def test_an_error_of_what_is_written_is_raised_at_the_end() -> None:
    def work() -> None:
        raise OSError(28, "No space left on device")

    done = []
    with pytest.raises(OSError, match="No space left"), beside(work, lambda: None):
        done.append("described")
    assert done


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_an_error_in_the_statement_has_the_writing_end_soon(error: BaseException) -> None:
    abandoned, ended = threading.Event(), []

    def work() -> None:
        ended.append(abandoned.wait(60))

    with pytest.raises(type(error)), beside(work, abandoned.set):
        raise error
    assert ended == [True]
