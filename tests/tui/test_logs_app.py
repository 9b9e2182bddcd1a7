"""Logs and checkpoints in the terminal: tabs, tables that follow each other, and `open PATH`."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from textual.widgets import DataTable, Static, TabbedContent

from nanreplay.commands import run_command_line
from nanreplay.logs.log_answer import answer
from nanreplay.logs.run_reader import read_runs
from nanreplay.tui.logs_app import LogsApp
from nanreplay.tui.widgets.plots import SeriesPlot


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = "".join(f"{epoch},{0.5 if epoch < 3 else 'nan'},0.1\n" for epoch in range(5))
    (tmp_path / "training.csv").write_text("epoch,loss,lr\n" + rows, encoding="utf-8")
    (tmp_path / "checkpoints").mkdir()
    for epoch in range(1, 6):
        with h5py.File(tmp_path / "checkpoints" / f"model.{epoch:02d}.weights.h5", "w") as file:
            file["layers/dense/vars/0"] = np.array([1.0, np.nan if epoch > 3 else 2.0])
            file["layers/head/vars/0"] = np.array([float(epoch)])
    return tmp_path


def texts(table: DataTable[object]) -> list[list[str]]:
    return [[str(cell) for cell in table.get_row_at(row)] for row in range(table.row_count)]


async def test_the_answer_the_timeline_and_the_checkpoints(folder: Path) -> None:
    app = LogsApp([answer(each) for each in read_runs([str(folder)]).runs])
    async with app.run_test(size=(140, 44)) as pilot:
        await pilot.pause()
        sentence = str(app.query_one("#text", Static).render())
        assert sentence.startswith("`loss` becomes NaN at epoch 3")
        assert "model.03.weights.h5" in sentence
        assert "nanreplay run" in sentence

        await pilot.press("2")
        assert app.query_one(TabbedContent).active == "timeline"
        assert [row[0] for row in texts(app.query_one("#series", DataTable))] == ["loss", "lr"]
        plot = app.query_one(SeriesPlot)
        for _ in range(200):
            if plot.is_drawn:
                break
            await pilot.pause(0.02)
        assert plot.is_drawn

        await pilot.press("3")
        files = app.query_one("#files", DataTable)
        assert [row[-1] for row in texts(files)] == ["yes", "yes", "yes", "no", "no"]
        await pilot.press("down", "down", "down")
        await pilot.pause()
        variables = texts(app.query_one("#variables", DataTable))
        assert variables[0][0] == "layers/dense/0", "what is broken comes first"
        assert variables[0][3] == "1"
        assert variables[1][-1] == "3.0", "the largest magnitude one checkpoint before"


async def test_a_failed_run_is_shown_before_the_healthy_ones(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("epoch,loss\n0,0.5\n1,0.4\n", encoding="utf-8")
    (tmp_path / "b.csv").write_text("epoch,loss\n0,0.5\n1,nan\n", encoding="utf-8")
    app = LogsApp([answer(each) for each in read_runs([str(tmp_path)]).runs])
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.pause()
        assert "b.csv  (run 1 of 2)" in str(app.query_one("#run", Static).render())
        await pilot.press("n")
        assert "a.csv  (run 2 of 2)" in str(app.query_one("#run", Static).render())
        assert "Every logged loss is finite" in str(app.query_one("#text", Static).render())
        await pilot.press("3")
        title = app.query_one("#variables-title", Static)
        assert "No checkpoint was found" in str(title.render())


def test_open_takes_logs_and_needs_a_terminal(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["open", str(folder)]) == 2
    assert "`nanreplay logs PATH` prints the answer" in capfd.readouterr().err
