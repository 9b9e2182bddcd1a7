"""A process in a pseudo-terminal, for benchmarks: keys go in, the text that was drawn comes out."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from measuring import ENVIRONMENT

COLUMNS, LINES = 120, 40
_CONTROL = re.compile(r"\x1b(?:\[[0-9;?<>=]*[ -/]*[@-~]|[\]P][^\x07\x1b]*(?:\x07|\x1b\\)|[=>])")
"""Sequences that move the cursor, or set colours and titles."""


class Session:
    """A Python process in a terminal of its own, from its start.

    ```python
    with Session(["-m", "nanreplay", "open", "run.h5"]) as session:
        painted_s = session.until(lambda text: "Loss" in text)
    ```

    Args:
        arguments: Of Python.
    """

    def __init__(self, arguments: Sequence[str | os.PathLike[str]]) -> None:
        self._controller, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self._began = time.perf_counter()
        self.child = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env={**ENVIRONMENT, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
            start_new_session=True,
        )
        os.close(terminal)
        self._drawn = b""
        self.text = ""
        """All that was drawn since the start or the last key, as plain text in the order in which
        it came."""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)  # of the session that was started above
        self.child.wait()
        os.close(self._controller)

    def until(self, is_there: Callable[[str], bool], *, timeout_s: float = 600) -> float:
        """Read until the text that was drawn fits; returns seconds since the process began."""
        ends = time.perf_counter() + timeout_s
        while not is_there(self.text):
            if not self.read(0.1) and (time.perf_counter() > ends or not self.is_alive):
                raise TimeoutError(f"it never came: {self.text[-600:]!r}")
        return time.perf_counter() - self._began

    def press(self, key: str) -> None:
        """Send a key; what was drawn before is forgotten."""
        self._drawn, self.text = b"", ""
        os.write(self._controller, key.encode())

    def read(self, wait_s: float) -> bool:
        """Read what is there, waiting for it at most so long; whether there was anything."""
        if not select.select([self._controller], [], [], wait_s)[0]:
            return False
        try:
            self._drawn += os.read(self._controller, 65536)
        except OSError:  # the process has ended
            return False
        self.text = _CONTROL.sub("", self._drawn.decode(errors="ignore"))
        return True

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return self.child.poll() is None

    def worker(self) -> int | None:
        """The process that replays; None before it is there."""
        try:
            pid = self.child.pid
            found = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii")
        except OSError:  # it has ended
            return None
        return next((int(each) for each in found.split() if _is_worker(int(each))), None)

    def processor_s(self) -> float:
        """Seconds of processor time of the process and of the one that replays."""
        pids = [pid for pid in (self.child.pid, self.worker()) if pid is not None]
        return sum(map(processor_s, pids))


def _is_worker(pid: int) -> bool:
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def processor_s(pid: int) -> float:
    """Seconds of processor time that a process has taken, all its threads together."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(pid: int) -> float:
    """The most memory that a process has had."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1024
