"""How an op's output elements depend on its input elements.

`influence_of` picks the rule of the op type. Ops that move data need no rule: they are run once
more on numbered elements. An op without a rule gets `Everything`, which `walk.assign_blame` makes
sharper by running the op again with cleaned inputs. Pure NumPy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nanreplay.bisect import tensor_stats
from nanreplay.bisect.tensor_stats import Mask, is_float, is_opaque, is_repeated, none_of, words
from nanreplay.capture.arrays import as_array
from nanreplay.replay.provenance import OpEvent

Labels: TypeAlias = tuple[Hashable, ...]
"""One label an axis, as in an einsum: what is equal in input and output goes together."""
Shape: TypeAlias = tuple[int, ...]
Execute: TypeAlias = Callable[[OpEvent, Sequence[Any]], Sequence[Any]]
"""Runs an event's kernel on other inputs."""


class Influence(Protocol):
    """The element-wise dependences of one execution of an op."""

    @property
    def exact(self) -> bool:
        """Whether it is known which elements depend on which."""
        ...

    @property
    def in_shapes(self) -> Sequence[Shape]:
        """Shape of each input."""
        ...

    def forth(self, i: int, k: int, mask: Mask) -> Mask:
        """Return the elements of output k that the marked elements of input i influence."""
        ...

    def back(self, i: int, k: int, mask: Mask) -> Mask:
        """Return the elements of input i that influence the marked elements of output k."""
        ...


# Tables of op types, by how their elements depend on each other.

ELEMENTWISE = words(
    "Abs Acos Acosh Add AddN AddV2 AccumulateNV2 Angle Asin Asinh Atan Atan2 Atanh BesselI0 "
    "BesselI0e BesselI1 BesselI1e BesselJ0 BesselJ1 BesselK0 BesselK0e BesselK1 BesselK1e "
    "BesselY0 BesselY1 Betainc Cast Ceil CheckNumerics CheckNumericsV2 ClipByValue ComplexAbs "
    "Complex Conj Cos Cosh Dawsn Digamma Div DivNoNan Elu EluGrad Erf Erfc Erfinv Exp Expint "
    "Expm1 Floor FloorDiv FloorMod FresnelCos FresnelSin Igamma IgammaGradA Igammac Imag Inv "
    "InvGrad LeakyRelu LeakyReluGrad Lgamma Log Log1p Maximum Minimum Mod Mul MulNoNan Ndtri "
    "Neg NextAfter Polygamma Pow Real RealDiv Reciprocal ReciprocalGrad Relu Relu6 Relu6Grad "
    "ReluGrad Rint Round Rsqrt RsqrtGrad Selu SeluGrad Sigmoid SigmoidGrad Sign Sin Sinh "
    "Softplus SoftplusGrad Softsign SoftsignGrad Spence Sqrt SqrtGrad Square "
    "SquaredDifference Sub Tan Tanh TanhGrad TruncateDiv TruncateMod Xdivy Xlog1py Xlogy Zeta "
    "_MklSwish"
)
"""Ops whose output element depends on the (broadcast) input elements at its own index."""
COMPARISONS = words(
    "ApproximateEqual Equal Greater GreaterEqual IsFinite IsInf IsNan Less LessEqual NotEqual"
)
"""Ops that tell of each (broadcast) element whether something holds."""
LOGICAL = words("LogicalAnd LogicalNot LogicalOr")
REDUCTIONS = words("Sum Mean Max Min Prod EuclideanNorm")
ROWWISE = frozenset({"Softmax", "LogSoftmax"})
ACCUMULATIONS = frozenset({"Cumsum", "Cumprod", "CumulativeLogsumexp"})
COPIES = words("Identity IdentityN StopGradient PreventGradient Snapshot EnsureShape Reshape")
MOVEMENTS = COPIES | words(
    "BatchToSpace BatchToSpaceND BroadcastTo Concat ConcatV2 DepthToSpace Diag DiagPart "
    "DynamicPartition DynamicStitch ExpandDims Fill Gather GatherNd GatherV2 MatrixBandPart "
    "MatrixDiag MatrixDiagPart MatrixDiagPartV2 MatrixDiagPartV3 MatrixDiagV2 MatrixDiagV3 "
    "MatrixSetDiag MatrixSetDiagV2 MatrixSetDiagV3 MirrorPad Pack Pad PadV2 ParallelDynamicStitch "
    "Reverse ReverseSequence ReverseV2 Roll Select SelectV2 Slice SpaceToBatch SpaceToBatchND "
    "SpaceToDepth Split SplitV Squeeze StridedSlice StridedSliceGrad TensorScatterUpdate Tile "
    "Transpose Unpack"
)
"""Ops whose output elements are copies of input elements (or padding)."""
BATCHED = words(
    "Conv Conv1D Conv2D Conv3D DepthwiseConv2dNative AvgPool AvgPool3D MaxPool MaxPool3D "
    "MaxPoolGrad MaxPool3DGrad ResizeBilinear ResizeNearestNeighbor ResizeBicubic LRN"
)
"""Ops that treat each entry of axis 0 of their first input by itself.

The gradients among them do so with every input of that input's rank.
"""


