"""One measurement of `open.py`: stalls of the event loop while a capture is replayed; prints JSON.

Usage: python benchmarks/open_stalls.py CAPTURE process|thread
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from nanreplay.tui.app import NanreplayApp
from nanreplay.tui.screens.capture_screen import CaptureScreen
from nanreplay.tui.widgets.heat import HeatTable

EVERY_S = 0.005
KEYS = ("left", "left", "right", "left", "right", "right")
"""Keys of the timeline that move its cursor."""


async def tick(gaps: list[float]) -> None:
    """Note how late a timer is, again and again."""
    while True:
        began = time.perf_counter()
        await asyncio.sleep(EVERY_S)
        gaps.append(time.perf_counter() - began - EVERY_S)


async def in_process(capture: Path) -> dict[str, Any]:
    """The interface as it is."""
    app, gaps, keys = NanreplayApp([capture]), [], []
    began = time.perf_counter()
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("2")  # the timeline, built before the measurement
        await pilot.pause(1.5)
        ticking = asyncio.ensure_future(tick(gaps))
        screen = app.screen
        assert isinstance(screen, CaptureScreen)
        heat = screen.query_one(HeatTable)
        while not screen.state.is_complete:
            for key in KEYS:
                at, pressed = heat.cursor, time.perf_counter()
                app.simulate_key(key)
                while heat.cursor == at:
                    await asyncio.sleep(0.001)
                keys.append(time.perf_counter() - pressed)
                await asyncio.sleep(0.1)
        total_s = time.perf_counter() - began
        ticking.cancel()
    return {
        "stall_s": max(gaps),
        "over": sum(gap > 0.1 for gap in gaps),
        "keys_s": keys,
        "total_s": total_s,
    }


async def in_thread(capture: Path) -> dict[str, Any]:
    """The same replay in a thread beside an event loop that does nothing else."""
    gaps: list[float] = []

    def work() -> None:
        from nanreplay.report.explain import explain

        explain(capture)

    began, ticking = time.perf_counter(), asyncio.ensure_future(tick(gaps))
    await asyncio.to_thread(work)
    ticking.cancel()
    return {
        "stall_s": max(gaps),
        "over": sum(gap > 0.1 for gap in gaps),
        "total_s": time.perf_counter() - began,
    }


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    measured = asyncio.run(
        {"process": in_process, "thread": in_thread}[sys.argv[2]](Path(sys.argv[1]))
    )
    print(json.dumps(measured))
