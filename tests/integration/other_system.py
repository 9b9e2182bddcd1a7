"""A process as another operating system has it: modules and names that only POSIX has are gone.

Run by `test_other_systems.py` in processes of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import io
import os
import signal
import sys
import traceback
import types
from pathlib import Path
from typing import Any

POSIX_MODULES = ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "syslog")
POSIX_NAMES = {
    os: "register_at_fork fork forkpty O_CLOEXEC sysconf nice sched_getaffinity getuid "
    "set_blocking confstr getloadavg",
    signal: "SIGUSR1 SIGUSR2 SIGHUP SIGQUIT SIGALRM SIGPIPE pthread_kill sigwait",
}
LOCKS: list[int] = []
"""Descriptors that were locked as Windows locks."""


def leave_posix(system: str) -> None:
    """Take from this process what `win32` or `darwin` lacks.

    The packages that nanreplay builds on find out at import which system they run on: they are
    imported before.
    """
    import multiprocessing.popen_spawn_posix  # noqa: F401

    import bitmath  # noqa: F401
    import click  # noqa: F401
    import h5py  # noqa: F401
    import keras  # noqa: F401
    import pandas  # noqa: F401
    import rich.console  # noqa: F401
    import tensorflow  # noqa: F401
    import textual.app
    import textual.drivers.headless_driver
    import textual.drivers.linux_driver  # noqa: F401

    for name in [name for name in sys.modules if name.partition(".")[0] == "nanreplay"]:
        del sys.modules[name]  # it is imported anew, there
    sys.platform = system
    if system != "win32":
        return
    modules: dict[str, Any] = sys.modules
    modules.update(dict.fromkeys(POSIX_MODULES))
    for module, names in POSIX_NAMES.items():
        for name in names.split():
            if hasattr(module, name):
                delattr(module, name)
    shutil: Any = importlib.import_module("shutil")
    shutil._use_fd_functions = False  # folders are removed by their names there
    windows: Any = types.ModuleType("msvcrt")
    windows.LK_NBLCK = 2
    windows.locking = lambda descriptor, mode, size: LOCKS.append(descriptor)
    modules["msvcrt"] = windows
    _refuse_what_windows_refuses()


def _refuse_what_windows_refuses() -> None:
    """Renaming or removing a file that is open, and opening a folder."""
    real_open, real_replace, real_unlink = os.open, os.replace, os.unlink

    def open_(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, flags, *arguments, **named)

    def checked(real: Any) -> Any:
        def call(path: Any, *arguments: Any, **named: Any) -> None:
            for entry in Path("/proc/self/fd").iterdir():
                with contextlib.suppress(OSError):
                    if os.path.samefile(entry, path):
                        raise PermissionError(13, f"{path} is open in this process")
            real(path, *arguments, **named)

        return call

    os.open = open_  # type: ignore[assignment]
    os.replace, os.unlink = checked(real_replace), checked(real_unlink)


def run_in(system: str, work: str, arguments: tuple[str, ...], answer: str) -> None:
    """Do one piece of work as `system`, and write what came of it to the file `answer`."""
    output = io.StringIO()
    try:
        leave_posix(system)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = WORK[work](*arguments)
    except BaseException:
        code, output = 99, io.StringIO(traceback.format_exc())
    with open(answer, "w", encoding="utf-8") as file:
        file.write(f"{code}\n{output.getvalue()}")


def commands(*lines: str) -> int:
    """Run command lines, which must all end with an answer; returns how many failed."""
    from nanreplay.commands import run_command_line

    failed = 0
    for line in lines:
        code = run_command_line(line.split("|"))
        if code not in (0, 1):
            failed += 1
            print(f"exit {code}: {line}")
    return failed


def one_command(line: str) -> int:
    """Run a command line; returns its exit code."""
    from nanreplay.commands import run_command_line

    return run_command_line(line.split("|"))


def record(path: str) -> int:
    """Train until a NaN with a recorder; returns how many steps its file holds."""
    import keras
    import numpy as np

    from nanreplay import AttachError, Capture, NonFiniteError, Recorder

    try:
        Recorder("run.h5", dump_signal="SIGUSR1")
    except AttachError as error:
        print(error)
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    x = np.ones((16, 2), "float32")
    x[9] = np.nan
    stale = Path(path).with_name(f".{Path(path).name}.00000000.1.0.tmp")
    stale.write_bytes(b"left behind")
    os.utime(stale, (0, 0))
    try:
        callbacks = [Recorder(path)]
        model.fit(x, x[:, :1], batch_size=4, shuffle=False, verbose=0, callbacks=callbacks)
    except NonFiniteError:
        assert LOCKS, "files are locked as Windows locks them"
        assert not stale.exists()
        assert not list(Path(path).parent.glob(".*.tmp"))
        with Capture(path) as capture:
            return len(capture.steps)
    return 0


def open_in_interface(path: str) -> int:
    """Open a capture in the terminal interface and wait for its answer from the worker process."""
    from nanreplay.tui.app import NanreplayApp

    async def main() -> int:
        app = NanreplayApp([Path(path)])
        async with app.run_test(size=(120, 40)) as pilot:
            for _ in range(1200):
                await pilot.pause(0.1)
                text = " ".join(line.text for line in app.screen._compositor.render_strips())
                if "log(0)" in text or "epsilon" in text or "Log" in text:
                    return 1
        return 0

    return asyncio.run(main())


WORK: dict[str, Any] = {
    "commands": commands,
    "one_command": one_command,
    "record": record,
    "open": open_in_interface,
}