def influence_of(event: OpEvent, execute: Execute) -> Influence:
    """Return the element-wise dependences of one execution of an op.

    Args:
        event: The execution.
        execute: Runs the event's kernel on other inputs.
    """
    in_shapes = [_shape(value) for value in event.inputs]
    out_shapes = [_shape(value) for value in event.outputs]
    try:
        influence = _known_influence(event, execute, in_shapes, out_shapes)
    except Exception:  # a kernel refused numbered elements, or a shape is not what the rule expects
        influence = None
    return influence or Everything(in_shapes, out_shapes)


def _known_influence(
    event: OpEvent, execute: Execute, in_shapes: list[Shape], out_shapes: list[Shape]
) -> Influence | None:
    if event.type in COPIES:
        return Copies(in_shapes, out_shapes)
    if event.type in MOVEMENTS:
        return _traced_movement(event, execute, in_shapes)
    rule = _RULES.get(event.type)
    if rule is None:
        return None
    inputs, outputs = rule(event, in_shapes, out_shapes)
    return ByLabels(inputs, outputs, in_shapes, out_shapes)


def _shape(value: Any) -> Shape:
    return () if is_opaque(value) else tuple(map(int, value.shape))


# The four kinds of dependences: `Copies` hand input k on as output k, `ByLabels` name axes as an
# einsum does, `BySources` were seen moving numbered elements, `Everything` knows nothing. All carry
# a mask both ways: `forth` to what input elements reach, `back` to what output elements take.


@dataclass(frozen=True, slots=True)
class ByLabels:
    """Element-wise ops, reductions, products and row-wise ops: axes with one label go together."""

    inputs: Sequence[Labels | None]
    """Labels of each input; None for one that says only how (an axis, a shape)."""
    outputs: Sequence[Labels | None]
    in_shapes: Sequence[Shape]
    out_shapes: Sequence[Shape]
    exact: bool = True

    def forth(self, i: int, k: int, mask: Mask) -> Mask:
        """See `Influence`."""
        source, target = self.inputs[i], self.outputs[k]
        if source is None or target is None:
            return none_of(self.out_shapes[k])
        return project(mask, source, target, self.out_shapes[k])

    def back(self, i: int, k: int, mask: Mask) -> Mask:
        """See `Influence`."""
        source, target = self.outputs[k], self.inputs[i]
        if source is None or target is None:
            return none_of(self.in_shapes[i])
        return project(mask, source, target, self.in_shapes[i])


def project(mask: Mask, source: Labels, target: Labels, shape: Shape) -> Mask:
    """Carry a mask over axes labelled `source` to axes labelled `target` of the given shape.

    An axis that the target lacks is reduced with "any", one that only the target has is broadcast.
    So for a matrix product, (row, inner) to (row, column), a marked element of the left matrix
    marks its whole row of the product; and back, a marked element of the product marks its whole
    row of the left matrix.
    """
    if is_repeated(mask) and mask.size:  # what is everywhere is everywhere on all other axes, too
        return tensor_stats.repeated(bool(mask.flat[0]), shape)
    gone = tuple(axis for axis, label in enumerate(source) if label not in target)
    if gone:
        mask = as_array(mask.any(axis=gone))
        source = tuple(label for label in source if label in target)
    mask = mask.transpose([source.index(label) for label in target if label in source])
    mask = mask[tuple(slice(None) if label in source else None for label in target)]
    # On the way back through a broadcast op, an axis of size 1 takes what all its copies have.
    sizes = zip(mask.shape, shape, strict=True)
    broadcast_axes = tuple(axis for axis, (has, wants) in enumerate(sizes) if wants == 1 < has)
    if broadcast_axes:
        mask = as_array(mask.any(axis=broadcast_axes, keepdims=True))
    return np.broadcast_to(mask, shape)


