"""Frozen dataclasses of what a capture holds.

The recorder makes them, `capture` writes and reads them, everything else works on them. They are
pure data and import nothing but the standard library and numpy. Tables of a capture are these
classes as JSON, field by field, so a renamed field changes the file format.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

ArrayLike: TypeAlias = Any
"""Anything that `numpy.asarray` takes: an array, an EagerTensor, an HDF5 dataset."""
Compilation: TypeAlias = Literal["graph", "xla", "eager"]
Phase: TypeAlias = Literal["input", "forward", "loss", "backward", "update"]
Where: TypeAlias = Literal["layer", "loss", "optimizer", "input", "metric"]
Role: TypeAlias = Literal["trainable", "state", "optimizer", "seed", "metric", "other"]
TriggerWhat: TypeAlias = Literal["loss", "gradient", "variable", "exception", "manual"]
EACH_ITERATION = "each_iteration/"
"""Begins the path of an array whose first axis is the iterations of the loop that fetched it."""
PHASES: tuple[Phase, ...] = ("input", "forward", "loss", "backward", "update")
"""Phases of a training step in the order in which they run."""


@dataclass(frozen=True, slots=True)
class VariableInfo:
    """One variable that the recorded program reads or writes.

    Its index in the table of variables is its key in the file.
    """

    path: str
    """Keras path such as `encoder/dense/kernel`, else the TensorFlow name."""
    shape: tuple[int, ...]
    """Shape; () for a scalar."""
    dtype: str
    """TensorFlow dtype name, e.g. `float32`, `bfloat16`."""
    role: Role
    """What the variable is for."""

    @property
    def is_trained(self) -> bool:
        """Whether only steps change it; scalars such as a learning rate are what callbacks set."""
        return self.role == "trainable" or (
            self.role in ("state", "optimizer") and bool(self.shape)
        )


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One placeholder of the program that is fed from the batch."""

    tensor: str
    """Name of the placeholder's tensor, e.g. `data:0`."""
    leaf: int
    """Index of the array in the flattened batch."""
    path: str
    """Where the array sits in the batch as the user wrote it, e.g. `0/ids`."""
    dtype: str
    """TensorFlow dtype name."""
    shape: tuple[int | None, ...] | None
    """Static shape, None where unknown."""


@dataclass(frozen=True, slots=True)
class CaptureSpec:
    """One captured input of the program: a placeholder for a variable's handle or a constant."""

    tensor: str
    """Name of the placeholder's tensor."""
    variable: int | None = None
    """Index of the variable whose handle is fed, or None."""
    constant: int | None = None
    """Index of the constant that is fed, or None."""


@dataclass(frozen=True, slots=True)
class GradientSpec:
    """Where the program holds the gradient of one variable."""

    variable: int
    """Index of the variable."""
    tensor: str
    """Tensor name of the gradient (of its values, when sparse)."""
    indices: str | None = None
    """Tensor name of the row indices of an IndexedSlices gradient, or None when dense."""


def loss_name(index: int, loss_of: Sequence[str] = (), keys: Sequence[str] = ()) -> str:
    """What a loss is called: `d_loss`, else `loss`, `loss 1`, `loss of replica 1`.

    Args:
        index: Of the loss among all losses of the program.
        loss_of: As in `Signature`; losses are then counted within each replica.
        keys: `loss_keys` of the `Signature`.
    """
    if index < len(keys) and keys[index]:
        return keys[index]
    number = loss_of[:index].count(loss_of[index]) if loss_of else index
    name = f"loss {number}" if number else "loss"
    return f"{name} of {loss_of[index]}" if loss_of else name


def loss_in_words(name: str) -> str:
    """How sentences name a loss: `the loss`, and the key where it is returned under one."""
    is_key = name.partition(" ")[0] != "loss"
    return f"the loss `{name}`" if is_key else "the loss"


SEVERAL_LOSSES = "losses"
"""The kind of the compiled losses of several outputs together."""


