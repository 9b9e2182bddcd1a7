"""Frozen dataclasses of what bisecting finds and a report tells.

Bisect, diagnose and what-if make them; the reports and the terminal interface show them. They are
pure data and import nothing but `records`. A report's JSON is these classes, field by field, so a
field that is renamed here is renamed there; see `docs/report-format.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from nanreplay.records import Frame, KerasPart, Phase, Trigger, Where

CauseKind: TypeAlias = Literal[
    "data_nan", "data_inf", "data_outlier", "label_out_of_range",
    "log_of_zero", "log_of_negative", "division_by_zero", "zero_over_zero", "exp_overflow",
    "sqrt_of_negative", "sqrt_grad_at_zero", "norm_grad_at_zero", "pow_domain", "acos_domain",
    "fp16_overflow", "fp16_underflow", "loss_scale_stuck",
    "exploding_gradient", "high_learning_rate", "bad_init",
    "where_gradient", "variance_zero", "empty_reduction", "mask_all", "linalg_singular",
    "hardware_like", "other",
]  # fmt: skip
"""Why a value turned non-finite; `docs/causes.md` has an example of each."""
VerdictKind: TypeAlias = Literal[
    "reproduced", "xla_only", "precision_only", "transient", "healthy", "inconclusive"
]
Number: TypeAlias = float | int | bool | str
"""A Python number; a complex one as text. Writers of JSON turn NaN and infinities into text."""


@dataclass(frozen=True, slots=True)
class LoopIteration:
    """One enclosing loop of an op."""

    op: str
    """Name of the loop op, e.g. `functional/rnn/while`."""
    iteration: int
    """Iteration of the (forward) loop, from 0; the time step of an RNN."""


@dataclass(frozen=True, slots=True)
class OutputFacts:
    """One output of an op, in facts."""

    dtype: str
    shape: tuple[int, ...]
    nonfinite: int
    """How many elements are NaN or infinite."""
    size: int
    """Number of elements."""
    indices: tuple[tuple[int, ...], ...]
    """Indices of the first (at most ten) elements that the op made bad."""
    value: Number | None
    """The element at the first of `indices`."""


@dataclass(frozen=True, slots=True)
class OperandFacts:
    """One input of an op, at the element that made the first bad output element."""

    name: str
    """Tensor name, variable path or batch path."""
    dtype: str
    shape: tuple[int, ...]
    value: Number | None
    """The element that the first bad output element was computed from; None for many."""
    min: float | None
    """Smallest finite element; only of those used where the output came from many."""
    max: float | None
    """Largest finite element."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a non-finite value was born."""

    step: int
    phase: Phase
    where: Where
    layer: str | None
    """Innermost Keras layer, None outside of layers."""
    layer_path: str | None
    """Chain of layer calls, e.g. `encoder/block_2/norm`."""
    op_type: str | None
    """None when the batch itself is non-finite, or a variable that was given to the step."""
    op_name: str | None
    loop: tuple[LoopIteration, ...] = ()
    """Enclosing loops, outermost first."""
    source: Frame | None = None
    """Innermost line of the user's code."""
    outputs: tuple[OutputFacts, ...] = ()
    operands: tuple[OperandFacts, ...] = ()
    rows: tuple[int, ...] | None = None
    """Rows of the batch that produce it, proved by replay; None when no rows alone do.

    Of the batch that the user gave. Where it is not known how that was split among replicas, of
    the part that the origin's replica got.
    """
    replica_rows: tuple[int, ...] | None = None
    """These rows in the part that the origin's replica got.

    None where there is one replica, and where `rows` are those of the part already.
    """
    rows_reason: str | None = None
    """How the rows were proved, or why there are none."""
    kind: str | None = None
    """`raised` when the kernel raises on these operands op by op.

    `written` when the op only wrote the value to a variable, and the one that made it cannot be
    told. `set` when a variable, the operand, was so before the step and no recorded step made it
    so; `constant` when a tensor that the step closes over is. Phase, layer and line are then
    those of its first use. Else None.
    """
    message: str | None = None
    """What that kernel says, without TensorFlow's node names; None where it raises nothing."""
    replica: int | None = None
    """Which of its worker's replicas it was born in.

    None for one replica, and for what all replicas do alike (the update).
    """
    worker: int | None = None
    """Which of several workers recorded it; None for one worker, and for what all do alike."""
    part: KerasPart | None = None
    """The layer, loss or optimizer that it was born in, with its settings; None where unknown."""

    @property
    def is_of_batch(self) -> bool:
        """Whether the batch itself is non-finite."""
        return self.op_type is None and self.kind not in ("set", "constant")

    @property
    def is_given(self) -> bool:
        """Whether code outside of the step gave it, as no part of the batch."""
        return self.kind in ("set", "constant") or self.op_type in ("Const", "HostConst")

    @property
    def batch_prefix(self) -> str:
        """How paths begin in the part of the batch that its replica got."""
        return "" if self.replica is None else f"replica_{self.replica}/"

    @property
    def recorded_rows(self) -> tuple[int, ...] | None:
        """`rows` as they count in the arrays whose paths begin with `batch_prefix`."""
        return self.rows if self.replica_rows is None else self.replica_rows

    @property
    def place(self) -> str:
        """Op, layer and line: "`Log` in the loss (train.py:14)"."""
        return f"`{self.op_type}`{self._around}"

    @property
    def place_of_step(self) -> str:
        """The same with the step: "`Log` of step 3 in the loss (train.py:14)"."""
        return f"`{self.op_type}` of step {self.step}{self._around}"

    @property
    def _around(self) -> str:
        words = ""
        if self.layer_path:
            words = f" in layer `{self.layer_path}`"
        elif self.where in ("loss", "optimizer"):
            words = f" in the {self.where}"
        if self.source is not None:
            name = self.source.file.replace("\\", "/").rpartition("/")[2]
            words += f" ({name}:{self.source.line})"
        return words

    @property
    def is_of_part(self) -> bool:
        """Whether `rows` count in a replica's part, as the split of the batch is not known."""
        return self.replica is not None and self.replica_rows is None


