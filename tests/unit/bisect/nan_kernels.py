"""What the kernels of TensorFlow make of a NaN and of an infinity, found by running each of them.

`python tests/unit/bisect/nan_kernels.py` writes `nanreplay/bisect/nan_behaviour.txt` anew, which
the walk back reads; `test_nan_behaviour.py` holds the file against the kernels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from nanreplay.bisect import influence
from nanreplay.bisect.nan_behaviour import MODES, TABLE
from nanreplay.tensorflow_internals import tf_eager

HEADER = """\
# What TensorFlow's CPU kernels make of a NaN and of an infinity, as seen by running each of them:
# op, input, what it holds, what comes out eagerly, in a graph, compiled by XLA. n: NaN, p: inf,
# m: -inf, f: a finite number (or an integer, a truth value); several letters: each of them, by the
# elements beside it. !: the kernel raises. -: there is no such kernel. =: no output depends on it.
# Written by tests/unit/bisect/nan_kernels.py.
"""
"""The first lines of the file."""
SPECIALS = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}
WIDTH = 19
"""A vector register's lanes and some more: a kernel may treat the rest otherwise."""
VALUES = np.resize(np.array([0.4, 0.0, 0.9, 0.2, -0.6], np.float32), WIDTH)
POSITIVE = np.resize(np.array([0.4, 0.3, 0.9, 0.2, 0.6], np.float32), WIDTH)


class Example(NamedTuple):
    """One way to call an op: its inputs in order, and its attributes."""

    inputs: tuple[Any, ...]
    attrs: Mapping[str, Any] = {}


def _grid(*shape: int) -> Any:
    return np.resize(POSITIVE, shape).astype(np.float32)


def _examples() -> dict[str, list[Example]]:
    """Examples of each op that the walk back has a rule for, and of those that may hide a NaN."""
    table: dict[str, list[Example]] = {}
    for op_type in sorted(influence.ELEMENTWISE | influence.COMPARISONS):
        definition = tf_eager.op_definition(op_type)
        if definition is None or op_type.startswith("_"):
            continue
        count = len(definition.input_arg)
        domain = 1.5 + POSITIVE if op_type in ("Acosh", "Zeta") else POSITIVE
        operands = [tuple([domain] * count)]
        if count == 2:  # what stands beside the NaN may decide
            operands += [(VALUES, VALUES), (domain, 2 * domain), (2 * domain, domain)]
            operands += [(domain, 0 * domain), (0 * domain, domain)]
        table[op_type] = [Example(one) for one in operands]
    table |= _special_examples()
    for op_type in sorted(influence.REDUCTIONS | {"All", "Any"}):
        array = _grid(4, WIDTH) > 0.3 if op_type in ("All", "Any") else _grid(4, WIDTH)
        table[op_type] = [Example((array, np.int32(axis))) for axis in (0, 1)]
    for op_type in sorted(influence.ACCUMULATIONS):
        table[op_type] = [Example((_grid(4, WIDTH), np.int32(1)))]
    return table


