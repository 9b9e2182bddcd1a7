"""One measurement of `open.py`: when the answer is there, and all that it leads to; prints JSON.

The interface without a screen, with its worker process. Times are seconds from the start of the
interface to the source line, the loss and the batch on the first screen, and to the sentence; then
from the sentence to the tree as it ran, to the origin's tensor, and to the batch, each asked for as
a key asks. Memory is the worker's peak.

Usage: python benchmarks/open_answers.py CAPTURE
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from textual.widgets import Static

from nanreplay.tui.app import NanreplayApp
from nanreplay.tui.panes.batch_pane import BatchPane
from nanreplay.tui.panes.bisect_pane import BisectPane
from nanreplay.tui.panes.overview_pane import OverviewPane
from nanreplay.tui.panes.tensor_pane import TensorPane
from nanreplay.tui.screens import capture_screen
from nanreplay.tui.screens.capture_screen import CaptureScreen

PATIENCE_S = 600.0


async def until(is_there: Callable[[], bool]) -> None:
    """Wait for something on the screen."""
    began = time.perf_counter()
    while not is_there():
        if time.perf_counter() - began > PATIENCE_S:
            raise TimeoutError("it never came")
        await asyncio.sleep(0.005)


async def measure(capture: Path) -> dict[str, Any]:
    """Open a capture as a user does, and look at one tab after the other."""
    capture_screen.stored_answer = lambda path: None  # type: ignore[assignment]  # it is replayed
    app, found = NanreplayApp([capture]), {}
    began = time.perf_counter()
    async with app.run_test(size=(120, 40)) as pilot:
        screen = app.screen
        assert isinstance(screen, CaptureScreen)
        await until(lambda: "overview" in screen.panes)
        overview = screen.panes["overview"]
        assert isinstance(overview, OverviewPane)
        waiting = "reading the file ..."
        read = [overview.query_one(f"#{name}", Static) for name in ("code", "sample")]
        await until(lambda: all(str(each.content) != waiting for each in read))
        found["source_batch_loss_s"] = time.perf_counter() - began
        for key in "3561":  # the tabs that are asked for below, built before the answer comes
            await pilot.press(key)
        bisect, tensor, batch = (screen.panes[name] for name in ("bisect", "tensor", "batch"))
        assert isinstance(bisect, BisectPane)
        assert isinstance(tensor, TensorPane)
        assert isinstance(batch, BatchPane)
        await until(lambda: bisect.op_tree.view is not None)
        found["recorded_tree_s"] = time.perf_counter() - began
        await until(lambda: screen.state.report is not None)
        told = time.perf_counter()
        found["sentence_s"] = told - began
        for name, is_there in (
            ("tree_after_s", lambda: bisect.view is not None),
            ("tensor_after_s", lambda: tensor.tensor is not None),
            ("batch_after_s", lambda: batch.view is not None),
        ):
            await until(is_there)
            found[name] = time.perf_counter() - told
        await until(lambda: screen.state.is_complete)
        found["fixes_s"] = time.perf_counter() - began
        assert app.engine._process is not None
        found["worker_mib"] = peak_mib(app.engine._process.pid)
    return found


def peak_mib(pid: int | None) -> float:
    """The most memory that a process has had."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1024


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    print(json.dumps(asyncio.run(measure(Path(sys.argv[1])))))