@dataclass(frozen=True, slots=True)
class KerasPart:
    """A layer, a compiled loss or an optimizer, and what it is set to."""

    place: Literal["layer", "loss", "optimizer"]
    path: str
    """Chain of layer calls, e.g. `encoder/norm`; of one of several losses the scope of its ops.

    "" for the only loss, for all of several, and for an optimizer.
    """
    kind: str
    """How code names its class, e.g. `keras.layers.Dense`; of a loss also its name: `mse`."""
    settings: tuple[str, ...]
    """What matters of its settings, as arguments: `epsilon=0.001`, `dtype="float32"`."""

    @property
    def is_keras(self) -> bool:
        """Whether the class is Keras's own."""
        return self.kind.startswith(("keras.", "tf_keras."))

    @property
    def code(self) -> str:
        """The part as code makes it: `LayerNormalization(epsilon=0.001, dtype="float32")`."""
        name = self.kind.rpartition(".")[2]
        return f"{name}({', '.join(self.settings)})" if self.settings else name


@dataclass(frozen=True, slots=True)
class Signature:
    """How a program is called and what its tensors mean."""

    compilation: Compilation
    """`graph` (tf.function), `xla` (jit_compile) or `eager` (a flat program of executed ops)."""
    inputs: tuple[InputSpec, ...]
    """Placeholders fed from the batch."""
    captures: tuple[CaptureSpec, ...]
    """Placeholders fed from variables and constants."""
    outputs: tuple[str, ...] = ()
    """Tensor names of everything that the step returned, in order; replays fetch them all."""
    output_names: tuple[str, ...] = ()
    """A readable name for each output, e.g. `loss`."""
    control_outputs: tuple[str, ...] = ()
    """Names of ops that must run for their effect (variable assignments)."""
    losses: tuple[str, ...] = ()
    """Tensor names of what was differentiated, before loss scaling."""
    gradients: tuple[GradientSpec, ...] = ()
    """Gradients as they reached the optimizer."""
    watch: str | None = None
    """Tensor name of the fingerprint (a float32 vector) that the recorded step computes."""
    watch_layout: tuple[str, ...] = ()
    """What each element of the fingerprint is: `loss:0`, `gradient:12`, `learning_rate`, ..."""
    learning_rate: int | None = None
    """Index of the learning-rate variable; None for a schedule or a plain float."""
    loss_scaled: bool = False
    """Whether a LossScaleOptimizer may skip the update."""
    policy: str = "float32"
    """Name of the Keras dtype policy of the model."""
    root_layer: str | None = None
    """Name of the outermost Keras model."""
    fed: tuple[InputSpec, ...] = ()
    """Outputs of ops that another run would not repeat (random draws, Python, tables).

    They are recorded after the batch's arrays, and `leaf` counts on from these.
    """
    loss_of: tuple[str, ...] = ()
    """Whose each loss is, such as `replica 1`; empty where there is one replica."""
    loss_keys: tuple[str, ...] = ()
    """The key under which the step returns each of `losses` (or its mean over an epoch).

    "" for one without a key, and empty where none has one.
    """
    optimizers: tuple[str, ...] = ()
    """How the user's code names the classes of the optimizers, in the order of their updates."""
    splits_batches: bool = False
    """Whether the replicas' parts are those of one batch that the user gave, one after another."""
    names_data: bool = False
    """Whether the path of an array begins with a variable of the user's loop that holds it."""
    keras_parts: tuple[KerasPart, ...] = ()
    """Layers, losses and optimizers of Keras that the step called; empty where none was seen."""

    @property
    def gradient_tensors(self) -> tuple[str, ...]:
        """Tensor names of the gradients."""
        return tuple(spec.tensor for spec in self.gradients)

    def loss_name(self, index: int) -> str:
        """What a loss is called: `d_loss`, else `loss`, `loss 1`, `loss of replica 1`."""
        return loss_name(index, self.loss_of, self.loss_keys)


