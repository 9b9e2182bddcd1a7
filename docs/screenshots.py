"""The pictures of the README and of docs/tui.md: the terminal interface drawn by itself from real
replays, and a plot of a page.

Usage: make screenshots, or python docs/screenshots.py [NAME...]
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanreplay import Capture
from nanreplay.report.history import timeline_svg
from nanreplay.report.pages import history_of
from nanreplay.tui.app import NanreplayApp
from nanreplay.tui.widgets.plots import SeriesPlot

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
LONGEST_S = 300


@dataclass(frozen=True)
class Picture:
    """One picture: which captures, how large, and which keys lead there."""

    name: str
    runs: tuple[str, ...]
    keys: tuple[str, ...] = ()
    size: tuple[int, int] = (120, 36)


PICTURES = (
    Picture("overview", ("log_of_zero",)),
    Picture("timeline", ("learning_rate_too_high",), ("2",)),
    Picture("bisect", ("log_of_zero",), ("3",)),
    Picture("dataflow", ("log_of_zero",), ("3", "4")),
    Picture("tensor", ("log_of_zero",), ("3", "5")),
    Picture("picture", ("float16_overflow",), ("3", "5", "z")),
    Picture("batch", ("log_of_zero",), ("3", "6")),
    Picture("source", ("log_of_zero",), ("7",), (120, 20)),
    Picture("what-if", ("log_of_zero",), ("8", "A"), (120, 30)),
    Picture("verdict", ("float16_overflow",), ("9", "r")),
    Picture(
        "captures",
        (
            "log_of_zero",
            "exploding_rnn",
            "float16_overflow",
            "nan_in_one_sample",
            "sqrt_gradient_at_zero",
        ),
        (),
        (140, 16),
    ),
)


async def draw(picture: Picture) -> None:
    """Open the captures, press the keys, write the picture."""
    app = NanreplayApp([Path("sample_runs") / f"{run}.h5" for run in picture.runs])
    async with app.run_test(size=picture.size, notifications=False) as pilot:
        await settled(pilot)
        for key in picture.keys:
            await pilot.press(key)
            await settled(pilot)
        app.clear_notifications()
        await pilot.pause()
        svg = app.export_screenshot(
            title=f"nanreplay open {picture.runs[0]}.h5"
            if len(picture.runs) == 1
            else "nanreplay open sample_runs"
        )
    (IMAGES / f"tui-{picture.name}.svg").write_text(svg, encoding="utf-8")
    print(f"docs/images/tui-{picture.name}.svg")


def draw_plot() -> None:
    """Draw the plot of `nanreplay report`, in an ink that shows on light and on dark."""
    with Capture(ROOT / "sample_runs" / "exploding_rnn.h5") as capture:
        svg = timeline_svg(history_of(capture)).replace("currentColor", "#768390")
    (IMAGES / "report-plot.svg").write_text(svg, encoding="utf-8")
    print("docs/images/report-plot.svg")


async def settled(pilot: Any) -> None:
    """Wait until nothing runs in the background and everything is drawn."""
    ends = time.monotonic() + LONGEST_S
    await pilot.pause()
    while time.monotonic() < ends:
        app = pilot.app
        waits = app.engine.progress is not None or any(worker.is_running for worker in app.workers)
        if not waits and all(
            plot.is_drawn
            for plot in app.screen.query(SeriesPlot)
            if plot.display and plot.size.area
        ):
            break
        await pilot.pause(0.1)
    await pilot.pause(0.3)


def main(names: Sequence[str]) -> None:
    """Draw the named pictures, or all."""
    os.chdir(ROOT)
    os.environ.pop("NO_COLOR", None)
    os.environ["COLORTERM"] = "truecolor"
    IMAGES.mkdir(exist_ok=True)
    for picture in PICTURES:
        if not names or picture.name in names:
            asyncio.run(draw(picture))
    if not names or "report-plot" in names:
        draw_plot()


if __name__ == "__main__":
    main(sys.argv[1:])
