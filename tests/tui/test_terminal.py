"""`nanreplay open` in a real terminal (tmux), with its worker process and TensorFlow: from opening
to the origin to a copied answer."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tui.stored import ROOT, stored_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("tmux") is None,
        reason="needs tmux (apt-get install tmux): a terminal to run in",
    ),
]
_NUMBERS = itertools.count()


class Terminal:
    """A terminal of its own, on a tmux server of its own."""

    def __init__(
        self,
        columns: int,
        lines: int,
        *arguments: str,
        folder: Path = ROOT,
        **environment: str,
    ) -> None:
        # a new one each time: the last server may still be ending
        self.socket = f"nanreplay-test-{os.getpid()}-{next(_NUMBERS)}"
        settings = [f"{name}={value}" for name, value in environment.items()]
        command = [
            "env",
            "-u",
            "COLUMNS",
            "-u",
            "LINES",
            f"PYTHONPATH={ROOT}",
            *settings,
            sys.executable,
            "-m",
            "nanreplay",
            "open",
            *arguments,
        ]
        self.tmux(
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            str(columns),
            "-y",
            str(lines),
            "-c",
            str(folder),
            *command,
        )
        self.tmux("set-option", "-s", "set-clipboard", "on")  # what OSC 52 copies becomes a buffer

    def tmux(self, *arguments: str) -> str:
        done = subprocess.run(
            ["tmux", "-L", self.socket, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return done.stdout

    def press(self, *keys: str) -> None:
        self.tmux("send-keys", *keys)

    def screen(self) -> str:
        return self.tmux("capture-pane", "-p")

    def until(self, condition: str | Callable[[str], bool], timeout_s: float = 240) -> str:
        """Wait until the screen holds a text."""
        ends = time.monotonic() + timeout_s
        while time.monotonic() < ends:
            screen = self.screen()
            if condition in screen if isinstance(condition, str) else condition(screen):
                return screen
            time.sleep(0.1)
        pytest.fail(f"{condition} did not come:\n{self.screen()}")

    def close(self) -> None:
        self.tmux("kill-server")  # of the socket above, so nobody else's


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_(*arguments: Any, **named: Any) -> Terminal:
        opened.append(Terminal(*arguments, **named))
        return opened[-1]

    yield open_
    for each in opened:
        each.close()


def test_from_opening_to_the_origin_to_a_copied_answer(terminal: Callable[..., Terminal]) -> None:
    run = terminal(120, 40, "sample_runs/log_of_zero.h5")
    run.until("log(0.0) = -inf in the loss, step 12")  # the answer that the file holds
    run.press("2")  # keys are answered while TensorFlow loads
    run.until("gradient norm")
    run.press("1")
    run.until("Log of zero: the output of")
    run.until(lambda screen: "esc stops it" not in screen)
    run.press("3")
    run.until(lambda screen: re.search(r"Log\b.*\[18, 0\]|Log\s+compile_loss", screen) is not None)
    run.until(lambda screen: "esc stops it" not in screen)
    run.press("y")
    run.until("the sentence")
    run.press("1")
    run.until("Copied the sentence.")
    origin, _, cause = stored_report("log_of_zero").sentence.partition(" Replays bit for bit.")
    copied = run.tmux("show-buffer")
    assert copied.startswith(origin)
    # between them stands how exactly it replays on this processor
    assert cause.partition(" Verified")[0] in copied
    run.press("q")
    ends = time.monotonic() + 60
    while run.tmux("list-sessions") and time.monotonic() < ends:
        time.sleep(0.1)
    assert run.tmux("list-sessions") == ""


def test_from_opening_to_a_patch_that_fixes_the_program(
    terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    for suffix in (".h5", ".py"):
        shutil.copy(ROOT / "sample_runs" / f"log_of_zero{suffix}", tmp_path)
    run = terminal(120, 40, "log_of_zero.h5", folder=tmp_path)
    run.until("Log of zero: the output of")
    run.until(lambda screen: "esc stops it" not in screen)
    run.press("8")
    run.until("✓ yes")
    run.press("a")
    run.until("Written to")
    run.press("q")
    (patch,) = tmp_path.glob("*.patch")
    subprocess.run(["git", "apply", patch.name], cwd=tmp_path, check=True)
    assert "+ 1e-7" in (tmp_path / "log_of_zero.py").read_text(encoding="utf-8")
    program = [sys.executable, "log_of_zero.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(
        program, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "loss: nan" not in done.stdout
    assert "Epoch 3/3" in done.stdout


@pytest.mark.parametrize(
    "environment", [{"NO_COLOR": "1"}, {"TERM": "xterm"}], ids=["no colour", "16 colours"]
)
def test_plain_terminals_show_all_that_matters(
    terminal: Callable[..., Terminal], environment: dict[str, str]
) -> None:
    run = terminal(80, 24, "sample_runs/log_of_zero.h5", **environment)
    screen = run.until("log(0.0) = -inf")
    assert "log_of_zero.h5" in screen
    assert "step 12" in screen
    assert "✗ 14" in screen, "the line that failed"
    run.press("q")
