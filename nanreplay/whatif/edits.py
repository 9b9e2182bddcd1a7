"""What a fix changes of a replay: the program, the batches, the state at the start, the learning rate, what is skipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from nanreplay.errors import ReplayError
from nanreplay.findings import Number
from nanreplay.program.edit import ProgramEditor
from nanreplay.records import ArrayLike, Frame

ProgramEdit: TypeAlias = Callable[[ProgramEditor], None]
BatchEdit: TypeAlias = Callable[[int, Sequence[Any]], Sequence[Any]]
"""(step, arrays) -> arrays."""
StateEdit: TypeAlias = Callable[[Mapping[int, Any]], Mapping[int, ArrayLike]]
"""Variables before the first step -> those that change."""


class CannotTryError(ReplayError):
    """A fix does not apply to this capture; the message says why."""


class BadValueError(ValueError):
    """A fix does not take the value that was given."""


@dataclass(frozen=True, slots=True)
class Edit:
    """Changes that are made before, and while, the window is replayed."""

    programs: tuple[ProgramEdit, ...] = ()
    batches: tuple[BatchEdit, ...] = ()
    state: tuple[StateEdit, ...] = ()
    learning_rate: float = 1.0
    """Factor of the learning rate."""
    widen_half: bool = False
    """Compute in float32 what was computed in 16 bits."""
    skips_nonfinite: bool = False
    """Undo the update of a step that is not finite, and go on."""

    def __or__(self, other: Edit) -> Edit:
        """Make both changes."""
        return replace(
            self,
            programs=self.programs + other.programs,
            batches=self.batches + other.batches,
            state=self.state + other.state,
            learning_rate=self.learning_rate * other.learning_rate,
            widen_half=self.widen_half or other.widen_half,
            skips_nonfinite=self.skips_nonfinite or other.skips_nonfinite,
        )


@dataclass(frozen=True, slots=True)
class Fix:
    """One thing to try."""

    name: str
    params: Mapping[str, Number]
    edit: Edit
    code: str | None = None
    """The line of code that applies it."""
    source: Frame | None = None
    """The line that it belongs to."""
    note: str | None = None
    """What to know of it, whatever comes out."""
