"""The worker process: results, errors, progress, cancelling, crashes. Real processes, without
TensorFlow."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable

import pytest
from tui.small_tasks import GoesFirst, Kept, Loading, Pausing, Ready, Small

from nanreplay.errors import FormatError, ReplayError
from nanreplay.tui import engine as engine_module
from nanreplay.tui.engine import Engine, StoppedError
from nanreplay.tui.worker import LOADING


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    made = Engine()
    yield made
    made.close()


async def until(condition: Callable[[], object]) -> None:
    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(wait(), 240)


async def test_results_come_from_one_process_that_is_not_this_one(engine: Engine) -> None:
    first, second = await engine.run(Small("x")), await engine.run(Small("x"))
    assert first == second != os.getpid()


async def test_progress_and_early_parts_are_told(engine: Engine) -> None:
    lines: list[tuple[str, int | None]] = []
    parts: list[object] = []
    engine.changed = lambda: (
        lines.append((engine.progress.line, engine.progress.done)) if engine.progress else None
    )
    await engine.run(Small("x", steps=4, pause_s=0.06), partial=parts.append)
    assert ("counting", 2) in lines
    assert parts == ["begun"]
    assert engine.progress is None


async def test_errors_of_the_library_arrive_as_they_are(engine: Engine) -> None:
    with pytest.raises(FormatError, match="damaged") as caught:
        await engine.run(Small("x", end="error"))
    assert caught.value.hint == "copy it again"


async def test_a_bug_becomes_an_error_with_its_name(engine: Engine) -> None:
    with pytest.raises(ReplayError, match="Unexpected KeyError"):
        await engine.run(Small("x", end="bug"))


async def test_a_crash_is_told_and_the_next_task_runs_in_a_new_process(engine: Engine) -> None:
    before = await engine.run(Small("x"))
    crashing = asyncio.ensure_future(engine.run(Small("x", end="crash")))
    waiting = asyncio.ensure_future(engine.run(Small("x")))
    with pytest.raises(ReplayError, match="ended unexpectedly"):
        await crashing
    assert await waiting != before


async def test_stop_ends_a_task_that_tells_progress_and_keeps_the_process(engine: Engine) -> None:
    before = await engine.run(Small("x"))
    running = asyncio.ensure_future(engine.run(Small("x", steps=1000, pause_s=0.01)))
    await until(lambda: engine.progress is not None and engine.progress.done)
    assert engine.stop()
    with pytest.raises(StoppedError):
        await running
    assert await engine.run(Small("x")) == before


async def test_a_task_that_does_not_hear_is_ended_with_its_process(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "PATIENCE_S", 0.2)
    before = await engine.run(Small("x"))
    running = asyncio.ensure_future(engine.run(Small("x", pause_s=60, deaf=True)))
    await until(lambda: engine.progress is not None and engine.progress.line == "counting")
    assert engine.stop()
    with pytest.raises(StoppedError):
        await running
    assert await engine.run(Small("x")) != before


@pytest.mark.parametrize("way", ["replaced", "stopped"])
async def test_tensorflow_is_loaded_once_however_impatient_the_user_is(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(engine_module, "PATIENCE_S", 0.05)
    monkeypatch.setattr(engine_module, "PATIENCE_WITH_REPLACED_S", 0.05)
    before = await engine.run(Small("x"))
    running = asyncio.ensure_future(engine.run(Loading("x", pause_s=0.2)))
    await until(lambda: engine.progress is not None and engine.progress.line == LOADING)
    if way == "replaced":
        running.cancel()
    else:
        engine.stop()
    assert await engine.run(Small("x")) == before
    with contextlib.suppress(StoppedError, asyncio.CancelledError):
        await running


async def test_a_task_that_a_newer_one_replaced_has_more_time_to_stop(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "PATIENCE_S", 0.05)
    before = await engine.run(Small("x"))
    running = asyncio.ensure_future(engine.run(Small("x", pause_s=0.2, deaf=True)))
    await until(lambda: engine.progress is not None and engine.progress.line == "counting")
    running.cancel()
    assert await engine.run(Small("x")) == before


async def test_a_cancelled_task_that_waits_never_runs(engine: Engine) -> None:
    running = asyncio.ensure_future(engine.run(Small("x", steps=20, pause_s=0.02)))
    waiting = asyncio.ensure_future(engine.run(Kept("x")))
    await until(lambda: engine.progress is not None and engine.progress.done)
    waiting.cancel()
    await running
    assert await engine.run(Kept("x")) == 1


async def test_what_is_kept_serves_the_next_task_until_others_push_it_out(engine: Engine) -> None:
    assert [await engine.run(Kept("x", key)) for key in (0, 0, 1, 2, 3, 0)] == [1, 2, 1, 1, 1, 1]


async def test_stop_without_work_says_so(engine: Engine) -> None:
    assert not engine.stop()


async def test_what_is_ready_does_not_wait_for_the_task_that_runs(engine: Engine) -> None:
    assert await engine.run(Kept("x", key=1)) == 1
    running = asyncio.ensure_future(engine.run(Small("x", steps=1000, pause_s=0.02)))
    await until(lambda: engine.progress and engine.progress.done)
    waiting = asyncio.ensure_future(engine.run(Kept("x", key=1)))
    assert await engine.run(Ready("x", key=1)) == 2
    assert not running.done()
    assert engine.progress is not None
    assert engine.progress.line == "counting"
    assert not waiting.done()
    for pending in (running, waiting):
        pending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await pending


async def test_what_goes_first_is_done_at_the_next_pause_and_the_task_goes_on(
    engine: Engine,
) -> None:
    running = asyncio.ensure_future(engine.run(Pausing("x", steps=1000, pause_s=0.02)))
    await until(lambda: engine.progress and engine.progress.done)
    waiting = asyncio.ensure_future(engine.run(Kept("x")))
    await engine.run(GoesFirst("x", steps=2))
    assert not running.done()
    assert not waiting.done()
    await until(lambda: engine.progress and engine.progress.line == "counting")
    with pytest.raises(FormatError):
        await engine.run(GoesFirst("x", end="error"))
    assert not running.done()
    assert engine.stop()  # the one that goes on, not one that ended
    with pytest.raises(StoppedError):
        await running
    assert await waiting == 1


async def test_stopping_what_went_first_leaves_the_other_task_running(engine: Engine) -> None:
    running = asyncio.ensure_future(engine.run(Pausing("x", steps=1000, pause_s=0.02)))
    await until(lambda: engine.progress and engine.progress.done)
    first = asyncio.ensure_future(engine.run(GoesFirst("x", steps=1000, pause_s=0.02)))
    await until(lambda: engine.progress and engine.progress.line == "looking")
    assert engine.stop()
    with pytest.raises(StoppedError):
        await first
    assert not running.done()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


def test_a_process_that_was_started_early_does_the_first_task() -> None:
    engine = Engine()
    engine.start()
    assert engine._process is not None
    started = engine._process.pid
    engine.start()  # once is enough
    try:
        assert asyncio.run(_of_small(engine)) == started
    finally:
        engine.close()


async def _of_small(engine: Engine) -> int:
    return await engine.run(Small("x"))