def _special_examples() -> dict[str, list[Example]]:
    image, filters = _grid(2, 6, 6, 3), _grid(3, 3, 3, 2)
    pool = {"ksize": [1, 2, 2, 1], "strides": [1, 2, 2, 1], "padding": "VALID"}
    pooled = tf.nn.max_pool2d(image, 2, 2, "VALID").numpy()
    volume, row = _grid(2, 4, 4, 4, 2), _grid(3, WIDTH)
    pool3d = {"ksize": [1, 2, 2, 2, 1], "strides": [1, 2, 2, 2, 1], "padding": "VALID"}
    pooled3d = tf.nn.max_pool3d(volume, 2, 2, "VALID").numpy()
    segments = np.array([0, 0, 1], np.int32)
    gray = {"strides": [1, 1, 1, 1], "padding": "VALID"}
    axis0, axis1 = np.int32(0), np.int32(1)
    square = _grid(3, 3) + 2 * np.eye(3, dtype=np.float32)
    labels = np.array([1, 0, 2], np.int64)
    condition = np.resize([True, False], row.shape)
    start, size = np.array([0, 2], np.int32), np.array([3, 4], np.int32)
    squeezed = {"begin_mask": 0, "end_mask": 0}
    table: dict[str, list[Example]] = {
        "Cast": [
            Example((POSITIVE,), {"DstT": kind, "Truncate": False})
            for kind in (tf.float16, tf.bfloat16, tf.float64)
        ],
        "Cast:int32": [Example((POSITIVE,), {"DstT": tf.int32, "Truncate": False})],
        "Cast:bool": [Example((POSITIVE,), {"DstT": tf.bool, "Truncate": False})],
        "AddN": [Example(([POSITIVE, VALUES],))],
        "AccumulateNV2": [Example(([POSITIVE, VALUES],), {"shape": [WIDTH]})],
        "CheckNumerics": [Example((POSITIVE,), {"message": ""})],
        "CheckNumericsV2": [Example((POSITIVE,), {"message": ""})],
        "ClipByValue": [Example((VALUES, np.float32(-0.1), np.float32(0.5)))],
        "Complex": [Example((POSITIVE, POSITIVE))],
        "Angle": [Example((POSITIVE.astype(np.complex64),))],
        "ComplexAbs": [Example((POSITIVE.astype(np.complex64),))],
        "Conj": [Example((POSITIVE.astype(np.complex64),))],
        "Imag": [Example((POSITIVE.astype(np.complex64),))],
        "Real": [Example((POSITIVE.astype(np.complex64),))],
        "ApproximateEqual": [Example((POSITIVE, POSITIVE))],
        "Polygamma": [Example((np.ones(WIDTH, np.float32), POSITIVE))],
        "Softmax": [Example((row,))],
        "LogSoftmax": [Example((row,))],
        "MatMul": [Example((row, _grid(WIDTH, 5)))],
        "BatchMatMul": [Example((_grid(2, 3, WIDTH), _grid(2, WIDTH, 5)))],
        "BatchMatMulV2": [Example((_grid(2, 3, WIDTH), _grid(2, WIDTH, 5)))],
        "BatchMatMulV3": [Example((_grid(2, 3, WIDTH), _grid(2, WIDTH, 5)), {"Tout": tf.float32})],
        "SoftmaxCrossEntropyWithLogits": [Example((row, row))],
        "SparseSoftmaxCrossEntropyWithLogits": [Example((row, labels))],
        "BiasAdd": [Example((row, POSITIVE))],
        "BiasAddGrad": [Example((row,))],
        "Einsum": [Example(([row, row],), {"equation": "ij,kj->ik"})],
        "L2Loss": [Example((row,))],
        "Conv2D": [Example((image, filters), gray)],
        "Conv3D": [
            Example((volume, _grid(2, 2, 2, 2, 1)), {"strides": [1] * 5, "padding": "VALID"})
        ],
        "DepthwiseConv2dNative": [Example((image, _grid(3, 3, 3, 1)), gray)],
        "AvgPool": [Example((image,), pool)],
        "AvgPool3D": [Example((volume,), pool3d)],
        "MaxPool": [Example((image,), pool)],
        "MaxPool3D": [Example((volume,), pool3d)],
        "MaxPoolV2": [
            Example(
                (image, np.array([1, 2, 2, 1], np.int32), np.array([1, 2, 2, 1], np.int32)),
                {"padding": "VALID"},
            )
        ],
        "MaxPoolWithArgmax": [Example((image,), pool)],
        "MaxPoolGrad": [Example((image, pooled, _grid(*pooled.shape)), pool)],
        "MaxPool3DGrad": [Example((volume, pooled3d, _grid(*pooled3d.shape)), pool3d)],
        "ResizeBilinear": [Example((image, np.array([4, 4], np.int32)))],
        "ResizeNearestNeighbor": [Example((image, np.array([4, 4], np.int32)))],
        "ResizeBicubic": [Example((image, np.array([4, 4], np.int32)))],
        "LRN": [Example((image,))],
        "ArgMax": [Example((row, axis1)), Example((row, axis0))],
        "ArgMin": [Example((row, axis1)), Example((row, axis0))],
        "TopKV2": [Example((row, np.int32(3))), Example((row, np.int32(WIDTH)))],
        "InTopK": [Example((row, labels.astype(np.int32)), {"k": 2})],
        "InTopKV2": [Example((row, labels.astype(np.int32), np.int32(2)))],
        "NthElement": [Example((row, np.int32(2)))],
        "Bucketize": [Example((POSITIVE,), {"boundaries": [0.1, 0.5]})],
        "LowerBound": [Example((np.sort(row, 1), row))],
        "UpperBound": [Example((np.sort(row, 1), row))],
        "Where": [Example((VALUES,))],
        "SegmentMax": [Example((row, segments))],
        "SegmentMin": [Example((row, segments))],
        "SegmentSum": [Example((row, segments))],
        "SegmentMean": [Example((row, segments))],
        "SegmentProd": [Example((row, segments))],
        "UnsortedSegmentMax": [Example((row, segments, np.int32(2)))],
        "UnsortedSegmentMin": [Example((row, segments, np.int32(2)))],
        "UnsortedSegmentSum": [Example((row, segments, np.int32(2)))],
        "UnsortedSegmentProd": [Example((row, segments, np.int32(2)))],
        "TensorScatterMax": [Example((row, np.array([[0], [1], [2]]), _grid(3, WIDTH) + 0.1))],
        "TensorScatterMin": [Example((row, np.array([[0], [1], [2]]), _grid(3, WIDTH) + 0.1))],
        "TensorScatterAdd": [Example((row, np.array([[0], [1], [2]]), _grid(3, WIDTH) + 0.1))],
        "Multinomial": [Example((row, np.int32(7)), {"seed": 1, "seed2": 1})],
        "StatelessMultinomial": [Example((row, np.int32(7), np.array([1, 2], np.int64)))],
        "FakeQuantWithMinMaxArgs": [Example((POSITIVE,))],
        "FakeQuantWithMinMaxVars": [Example((POSITIVE, np.float32(-1), np.float32(1)))],
        "NonMaxSuppressionV3": [
            Example(
                (
                    np.sort(_grid(5, 4), 1) + np.arange(5, dtype=np.float32)[:, None],
                    _grid(5),
                    np.int32(5),
                    np.float32(0.5),
                    np.float32(0.1),
                )
            )
        ],
        "FusedBatchNormV3": [
            Example((image, _grid(3), _grid(3), _grid(3), _grid(3)), {"is_training": training})
            for training in (True, False)
        ],
        "Cholesky": [Example((square + square.T,))],
        "MatrixInverse": [Example((square,))],
        "MatrixSolve": [Example((square, square))],
        "MatrixDeterminant": [Example((square,))],
        # These only move data.
        "Identity": [Example((row,))],
        "StopGradient": [Example((row,))],
        "PreventGradient": [Example((row,))],
        "Snapshot": [Example((row,))],
        "EnsureShape": [Example((row,), {"shape": list(row.shape)})],
        "IdentityN": [Example(([row, row],))],
        "Reshape": [Example((row, np.array([-1], np.int32)))],
        "BroadcastTo": [Example((row, np.array([2, 3, WIDTH], np.int32)))],
        "ConcatV2": [Example(([row, row], axis1))],
        "Diag": [Example((POSITIVE,))],
        "DiagPart": [Example((square,))],
        "ExpandDims": [Example((row, axis0))],
        "Fill": [Example((np.array([3], np.int32), np.float32(0.5)))],
        "Gather": [Example((row, np.array([0, 2], np.int32)))],
        "GatherV2": [Example((row, np.array([0, 2], np.int32), axis0))],
        "GatherNd": [Example((row, np.array([[0, 1]], np.int32)))],
        "MatrixBandPart": [Example((square, np.int64(1), np.int64(0)))],
        "MatrixDiag": [Example((POSITIVE,))],
        "MatrixDiagPart": [Example((square,))],
        "MatrixSetDiag": [Example((square, _grid(3)))],
        "MirrorPad": [Example((row, np.array([[1, 1], [2, 2]], np.int32)), {"mode": "REFLECT"})],
        "Pack": [Example(([row, row],))],
        "Pad": [Example((row, np.array([[1, 1], [2, 2]], np.int32)))],
        "PadV2": [Example((row, np.array([[1, 1], [2, 2]], np.int32), np.float32(0.0)))],
        "ReverseV2": [Example((row, np.array([1], np.int32)))],
        "Roll": [Example((row, np.int32(2), axis1))],
        "Select": [Example((condition, row, row))],
        "SelectV2": [Example((condition, row, row))],
        "Slice": [Example((row, start, size))],
        "Split": [Example((axis1, _grid(3, 4)), {"num_split": 2})],
        "SplitV": [Example((_grid(3, 4), np.array([1, 3], np.int32), axis1), {"num_split": 2})],
        "Squeeze": [Example((row[None],))],
        "StridedSlice": [Example((row, start, start + size, np.array([1, 2], np.int32)), squeezed)],
        "StridedSliceGrad": [
            Example(
                (
                    np.array(row.shape, np.int32),
                    start,
                    start + size,
                    np.ones(2, np.int32),
                    _grid(3, 4),
                ),
            )
        ],
        "TensorScatterUpdate": [Example((row, np.array([[0], [1], [2]]), _grid(3, WIDTH) + 0.1))],
        "Tile": [Example((row, np.array([1, 2], np.int32)))],
        "Transpose": [Example((row, np.array([1, 0], np.int32)))],
        "Unpack": [Example((row,), {"num": 3})],
        "SpaceToDepth": [Example((image,), {"block_size": 2})],
        "DepthToSpace": [Example((_grid(2, 2, 2, 4),), {"block_size": 2})],
        "DynamicPartition": [Example((row, segments), {"num_partitions": 2})],
        "DynamicStitch": [
            Example(([np.array([0, 2], np.int32), np.array([1], np.int32)], [row[:2], row[2:]]))
        ],
        "OneHot": [
            Example((np.array([0, 2], np.int32), np.int32(3), np.float32(1.0), np.float32(0.0)))
        ],
    }
    for name, activation in FUSED.items():
        table[f"MatMul+BiasAdd+{name}"] = [
            Example((row, _grid(WIDTH, 8), _grid(8)), {"f": activation})
        ]
        table[f"Conv2D+BiasAdd+{name}"] = [Example((image, filters, _grid(2)), {"f": activation})]
    return table


