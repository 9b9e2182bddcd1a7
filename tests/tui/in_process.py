"""The interface with its tasks run in the test's own process: TensorFlow is loaded once, and
results are remembered by file."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

from textual.pilot import Pilot
from tui.waiting import workers_done

from nanreplay.report.contents import Report
from nanreplay.tui.app import NanreplayApp
from nanreplay.tui.engine import Engine, Explain, Progress
from nanreplay.tui.screens.capture_screen import CaptureScreen
from nanreplay.tui.view_tasks import StepLook, open_in_worker
from nanreplay.tui.worker import Task, WorkerContext

SAMPLES = Path(__file__).parents[2] / "sample_runs"
_EXPLAINED: dict[str, tuple[Report, StepLook | None]] = {}
"""What an explanation gave, by file: the context forgets a file when others are opened."""
_CONTEXT = WorkerContext(lambda message: None, lambda task_id: False, trust=False)


def close_all() -> None:
    """Close the replays of this process: they hold op determinism on, under which no XLA trains."""
    _CONTEXT.close()


class InProcessEngine:
    """Stands for the worker process."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.running = 0
        self._changed = changed
        self._lock = asyncio.Lock()

    @property
    def progress(self) -> Progress | None:
        return Progress("working") if self.running else None

    async def run(self, task: Task[Any], *, partial: Callable[[Any], None] | None = None) -> Any:
        self.running += 1
        self._changed()
        return await asyncio.shield(asyncio.ensure_future(self._locked(task, partial)))

    async def _locked(self, task: Task[Any], partial: Callable[[Any], None] | None) -> Any:
        try:
            async with self._lock:
                result, look = await asyncio.to_thread(_result, task)
                if partial is not None and look is not None:
                    partial(look)
                return result
        finally:
            self.running -= 1
            self._changed()

    def stop(self) -> bool:
        return False

    def close(self) -> None:
        pass


def _result(task: Task[Any]) -> tuple[Any, StepLook | None]:
    """What a task gives; of an explanation the look into the step as well."""
    if not isinstance(task, Explain):
        return task.run(_CONTEXT), None
    if task.path not in _EXPLAINED:
        report = Explain(task.path, "none").run(_CONTEXT)
        opened, origin = open_in_worker(task.path, _CONTEXT), report.findings.origin
        has_look = opened.explained is not None and origin is not None
        _EXPLAINED[task.path] = (report, opened.look(origin) if has_look else None)
    return _EXPLAINED[task.path]


class Screen:
    """One capture on the screen, with the keys of a user."""

    def __init__(self, app: NanreplayApp, pilot: Pilot[None]) -> None:
        self.app = app
        self.pilot = pilot

    @property
    def screen(self) -> CaptureScreen:
        assert isinstance(self.app.screen, CaptureScreen)
        return self.app.screen

    async def settle(self) -> None:
        """Wait until nothing runs, and everything is drawn."""
        for _ in range(3):
            await workers_done(self.app)
            await self.pilot.pause()

    async def press(self, *keys: str) -> None:
        for key in keys:
            await self.pilot.press(key)
            await self.settle()

    async def type(self, text: str) -> None:
        named = {":": "colon", " ": "space", ">": "greater_than_sign", ",": "comma", "-": "minus"}
        await self.pilot.press(*(named.get(letter, letter) for letter in text))
        await self.settle()


@contextlib.asynccontextmanager
async def opened(name: str, size: tuple[int, int] = (160, 50)) -> AsyncIterator[Screen]:
    """Open a sample run, and wait for its report."""
    app = NanreplayApp([SAMPLES / f"{name}.h5"])
    app.engine = cast(Engine, InProcessEngine(app._engine_changed))
    async with app.run_test(size=size) as pilot:
        screen = Screen(app, pilot)
        await pilot.pause()
        await screen.settle()
        yield screen
