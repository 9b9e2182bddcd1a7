"""Record a TensorFlow or Keras training, replay the step that turned NaN, and name the op.

What users import stands here: `Recorder` writes a capture, `Capture` reads it, `explain` and
`Replay` say what happened in it, `replay_with` runs the recorded step on the user's current code.
Each name is imported when it is first asked for, so that `import nanreplay` loads no TensorFlow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nanreplay import notebook

if TYPE_CHECKING:
    from nanreplay.capture import Capture as Capture
    from nanreplay.errors import AttachError as AttachError
    from nanreplay.errors import CaptureNotFoundError as CaptureNotFoundError
    from nanreplay.errors import FormatError as FormatError
    from nanreplay.errors import ModelError as ModelError
    from nanreplay.errors import NanreplayError as NanreplayError
    from nanreplay.errors import NonFiniteError as NonFiniteError
    from nanreplay.errors import ReplayError as ReplayError
    from nanreplay.errors import UnsafeProgramError as UnsafeProgramError
    from nanreplay.errors import UnsupportedOpError as UnsupportedOpError
    from nanreplay.errors import VersionError as VersionError
    from nanreplay.recorder import Recorder as Recorder
    from nanreplay.replay import Replay as Replay
    from nanreplay.report.explain import explain as explain
    from nanreplay.rerun import RerunResult as RerunResult
    from nanreplay.rerun import replay_with as replay_with

__version__ = "0.2.0"
# The module that holds each public name. The imports above tell type checkers the same.
_PUBLIC = {
    "AttachError": "nanreplay.errors",
    "Capture": "nanreplay.capture",
    "CaptureNotFoundError": "nanreplay.errors",
    "FormatError": "nanreplay.errors",
    "ModelError": "nanreplay.errors",
    "NanreplayError": "nanreplay.errors",
    "NonFiniteError": "nanreplay.errors",
    "Recorder": "nanreplay.recorder",
    "Replay": "nanreplay.replay",
    "ReplayError": "nanreplay.errors",
    "RerunResult": "nanreplay.rerun",
    "UnsafeProgramError": "nanreplay.errors",
    "UnsupportedOpError": "nanreplay.errors",
    "VersionError": "nanreplay.errors",
    "explain": "nanreplay.report.explain",
    "replay_with": "nanreplay.rerun",
}
# By class name, not by import: a capture that is shown in a notebook then imports no reports.
notebook.PAGES.update(
    Capture="nanreplay.report.pages:capture_fragment",
    Recorder="nanreplay.report.cell_page:recorder_fragment",
    Report="nanreplay.report.pages:report_fragment",
    incident="nanreplay.report.cell_page:show_incident",
)
__all__ = [*sorted(_PUBLIC), "__version__"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_PUBLIC[name]), name)
    except ModuleNotFoundError as error:
        from nanreplay.errors import missing_package

        missing = missing_package(error)
        if missing is None:
            raise
        raise missing from error


def __dir__() -> list[str]:
    return __all__