@dataclass(frozen=True, slots=True)
class ChainLink:
    """One op on the way from the origin to the trigger, or upstream of the origin."""

    op_type: str
    op_name: str
    phase: Phase
    layer_path: str | None
    shape: tuple[int, ...]
    nonfinite: int
    """How many elements of its output are NaN or infinite."""
    value: str
    """The worst of its output: `nan`, `inf`, `-inf` or `finite`."""
    absmax: float | None
    """Largest finite absolute value of its output."""
    hides: str | None = None
    """`nan` or `inf` where it got one and gave a finite value that failed later; else None."""


@dataclass(frozen=True, slots=True)
class Root:
    """Where the trouble began when it grew over many steps."""

    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one replay of the failing step gave."""

    mode: str
    """`recorded` (as trained), `graph`, `ops` or `float64`."""
    finite: bool
    bit_exact: bool | None
    """Whether all recorded fingerprints came out bit for bit; None with none to compare."""
    max_ulp: int | None = None
    """Largest difference from a recorded fingerprint in units in the last place."""


@dataclass(frozen=True, slots=True)
class DifferingOp:
    """An op that two ways of replaying a step compute differently."""

    op_type: str
    op_name: str
    phase: Phase
    layer_path: str | None
    max_ulp: int | None
    """Largest difference of its outputs, in units in the last place.

    2^62 where one is finite and the other is not; None when the two are of different types.
    """


@dataclass(frozen=True, slots=True)
class ModeDifference:
    """Where two ways of replaying one step part, in the order in which ops run."""

    modes: tuple[str, str]
    """Modes of `Evidence`; the second is the finite one."""
    first: DifferingOp | None
    """The first op with other bits; None where float types differ, and so all ops do."""
    first_nonfinite: DifferingOp | None
    """The first op that is finite in the second mode only."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What replaying says of the incident."""

    kind: VerdictKind
    bit_exact: bool | None
    evidence: tuple[Evidence, ...] = ()
    reason: str | None = None
    """Why, when it is transient or inconclusive."""
    difference: ModeDifference | None = None
    """Where two modes part, when one is finite and another is not."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What bisecting found."""

    origin: Origin | None = None
    other_origins: tuple[Origin, ...] = ()
    chain: tuple[ChainLink, ...] = ()
    """From just after the origin to what triggered, shortened in the middle."""
    upstream: tuple[ChainLink, ...] = ()
    """Where the fatal operand came from, nearest first; copies, reshapes and casts left out."""
    root: Root | None = None
    notes: tuple[str, ...] = ()
    """Readable lines: a swallowed NaN, what could not be decided."""
    reason: str | None = None
    """Why there is no origin."""
    consequence: str | None = None
    """How it reached the trigger, for the sentence: `became NaN in Mul and reached the loss`."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Why it happened, with what speaks for it."""

    kind: CauseKind
    confidence: float
    """From 0 to 1; how much of the rule's evidence was found."""
    sentence: str
    """What happened, in the values of this capture."""
    evidence: tuple[str, ...] = ()
    """Readable lines, each a fact of the capture or of a replay."""


FixOutcome: TypeAlias = Literal["prevents", "fails", "moves", "unhealthy", "skips"]
"""What a fix does.

`prevents`: every step is finite, and the training goes on as usual. `fails`: it is not finite all
the same. `moves`: the op is finite now, and another one is not. `unhealthy`: all is finite, but the
loss or the weights are thrown far off. `skips`: the update of the failing step is left out.
"""


@dataclass(frozen=True, slots=True)
class FixResult:
    """What replaying the window with one fix gave."""

    name: str
    """`epsilon`, `clipnorm`, `lr`, ...; names joined by `+` where they were tried together."""
    params: Mapping[str, Any]
    prevents: bool | None
    """Whether every step that was checked stayed finite and the training lives.

    None when the fix could not be tried.
    """
    steps_checked: tuple[int, int] | None
    """First and last step that ran with the fix."""
    nonfinite: Trigger | None = None
    """What was non-finite all the same, or None."""
    nonfinite_step: int | None = None
    """The first step that was."""
    loss_change: float | None = None
    """Largest relative change of the loss, against the recording, before the failing step."""
    final_loss: float | None = None
    """Loss of the last step that was checked."""
    loss_rise: float | None = None
    """How many times the largest usual loss that of the failing step is with an epsilon.

    None where it is less than ten times.
    """
    code: str | None = None
    """The line of code that applies it."""
    source: Frame | None = None
    """The line that it belongs to; None for an optimizer's argument and for the data."""
    places: int | None = None
    """How many ops of the failing step that line makes, all of which were changed.

    None for a fix that edits no line.
    """
    edits: tuple[Mapping[str, Any], ...] = ()
    """What `code` says, as data: lines, arrays with bounds, arguments of the optimizer."""
    note: str | None = None
    """Why it could not be tried, or what to know of the outcome."""
    outcome: FixOutcome | None = None
    """What it does; None when it could not be tried."""
    moved_to: Origin | None = None
    """Where the first non-finite value is born with the fix, where that is another op."""
