"""Python stacks of ops, kept once each, library frames left out."""

from __future__ import annotations

import linecache
import sysconfig
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import tensorflow as tf

from nanreplay.records import Frame

Sources = Literal["lines", "none"]


def _folders(*names: str) -> list[Path]:
    """Where packages are, imported or not."""
    found = [find_spec(name) for name in names]
    return [Path(spec.origin).resolve().parent for spec in found if spec is not None and spec.origin]


_STDLIB = sysconfig.get_paths()["stdlib"]
_PACKAGE = str(Path(__file__).resolve().parents[1])
_LIBRARIES = tuple(str(path) + "/" for path in (Path(tf.__file__).resolve().parent, *_folders("keras", "tf_keras"), _PACKAGE, _STDLIB))


class SourceTable:
    """Collects stacks and frames for the file's `/sources`.

    Args:
        sources: "lines" keeps the text of each line, "none" leaves it out.
    """

    def __init__(self, sources: Sources = "lines") -> None:
        self.frames: list[Frame] = []
        self.stacks: list[tuple[int, ...]] = []
        self._with_code = sources == "lines"
        self._frame_ids: dict[tuple[str, int, str], int] = {}
        self._stack_ids: dict[tuple[int, ...], int] = {}

    def add(self, traceback: Iterable[Any] | None) -> int:
        """Index of the stack of the user's own frames, outermost first; -1 when there are none."""
        ids = tuple(self._frame(entry) for entry in traceback or () if is_user_file(entry.filename))
        if not ids:
            return -1
        if ids not in self._stack_ids:
            self._stack_ids[ids] = len(self.stacks)
            self.stacks.append(ids)
        return self._stack_ids[ids]

    def _frame(self, entry: Any) -> int:
        key = (entry.filename, int(entry.lineno), entry.name)
        if key not in self._frame_ids:
            code = linecache.getline(entry.filename, int(entry.lineno)).strip() if self._with_code else None
            self._frame_ids[key] = len(self.frames)
            self.frames.append(Frame(entry.filename, int(entry.lineno), entry.name, code))
        return self._frame_ids[key]


def is_user_file(file: str) -> bool:
    """Whether a file is the user's: not TensorFlow, Keras, this package, the standard library or generated code."""
    return (
        not file.startswith(_LIBRARIES)
        and not file.startswith("<")
        and "/site-packages/" not in file
        and "__autograph_generated_file" not in file
    )
