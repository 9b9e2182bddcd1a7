"""Everything that nanreplay raises on purpose; catch `NanreplayError` for all of it.

In brackets is the built-in class that an error is also one of.

```
Exception
└── NanreplayError
    ├── CaptureError                                  a capture file
    │   ├── CaptureNotFoundError (FileNotFoundError)  no such file
    │   ├── MissingPartError (LookupError)            no such step, program or table in it
    │   ├── FormatError (ValueError)                  not a capture, truncated, damaged
    │   │   └── VersionError                          written by a newer nanreplay
    │   └── StorageError (OSError)                    cannot be reached, read or written
    ├── AttachError (ValueError)                      a recorder attached wrongly
    ├── ModelError (ValueError)                       the user's current model does not fit
    ├── OutputExistsError (FileExistsError)           a file that would be written over
    ├── UnsafeProgramError                            a program that reaches beyond tensors
    ├── MissingPackageError (ImportError)             a package that an extra brings
    ├── ClusterError (OSError)                        a Dask cluster that cannot be used
    ├── MemoryLimitError (MemoryError)                more memory than --max-memory allows
    ├── UnsupportedOpError (NotImplementedError)      an op that cannot be replayed
    ├── ReplayError (RuntimeError)                    a replay that failed
    │   └── MissingWorkersError                       it needs captures of other workers
    └── NonFiniteError (ArithmeticError)              training met a non-finite value
```

A message says what happened, where, and what to do. `hint` holds what to do where that deserves
a line of its own.
"""

from __future__ import annotations

import os
import re
from types import TracebackType

from nanreplay import notebook

_EXTRAS = {
    "tensorflow": "tensorflow",
    "keras": "tensorflow",
    "textual": "view",
    "textual_plotext": "view",
    "jinja2": "view",
    "matplotlib": "view",
    "fsspec": "remote",
    "IPython": "shell",
    "fastparquet": "parquet",
    "distributed": "cluster",
}
"""The extra of nanreplay that brings a package."""


_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_AROUND = (
    " ",
    "\t",
    "Detected at",
    "<stack",
    "Stack trace",
    "Original stack",
    "Arguments received",
)
"""How lines begin that say where an error came from, and not why."""
_NODE_NAMES = re.compile(r"\{\{.*?\}\}\s*|\s*\[Op:\w+\](\s*name:\s*\S*)?|\s*name:\s*$")


def first_line(error: BaseException) -> str:
    """What an error says, without the lines that follow the first one."""
    lines = str(error).splitlines() or [""]
    return lines[0]


def reason_line(error: BaseException) -> str:
    """The line of an error's message that says why.

    The message of a graph's error begins with where the op was made ("Detected at node ...", with
    an indented stack), and ends with which node it was ("Original stack trace for ...").
    Keras puts which layer was called before it, and what that was given after it. Colours and names
    of nodes are left out.
    """
    lines = []
    for line in _COLOURS.sub("", str(error)).splitlines():
        if line.strip():
            lines.append(line)
    if not lines:
        return ""
    reason = lines[0]
    if reason.startswith(("Graph execution error", "Exception encountered when calling")):
        reason = next((line for line in lines[1:] if not line.startswith(_AROUND)), reason)
    return without_node_names(reason) or reason


def few_digits(number: float) -> str:
    """A number in six digits; in nine where six would show another one, such as 1 for 1.0000001."""
    text = f"{number:.6g}"
    reads_whole = "." not in text and "e" not in text and abs(number) < 1000
    return f"{number:.9g}" if reads_whole and float(text) != number else text


def without_node_names(message: str) -> str:
    """A message of TensorFlow without what it adds of its own: the function's name, and the op's.

    `{{function_node __wrapped__Cast_}} indices[0] = 12 is not in [0, 3) [Op:GatherV2]`
    says `indices[0] = 12 is not in [0, 3)`.
    """
    return _NODE_NAMES.sub("", message).strip()


def own_error(what: str, error: Exception) -> str:
    """Return a note of an error of this package's own, which costs one part of an answer only.

    With NANREPLAY_DEBUG set, the error is raised.

    Args:
        what: What is missing for it, such as `The rows could not be told`.
        error: The error.
    """
    if os.environ.get("NANREPLAY_DEBUG"):
        raise error
    return f"{what}; please report this: {type(error).__name__}: {error}"


class NanreplayError(Exception):
    """Base of every error of nanreplay."""

    hint: str | None = None
    """What to do about it, when the message alone does not say it."""

    def __init__(self, message: str = "", *, hint: str | None = None) -> None:
        """Remember the message and, optionally, the hint."""
        super().__init__(message)
        self.hint = hint


class CaptureError(NanreplayError):
    """Something about a capture file."""


class CaptureNotFoundError(CaptureError, FileNotFoundError):
    """The capture file does not exist."""


class MissingPartError(CaptureError, LookupError):
    """The capture is in order, but holds no such step, program or table."""


class FormatError(CaptureError, ValueError):
    """The file is not a capture, or is truncated or damaged."""


class VersionError(FormatError):
    """The capture was written in a newer version of the format."""


class StorageError(CaptureError, OSError):
    """The place of a capture cannot be reached, read or written."""


