"""How large an op's output will be, where its inputs say so: a small graph can ask for terabytes.

Known of ops whose output is larger than their inputs: filled and random tensors, repetition,
broadcasting. The rest grow step by step, and the limit of the process (`limits`) holds for them.
`safety` asks before a replay, the interpreter before each op.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from nanreplay.limits import check_size
from nanreplay.program.graph_nodes import constant_array, data_inputs, dimensions, op_name
from nanreplay.tensorflow_internals.tf_eager import op_definition

Shape: TypeAlias = "tuple[int, ...] | None"
Values: TypeAlias = Callable[[int], Any]
"""The numbers of the i-th input as an array; None where they are not known."""
_MAX_SHAPE_ELEMENTS = 1024
"""Elements of an input that is taken for a shape or a count; a larger one is no such thing."""


def output_bytes(op_type: str, shapes: Sequence[Shape], values: Values, kind: int) -> int:
    """The least that the first output of an op will take; 0 where nothing is known.

    Args:
        op_type: Type of the op.
        shapes: Shapes of its inputs.
        values: See `Values`.
        kind: DataType enum of the output.
    """
    rule = _RULES.get(op_type)
    elements = rule(shapes, values) if rule is not None else 0
    return elements * _itemsize(kind)


def has_rule(op_type: str) -> bool:
    """Whether `output_bytes` knows anything of an op."""
    return op_type in _RULES


def check_constant_sizes(nodes: Iterable[tuple[str, Any]]) -> None:
    """Refuse a program that makes a huge tensor whatever it is fed with.

    Args:
        nodes: (function, NodeDef) of the main graph ("") and of all functions.

    Raises:
        MemoryLimitError: It does.
    """
    by_function: dict[str, dict[str, Any]] = {}
    for function, node in nodes:
        by_function.setdefault(function, {})[node.name] = node
    for function, siblings in by_function.items():
        inside = f" in function {function!r}" if function else ""
        for node in siblings.values():
            subject = f"{node.op} {node.name!r}{inside} is refused: its tensor"
            if node.op == "Const":
                proto = node.attr["value"].tensor
                n_elements = math.prod(max(size, 0) for size in dimensions(proto.tensor_shape))
                check_size(subject, n_elements * _itemsize(proto.dtype))
            elif has_rule(node.op):
                _check_node(subject, node, siblings)


def _check_node(subject: str, node: Any, siblings: dict[str, Any]) -> None:
    """Refuse a node whose constant inputs say that its output is huge.

    Args:
        subject: Begins the message.
        node: The NodeDef.
        siblings: All nodes of its graph, by name.
    """
    protos: list[Any] = []
    """The TensorProto of each input; None for one that is no constant."""
    for name in data_inputs(node):
        source = siblings.get(op_name(name))
        if source is not None and source.op == "Const":
            protos.append(source.attr["value"].tensor)
        else:
            protos.append(None)
    shapes = [None if proto is None else dimensions(proto.tensor_shape) for proto in protos]

    def values(index: int) -> Any:
        proto = protos[index] if index < len(protos) else None
        if proto is None or math.prod(shapes[index] or ()) > _MAX_SHAPE_ELEMENTS:
            return None
        try:
            return constant_array(proto)
        except (TypeError, ValueError):  # importing the graph says what is wrong with it
            return None

    definition = op_definition(node.op)
    if definition is not None and definition.output_arg:
        output = definition.output_arg[0]
        kind = output.type or node.attr[output.type_attr].type
        check_size(subject, output_bytes(node.op, shapes, values, kind))


def check_output(subject: str, op_type: str, inputs: Sequence[Any], kind: int) -> None:
    """Refuse an op, before it runs, whose output would be too large.

    Args:
        subject: The op, to be named.
        op_type: Its type.
        inputs: Its input tensors.
        kind: DataType enum of its first output.

    Raises:
        MemoryLimitError: It would be.
    """

    def values(index: int) -> Any:
        tensor = inputs[index] if index < len(inputs) else None
        if tensor is None or _is_handle(tensor):
            return None
        return None if tensor.shape.num_elements() > _MAX_SHAPE_ELEMENTS else tensor.numpy()

    shapes = [None if _is_handle(tensor) else tuple(tensor.shape) for tensor in inputs]
    check_size(f"{subject} is refused: its tensor", output_bytes(op_type, shapes, values, kind))


def _is_handle(tensor: Any) -> bool:
    return tensor.dtype in (tf.resource, tf.variant)


def _itemsize(kind: int) -> int:
    try:
        return max(int(tf.dtypes.as_dtype(kind).size), 1)
    except TypeError:  # no type at all; importing the graph says so
        return 1


# The rules: (shapes of the inputs, values of the inputs) -> elements of the first output. Each
# gives the least that is certain, so that no program is refused that would fit.


def _count(numbers: Any) -> int:
    """Elements of a shape given as numbers; 0 where it is not known or none."""
    if numbers is None or np.asarray(numbers).dtype.kind not in "iu":
        return 0
    return math.prod(max(int(size), 0) for size in np.asarray(numbers).reshape(-1))


def _elements(shape: Shape) -> int:
    """Elements of a tensor; at least one where its shape is not known."""
    return 1 if shape is None else math.prod(shape)


def _shaped_by(index: int) -> Callable[[Sequence[Shape], Values], int]:
    return lambda shapes, values: _count(values(index))


def _repeated(shapes: Sequence[Shape], values: Values) -> int:
    return _elements(shapes[0]) * _count(values(1))


def _range(shapes: Sequence[Shape], values: Values) -> int:
    start, limit, delta = (values(index) for index in range(3))
    if start is None or limit is None or delta is None or not float(delta):
        return 0
    steps = (float(limit) - float(start)) / float(delta)
    return max(0, math.ceil(steps)) if math.isfinite(steps) else 0


def _pad(shapes: Sequence[Shape], values: Values) -> int:
    paddings = values(1)
    if paddings is None or np.asarray(paddings).ndim != 2 or np.asarray(paddings).shape[1] != 2:
        return 0
    sizes = shapes[0]
    if sizes is None or len(sizes) != len(paddings):
        sizes = (0,) * len(paddings)
    total = 1
    for size, (before, after) in zip(sizes, paddings, strict=True):
        total *= size + max(int(before), 0) + max(int(after), 0)
    return total


def _segments(shapes: Sequence[Shape], values: Values) -> int:
    data, ids = shapes[0], shapes[1]  # the dimensions of the ids become one: the number of segments
    inner = 1 if data is None or ids is None else math.prod(data[len(ids) :])
    return inner * _count(values(2))


def _resized(shapes: Sequence[Shape], values: Values) -> int:
    images = shapes[0]  # [batch, height, width, channels]; height and width are the new ones
    kept = 1 if images is None or len(images) != 4 else images[0] * images[3]
    return kept * _count(values(1))


def _broadcast(shapes: Sequence[Shape], values: Values) -> int:
    """[8, 1] and [5] give [8, 5]: shapes are aligned at their ends; the larger size counts."""
    known = [shape for shape in shapes if shape is not None]
    count = 1
    # from the last axis on; where a shape has ended, it is as if it were 1
    for sizes in itertools.zip_longest(*map(reversed, known), fillvalue=1):
        count *= 0 if 0 in sizes else max(sizes)
    return count


_SHAPED_BY_FIRST = """
    Fill Empty RandomUniform RandomUniformInt RandomStandardNormal TruncatedNormal
    ParameterizedTruncatedNormal RandomGamma RandomPoisson RandomPoissonV2 NonDeterministicInts
    StatelessRandomUniform StatelessRandomUniformV2 StatelessRandomUniformInt
    StatelessRandomUniformIntV2 StatelessRandomUniformFullInt StatelessRandomUniformFullIntV2
    StatelessRandomNormal StatelessRandomNormalV2 StatelessTruncatedNormal
    StatelessTruncatedNormalV2 StatelessRandomBinomial StatelessRandomGammaV2
    StatelessRandomGammaV3 StatelessRandomPoisson StatelessParameterizedTruncatedNormal