@dataclass(frozen=True, slots=True)
class BySources:
    """Ops that only move data, known by what they did to numbered elements."""

    sources: Sequence[NDArray[np.int64]]
    """For each output, the number of the element that came there, 0 for none (padding)."""
    offsets: Sequence[int | None]
    """Elements of input i are numbered from `offsets[i]`; None for an input that is not data."""
    in_shapes: Sequence[Shape]
    exact: bool = True

    def forth(self, i: int, k: int, mask: Mask) -> Mask:
        """See `Influence`."""
        offset, source = self.offsets[i], self.sources[k]
        if offset is None:
            return np.zeros(source.shape, bool)
        is_of_input = (source >= offset) & (source < offset + mask.size)
        moved = np.zeros(source.shape, bool)
        moved[is_of_input] = mask.reshape(-1)[source[is_of_input] - offset]
        return moved

    def back(self, i: int, k: int, mask: Mask) -> Mask:
        """See `Influence`."""
        offset, shape = self.offsets[i], self.in_shapes[i]
        reached = np.zeros(int(np.prod(shape, dtype=np.int64)), bool)
        if offset is not None:
            numbers = self.sources[k][mask]
            is_of_input = (numbers >= offset) & (numbers < offset + reached.size)
            reached[numbers[is_of_input] - offset] = True
        return reached.reshape(shape)


def _traced_movement(event: OpEvent, execute: Execute, in_shapes: list[Shape]) -> BySources:
    """Run an op that moves data on elements numbered from 1 through all inputs.

    The output then tells where each element came from. A ConcatV2 of [a, b] and [c] is run on
    [1, 2] and [3]; where it gives [1, 2, 3], the last element came from c.
    """
    offsets: list[int | None] = []
    numbered: list[Any] = []
    following = 1  # 0 is what padding gives
    for value, shape in zip(event.inputs, in_shapes, strict=True):
        if not is_float(value):  # an index, a shape, a condition: it says how to move
            offsets.append(None)
            numbered.append(value)
            continue
        size = int(np.prod(shape, dtype=np.int64))
        offsets.append(following)
        numbered.append(np.arange(following, following + size, dtype=np.int64).reshape(shape))
        following += size
    numbered_event = dataclasses.replace(event, attrs=_attrs_for_int64(event))
    sources = list(map(as_array, execute(numbered_event, numbered)))
    return BySources(sources, offsets, in_shapes)


_DT_INT64 = 9
"""Number of DT_INT64 in TensorFlow's enum of types."""


def _attrs_for_int64(event: OpEvent) -> dict[str, Any]:
    """Return an event's attributes with the data's dtype exchanged for int64.

    Floats would not do: float16 holds integers up to 2048 only.
    """
    data = next(value for value in event.outputs if is_float(value))
    data_type = int(data.dtype.as_datatype_enum)
    attrs = dict(event.attrs)
    for name, value in event.attrs.items():
        if value.HasField("type") and value.type == data_type:
            attrs[name] = type(value)(type=_DT_INT64)
    return attrs


@dataclass(frozen=True, slots=True)
class Copies:
    """Ops that hand input k on as output k, in another shape at most."""

    in_shapes: Sequence[Shape]
    out_shapes: Sequence[Shape]
    exact: bool = True

    def forth(self, i: int, k: int, mask: Mask) -> Mask:
        """See `Influence`."""
        shape = self.out_shapes[k]
        return tensor_stats.reshaped(mask, shape) if i == k else none_of(shape)

    def back(self, i: int, k: int, mask: Mask) -> Mask:
        """See `Influence`."""
        shape = self.in_shapes[i]
        return tensor_stats.reshaped(mask, shape) if i == k else none_of(shape)


