"""Explains captures that were just written, each in a process of its own, for `explain=True`.

The training goes on, or ends with its error, while that process replays. It stores the answer in
the file; if it fails or is ended, the file is as the recorder wrote it. The end of this program
waits for it, since a container ends with its main process.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from nanreplay.capture.storage import Location

WAIT_S = 300.0
"""Seconds that the end of the program waits for all explanations together."""
_NICENESS = 10
"""How far they step back behind the training, in the units of `os.nice`."""
_LEFT_OUT = ("TF_CONFIG", "NANREPLAY_DEBUG")
"""Environment variables that would make the process a worker of the training's cluster, or talk."""
_running: list[tuple[Path, subprocess.Popen[bytes], IO[bytes]]] = []


def explain_beside(path: Location, *, goes_on: bool = False) -> None:
    """Begin to explain a capture of this machine, and return at once.

    Args:
        path: The capture.
        goes_on: Whether the training goes on meanwhile, and comes first.

    Raises:
        OSError: No process can be started.
    """
    file = Path(os.path.abspath(path))
    if not _running:
        atexit.register(wait_for_all)
    output = tempfile.TemporaryFile()  # noqa: SIM115  (a pipe that nobody reads would fill)
    command = [sys.executable, "-m", "nanreplay", "bisect", str(file), "--store", "--quiet"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=output,
        env=child_environment(),
    )
    if goes_on:
        with contextlib.suppress(OSError, AttributeError):  # no such thing on Windows
            os.setpriority(os.PRIO_PROCESS, process.pid, _NICENESS)
    _running.append((file, process, output))


def finish(path: Location) -> None:
    """Wait for the explanation of one capture, where one is being made."""
    file = Path(os.path.abspath(path))
    for entry in [entry for entry in _running if entry[0] == file]:
        entry[1].wait()
        entry[2].close()
        _running.remove(entry)


def child_environment() -> dict[str, str]:
    """This process's environment, without GPUs, and with the nanreplay that it runs itself."""
    kept = {key: value for key, value in os.environ.items() if key not in _LEFT_OUT}
    package = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (package, kept.get("PYTHONPATH"))))
    return {**kept, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}


def wait_for_all() -> None:
    """Wait for what still explains, and say of each file what became of it."""
    ends_s = time.monotonic() + WAIT_S
    while _running:
        file, process, output = _running.pop(0)
        if process.poll() is None:
            _say(f"{file.name}: is being explained; Ctrl-C leaves it as it is.")
        try:
            process.wait(max(0.0, ends_s - time.monotonic()))
            _say(f"{file.name}: {_outcome(process, output)}")
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
            process.kill()
            process.wait()
            why = "took too long" if isinstance(error, subprocess.TimeoutExpired) else "was stopped"
            _say(f"{file.name}: explaining it {why}; `nanreplay bisect {file.name} --store` does.")
        finally:
            output.close()


def _outcome(process: subprocess.Popen[bytes], output: IO[bytes]) -> str:
    output.seek(0)
    lines = output.read().decode(errors="replace").strip().splitlines()
    last = lines[-1] if lines else f"exit code {process.returncode}"
    if last.endswith("holds this answer now."):
        return "holds its answer."
    return f"could not be explained: {last.removeprefix('nanreplay: ')}"


def _say(line: str) -> None:
    with contextlib.suppress(Exception):  # the terminal may be gone
        print(f"nanreplay: {line}", file=sys.stderr, flush=True)
