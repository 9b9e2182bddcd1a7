"""Runs Python with TensorFlow imported before: what `python ARGUMENTS` does, without the seconds
that the import takes.

A server imports TensorFlow, Keras and nanreplay once and forks for every run. Nothing of TensorFlow
has begun there, no context and no thread, so that a fork is as good as a process of its own: it
reads its environment, makes its devices and ends as any other. Tests that are about the start of a
process use `subprocess`.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

Argument = str | Path
ROOT = Path(__file__).parents[1]
NOT_IMPORTED = {
    "nanreplay.__main__",  # it is what a fork runs
    "nanreplay.pytest_plugin",  # pytest warns of a plugin that it has not loaded itself
}
HANGS_S = 600.0
"""After so long a process is said to hang. A loaded machine takes ten times as long as an idle one,
and no test here waits for as much as a minute of work."""


class WarmProcess:
    """A run of Python in a fork of the server.

    Args:
        arguments: What stands after `python`: a script, `-c CODE` or `-m MODULE`, and theirs.
        env: The whole environment.
        cwd: The folder to run in; by default that of this process.
        cpus: Processors that it may use; by default all.
    """

    def __init__(
        self,
        arguments: Sequence[Argument],
        *,
        env: Mapping[str, str],
        cwd: Argument | None = None,
        cpus: Sequence[int] | None = None,
    ) -> None:
        self.args = [str(argument) for argument in arguments]
        self.returncode: int | None = None
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes both
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._status, status = os.pipe()
        request = {
            "arguments": self.args,
            "env": dict(env),
            "cwd": str(cwd or os.getcwd()),
            "cpus": cpus and list(cpus),
        }
        descriptors = [self._output.fileno(), self._errors.fileno(), status]
        try:
            _server().send(json.dumps(request).encode() + b"\n", descriptors)
        finally:
            os.close(status)
        self._pid = int(self._line(HANGS_S))

    def wait(self, timeout: float) -> int:
        """Wait until it has ended; returns its exit code as `subprocess` has it."""
        if self.returncode is None:
            self.returncode = int(self._line(timeout))
        return self.returncode

    def outputs(self) -> tuple[str, str]:
        """What it wrote to standard output and standard error; to be read once, after its end."""
        return tuple(_text(file) for file in (self._output, self._errors))  # type: ignore[return-value]

    def close(self) -> None:
        """End it if it still runs, and forget it."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        os.close(self._status)
        self._output.close()
        self._errors.close()

    def _line(self, timeout: float) -> bytes:
        line, until = b"", time.monotonic() + timeout
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self._status], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise subprocess.TimeoutExpired(self.args, timeout)
            byte = os.read(self._status, 1)
            assert byte, "the server of warm processes has ended"
            line += byte
        return line


def _text(file: Any) -> str:
    file.seek(0)
    return file.read().decode().replace(os.linesep, "\n")  # type: ignore[no-any-return]


