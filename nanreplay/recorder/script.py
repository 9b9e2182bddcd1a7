"""Running a program as `python` does, with whatever trains in it recorded.

This is `nanreplay run`. Nothing is imported before the program imports it: what it sets before,
such as environment variables, holds for TensorFlow and Keras.
"""

from __future__ import annotations

import atexit
import importlib.abc
import importlib.machinery
import importlib.util
import os
import runpy
import signal
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanreplay.errors import AttachError, NonFiniteError
from nanreplay.recorder import loops, notices
from nanreplay.recorder.loops import Loops

if TYPE_CHECKING:
    from nanreplay.recorder.ambient import Ambient
    from nanreplay.recorder.callback import Recorder

_OURS = (__file__, loops.__file__, runpy.__file__, "<frozen runpy>")
"""Files whose frames are left out of the trace of an exception that nobody caught."""
_RECORDED = ("tensorflow", "keras", "tf_keras")


def run_script(path: str, arguments: Sequence[str], settings: Mapping[str, Any]) -> int:
    """Run a script as `python path arguments...`; returns its exit code.

    Raises:
        AttachError: It cannot be read.
    """
    file = Path(path)
    if file.is_dir():
        example = file / "train.py"
        raise AttachError(f"Cannot run {path}: it is a folder. Give a script such as {example}.")
    try:
        source = file.read_bytes()
    except OSError as error:
        raise AttachError(f"Cannot run {path}: {error.strerror or error}.") from error
    if b"\0" in source:  # no text; Python says so by a trace with nothing of the user's in it
        hint = ""
        if source.startswith(b"\x89HDF"):
            hint = f" (nanreplay bisect {path} explains a capture)"
        raise AttachError(f"Cannot run {path}: it is no Python program.{hint}")
    sys.argv = [path, *arguments]
    sys.path[0] = str(file.resolve().parent)
    main = types.ModuleType("__main__")
    script = os.path.abspath(path)
    main.__dict__.update(__file__=script, __builtins__=__builtins__, __cached__=None)
    sys.modules["__main__"] = main

    def execute(program: Loops) -> None:
        exec(program.compile(source, script), main.__dict__)

    return _run(execute, sys.path[0], settings)


def run_module(name: str, arguments: Sequence[str], settings: Mapping[str, Any]) -> int:
    """Run a module as `python -m name arguments...`; returns its exit code.

    Raises:
        AttachError: There is no such module.
    """
    sys.path[0] = os.getcwd()
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise AttachError(f"Cannot run -m {name}: there is no module of that name.")
    sys.argv = [name, *arguments]

    def execute(program: Loops) -> None:
        runpy.run_module(name, run_name="__main__", alter_sys=True)

    return _run(execute, sys.path[0], settings)


def _run(execute: Callable[[Loops], None], folder: str, settings: Mapping[str, Any]) -> int:
    ambient = _AmbientOfProcess(settings)
    program = ambient.loops = Loops(folder, lambda: ambient.ambient)
    sys.meta_path.insert(0, _Finder(ambient.imported, program))
    for name in _RECORDED:
        if name in sys.modules:
            ambient.imported(name)
    atexit.register(ambient.stop)
    try:
        execute(program)
        ambient.end()
    except SystemExit as error:
        ambient.tell_of_caught(error)
        code = _exit_code(error)
        if not code:
            ambient.tell_of_nothing()
        return code
    except BaseException as error:
        ambient.tell_of_caught(error)
        return _uncaught(error)
    ambient.tell_of_caught(None)
    ambient.tell_of_nothing()
    return 0