""".split()
_SHAPED_BY_THIRD = """
    ScatterNd LinSpace StatefulUniform StatefulUniformInt StatefulUniformFullInt
    StatefulStandardNormalV2 StatefulTruncatedNormal
""".split()
_SEGMENTS = "UnsortedSegmentSum UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd".split()
_RESIZES = "ResizeArea ResizeBicubic ResizeBilinear ResizeNearestNeighbor".split()
_BROADCASTS = """
    Add AddV2 Sub Mul MulNoNan Div DivNoNan RealDiv FloorDiv FloorMod Mod TruncateDiv Maximum
    Minimum Pow SquaredDifference Equal NotEqual Less LessEqual Greater GreaterEqual LogicalAnd
    LogicalOr SelectV2 Xdivy Xlogy Xlog1py Atan2 BitwiseAnd BitwiseOr BitwiseXor Complex Igamma
    Igammac Zeta Polygamma
""".split()
_RULES: dict[str, Callable[[Sequence[Shape], Values], int]] = {
    **dict.fromkeys(_SHAPED_BY_FIRST, _shaped_by(0)),
    **dict.fromkeys(["BroadcastTo", "SparseToDense", "Bincount"], _shaped_by(1)),
    **dict.fromkeys(_SHAPED_BY_THIRD, _shaped_by(2)),
    **dict.fromkeys(["Pad", "PadV2", "MirrorPad"], _pad),
    **dict.fromkeys(_SEGMENTS, _segments),
    **dict.fromkeys(_RESIZES, _resized),
    **dict.fromkeys(_BROADCASTS, _broadcast),
    "Tile": _repeated,
    "OneHot": _repeated,
    "Range": _range,
}