FUSED: Mapping[str, Callable[[Any], Any]] = {
    "Relu": tf.nn.relu,
    "Relu6": tf.nn.relu6,
    "Elu": tf.nn.elu,
    "LeakyRelu": tf.nn.leaky_relu,
    "Tanh": tf.nn.tanh,
    "Sigmoid": tf.nn.sigmoid,
}
"""Activations that TensorFlow fuses with a product and a bias."""


_RENAMED = {
    **{(name, "reduction_indices"): "axis" for name in influence.REDUCTIONS | {"All", "Any"}},
    ("ExpandDims", "dim"): "axis",
    ("Split", "split_dim"): "axis",
    ("SplitV", "split_dim"): "axis",
    ("Select", "t"): "x",
    ("Select", "e"): "y",
    ("Where", "input"): "condition",
}
"""Inputs that the Python function of an op calls otherwise than the op does."""


def _call(op_type: str, attrs: Mapping[str, Any], inputs: Sequence[Any]) -> list[Any]:
    """Run an op, or a chain of ops that graphs fuse, and return its outputs."""
    if "+" in op_type:
        product, *_ = op_type.split("+")
        attrs = dict(attrs)
        activation = attrs.pop("f")
        if product == "MatMul":
            made = tf.linalg.matmul(*inputs[:2])
        else:
            made = tf.nn.conv2d(*inputs[:2], strides=1, padding="VALID")
        return [activation(tf.nn.bias_add(made, inputs[2]))]
    name = op_type.partition(":")[0]
    definition = tf_eager.op_definition(name)
    function = getattr(tf.raw_ops, name)
    parameters = inspect.signature(function).parameters
    names = [argument.name for argument in definition.input_arg]
    names = [key if key in parameters else _RENAMED[name, key] for key in names]
    outputs = function(**dict(zip(names, inputs, strict=True)), **attrs)
    return list(tf.nest.flatten(outputs))