class AttachError(NanreplayError, ValueError):
    """A recorder was attached wrongly."""


class ModelError(NanreplayError, ValueError):
    """The user's current model cannot be made, or does not fit what was recorded."""


class OutputExistsError(NanreplayError, FileExistsError):
    """A file would be written over, or cannot be written where it should go."""


class UnsafeProgramError(NanreplayError):
    """The program holds ops that reach files, the network, processes or Python."""


class MissingPackageError(NanreplayError, ImportError):
    """A package that this work needs is not installed; the message names the extra with it."""


def missing_package(error: ImportError) -> MissingPackageError | None:
    """What to say of an import that failed; None when no extra of nanreplay brings the package."""
    package = (error.name or "").partition(".")[0]
    extra = _EXTRAS.get(package)
    if extra is None:
        return None
    install = f"pip install 'nanreplay[{extra}]'"
    if extra == "tensorflow":
        install += ", or the build of TensorFlow that you train with"
    return MissingPackageError(f"This needs {package}, which is not installed: {install}.")


class ClusterError(NanreplayError, OSError):
    """A Dask cluster does not answer, has no workers, or these cannot do the work."""


class MemoryLimitError(NanreplayError, MemoryError):
    """A capture or its program would take more memory than it may."""


class UnsupportedOpError(NanreplayError, NotImplementedError):
    """An op cannot be replayed."""

    def __init__(self, op_type: str, op_name: str, reason: str) -> None:
        """Say which op, and why.

        Args:
            op_type: Type of the op, e.g. `PyFunc`.
            op_name: Name of the op in its function.
            reason: Why it cannot be replayed; completes "cannot be replayed: ...".
        """
        super().__init__(f"{op_type} {op_name!r} cannot be replayed: {reason}.")
        self.op_type = op_type
        self.op_name = op_name
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnsupportedOpError], tuple[str, str, str]]:
        """Survive pickling, so that the error crosses processes."""
        return type(self), (self.op_type, self.op_name, self.reason)


class ReplayError(NanreplayError, RuntimeError):
    """A replay could not be done."""


class StepRaisedError(ReplayError):
    """A step raised when it was replayed.

    Args:
        message: Which step (or which op of it) raised what.
        kind: Name of the class of what it raised.
        reason: The line of that which says why.
    """

    def __init__(self, message: str, kind: str, reason: str) -> None:
        """Remember what was raised."""
        super().__init__(message)
        self.kind, self.reason = kind, reason


class MissingWorkersError(ReplayError):
    """A step of one worker needs what the others computed."""


class NonFiniteError(NanreplayError, ArithmeticError):
    """Training met a non-finite value; the recorder has written a capture if it could.

    ```python
    try:
        model.fit(data, callbacks=[Recorder("run.h5")])
    except NonFiniteError as error:
        print(error.step, error.path)
    ```
    """

    def __init__(
        self,
        sentence: str,
        *,
        step: int,
        path: str | os.PathLike[str] | None = None,
        told: str | os.PathLike[str] | None = None,
    ) -> None:
        """Say what happened.

        Args:
            sentence: What was non-finite, and where.
            step: Step of the recording, from 0.
            path: The capture file, or None when none was written.
            told: How the message names the file: by its path, unless given.
        """
        self.sentence = sentence
        self.step = step
        self.path = None if path is None else os.fspath(path)
        self._told = self.path if told is None else os.fspath(told)
        message = sentence
        if path is not None:
            message += f" Capture: {self._told} (explain it with: nanreplay bisect {self._told})"
        super().__init__(message)
        self._is_shown = False

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: the message and the user's own frames.

        In a notebook the page of the capture follows below. `%tb` asks again, and gets all frames.
        """
        if self._is_shown:
            return notebook.full_traceback(self)
        self._is_shown = True
        message = self.sentence if self.path is None else f"{self.sentence} Capture: {self._told}"
        lines = notebook.short_traceback(self, message)
        if self.path is not None:
            notebook.show_incident_after_cell(self.path)
            how = "the page below" if notebook.is_kernel() else f"nanreplay bisect {self._told}"
            lines.append(f"Explained by: {how}. Every frame: %tb")
        return lines

    def __reduce__(self) -> tuple[object, ...]:
        """Survive pickling, so that the error crosses processes."""
        return _non_finite_error, (self.sentence, self.step, self.path, self._told)


# `__reduce__` can name arguments by position only, and `step` and `path` are keywords.
def _non_finite_error(
    sentence: str, step: int, path: str | None, told: str | None
) -> NonFiniteError:
    return NonFiniteError(sentence, step=step, path=path, told=told)


_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def without_own_frames(error: NonFiniteError) -> NonFiniteError:
    """Take nanreplay's own frames out of a traceback: the recorder was called, and did not fail.

    Args:
        error: What it raised; the frames of the user's code stay.
    """
    frames = []
    each = error.__traceback__
    while each is not None:
        if not each.tb_frame.f_code.co_filename.startswith(_PACKAGE):
            frames.append(each)
        each = each.tb_next
    kept: TracebackType | None = None
    for frame in reversed(frames):
        kept = TracebackType(kept, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    return error.with_traceback(kept)