def _exit_code(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    print(error.code, file=sys.stderr)
    return 1


def _uncaught(error: BaseException) -> int:
    """Do what Python does with an exception that nobody caught; frames of ours are left out.

    After Ctrl-C, Python ends by the signal itself, so that a shell stops its script too.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in _OURS:
        trace = trace.tb_next
    sys.excepthook(type(error), error.with_traceback(trace), trace)
    if isinstance(error, KeyboardInterrupt):
        sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return 1


class _AmbientOfProcess:
    """Records whatever trains, once the program has imported TensorFlow itself."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = dict(settings)
        self.ambient: Ambient | None = None
        self.loops: Loops | None = None
        self._made: list[Recorder] = []
        self._has_seen_nothing = True

    def imported(self, name: str) -> None:
        """The program has imported a package."""
        if self.ambient is None and "tensorflow" in sys.modules and name != "keras":
            from nanreplay.recorder.ambient import Ambient

            self.ambient = Ambient(self._make_recorder, self._is_in_loop)
            self.ambient.start()
        if self.ambient is not None and name in ("keras", "tf_keras"):
            self.ambient.keras_imported(name)

    def _is_in_loop(self) -> bool:
        """Python code trains outside of recorded steps; whether a loop will record the next one."""
        return self.loops is not None and self.loops.trained_eagerly()

    def _make_recorder(self) -> Recorder:
        from nanreplay.recorder.callback import Recorder

        recorder = Recorder(**self._settings)
        self._made.append(recorder)
        return recorder

    def tell_of_caught(self, error: BaseException | None) -> None:
        """Say where the captures are whose errors the program has caught.

        Args:
            error: What ends the program, or None; Python tells of it and of what it came from.
        """
        shown: list[BaseException] = []
        while error is not None and not any(error is earlier for earlier in shown):
            shown.append(error)
            error = error.__cause__ or error.__context__
        for recorder in self._made:
            if recorder.raised is None:
                continue
            reference, message = recorder.raised
            raised = reference()
            if not any(raised is known for known in shown):
                print(f"nanreplay: {message}", file=sys.stderr)

    def tell_of_nothing(self) -> None:
        """Say so where the program has come to its end and no training was seen in it."""
        if self.ambient is not None:
            self._has_seen_nothing = self.ambient.has_seen_nothing
        if notices.spoken() or self._made or not self._has_seen_nothing:
            return
        if "tensorflow" not in sys.modules:
            why = "the program did not import TensorFlow in this process."
        else:
            why = (
                "the program called no `fit`, and no step was seen that takes a gradient with a "
                "tape and sets variables. A step whose gradients are written by hand is recorded "
                "by nanreplay.Recorder, `step = recorder.wrap(step)`, if it sets tf.Variables."
            )
        print(f"nanreplay: nothing was recorded: {why}", file=sys.stderr)

    def end(self) -> None:
        """The program has come to its end.

        Raises:
            NonFiniteError: One of the last steps was non-finite, and `on_nan` is "raise".
        """
        if self.loops is not None:
            self.loops.end()
        ambient, self.ambient = self.ambient, None
        if ambient is not None:
            self._has_seen_nothing = ambient.has_seen_nothing
            ambient.stop()

    def stop(self) -> None:
        """The process ends, in whatever way."""
        try:
            self.end()
        except NonFiniteError as error:
            print(f"nanreplay: {error}", file=sys.stderr)


class _Finder(importlib.abc.MetaPathFinder):
    """Tells when a package that trains has been imported, and loads the program's own modules.

    It stands first in `sys.meta_path`, and so sees imports however the program makes them. Nothing
    is imported for it.
    """

    def __init__(self, imported: Callable[[str], None], loops: Loops) -> None:
        self._imported = imported
        self._loops = loops
        self._is_looking = False

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """Find a module.

        A package that is told of is found as ever, with a loader that tells; a module of the
        program, with a loader that puts its loops under watch; any other by those after us.
        """
        if fullname not in _RECORDED:
            return self._own_module(fullname, path)
        if self._is_looking:  # `importlib.util.find_spec` asks us again
            return None
        self._is_looking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._is_looking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _TellingLoader(spec.loader, lambda: self._imported(fullname))
        return spec

    def _own_module(self, fullname: str, path: Any) -> Any:
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        loader = None if spec is None else self._loops.loader_of(spec)
        if spec is None or loader is None:
            return None
        spec.loader = loader
        return spec


class _TellingLoader(importlib.abc.Loader):
    """A loader that tells when the module has been executed."""

    def __init__(self, loader: Any, executed: Callable[[], None]) -> None:
        self._loader = loader
        self._executed = executed

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Any:
        """Make the module as the loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        """Execute the module, and give it its own loader back."""
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._executed()