def _compile(op_type: str, example: Example, mode: str) -> Callable[[Sequence[Any]], list[Any]]:
    """A function of the float inputs of an example, flattened, in one of `MODES`."""
    flat = tf.nest.flatten(list(example.inputs))
    positions = [i for i, value in enumerate(flat) if _is_float(value)]

    def run(*floats: Any) -> list[Any]:
        values: list[Any] = [tf.constant(value) for value in flat]
        for position, value in zip(positions, floats, strict=True):
            values[position] = value
        return _call(op_type, example.attrs, tf.nest.pack_sequence_as(list(example.inputs), values))

    if mode == "eager":
        return lambda floats: run(*map(tf.constant, floats))
    compiled = tf.function(run, jit_compile=mode == "xla", autograph=False)
    return lambda floats: compiled(*map(tf.constant, floats))


def _is_float(value: Any) -> bool:
    return bool(np.asarray(value).dtype.kind in "fc")


@dataclass
class Outcome:
    """What came out where an element depended on the special one: letters of `OUTCOMES`."""

    letters: set[str] = field(default_factory=set)

    def note(self, healthy: Any, output: Any, is_reached: Any) -> None:
        """Look at the elements of an output that a special input element reaches."""
        output = np.asarray(output)
        if output.dtype.kind not in "fcV":
            if is_reached.any():
                self.letters.add("f")
            return
        wide = output.astype(np.complex128 if output.dtype.kind == "c" else np.float64)
        reached = wide[is_reached] if is_reached.shape == wide.shape else wide.reshape(-1)
        for element in reached:
            self.letters.add(_letter(element))