@dataclass(frozen=True, slots=True)
class Everything:
    """An op without a rule: every element may depend on every other."""

    in_shapes: Sequence[Shape]
    out_shapes: Sequence[Shape]
    exact: bool = False

    def forth(self, i: int, k: int, mask: Mask) -> Mask:
        """See `Influence`."""
        return np.full(self.out_shapes[k], bool(mask.any()))

    def back(self, i: int, k: int, mask: Mask) -> Mask:
        """See `Influence`."""
        return np.full(self.in_shapes[i], bool(mask.any()))


# Rules that give each axis of an execution its label. Labels are any hashable values: numbers for
# axes that go through (counted from the right-aligned output), text for those of a meaning.

LabelsOfAll: TypeAlias = tuple[Sequence[Labels | None], Sequence[Labels | None]]
"""Labels of the inputs, labels of the outputs."""
LabelRule: TypeAlias = Callable[[OpEvent, list[Shape], list[Shape]], LabelsOfAll]


def _axes(rank: int, out_rank: int | None = None) -> Labels:
    """Return the labels of a tensor that is broadcast to `out_rank` axes from the right."""
    last = out_rank or rank
    return tuple(range(last - rank, last))


def _elementwise(event: OpEvent, ins: list[Shape], outs: list[Shape]) -> LabelsOfAll:
    rank = len(outs[0])
    return [_axes(len(shape), rank) for shape in ins], [_axes(len(shape)) for shape in outs]


def _reduction(event: OpEvent, ins: list[Shape], outs: list[Shape]) -> LabelsOfAll:
    rank = len(ins[0])
    reduced: set[int] = set()
    if rank:
        reduced = set()
        for axis in as_array(event.inputs[1]).reshape(-1):
            reduced.add(int(axis) % rank)
    keeps_dims = _flag(event, "keep_dims")
    output: list[Hashable] = []
    for axis in range(rank):
        if axis not in reduced:
            output.append(axis)
        elif keeps_dims:
            output.append(("reduced", axis))
    return [_axes(rank), None], [tuple(output)]


def _to_scalar(event: OpEvent, ins: list[Shape], outs: list[Shape]) -> LabelsOfAll:
    return [_axes(len(shape)) for shape in ins], [()]


def _rowwise(event: OpEvent, ins: list[Shape], outs: list[Shape]) -> LabelsOfAll:
    rank = len(ins[0])
    return [_axes(rank)], [(*range(rank - 1), "row")]


def _accumulation(event: OpEvent, ins: list[Shape], outs: list[Shape]) -> LabelsOfAll:
    rank = len(ins[0])
    accumulated = int(as_array(event.inputs[1])) % rank
    output = tuple("along" if axis == accumulated else axis for axis in range(rank))
    return [_axes(rank), None], [output]


def _cross_entropy(event: OpEvent, ins: list[Shape], outs: list[Shape]) -> LabelsOfAll:
    labels = ("row", "class") if len(ins[1]) == 2 else ("row",)
    return [("row", "class"), labels], [("row",), ("row", "other class")]


def _matmul(event: OpEvent, ins: list[Shape], outs: list[Shape]) -> LabelsOfAll:
    rank = len(outs[0])
    is_a_transposed = _flag(event, "transpose_a") or _flag(event, "adj_x")
    is_b_transposed = _flag(event, "transpose_b") or _flag(event, "adj_y")
    a = ("inner", "row") if is_a_transposed else ("row", "inner")
    b = ("column", "inner") if is_b_transposed else ("inner", "column")
    batch = []
    for shape in ins[:2]:
        batch.append(_axes(len(shape) - 2, rank - 2) if len(shape) > 2 else ())
    fused = [("column",)] * (len(ins) - 2)  # the biases of a _FusedMatMul
    return [(*batch[0], *a), (*batch[1], *b), *fused], [(*range(rank - 2), "row", "column")]


def _bias(event: OpEvent, ins: list[Shape], outs: list[Shape]) -> LabelsOfAll:
    rank = len(outs[0])
    return [_axes(rank), (_channel_axis(event, rank),)], [_axes(rank)]