@dataclass(frozen=True, slots=True)
class Frame:
    """One Python stack frame."""

    file: str
    line: int
    function: str
    code: str | None
    """The source line, None when sources were left out."""


@dataclass(frozen=True, slots=True)
class OpInfo:
    """What is known of one op of a program, whichever function of its library it is in."""

    function: str
    """Name of the library function that holds the op; "" for the program's main graph."""
    name: str
    """Name of the op, unique in its function."""
    type: str
    """Op type, e.g. `MatMul`."""
    layer_path: str
    """Chain of Keras layers called in this function, "" outside; a caller's comes before it."""
    phase: str
    """One of PHASES; "watch" for the fingerprint's own ops; "" when the caller's phase holds."""
    where: str
    """One of Where; "" when the caller's holds."""
    stack: int
    """Index of the op's stack in the table of stacks, -1 when unknown."""
    forward: str
    """For a backward op: name of the forward op whose gradient it computes, else ""."""
    forward_function: str
    """Function that holds the forward op; "" for the main graph."""
    replica: int = -1
    """Which of several replicas ran it; -1 for one replica, and for what serves all."""


def ops_by_key(ops: Iterable[OpInfo]) -> dict[tuple[str, str], OpInfo]:
    """Return ops by function and name."""
    return {(op.function, op.name): op for op in ops}


@dataclass(frozen=True, slots=True)
class ProgramRecord:
    """A traced training step, with all that is needed to run and explain it without its Python."""

    id: str
    """Name in the file, e.g. `p0`."""
    graph: bytes
    """Serialized GraphDef with its function library."""
    signature: Signature
    ops: Sequence[OpInfo] = ()
    constants: Sequence[ArrayLike] = ()
    """Captured tensors that are not variables."""


@dataclass(frozen=True, slots=True)
class OptimizedGraph:
    """A program's graph as TensorFlow's graph optimizers left it on the recording machine."""

    graph: bytes
    """Serialized GraphDef; `_Arg` and `_Retval` ops stand for what it takes and returns."""
    inputs: tuple[str, ...]
    """Tensors of the program that are fed, by the number of the argument."""
    outputs: tuple[str, ...]
    """Tensors of the program that are returned, in order."""


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """The input of one step."""

    program: str
    """Id of the program that the step ran; "" when no program exists for it."""
    leaves: Sequence[ArrayLike]
    """Flattened arrays of the batch."""
    paths: Sequence[str]
    """A readable path for each leaf, e.g. `0/ids`."""
    fingerprint: ArrayLike | None = None
    """Float32 vector laid out as the signature's `watch_layout`, or None."""
    overrides: Mapping[int, ArrayLike] = field(default_factory=dict)
    """Variables that something outside the step had changed just before it, by variable index."""
    fed: Sequence[ArrayLike] = ()
    """Recorded outputs of ops, in the order of the signature's `fed`; each op's are all there."""

    @property
    def arrays(self) -> tuple[ArrayLike, ...]:
        """What the program is fed with: the batch's arrays, then the recorded outputs of ops."""
        return (*self.leaves, *self.fed)


@dataclass(frozen=True, slots=True)
class Trigger:
    """What made the recorder write the file."""

    what: TriggerWhat
    name: str
    """Name of the loss, the variable's path, or the exception's type."""
    value: str
    """`nan`, `inf`, `-inf`, or a message."""