def _letter(element: Any) -> str:
    if np.isnan(element):
        return "n"
    if not np.isinf(element):
        return "f"
    return "m" if np.real(element) == -np.inf else "p"


def _placements(size: int) -> Iterator[Any]:
    """Which elements are made special: each of some alone, then all."""
    for at in sorted({0, 1, 2, 3, size // 2, size - 1} & set(range(size))):
        mask = np.zeros(size, bool)
        mask[at] = True
        yield mask
    yield np.ones(size, bool)


def behaviour(op_type: str, examples: Sequence[Example]) -> dict[int, dict[str, list[str]]]:
    """What an op gives: by input, then by special value, letters for each of `MODES`."""
    found: dict[int, dict[str, list[str]]] = {}
    for number, mode in enumerate(MODES):
        outcomes: dict[tuple[int, str], Outcome] = {}
        failures: dict[tuple[int, str], str] = {}
        for example in examples:
            _run_example(op_type, example, mode, outcomes, failures)
        for i, special in dict.fromkeys([*outcomes, *failures]):
            letters = "".join(sorted(outcomes.get((i, special), Outcome()).letters))
            entry = found.setdefault(i, {}).setdefault(special, [""] * len(MODES))
            entry[number] = letters or failures.get((i, special), "")
    return found


def _run_example(
    op_type: str,
    example: Example,
    mode: str,
    outcomes: dict[tuple[int, str], Outcome],
    failures: dict[tuple[int, str], str],
) -> None:
    flat = tf.nest.flatten(list(example.inputs))
    owner = [i for i, part in enumerate(example.inputs) for _ in tf.nest.flatten([part])]
    floats = [np.asarray(value) for value in flat if _is_float(value)]
    owners = [i for i, value in zip(owner, flat, strict=True) if _is_float(value)]
    run = _compile(op_type, example, mode)
    try:
        healthy = [np.asarray(output) for output in run(floats)]
    except Exception:
        for i in owners:
            for special in SPECIALS:
                failures[i, special] = "-"
        return
    for at, (i, array) in enumerate(zip(owners, floats, strict=True)):
        for marked in _placements(array.size):
            reaches = _reach(run, floats, at, marked, healthy)
            for special, value in SPECIALS.items():
                changed = array.copy().reshape(-1)
                changed[marked] = value
                inputs = [*floats]
                inputs[at] = changed.reshape(array.shape)
                try:
                    outputs = run(inputs)
                except Exception:
                    failures[i, special] = "!"
                    continue
                outcome = outcomes.setdefault((i, special), Outcome())
                for output, clean, is_reached in zip(outputs, healthy, reaches, strict=True):
                    outcome.note(clean, output, is_reached)


def _reach(
    run: Callable[[Sequence[Any]], list[Any]],
    floats: Sequence[Any],
    at: int,
    marked: Any,
    healthy: Sequence[Any],
) -> list[Any]:
    """Which output elements depend on the marked ones: those that some finite change changes."""
    reached = [np.zeros(clean.shape, bool) for clean in healthy]
    for change in (0.01, -0.01, 0.37, 3.0, -3.0):
        changed = floats[at].copy().reshape(-1)
        changed[marked] += changed.dtype.type(change)
        inputs = [*floats]
        inputs[at] = changed.reshape(floats[at].shape)
        try:
            outputs = [np.asarray(output) for output in run(inputs)]
        except Exception:  # a kernel refuses the changed value; the other changes tell
            continue
        for k, (clean, output) in enumerate(zip(healthy, outputs, strict=True)):
            if output.shape == clean.shape:
                reached[k] |= ~np.isclose(output, clean, rtol=0, atol=0, equal_nan=True)
    return reached


def table_lines(op_types: Sequence[str] | None = None) -> list[str]:
    """The lines of the table: op, input, special value, letters by mode."""
    lines: list[str] = []
    for op_type, examples in sorted(_examples().items()):
        if op_types is not None and op_type not in op_types:
            continue
        for i, by_special in sorted(behaviour(op_type, examples).items()):
            for special, letters in by_special.items():
                lines.append(f"{op_type} {i} {special} {' '.join(text or '=' for text in letters)}")
    return lines


def op_types() -> list[str]:
    """Every op type that the table has rows of."""
    return sorted(_examples())


if __name__ == "__main__":
    Path(str(TABLE)).write_text(HEADER + "\n".join(table_lines()) + "\n")
