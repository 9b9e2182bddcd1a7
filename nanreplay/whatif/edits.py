"""What a fix changes of a replay, and which fixes are tried for which cause.

`fixes` makes `Fix` objects of a failure, `trial_window` applies their `Edit`, `trial` asks for
`candidates` when the user names no fix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from nanreplay.errors import ReplayError
from nanreplay.findings import Cause, CauseKind, Number
from nanreplay.records import ArrayLike, Frame

if TYPE_CHECKING:  # TensorFlow, which the terminal interface leaves to its worker process
    from nanreplay.program.graph_editor import ProgramEditor

OpKey: TypeAlias = tuple[str, str]
"""(function, op name), as the program's editor has it."""
ProgramEdit: TypeAlias = "Callable[[ProgramEditor], None]"
BatchEdit: TypeAlias = Callable[[int, Sequence[Any]], Sequence[Any]]
"""(step, arrays) -> arrays."""
StateEdit: TypeAlias = Callable[[Mapping[int, Any]], Mapping[int, ArrayLike]]
"""Variables before the first step -> those that change."""


class CannotTryError(ReplayError):
    """A fix does not apply to this capture; the message says why."""


class BadValueError(ValueError):
    """A fix does not take the value that was given."""


@dataclass(frozen=True, slots=True)
class RareEdit:
    """A change of the program that gives, in most steps, what the program gives without it."""

    change: ProgramEdit
    leaves: Callable[[int], bool]
    """Whether that is so of a step, bit for bit."""

    def __call__(self, editor: ProgramEditor) -> None:
        """Make the change."""
        self.change(editor)


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

    def leaves_program(self, step: int) -> bool:
        """Whether the changed program gives in a step what the recorded one gives."""
        return all(isinstance(one, RareEdit) and one.leaves(step) for one in self.programs)

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
    edits: Sequence[Mapping[str, Any]] = ()
    """The same as data, for programs that apply it: lines, arrays, arguments."""
    ops: Sequence[OpKey] = ()
    """The ops of the failing step that the line makes; all of them are changed."""


# Which fixes are tried for which cause: those that fit it first, then the usual advice for any NaN,
# so that the report says whether it helps.

_LOWER_RATES = ("lr=0.1", "lr=0.01", "lr=0.001", "lr=1e-4", "lr=1e-5")
_CLIPS = ("clipnorm=1.0", "clipvalue=1.0", "global_clipnorm=1.0")
_USUAL_ADVICE = ("clipnorm=1.0", "lr=0.1")
"""What is advised for any NaN: tried last, so that the report says whether it helps."""
LAST_RESORT = "skip_step"
"""Tried when nothing else helped: it contains a non-finite value rather than prevent it."""
_AGAINST_GROWTH = (*_LOWER_RATES, *_CLIPS, "clip_data", "init=glorot", "leaky_relu")
FITTING: Mapping[CauseKind, Sequence[str]] = {
    "data_nan": ("clean_data=nan_to_num", "clean_data=drop_rows"),
    "data_inf": ("clean_data=nan_to_num", "clip_data", "clean_data=drop_rows"),
    "data_outlier": ("clip_data", "clean_data=drop_rows"),
    "log_of_zero": ("epsilon", "stable_op", "double_where", "clean_data=drop_rows"),
    "log_of_negative": ("epsilon", "double_where", "clean_data=drop_rows"),
    "division_by_zero": ("epsilon", "stable_op", "double_where", "clean_data=drop_rows"),
    "zero_over_zero": ("epsilon", "stable_op", "double_where", "clean_data=drop_rows"),
    "exp_overflow": ("stable_op", "clip_data", "clean_data=drop_rows", *_LOWER_RATES[:2]),
    "sqrt_of_negative": ("epsilon", "double_where", "clean_data=drop_rows"),
    "sqrt_grad_at_zero": ("epsilon", "double_where", "clean_data=drop_rows"),
    "norm_grad_at_zero": ("epsilon", "double_where", "clean_data=drop_rows"),
    "pow_domain": ("epsilon", "double_where", "clean_data=drop_rows"),
    "acos_domain": ("epsilon", "double_where", "clean_data=drop_rows"),
    "fp16_overflow": ("float32", "clip_data", "clean_data=drop_rows"),
    "fp16_underflow": ("float32", "epsilon=1e-3", "epsilon"),
    "exploding_gradient": (*_CLIPS, "lr=0.1", "lr=0.01", "clip_data", "leaky_relu", "init=glorot"),
    "high_learning_rate": (*_LOWER_RATES, *_CLIPS),
    "bad_init": ("init=glorot", "init=he", "lr=0.1"),
    "where_gradient": ("double_where", "epsilon", "clean_data=drop_rows"),
    "variance_zero": ("epsilon", "epsilon=1e-5", "double_where", "clean_data=drop_rows"),
    "empty_reduction": ("stable_op", "epsilon", "double_where", "clean_data=drop_rows"),
    "mask_all": ("finite_mask", "clean_data=drop_rows"),
    "loss_scale_stuck": ("float32", "lr=0.1", "clip_data"),
    "label_out_of_range": ("clean_data=drop_rows",),
    "linalg_singular": ("epsilon=1e-6", "epsilon=1e-4", "epsilon=1e-3", "clean_data=drop_rows"),
    "hardware_like": (),
    "other": (
        "epsilon",
        "double_where",
        "finite_mask",
        "clean_data=drop_rows",
        "clip_data",
        *_AGAINST_GROWTH,
    ),
}
"""Fixes by cause, the one to prefer first."""


def candidates(causes: Sequence[Cause]) -> list[str]:
    """Return the fixes to try for a failure, the most promising first.

    Args:
        causes: Why it failed, the likeliest first.
    """
    return list(dict.fromkeys(_candidates(causes)))


def _candidates(causes: Sequence[Cause]) -> Iterator[str]:
    if not causes or causes[0].kind == "hardware_like":
        return
    for cause in causes:
        yield from FITTING[cause.kind]
    yield from _USUAL_ADVICE
    yield LAST_RESORT
