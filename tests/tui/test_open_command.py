"""`nanreplay open` before any screen: what is refused, in one line, and what is imported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from tui.stored import ROOT

from nanreplay.commands import run_command_line
from nanreplay.errors import FormatError
from nanreplay.tui.app import NanreplayApp

ONE_LINE = re.compile(r"nanreplay: [^\n]+\n")


@pytest.mark.parametrize("name", ["nope.h5", "foreign.h5", "cut.h5", "empty", "foreign_only"])
def test_unreadable_files_are_one_line_and_exit_2(
    name: str, made_up: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "foreign.h5").write_text("not HDF5")
    (tmp_path / "cut.h5").write_bytes(made_up.read_bytes()[:5000])
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign_only").mkdir()
    (tmp_path / "foreign_only" / "x.h5").write_text("not HDF5")
    assert run_command_line(["open", str(tmp_path / name)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert ONE_LINE.fullmatch(err), err
    assert name in err


def test_one_bad_file_among_good_ones_is_said(
    made_up: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["open", str(made_up), str(tmp_path / "nope.h5")]) == 2
    assert "nope.h5: no such file" in capfd.readouterr().err


def test_without_a_terminal_it_says_what_to_do(
    made_up: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["open", str(made_up)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert ONE_LINE.fullmatch(err)
    assert "needs a terminal" in err
    assert "nanreplay bisect" in err


def test_the_interface_imports_neither_tensorflow_nor_pandas() -> None:
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from nanreplay.tui.app import NanreplayApp\n"
        "from nanreplay.tui.panes import PANES\n"
        "import nanreplay.tui.palette, nanreplay.tui.screens.chooser\n"
        "[entry.load() for entry in PANES]\n"
        "from tui.stored import StoredEngine\n"
        "async def main():\n"
        "    async with NanreplayApp([Path('sample_runs/log_of_zero.h5')], "
        "engine=StoredEngine(waits=True)).run_test() as pilot:\n"
        "        await pilot.press('2', '9', '1')\n"
        "asyncio.run(main())\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    paths = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
    child = subprocess.run(
        [sys.executable, "-c", paths + code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert not set(child.stdout.split()) & {"tensorflow", "keras", "pandas"}


def test_a_timeline_of_texts_is_damage(made_up: Path) -> None:
    with h5py.File(made_up, "r+") as file:
        del file["timeline/columns/loss"]
        file["timeline/columns/loss"] = np.array([b"x", b"y"])
    with pytest.raises(FormatError):
        NanreplayApp([made_up])