def _bias_gradient(event: OpEvent, ins: list[Shape], outs: list[Shape]) -> LabelsOfAll:
    rank = len(ins[0])
    return [_axes(rank)], [(_channel_axis(event, rank),)]


def _batched(event: OpEvent, ins: list[Shape], outs: list[Shape]) -> LabelsOfAll:
    rank = len(ins[0])
    inputs: list[Labels | None] = []
    for i, shape in enumerate(ins):
        labels = [f"in{i}.{axis}" for axis in range(len(shape))]
        if i == 0 or (event.type.endswith("Grad") and len(shape) == rank):
            labels[:1] = ["sample"]
        inputs.append(tuple(labels))
    outputs = []
    for shape in outs:
        outputs.append(("sample", *(f"out.{axis}" for axis in range(1, len(shape)))))
    return inputs, outputs


def _recurrent(event: OpEvent, ins: list[Shape], outs: list[Shape]) -> LabelsOfAll:
    """CudnnRNN and its gradient: samples go by themselves, parameters touch all of them."""
    samples = 1 if "time_major" not in event.attrs or event.attrs["time_major"].b else 0
    labels: list[Labels] = []
    for number, shape in enumerate((*ins, *outs)):
        own: list[Hashable] = [(number, axis) for axis in range(len(shape))]
        if len(shape) == 3:
            own[samples] = "sample"
        labels.append(tuple(own))
    return labels[: len(ins)], labels[len(ins) :]


def _einsum(event: OpEvent, ins: list[Shape], outs: list[Shape]) -> LabelsOfAll:
    equation = event.attrs["equation"].s.decode().replace(" ", "")
    operands, result = equation.split("->")
    terms = operands.split(",")
    longest = 0  # the most axes that an ellipsis stands for
    for term, shape in zip(terms, ins, strict=True):
        longest = max(longest, len(shape) - len(term.replace("...", "")))
    inputs = [_einsum_labels(term, shape, longest) for term, shape in zip(terms, ins, strict=True)]
    return inputs, [_einsum_labels(result, outs[0], longest)]


def _einsum_labels(term: str, shape: Shape, longest: int) -> Labels:
    """Return the labels of one term of an equation; axes of `...` are aligned from the right."""
    before, dots, after = term.partition("...")
    ellipsis_rank = len(shape) - len(before) - len(after) if dots else 0
    labels = (*before, *range(longest - ellipsis_rank, longest), *after)
    if len(set(labels)) < len(labels):
        raise ValueError("A diagonal has no label of its own.")
    return labels


def _flag(event: OpEvent, name: str) -> bool:
    return bool(event.attrs[name].b) if name in event.attrs else False


def _channel_axis(event: OpEvent, rank: int) -> int:
    data_format = event.attrs["data_format"].s if "data_format" in event.attrs else b""
    return 1 if data_format.startswith(b"NC") else rank - 1


_RULES: dict[str, LabelRule] = {
    **dict.fromkeys(ELEMENTWISE | COMPARISONS | LOGICAL, _elementwise),
    **dict.fromkeys(REDUCTIONS | words("All Any ArgMax ArgMin"), _reduction),
    **dict.fromkeys(ROWWISE, _rowwise),
    **dict.fromkeys(ACCUMULATIONS, _accumulation),
    **dict.fromkeys(BATCHED, _batched),
    **dict.fromkeys(words("MatMul BatchMatMul BatchMatMulV2 BatchMatMulV3 _FusedMatMul"), _matmul),
    **dict.fromkeys(words("CudnnRNN CudnnRNNV2 CudnnRNNV3"), _recurrent),
    **dict.fromkeys(words("CudnnRNNBackprop CudnnRNNBackpropV2 CudnnRNNBackpropV3"), _recurrent),
    "SoftmaxCrossEntropyWithLogits": _cross_entropy,
    "SparseSoftmaxCrossEntropyWithLogits": _cross_entropy,
    "BiasAdd": _bias,
    "BiasAddGrad": _bias_gradient,
    "Einsum": _einsum,
    "L2Loss": _to_scalar,
}