def run(
    arguments: Sequence[Argument], *, timeout: float = HANGS_S, check: bool = False, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run Python to its end, as `subprocess.run` does; `options` are those of `WarmProcess`."""
    process = WarmProcess(arguments, **options)
    try:
        code = process.wait(timeout)
        done = subprocess.CompletedProcess(process.args, code, *process.outputs())
    finally:
        process.close()
    if check and code:
        raise AssertionError(f"{process.args[:2]} ended with {code}: {done.stderr[-2000:]}")
    return done


# The server


class _Server:
    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
        environment.pop("PYTHONPATH", None)  # each run has its own
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()

    def send(self, request: bytes, descriptors: Sequence[int]) -> None:
        socket.send_fds(self._socket, [request[:1]], list(descriptors))
        self._socket.sendall(request[1:])

    def close(self) -> None:
        self._socket.close()
        self._process.wait(30)


@cache
def _server() -> _Server:
    server = _Server()
    atexit.register(server.close)
    return server


def serve(connection: socket.socket) -> Any:
    """Fork for every request; returns in the fork, with what it shall do."""
    import keras
    import tensorflow
    from tensorflow.python.eager import context

    del keras, tensorflow
    _import_nanreplay()
    leave_datasets_untuned()
    # What the runtime has begun, threads above all, does not survive a fork.
    assert not context.context()._initialized, "importing TensorFlow began its runtime"
    os.fsync = lambda descriptor: None  # as in the process of the tests
    path = sys.path[1:]
    gc.collect()
    gc.freeze()  # what the imports left is no garbage in any fork
    gc.set_threshold(100_000, 50, 50)  # looking for cycles took a tenth of a short training's time
    while True:
        first, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
        if not first:
            sys.exit(0)
        request = first
        while not request.endswith(b"\n"):
            request += connection.recv(1 << 16)
        if os.fork() == 0:
            connection.close()
            return _forked(json.loads(request), descriptors, path)
        for descriptor in descriptors:
            os.close(descriptor)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def leave_datasets_untuned() -> None:
    """Leave the datasets of this process untuned, for an iterator that is tuned may wait when it is
    let go.

    The thread that tunes it asks whether it shall end a moment too early, and then sleeps until its
    next turn, which is as far away as the iterator is old: 5 s after a training that failed, whose
    traceback holds the iterator until garbage is collected. No option turns it off for all
    datasets; each iterator asks this method, which has TensorFlow's debug mode turn it off.
    """
    import tensorflow as tf
    from tensorflow.python.data.ops import dataset_ops

    untuned = tf.data.Options()

    def apply_options(dataset: Any) -> Any:
        # a traced step keeps the ops that its user wrote
        return dataset.with_options(untuned) if tf.executing_eagerly() else dataset

    untuned.autotune.enabled = False
    dataset_ops.DatasetV2._apply_debug_options = apply_options


def _import_nanreplay() -> None:
    """Import what forks would import one by one, a sixth of the time of a short command."""
    sys.path.insert(1, str(ROOT))
    import nanreplay

    for module in pkgutil.walk_packages(nanreplay.__path__, "nanreplay."):
        if module.name not in NOT_IMPORTED:
            importlib.import_module(module.name)
    sys.path.remove(str(ROOT))


def _forked(request: dict[str, Any], descriptors: Sequence[int], path: list[str]) -> Any:
    """Fork once more; one half waits for the other and says how it ended."""
    output, errors, status = descriptors
    pid = os.fork()
    if pid:
        os.write(status, b"%d\n" % pid)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.write(status, b"%d\n" % code)
        os._exit(0)
    os.close(status)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    os.close(output)
    os.close(errors)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    if request["cpus"]:
        os.sched_setaffinity(0, request["cpus"])
    # A recorder replaces files that are older than its process, which begins here.
    sys.modules["nanreplay.recorder.settings"]._BEGAN_S = time.time()  # type: ignore[attr-defined]
    mine = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [*mine, *path]
    return request["arguments"]


def execute(arguments: list[str]) -> None:
    """What `python ARGUMENTS` does."""
    import runpy

    kind, rest = arguments[0], arguments[1:]
    if kind == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    if kind == "-c":
        code, sys.argv = compile(rest[0], "<string>", "exec"), ["-c", *rest[1:]]
        sys.path.insert(0, "")
    else:
        code, sys.argv = compile(Path(kind).read_bytes(), kind, "exec"), arguments
        sys.path.insert(0, str(Path(kind).resolve().parent))
        main.__file__ = kind
    sys.modules["__main__"] = main
    exec(code, main.__dict__)


def main() -> None:
    arguments = serve(socket.socket(fileno=int(sys.argv[1])))
    try:
        execute(arguments)
    except Exception as error:
        own = error.__traceback__
        while own is not None and own.tb_frame.f_code.co_filename == __file__:
            own = own.tb_next
        error.__traceback__ = own
        sys.excepthook(type(error), error, own)
        sys.exit(1)


if __name__ == "__main__":
    main()