@dataclass(frozen=True, slots=True)
class Incident:
    """Why and when the capture was written."""

    step: int
    trigger: Trigger
    notes: Sequence[str] = ()
    """Readable lines that later reports repeat: what was left out, what cannot be replayed."""
    reproduced: bool | None = None
    """Whether running the step again at the dump gave a non-finite value; None if not tried."""
    bit_exact: bool | None = None
    """Whether every re-executed fingerprint equalled the recorded one bit for bit."""
    max_ulp: int | None = None
    """Largest difference of a re-executed fingerprint, in units in the last place."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """The last steps in numbers; row i of every column belongs to `step[i]`."""

    columns: Mapping[str, ArrayLike]
    """1-D columns: step, loss, learning_rate, loss_scale, step_time_s, skipped, measured."""
    matrices: Mapping[str, ArrayLike]
    """[step, variable] matrices: gradient_norm, gradient_absmax, weight_norm, update_ratio.

    Where `measured` is False the step left out the absmax and the norm of large variables. Both
    are NaN then, but for norms that the dump computed.
    """
    variables: Sequence[int]
    """Indices of the variables that are the columns of the matrices."""

    def matrix(self, name: str) -> NDArray[np.float64]:
        """One matrix in float64, with the gaps of steps that were not measured filled.

        A gap gets what was measured last before it, else first after it. 0 x 0 when the matrix is
        not there.
        """
        matrix = np.array(self.matrices.get(name, np.zeros((0, 0))), np.float64)
        if name not in ("weight_norm", "gradient_absmax") or not matrix.size:
            return matrix
        # A NaN of a measured step is a value of the training and stays; only the NaNs of steps
        # that were not measured are gaps.
        measured = np.asarray(self.columns.get("measured", np.ones(len(matrix))), bool)[:, None]
        known = ~np.isnan(matrix) | measured
        # Each cell gets the row to copy from: the running maximum of known rows from the top is
        # the last one before, the running minimum from the bottom the first one after. With rows
        # [gap, 5, gap], `before` is [-1, 1, 1] and the copied rows are [1, 1, 1].
        last_row = len(matrix) - 1
        rows = np.arange(len(matrix))[:, None]
        before = np.maximum.accumulate(np.where(known, rows, -1), axis=0)
        after = np.minimum.accumulate(np.where(known, rows, last_row)[::-1], axis=0)[::-1]
        source_rows = np.where(before >= 0, before, after)
        filled: NDArray[np.float64] = np.take_along_axis(matrix, source_rows, axis=0)
        return filled


@dataclass(frozen=True, slots=True)
class CaptureContents:
    """Everything that goes into one capture file."""

    metadata: Mapping[str, str]
    """Versions, platform, devices, creation time (ISO 8601, UTC), run facts; JSON-able strings."""
    variables: Sequence[VariableInfo]
    programs: Sequence[ProgramRecord]
    keyframes: Mapping[int, Mapping[int, ArrayLike]]
    """State just before the step, by step, then by variable index."""
    batches: Mapping[int, BatchRecord]
    timeline: Timeline
    incident: Incident
    weights: Mapping[int, Mapping[int, ArrayLike]] = field(default_factory=dict)
    """Trainable variables just after the step, reconstructed at the dump."""
    gradients: Mapping[int, Mapping[int, ArrayLike]] = field(default_factory=dict)
    """Dense gradients of the step, reconstructed at the dump."""
    states: Mapping[int, Mapping[int, ArrayLike]] = field(default_factory=dict)
    """State just before the failing step, reconstructed at the dump; may lack optimizer slots."""
    frames: Sequence[Frame] = ()
    stacks: Sequence[Sequence[int]] = ()
    """Each stack is a sequence of indices into `frames`, outermost first."""


MADE_OUTSIDE, MADE_BEFORE = "made outside TensorFlow", "made before the step"
"""Begin the paths of arrays of an eager step that are no part of its batch.

Those that its Python code made, and tensors that are older than the step.
"""


def batch_name(path: str) -> str:
    """How an array of the batch is called: `batch[0/ids]`; `batch` where it is all of it."""
    return f"batch[{path}]" if path else "batch"


def place_in_batch(path: str, index: Sequence[int]) -> str:
    """Where an element of an array of rows of a batch is: `row 3, column 1`.

    Of an array that a loop fetched, `iteration 2, row 3, column 1`.
    """
    names = ["iteration", "row"] if path.startswith(EACH_ITERATION) else ["row"]
    words = [f"{name} {number}" for name, number in zip(names, index, strict=False)]
    column = list(index[len(names) :])
    if column:
        words.append(f"column {column[0] if len(column) == 1 else column}")
    return ", ".join(words)
